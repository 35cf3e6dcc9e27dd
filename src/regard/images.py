"""Any picture a user hands over, as one RGB image: read by its content, upright, on white, in sRGB, or refused.

A refusal is an `ImageError` of one line that names the file, says what is wrong and what to do. What was done to a
picture on the way (rotated, rescaled, put on white) comes back as short notes from `load_image_with_notes`. Nothing
global is set: not Pillow's pixel limit, not its leniency with cut files, not the warnings of other threads.
"""

import io
import os
import re
import stat
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from regard.errors import ImageError
from regard.pixels import BROKEN, one_line, upright_rgb

Source = str | os.PathLike | bytes | Image.Image

MAX_PAGES = 1000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_ADDRESS = re.compile(r"\s*(data:|file:|[a-z][a-z0-9+.-]+:/)", re.IGNORECASE)
_HEIF = re.compile(b"hei[cxms]|hev[cx]|m[is]f1")

# What Pillow lets through when content is damaged, and what only its decoders or its colour engine do.
_DAMAGE = (*BROKEN, AttributeError, AssertionError, MemoryError, RuntimeError, zlib.error)

_ONE_AT_A_TIME = threading.Lock()


def load_image(
    source: Source,
    *,
    max_pixels: int = 50_000_000,
    max_bytes: int = 32_000_000,
    min_side: int = 8,
    max_aspect: float = 200,
) -> Image.Image:
    """The picture in a local file, in a file's bytes or in a PIL image (never changed), as a loaded RGB image."""
    return load_image_with_notes(
        source, max_pixels=max_pixels, max_bytes=max_bytes, min_side=min_side, max_aspect=max_aspect
    )[0]


def load_image_with_notes(
    source: Source,
    *,
    max_pixels: int = 50_000_000,
    max_bytes: int = 32_000_000,
    min_side: int = 8,
    max_aspect: float = 200,
) -> tuple[Image.Image, tuple[str, ...]]:
    """What `load_image` gives, and one short line for each thing that was done to the picture."""
    named = isinstance(source, str | os.PathLike)
    name = one_line(os.fsdecode(source)) or "''" if named else "the image"
    notes: list[str] = []
    try:
        with _pillow_quiet():
            if isinstance(source, Image.Image):
                image = source
            else:
                data = _content(source, name, max_bytes)
                image = _open(data, name)
            _check_size(image.size, name, max_pixels, min_side, max_aspect)
            several = image is not source and _note_frames(data, notes)
            found, due = _load(image, notes)
            # A file of several frames stays open behind its image; a caller's image stays the caller's.
            image = upright_rgb(image.copy() if several or image is source else image, name, due, notes)
            notes.extend([f"rotated by its EXIF orientation ({found})"] if 2 <= found <= 8 else [])
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: has too many pixels: shrink it ({one_line(str(error))})") from error
    except _DAMAGE as error:
        reason = one_line(str(error) or type(error).__name__, 120)
        raise ImageError(f"{name}: is damaged or cut short ({reason}): save or download it again") from error
    return image, tuple(notes)


@contextmanager
def _pillow_quiet() -> Iterator[None]:
    """No warnings from Pillow: what matters in them becomes a note or a refusal. One load at a time, as the filters
    belong to the whole process.
    """
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def _content(source: object, name: str, max_bytes: int) -> bytes:
    if isinstance(source, str | os.PathLike):
        data, size = _read(os.fsdecode(source), name, max_bytes)
    elif isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        size = len(data)
    else:
        kind = type(source).__name__
        raise ImageError(f"{name}: expected a path, bytes or a PIL image, not {kind}: see PIL.Image.fromarray")
    if size > max_bytes:
        raise ImageError(f"{name}: has {size:,} bytes, the limit is {max_bytes:,}: save it smaller or raise max_bytes")
    if not data:
        raise ImageError(f"{name}: is empty: save or download it again")
    return data


def _read(path: str, name: str, max_bytes: int) -> tuple[bytes, int]:
    """The file's content, at most one byte over the limit, and its size."""
    if _ADDRESS.match(path):
        raise ImageError(f"{name}: is an address: download it first")
    if not path or "\0" in path:
        raise ImageError(f"{name}: is not a path: name a file")
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name}: is a folder: name one of the pictures in it")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name}: is not a regular file: save the picture to disk first")
        if status.st_size > max_bytes:
            return b"", status.st_size
        with Path(path).open("rb") as file:
            data = file.read(max_bytes + 1)
            return data, len(data)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file: check the path") from error
    except PermissionError as error:
        raise ImageError(f"{name}: no permission to read it: change its permissions or copy it") from error
    except (OSError, UnicodeError) as error:
        raise ImageError(f"{name}: cannot be opened ({one_line(str(error))}): check the path") from error


def _open(data: bytes, name: str) -> Image.Image:
    if data.startswith(_MAGIC[0]):
        _check_png(memoryview(data), name)
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: {_what_it_is(data)}") from error


def _check_png(data: memoryview, name: str) -> None:
    # Pillow skips the checksums of the pixels, and shows what a flipped byte made of them.
    start = len(_MAGIC[0])
    while len(data) >= (end := start + 12 + int.from_bytes(data[start : start + 4], "big")):
        kind = bytes(data[start + 4 : start + 8])
        if kind == b"IDAT" and zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ImageError(f"{name}: is damaged (a PNG checksum is wrong): save or download it again")
        start = end


def _what_it_is(data: bytes) -> str:
    head = data[:1024]
    brands = head[8 : min(64, int.from_bytes(head[:4], "big"))] if head[4:8] == b"ftyp" else b""
    if b"avif" in brands or b"avis" in brands:
        return "is AVIF, which regard does not read: convert it to JPEG or PNG first"
    if _HEIF.search(brands):
        return "is HEIC, which regard does not read: install pillow-heif and convert it to JPEG or PNG first"
    if b"<svg" in head:
        return "is SVG, a drawing without pixels: rasterise it to PNG first"
    if head.startswith(b"%PDF-"):
        return "is a PDF, not a picture: export the page as PNG first"
    if head.startswith(_MAGIC):
        return "is damaged or cut short (its header cannot be read): save or download it again"
    return "is not an image regard reads (PNG, JPEG, WebP, GIF, TIFF, BMP): convert it to PNG first"


def _check_size(size: tuple[int, int], name: str, max_pixels: int, min_side: int, max_aspect: float) -> None:
    width, height = size
    shape = f"{name}: is {width} x {height} pixels"
    if min(size) < min_side:
        raise ImageError(f"{shape}, each side needs at least {min_side}: use a larger picture")
    if width * height > max_pixels:
        raise ImageError(
            f"{shape}, {width * height:,} in all, the limit is {max_pixels:,}: shrink it or raise max_pixels"
        )
    if max(size) > max_aspect * min(size):
        raise ImageError(f"{shape}, one side may be at most {max_aspect:g} times the other: crop it")


def _note_frames(data: bytes, notes: list[str]) -> bool:
    # Counted on a second handle: a damaged later frame must not disturb the first.
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as probe:
            count = _count_pages(probe) if probe.format == "TIFF" else getattr(probe, "n_frames", 1)
    except _DAMAGE:
        notes.append("first frame: a later one is damaged")
        return True
    many = f"more than {MAX_PAGES}" if count > MAX_PAGES and probe.format == "TIFF" else count
    notes.extend([f"first of {many} frames"] if count > 1 else [])
    return count > 1


def _count_pages(image: Image.Image) -> int:
    # Pillow's own count takes minutes on a TIFF of a hundred thousand pages.
    count = 1
    with suppress(EOFError):
        while count <= MAX_PAGES:
            image.seek(count)
            count += 1
    return count


def _load(image: Image.Image, notes: list[str]) -> tuple[int, int]:
    """Loads; returns the EXIF orientation that was found, and the one that is still to be applied."""
    # Pillow turns a TIFF itself while loading and forgets the orientation.
    before = _orientation(image, notes) if image.format == "TIFF" else 1
    image.load()
    after = _orientation(image, notes)
    return (before if after == 1 else after), after


def _orientation(image: Image.Image, notes: list[str]) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
        notes.append("EXIF unreadable: orientation not applied")
        return 1
    return value if isinstance(value, int) else 1
