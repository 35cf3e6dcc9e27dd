"""Heat maps of a Record as pictures: the photo dimmed where nothing is spent and lit where tokens are."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from regard.record import Look, Record

# Eleven steps of viridis (Smith and van der Walt, CC0), dark to bright in perceptually equal steps.
_VIRIDIS = np.array(
    [
        (68, 1, 84), (72, 36, 117), (65, 68, 135), (53, 95, 141), (42, 120, 142), (33, 145, 140),
        (34, 168, 132), (68, 191, 112), (122, 209, 81), (189, 223, 38), (253, 231, 37),
    ],
    dtype=np.float64,
)  # fmt: skip
_OPACITY = 0.62


def preview(record: Record) -> Image.Image:
    """The small copy of the photo that the record holds."""
    return Image.open(io.BytesIO(base64.b64decode(record.picture.preview))).convert("RGB")


def heat_map(record: Record, look: Look) -> Image.Image:
    """The photo as `lit` by what one look spent."""
    return lit(preview(record), record.boxes, look.allocation.spent()[0].numpy())


def relevance_map(record: Record, question: int) -> Image.Image:
    """The photo under the eye's own relevance to one question, as `tinted`."""
    return tinted(preview(record), record.boxes, np.array(record.relevance[question]))


def lit(photo: Image.Image, boxes: Sequence[Sequence[float]], spent: np.ndarray) -> Image.Image:
    """The photo where the most tokens are spent, dark and grey where none are, in between by the cube root of the
    share, so that what one token in thirty stands for can still be seen. boxes: of N tokens; spent: (N,).
    """
    level = _painted(boxes, np.cbrt(spent / max(spent.max(), 1e-12)), photo.size)
    dark = np.asarray(photo.convert("L").convert("RGB")) * 0.3
    return Image.fromarray((dark + (np.asarray(photo) - dark) * level[..., None]).round().astype(np.uint8))


def tinted(photo: Image.Image, boxes: Sequence[Sequence[float]], values: np.ndarray) -> Image.Image:
    """The photo, grey, under one value for each box, from the lowest (dark) to the highest (bright). values: (N,)."""
    low, high = values.min(), values.max()
    position = _painted(boxes, (values - low) / max(high - low, 1e-12), photo.size) * (len(_VIRIDIS) - 1)
    step = np.floor(position).astype(int).clip(0, len(_VIRIDIS) - 2)
    colour = _VIRIDIS[step] + (_VIRIDIS[step + 1] - _VIRIDIS[step]) * (position - step)[..., None]
    grey = np.asarray(photo.convert("L").convert("RGB"))
    return Image.fromarray((grey * (1 - _OPACITY) + colour * _OPACITY).round().astype(np.uint8))


def sheet(record: Record) -> Image.Image:
    """One row a question: the photo, the relevance, and each allocator's heat map, with their names."""
    columns = 2 + len({look.allocator for look in record.looks})
    photo = preview(record)
    width, gap, text = 1500, 8, 22
    w = (width - gap * (columns + 1)) // columns
    h = round(w * photo.height / photo.width)
    page = Image.new("RGB", (width, (h + 2 * text + gap) * len(record.questions) + gap), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for row, question in enumerate(record.questions):
        y = gap + row * (h + 2 * text + gap)
        draw.text((gap, y), f"“{question}”  and the share of the tokens on the quarter nearest to it", "black", font)
        cells = [("the photo", photo), ("relevance", relevance_map(record, row))]
        for look in record.looks:
            if look.question == row:
                title = f"{look.allocator}, {look.nearest_quarter:.0%}"
                cells.append((title, heat_map(record, look)))
        for column, (title, picture) in enumerate(cells):
            x = gap + column * (w + gap)
            draw.text((x, y + text), title, "#444444", ImageFont.load_default(13))
            page.paste(picture.resize((w, h), Image.Resampling.LANCZOS), (x, y + 2 * text))
    return page


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=4)
    return file.getvalue()


def _painted(boxes: Sequence[Sequence[float]], heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The heat of each pixel, (H, W): the mean of the boxes that cover it, 0 where none does."""
    w, h = size
    edges = (np.array(boxes) * np.array([w, h, w, h])).round().astype(int)
    planes = np.zeros((2, h + 1, w + 1))
    for x, y, sign in ((0, 1, 1), (0, 3, -1), (2, 1, -1), (2, 3, 1)):  # corners of each box, then sums give its inside
        np.add.at(planes[0], (edges[:, y], edges[:, x]), sign * heat)
        np.add.at(planes[1], (edges[:, y], edges[:, x]), sign)
    total, cover = planes.cumsum(axis=1).cumsum(axis=2)[:, :h, :w]
    return (total / np.maximum(cover, 1)).clip(0, 1)
