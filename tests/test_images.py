"""Pictures of every kind, and every way in which one is refused."""

import io
import os
import stat
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from regard.errors import ImageError
from regard.images import load_image, load_image_with_notes

HEIGHT, WIDTH = 37, 53
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
PIXELS = np.stack([COLUMNS * 4, ROWS * 6, (ROWS * COLUMNS) % 256], -1).astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)
GREY = Image.fromarray(PIXELS[..., 0])


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.copy().save(file, kind, **options)
    return file.getvalue()


def frames(kind: str, **options: object) -> bytes:
    rolled = [Image.fromarray(np.roll(PIXELS, 5 * n, 0)) for n in range(3)]
    return encode(rolled[0], kind, save_all=True, append_images=rolled[1:], **options)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, raw: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def profile(description: str) -> bytes:
    """An ICC profile with the gamut of sRGB but half its gamma, under any 13-letter description."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    start = data.index(b"para") + 12
    data = data[:start] + struct.pack(">i", int(1.2 * 65536)) + data[start + 4 :]
    return data.replace("sRGB built-in".encode("utf-16-be"), description.encode("utf-16-be"))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def refusal(source: object, *words: str, **limits: float) -> ImageError:
    """The refusal of a source: on one line, naming it, and holding every word."""
    with pytest.raises(ImageError) as caught:
        load_image(source, **limits)  # pyright: ignore
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"{source}: " if isinstance(source, str | Path) else "the image: ")
    assert message.count(": ") >= 2  # what it is, what is wrong, what to do
    for word in words:
        assert word in message
    return caught.value


def picture_or_refusal(data: bytes) -> Image.Image | None:
    try:
        return load_image(data)
    except ImageError:
        refusal(data)
    return None


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_path_string_bytes_and_image_agree(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(encode(PICTURE, kind, **({"lossless": True} if kind == "WEBP" else {})))
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), PICTURE):
        image, notes = load_image_with_notes(source)  # pyright: ignore
        assert (image.mode, image.size, notes, image.info) == ("RGB", (WIDTH, HEIGHT), (), {})
        assert np.array_equal(array(image), PIXELS)


def test_file_is_closed_and_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "picture.bmp"
    path.write_bytes(encode(PICTURE, "BMP"))
    image = load_image(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert np.array_equal(array(image), PIXELS)
    assert getattr(image, "fp", None) is None


def test_input_image_is_never_changed() -> None:
    source = PICTURE.quantize(16)
    source.info["transparency"] = 3
    source.getexif()[0x0112] = 6
    before = (source.mode, source.tobytes(), source.getpalette(), dict(source.info), dict(source.getexif()))
    load_image(source)
    assert before == (source.mode, source.tobytes(), source.getpalette(), dict(source.info), dict(source.getexif()))
    own = load_image(PICTURE)
    own.putpixel((0, 0), (1, 2, 3))
    assert PICTURE.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("scheme", ["http://", "https://", "ftp://", "data:", "file:", "HTTPS://", " s3://"])
def test_addresses_are_refused(scheme: str) -> None:
    refusal(f"{scheme}example/a.png", "is an address: download it first")
    if "//" in scheme:
        with pytest.raises(ImageError, match="is an address"):
            load_image(Path(f"{scheme}example/a.png"))


def test_missing_folder_empty_and_special_files(tmp_path: Path) -> None:
    refusal(tmp_path / "none.png", "no such file")
    refusal(tmp_path, "is a folder")
    (tmp_path / "empty.png").touch()
    refusal(tmp_path / "empty.png", "is empty")
    refusal(b"", "is empty")
    os.mkfifo(tmp_path / "pipe.png")
    refusal(tmp_path / "pipe.png", "not a regular file")
    for path in ("", "nul\0.png"):
        with pytest.raises(ImageError, match="is not a path"):
            load_image(path)
    for path in ("a" * 5000, "lone\ud800.png"):
        with pytest.raises(ImageError, match="cannot be opened"):
            load_image(path)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(PICTURE, "PNG"))

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # root reads anything
    assert isinstance(refusal(path, "no permission").__cause__, PermissionError)


@pytest.mark.parametrize("bad", ["two\nlines.png", "a\x1b[31m.png", "nul\0.png", "turn\u202e.png", "half\udc80.png"])
def test_odd_names_are_shown_on_one_line(bad: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(bad)
    assert str(caught.value).startswith(repr(bad))
    assert str(caught.value).isprintable()


def test_long_names_are_cut() -> None:
    with pytest.raises(ImageError) as caught:
        load_image("data:" + "A" * 100_000)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("source", [None, 3, PIXELS, io.BytesIO(b"x")])
def test_other_kinds_of_source(source: object) -> None:
    refusal(source, "expected a path, bytes or a PIL image", type(source).__name__)


def test_content_is_trusted_not_the_extension(tmp_path: Path) -> None:
    path = tmp_path / "really_png.jpg"
    path.write_bytes(encode(PICTURE, "PNG"))
    assert np.array_equal(array(load_image(path)), PIXELS)
    path.write_text("hello, not a picture")
    refusal(path, "is not an image regard reads (PNG, JPEG, WebP, GIF, TIFF, BMP)")


@pytest.mark.parametrize("kind", ["PPM", "TGA", "ICO", "JPEG2000"])
def test_formats_outside_the_list_are_refused(kind: str) -> None:
    refusal(encode(PICTURE, kind), "is not an image regard reads")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which regard does not read: install pillow-heif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "is AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", "is not an image regard reads"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "SVG, a drawing without pixels: rasterise it"),
        (b"%PDF-1.7\n", "is a PDF"),
        (b"\x89PNG\r\n\x1a\n", "is damaged or cut short"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "is damaged or cut short"),
    ],
)
def test_known_strangers_are_named(head: bytes, words: str) -> None:
    refusal(head + bytes(300), words)


def test_byte_cap_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.png"
    path.write_bytes(data := encode(PICTURE, "PNG"))
    assert load_image(path, max_bytes=len(data)).size == (WIDTH, HEIGHT)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("opened"))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded"))
    for source in (path, data):
        refusal(source, f"has {len(data):,} bytes", "raise max_bytes", max_bytes=len(data) - 1)


def test_byte_cap_holds_for_a_file_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "growing.png"
    path.write_bytes(encode(PICTURE, "PNG") + bytes(1000))
    stale = os.stat_result((stat.S_IFREG, 0, 0, 1, 0, 0, 10, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda *_, **__: stale)
    refusal(path, "the limit is 500", max_bytes=500)


@pytest.mark.parametrize("as_bytes", [True, False])
def test_pixel_side_and_aspect_limits(as_bytes: bool) -> None:
    def source(width: int, height: int) -> bytes | Image.Image:
        image = Image.new("RGB", (width, height))
        return encode(image, "PNG") if as_bytes else image

    assert load_image(source(8, 1600)).size == (8, 1600)
    refusal(source(7, 101), "7 x 101 pixels", "at least 8")
    refusal(source(101, 7), "at least 8")
    refusal(source(1601, 8), "at most 200 times")
    refusal(source(8, 1601), "at most 200 times")
    refusal(source(53, 37), "1,961 in all", "the limit is 1,960", max_pixels=1960)
    assert load_image(source(53, 37), max_pixels=1961, min_side=37, max_aspect=53 / 37).size == (53, 37)


BOMB = """
import resource, sys, time
from pathlib import Path
from regard.images import load_image
load_image(Path(sys.argv[2]))
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
try:
    load_image(Path(sys.argv[1]))
except ValueError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.perf_counter() - start)
"""


def test_bomb_is_refused_quickly_and_in_little_memory(tmp_path: Path) -> None:
    bomb, small = tmp_path / "bomb.png", tmp_path / "small.png"
    bomb.write_bytes(png(12_000, 12_000, 1, 0, bytes(1501 * 12_000)))
    small.write_bytes(encode(PICTURE, "PNG"))
    assert bomb.stat().st_size < 30_000
    command = [sys.executable, "-W", "error", "-c", BOMB, str(bomb), str(small)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    message, numbers = done.stdout.splitlines()
    kilobytes, seconds = map(float, numbers.split())
    assert message.startswith(f"{bomb}: is 12000 x 12000 pixels, 144,000,000 in all, the limit is 50,000,000")
    assert kilobytes < 20_000
    assert seconds < 1
    assert done.stderr == ""


def test_pillows_own_bomb_error_is_refused_and_its_limit_kept() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    error = refusal(png(20_000, 20_000, 1, 0, b""), "too many pixels: shrink it", max_pixels=10**9)
    assert isinstance(error.__cause__, Image.DecompressionBombError)
    assert limit == Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        refusal(png(12_000, 12_000, 1, 0, b""), "144,000,000")
    assert seen == []


SAMPLES = {
    "PNG": encode(PICTURE, "PNG"),
    "JPEG": encode(PICTURE, "JPEG", exif=exif(6), icc_profile=profile("other profile")),
    "WEBP": encode(PICTURE.convert("RGBA"), "WEBP", exif=exif(3)),
    "GIF": encode(PICTURE, "GIF"),
    "animated GIF": frames("GIF"),
    "TIFF": encode(PICTURE, "TIFF", exif=exif(8)),
    "BMP": encode(PICTURE, "BMP"),
    "MPO": frames("MPO"),
    "16-bit PNG": encode(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), "PNG"),
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_cut_in_the_middle_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(SAMPLES[kind][: len(SAMPLES[kind]) * 6 // 10])
    assert refusal(path, "is damaged or cut short").__cause__ is not None
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("name", [b"IHDR", b"gAMA", b"IDAT"])
def test_png_with_a_broken_checksum_is_refused(name: bytes) -> None:
    raw = bytes((WIDTH + 1) * HEIGHT)
    data = bytearray(png(WIDTH, HEIGHT, 8, 0, raw, chunk(b"gAMA", struct.pack(">I", 45455))))
    assert load_image(bytes(data)).size == (WIDTH, HEIGHT)
    start = data.index(name) - 4
    data[start + 11 + int.from_bytes(data[start : start + 4], "big")] ^= 1
    refusal(bytes(data), "is damaged")


def test_a_png_whose_pixels_changed_is_refused() -> None:
    data = png(WIDTH, HEIGHT, 8, 2, b"".join(b"\0" + row.tobytes() for row in PIXELS))
    raw = bytearray(zlib.decompress(data[data.index(b"IDAT") + 4 :]))
    raw[500] ^= 64
    changed = zlib.compress(raw)[:-4] + data[data.index(b"IEND") - 12 : data.index(b"IEND") - 8]
    crc = data[data.index(b"IEND") - 8 : data.index(b"IEND") - 4]
    start = data.index(b"IDAT") - 4
    refusal(data[:start] + struct.pack(">I", len(changed)) + b"IDAT" + changed + crc + chunk(b"IEND", b""), "checksum")


@pytest.mark.parametrize(
    "error", [SyntaxError, struct.error, ValueError, EOFError, zlib.error, MemoryError, IndexError, OSError]
)
def test_whatever_a_decoder_raises_becomes_a_refusal(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise error("two\nlines")

    monkeypatch.setattr(ImageFile.ImageFile, "load", broken)
    assert isinstance(refusal(SAMPLES["BMP"], "is damaged or cut short").__cause__, error)


def test_a_closed_pil_image_is_refused() -> None:
    image = Image.open(io.BytesIO(SAMPLES["PNG"]))
    image.close()
    refusal(image, "is damaged or cut short")


@settings(max_examples=250, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "animated GIF"]), share=st.floats(0, 1))
def test_any_prefix_loads_the_same_picture_or_is_refused(kind: str, share: float) -> None:
    data = SAMPLES[kind]
    image = picture_or_refusal(data[: int(len(data) * share)])
    assert image is None or np.array_equal(array(image), array(load_image(data)))


@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from(sorted(SAMPLES)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
    early=st.booleans(),
)
def test_flipped_bytes_give_a_picture_or_a_refusal(kind: str, flips: list[tuple[float, int]], early: bool) -> None:
    data = bytearray(SAMPLES[kind])
    for place, mask in flips:
        data[int((min(len(data), 300) if early else len(data)) * place)] ^= mask
    image = picture_or_refusal(bytes(data))
    assert image is None or image.mode == "RGB"


BAD_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x0f\x01\x02\0\xff\xff\xff\x0f\xf0\xff\xff\x0f"


def test_pillow_warns_of_these_and_regard_does_not() -> None:
    data = encode(PICTURE, "JPEG", exif=BAD_EXIF)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(data)).getexif()
    assert seen
    before = list(warnings.filters)
    assert load_image(data).size == (WIDTH, HEIGHT)
    assert load_image(png(WIDTH, HEIGHT, 8, 0, bytes((WIDTH + 1) * HEIGHT), chunk(b"acTL", bytes(8)))).mode == "RGB"
    assert warnings.filters == before


def test_loads_on_several_threads_leave_the_filters_as_they_were() -> None:
    data, before = encode(PICTURE, "JPEG", exif=BAD_EXIF), list(warnings.filters)
    threads = [threading.Thread(target=lambda: [load_image(data) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


TURNED = {
    1: PIXELS,
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.transpose(1, 0, 2),
    6: np.rot90(PIXELS, -1),
    7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(PIXELS),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "image", "lazy TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_noted(kind: str, orientation: int) -> None:
    if kind == "image":
        source: bytes | Image.Image = PICTURE.copy()
        source.getexif()[0x0112] = orientation
    else:
        lossless = {"lossless": True} if kind == "WEBP" else {}
        source = encode(PICTURE, kind.removeprefix("lazy "), exif=exif(orientation), **lossless)
    image, notes = load_image_with_notes(Image.open(io.BytesIO(source)) if kind == "lazy TIFF" else source)  # pyright: ignore
    assert np.array_equal(array(image), TURNED[orientation])
    assert notes == (() if orientation == 1 else (f"rotated by its EXIF orientation ({orientation})",))
    assert image.getexif().get(0x0112, 1) == 1


def test_orientation_of_a_jpeg() -> None:
    image, notes = load_image_with_notes(encode(PICTURE, "JPEG", exif=exif(6), quality=95, subsampling=0))
    assert np.abs(array(image) - TURNED[6]).mean() < 4
    assert notes == ("rotated by its EXIF orientation (6)",)


@pytest.mark.parametrize(
    "tags", [BAD_EXIF, b"Exif\0\0", b"Exif\0\0rubbish", exif(99), b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_broken_exif_never_refuses_a_good_photo(tags: bytes | Image.Exif) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        image, notes = load_image_with_notes(encode(PICTURE, kind, exif=tags))
        assert image.size == (WIDTH, HEIGHT)
        assert set(notes) <= {"EXIF unreadable: orientation not applied"}
    assert notes if tags == b"Exif\0\0rubbish" else True


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_first_frame_is_taken_and_noted(kind: str) -> None:
    image, notes = load_image_with_notes(frames(kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert notes == ("first of 3 frames",)
    assert np.abs(array(image) - PIXELS).mean() < {"GIF": 12, "MPO": 12}.get(kind, 1e-9)
    assert type(image) is Image.Image


def test_a_tiff_of_very_many_pages_is_not_counted_to_its_end() -> None:
    data = encode(PICTURE, "TIFF")
    start = struct.unpack("<I", data[4:8])[0]
    entries = data[start : start + 2 + 12 * struct.unpack("<H", data[start : start + 2])[0]]
    pages, size = 30_000, len(entries) + 4
    chain = b"".join(entries + struct.pack("<I", len(data) + (n + 1) * size) for n in range(pages))
    data = data[:4] + struct.pack("<I", len(data)) + data[8:] + chain[:-4] + bytes(4)
    begun = time.perf_counter()
    image, notes = load_image_with_notes(data)
    assert time.perf_counter() - begun < 2
    assert np.array_equal(array(image), PIXELS)
    assert notes == ("first of more than 1000 frames",)


def test_a_damaged_later_frame_leaves_the_first() -> None:
    data = SAMPLES["animated GIF"]
    second = data.index(b"\x21\xf9", data.index(b"\x21\xf9") + 100)
    image, notes = load_image_with_notes(data[: second + 20])
    assert np.array_equal(array(image), array(load_image(data)))
    assert notes == ("first frame: a later one is damaged",)


RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
RAMP8 = np.repeat(((np.arange(65536) + 128) // 257).reshape(256, 256, 1), 3, 2)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "I;16", "I;16B", "I"])
def test_sixteen_bits_are_rescaled_over_their_whole_range(kind: str) -> None:
    source: bytes | Image.Image = Image.fromarray(RAMP)
    if kind in ("PNG", "TIFF"):
        source = encode(source, kind)
    elif kind == "I;16B":
        source = Image.frombytes("I;16B", (256, 256), RAMP.astype(">u2").tobytes())
    elif kind == "I":
        source = Image.fromarray(RAMP.astype(np.int32))
    image, notes = load_image_with_notes(source)
    assert np.array_equal(array(image), RAMP8)
    assert notes == ("16-bit: rescaled to 8",)


def test_twelve_bit_content_stays_dark() -> None:
    assert array(load_image(encode(Image.fromarray(RAMP // 16), "PNG"))).max() == 16


def test_sixteen_bit_transparent_grey() -> None:
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RAMP)
    image, notes = load_image_with_notes(png(256, 256, 16, 0, raw, chunk(b"tRNS", struct.pack(">H", 700))))
    assert notes == ("16-bit: rescaled to 8", "transparent: placed on white")
    changed = np.argwhere((array(image) != RAMP8).any(-1)).tolist()
    assert changed == [[2, 188]]
    assert image.getpixel((188, 2)) == (255, 255, 255)


def test_sixteen_bit_colour_png_is_not_clipped() -> None:
    colours = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    assert np.abs(array(load_image(png(256, 256, 16, 2, raw))) - np.rint(colours / 257)).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected", "note"),
    [
        (PIXELS[..., 0].astype(np.int32), PIXELS[..., 0], "32-bit, at most 255: rescaled to 8"),
        (
            COLUMNS.astype(np.int32) * 2000 - 52000,
            np.rint(COLUMNS / 52 * 255),
            "32-bit, -52000 to 52000: rescaled to 8",
        ),
        ((COLUMNS / 104).astype(np.float32), np.rint(COLUMNS / 104 * 255), "floating point: rescaled to 8"),
        (
            (COLUMNS * 3.0 + 7).astype(np.float32),
            np.rint(COLUMNS / 52 * 255),
            "floating point, 7 to 163: rescaled to 8",
        ),
        (np.full((11, 13), 9, np.float32), np.zeros((11, 13)), "floating point, 9 to 9: rescaled to 8"),
    ],
)
@pytest.mark.parametrize("as_bytes", [True, False])
def test_wide_numbers_are_rescaled(values: np.ndarray, expected: np.ndarray, note: str, as_bytes: bool) -> None:
    source = Image.fromarray(values)
    image, notes = load_image_with_notes(encode(source, "TIFF") if as_bytes else source)
    assert np.array_equal(array(image), np.repeat(expected[..., None], 3, 2))
    assert notes == (note,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    values = np.zeros((HEIGHT, WIDTH), np.float32)
    values[3, 5] = bad
    refusal(Image.fromarray(values), "not finite")


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 128, 0), (20, 40, 200), (255, 255, 255), (0, 0, 0)])
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "image"])
def test_cmyk_colours(colour: tuple[int, int, int], kind: str) -> None:
    source = Image.new("RGB", (WIDTH, HEIGHT), colour).convert("CMYK")
    image, notes = load_image_with_notes(source if kind == "image" else encode(source, kind))
    assert np.abs(array(image) - colour).max() <= 3
    assert notes == ("CMYK without a usable profile: converted to RGB, colours approximate",)


def test_cmyk_goes_through_its_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opened:
        class profile:  # noqa: N801
            xcolor_space = "CMYK"

    def convert(image: Image.Image, *_: object, outputMode: str) -> Image.Image:
        assert (image.mode, outputMode) == ("CMYK", "RGB")
        return PICTURE.copy()

    # No CMYK profile can be made with Pillow, so its engine is played here.
    monkeypatch.setattr(ImageCms, "getOpenProfile", lambda _: Opened)
    monkeypatch.setattr(ImageCms, "getProfileDescription", lambda _: "a press\n")
    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    image, notes = load_image_with_notes(encode(PICTURE.convert("CMYK"), "JPEG", icc_profile=b"press"))
    assert np.array_equal(array(image), PIXELS)
    assert notes == ("CMYK: converted to sRGB",)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_another_profile_is_converted_to_srgb(mode: str) -> None:
    source = Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128))
    source = source.quantize(2) if mode == "P" else source.convert(mode)
    image, notes = load_image_with_notes(encode(source, "PNG", icc_profile=profile("other profile")))
    linear = (128 / 255 + 0.055) / 1.055
    brighter = (1.055 * linear**0.5 - 0.055) * 255
    assert np.abs(array(image) - brighter).max() <= 2
    assert notes == ("colour profile other profile: converted to sRGB",)


@pytest.mark.parametrize("kept", [profile("sRGB built-in")])
def test_an_srgb_profile_changes_nothing(kept: bytes) -> None:
    image, notes = load_image_with_notes(encode(PICTURE, "PNG", icc_profile=kept))
    assert np.array_equal(array(image), PIXELS)
    assert notes == ()


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("broken", [b"rubbish", profile("other profile")[:200], bytes(500)])
def test_a_broken_profile_is_ignored(mode: str, broken: bytes) -> None:
    source = PICTURE.convert(mode)
    image, notes = load_image_with_notes(encode(source, "TIFF", icc_profile=broken))
    assert np.array_equal(array(image), array(source.convert("RGB")))
    assert notes[0] == "colour profile unreadable: ignored"


def test_a_profile_of_another_colour_space_is_not_used() -> None:
    data = encode(PICTURE.convert("CMYK"), "JPEG", icc_profile=profile("other profile"))
    assert load_image_with_notes(data)[1][0].startswith("CMYK without a usable profile")
    assert load_image_with_notes(data.replace(b"RGB XYZ", b"GRAYXYZ"))[0].mode == "RGB"


@pytest.mark.parametrize(
    ("mode", "tolerance"),
    [("RGB", 0), ("RGBX", 0), ("RGBA", 0), ("RGBa", 0), ("YCbCr", 3), ("HSV", 6), ("LAB", 16)],
)
def test_colour_modes(mode: str, tolerance: int) -> None:
    colours = np.clip(PIXELS, 60, 180)
    source = Image.fromarray(colours)
    image, notes = load_image_with_notes(
        source.convert("RGBA").convert(mode) if mode == "RGBa" else source.convert(mode)
    )
    assert np.abs(array(image) - colours).max() <= tolerance
    assert notes == ()


@pytest.mark.parametrize("mode", ["L", "LA", "La", "1", "P", "PA"])
def test_grey_and_palette_modes(mode: str) -> None:
    source = GREY.convert("LA").convert("La") if mode == "La" else GREY.convert("P").convert(mode)
    source = GREY.convert("1") if mode == "1" else source
    expected = np.asarray(GREY.convert("1").convert("L") if mode == "1" else GREY)
    image, notes = load_image_with_notes(source)
    assert np.array_equal(array(image), np.repeat(expected[..., None], 3, 2))
    assert notes == ()


ALPHA = (ROWS * 7 % 256).astype(np.uint8)
ON_WHITE = np.rint(PIXELS * (ALPHA / 255)[..., None] + 255 * (1 - ALPHA / 255)[..., None])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "image"])
def test_alpha_is_placed_on_white(kind: str) -> None:
    source = Image.fromarray(np.dstack([PIXELS, ALPHA]))
    image, notes = load_image_with_notes(source if kind == "image" else encode(source, kind))
    assert np.array_equal(array(image), ON_WHITE)
    assert notes == ("transparent: placed on white",)


@pytest.mark.parametrize("mode", ["LA", "La", "RGBa"])
def test_other_alpha_modes_are_placed_on_white(mode: str) -> None:
    grey = np.repeat(PIXELS[..., :1], 3, 2)
    source = Image.fromarray(np.dstack([grey, ALPHA])).convert("RGBA" if mode == "RGBa" else "LA").convert(mode)
    image, notes = load_image_with_notes(source)
    expected = grey * (ALPHA / 255)[..., None] + 255 * (1 - ALPHA / 255)[..., None]
    assert np.abs(array(image) - expected).max() <= 2
    assert notes == ("transparent: placed on white",)


@pytest.mark.parametrize("clear", [2, b"\xff\x80\x00"])
@pytest.mark.parametrize("kind", ["PNG", "image"])
def test_palette_transparency(clear: int | bytes, kind: str) -> None:
    source = Image.fromarray((COLUMNS % 3).astype(np.uint8)).convert("P")
    source.putpalette([200, 10, 20, 100, 50, 40, 30, 60, 90])
    if kind == "image":
        source.info["transparency"] = clear
    image, notes = load_image_with_notes(source if kind == "image" else encode(source, "PNG", transparency=clear))
    second = (100, 50, 40) if clear == 2 else (177, 152, 147)
    assert [image.getpixel((x, 5)) for x in range(3)] == [(200, 10, 20), second, (255, 255, 255)]
    assert notes == ("transparent: placed on white",)


def test_one_clear_colour_in_rgb_and_grey() -> None:
    for source, clear in ((PICTURE, (16, 30, 20)), (GREY, 16)):
        image, notes = load_image_with_notes(encode(source, "PNG", transparency=clear))
        assert image.getpixel((4, 5)) == (255, 255, 255)
        assert image.getpixel((5, 5)) == source.convert("RGB").getpixel((5, 5))
        assert notes == ("transparent: placed on white",)


def test_twelve_megapixels_cost_little_more_than_decoding() -> None:
    data = encode(PICTURE.resize((4003, 3001)), "JPEG")

    def seconds(work: object) -> float:
        start = time.perf_counter()
        work()  # pyright: ignore
        return time.perf_counter() - start

    ours, pillow = [], []
    for _ in range(4):
        ours.append(seconds(lambda: load_image(data)))
        pillow.append(seconds(lambda: Image.open(io.BytesIO(data)).load()))
    assert min(ours) < 1.5 * min(pillow) + 0.01
