"""Named photos of animals, and of monuments, from Debian's package gcompris-qt-data (photos: CC0, CC BY, CC BY-SA).

The package is fetched with `apt-get download`, or given as a file; its hash is checked before anything in it is read.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from regard.bench.tasks.debian import Package
from regard.errors import DataError

PACKAGE = Package("gcompris-qt-data", "3.1-2", "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f")

_ACTIVITIES = "/gcompris/src/activities"
_ANIMALS = {
    "erase": f"{_ACTIVITIES}/erase/resource/",
    "explore_farm_animals": f"{_ACTIVITIES}/explore_farm_animals/resource/animals/",
    "explore_world_animals": f"{_ACTIVITIES}/explore_world_animals/resource/animals/",
}
_RENAMED = {
    "camels": "camel",
    "swans": "swan",
    "meerkats": "meerkat",
    "spoonbills": "spoonbill",
    "chamaeleon": "chameleon",
    "dragon": "komodo dragon",
    "long_nosed_monkey": "long-nosed monkey",
}
_KIN = {"calf": "cow", "kitten": "cat", "red panda": "panda"}  # either name fits both photos


class Photo(NamedTuple):
    """The middle square of a photo and what is on it."""

    name: str
    path: str
    square: Image.Image

    @property
    def kin(self) -> str:
        """The same for two photos that either name would fit: they never stand in one picture."""
        return _KIN.get(self.name, self.name)


class Photos(NamedTuple):
    """One half of the animals, split by name so that none is in both, and of the monuments to set them on."""

    animals: list[Photo]
    scenes: list[Image.Image]


@cache
def photos(half: str, package: Path | None = None) -> Photos:
    """The half "tune" or "report". package: the .deb, fetched where there is none. Raises DataError."""
    folder = _unpacked(package)
    found = []
    for file, prefix in _ANIMALS.items():
        for path, data in resources(folder[f"{file}.rcc"]):
            if path.startswith(prefix) and path.endswith(".webp"):
                stem = path.removeprefix(prefix).removesuffix(".webp")
                found.append(Photo(_RENAMED.get(stem, stem.replace("_", " ")), path, _square(_rgb(data))))
    found.sort(key=lambda photo: photo[:2])
    order = {kin: place for place, kin in enumerate(sorted({photo.kin for photo in found}))}
    odd = half == "report"
    return Photos(
        [p for p in found if order[p.kin] % 2 == odd], [_square(photo) for photo in monuments(half, package).values()]
    )


@cache
def monuments(half: str, package: Path | None = None) -> dict[str, Image.Image]:
    """The whole photos of the half's monuments, RGB, by the names of their files."""
    pages = sorted(
        (path, data)
        for path, data in resources(_unpacked(package)["explore_monuments.rcc"])
        if path.endswith(".webp") and "/1." not in path and "/2." not in path  # not the two maps
    )
    return {Path(path).stem: _rgb(data) for path, data in pages[half == "report" :: 2]}


def resources(blob: bytes) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file in a Qt resource file (.rcc), versions 1 to 3, plain or zlib."""
    if blob[:4] != b"qres":
        raise DataError("not a Qt resource file: it does not begin with qres")
    version, tree, data, names = struct.unpack(">4I", blob[4:20])
    width = 14 if version < 2 else 22
    nodes = [(0, "")]
    while nodes:
        node, above = nodes.pop()
        at = tree + width * node
        name, flags = struct.unpack(">IH", blob[at : at + 6])
        (length,) = struct.unpack(">H", blob[names + name : names + name + 2])
        here = above
        if node:
            here += "/" + blob[names + name + 6 : names + name + 6 + 2 * length].decode("utf-16-be")
        if flags & 2:  # a folder
            count, first = struct.unpack(">2I", blob[at + 6 : at + 14])
            nodes += [(child, here) for child in range(first, first + count)]
            continue
        if flags & 4:
            raise DataError(f"{here} is compressed with zstd, which this reader does not know")
        start = data + int.from_bytes(blob[at + 10 : at + 14], "big")
        body = blob[start + 4 : start + 4 + int.from_bytes(blob[start : start + 4], "big")]
        yield here, zlib.decompress(body[4:]) if flags & 1 else body


def _rgb(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _square(image: Image.Image) -> Image.Image:
    """Its middle."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


@cache
def _unpacked(package: Path | None) -> dict[str, bytes]:
    """The .rcc files of the package, by name."""
    files = PACKAGE.files(lambda path: path.endswith(".rcc"), package)
    return {Path(path).name: content for path, content in files.items()}
