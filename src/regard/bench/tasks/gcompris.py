"""Named photos of animals, and of monuments, from Debian's package gcompris-qt-data (photos: CC0, CC BY, CC BY-SA).

The package is fetched with `apt-get download`, or given as a file; its hash is checked before anything in it is read.
"""

import hashlib
import io
import lzma
import os
import struct
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from regard.errors import DataError

PACKAGE = "gcompris-qt-data=3.1-2"
SHA256 = "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f"

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
                found.append(Photo(_RENAMED.get(stem, stem.replace("_", " ")), path, _middle(data)))
    found.sort(key=lambda photo: photo[:2])
    order = {kin: place for place, kin in enumerate(sorted({photo.kin for photo in found}))}
    odd = half == "report"
    scenes = sorted(
        (path, data)
        for path, data in resources(folder["explore_monuments.rcc"])
        if path.endswith(".webp") and "/1." not in path and "/2." not in path  # not the two maps
    )
    return Photos([p for p in found if order[p.kin] % 2 == odd], [_middle(data) for _, data in scenes[odd::2]])


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


def _middle(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


@cache
def _unpacked(package: Path | None) -> dict[str, bytes]:
    """The .rcc files of the package, by name."""
    deb = _checked((package or _fetched()).read_bytes())
    return {
        Path(member.name).name: content.read()
        for tar in [tarfile.open(fileobj=io.BytesIO(lzma.decompress(_member(deb, b"data.tar.xz"))))]
        for member in tar
        if member.name.endswith(".rcc") and (content := tar.extractfile(member)) is not None
    }


def _checked(deb: bytes) -> bytes:
    got = hashlib.sha256(deb).hexdigest()
    if got != SHA256:
        raise DataError(f"{PACKAGE} has the SHA-256 {got[:16]}..., expected {SHA256[:16]}...: get that version")
    return deb


def _member(archive: bytes, name: bytes) -> bytes:
    """One member of an ar archive, which a .deb is."""
    at = 8
    while at < len(archive):
        head, size = archive[at : at + 60], int(archive[at + 48 : at + 58])
        if head[:16].strip().rstrip(b"/") == name:
            return archive[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise DataError(f"the package has no {name.decode()}")


def _fetched() -> Path:
    """The package in the user's cache folder, downloaded by apt-get if it is not there."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regard"
    target = folder / f"gcompris-{SHA256[:16]}.deb"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        try:
            subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=place, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise DataError(
                f"apt-get cannot download {PACKAGE}: on Debian 12 run apt-get update; elsewhere give it as --deb"
            ) from error
        next(Path(place).glob("*.deb")).replace(target)
    return target
