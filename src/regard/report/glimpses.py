"""Where a mechanism that chooses looked, from its Record: one picture of the path, and the stages as an animation."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from regard.errors import DataError
from regard.record import Record
from regard.report.pictures import preview
from regard.trace import Trace

# Okabe and Ito's colours, which people with any colour vision tell apart, without black and grey.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
LONGEST, CAPTION = 560, 26  # pixels
FRAME = 700  # milliseconds


def path(record: Record) -> Image.Image:
    """The photo, lit where it was read, with the regions in the colour of their stage and the fixations in order."""
    trace, photo = _traced(record), _enlarged(record)
    lit = _lit(record, trace, photo, 0 if trace.narrows else trace.exit)
    draw = ImageDraw.Draw(lit)
    for box, stage in _in_order(record, trace):
        draw.rectangle(_on(box, photo), outline=COLOURS[stage % len(COLOURS)], width=2)
    places = [(x * photo.width, y * photo.height) for x, y in trace.fixations]
    if len(places) > 1:
        draw.line(places, "white", 2)
    for number, (x, y) in enumerate(places):
        draw.ellipse((x - 9, y - 9, x + 9, y + 9), fill=COLOURS[number % len(COLOURS)], outline="white")
        draw.text((x, y), str(number + 1), "black", ImageFont.load_default(13), anchor="mm")
    return _captioned(lit, caption(trace))


def animation(record: Record) -> bytes:
    """An animated PNG: what has been read after each stage and what is new in it, or what each still reads."""
    trace, photo = _traced(record), _enlarged(record)
    frames = []
    for stage in range(trace.exit + 1):
        frame = _lit(record, trace, photo, stage)
        draw = ImageDraw.Draw(frame)
        for box, at in _in_order(record, trace):
            if at == stage or (trace.narrows and at > stage):
                draw.rectangle(_on(box, photo), outline=COLOURS[stage % len(COLOURS)], width=3)
        frames.append(_captioned(frame, f"{trace.mechanism}, stage {stage + 1} of {trace.exit + 1}"))
    frames.append(_captioned(frames[-1].crop((0, 0, *photo.size)), caption(trace)))
    file = io.BytesIO()
    times = [FRAME] * (len(frames) - 1) + [3 * FRAME]
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:], duration=times, loop=0)
    return file.getvalue()


def caption(trace: Trace) -> str:
    """What it made of the image, and what it took."""
    share = f", {trace.macs / trace.macs_full:.0%} of all" if trace.macs_full else ""
    best = max(trace.probabilities)
    macs = f"{trace.macs / 1e9:.2f} G" if trace.macs >= 1e9 else f"{trace.macs / 1e6:.3g} M"
    took = f"{trace.tokens} tokens, {macs} MACs{share}"
    return f"{trace.mechanism}: {trace.answer} ({best:.0%}) at stage {trace.exit + 1}; {took}"


def _traced(record: Record) -> Trace:
    if record.trace is None:
        raise DataError("the record is not of a mechanism that chooses where to look: it has no trace")
    return record.trace


def _enlarged(record: Record) -> Image.Image:
    """The preview, with its pixels as squares where it is small."""
    photo = preview(record)
    times = LONGEST / max(photo.size)
    size = (max(1, round(photo.width * times)), max(1, round(photo.height * times)))
    return photo.resize(size, Image.Resampling.NEAREST if times > 3 else Image.Resampling.LANCZOS)


def _lit(record: Record, trace: Trace, photo: Image.Image, stage: int) -> Image.Image:
    """The photo where `Trace.read_at` the stage says so, dark and grey elsewhere."""
    seen = Image.new("L", photo.size, 0)
    draw = ImageDraw.Draw(seen)
    for box, read in zip(record.boxes, trace.read_at(stage), strict=True):
        if read:
            draw.rectangle(_on(box, photo), fill=255)
    dark = Image.fromarray((np.asarray(photo.convert("L").convert("RGB")) * 0.3).astype(np.uint8))
    return Image.composite(photo, dark, seen)


def _in_order(record: Record, trace: Trace) -> list[tuple[tuple[float, ...], int]]:
    return sorted(zip(record.boxes, trace.stages, strict=True), key=lambda region: region[1])


def _on(box: tuple[float, ...], photo: Image.Image) -> tuple[int, int, int, int]:
    """The pixels of a box, at least one."""
    w, h = photo.size
    left, top = min(int(box[0] * w), w - 1), min(int(box[1] * h), h - 1)
    return left, top, max(left, round(box[2] * w) - 1), max(top, round(box[3] * h) - 1)


def _captioned(picture: Image.Image, text: str) -> Image.Image:
    page = Image.new("RGB", (picture.width, picture.height + CAPTION), "white")
    page.paste(picture)
    size = 14
    while size > 8 and ImageFont.load_default(size).getlength(text) > picture.width - 12:
        size -= 1
    ImageDraw.Draw(page).text((6, picture.height + 5), text, "black", ImageFont.load_default(size))
    return page
