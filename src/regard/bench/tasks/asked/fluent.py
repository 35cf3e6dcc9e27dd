"""Drawn things in three dimensions: Fluent emoji (MIT), from the npm package @lobehub/fluent-emoji-3d.

The same things as those of `emoji`, by the same names, in another artist's pictures.
"""

import io
import tarfile
from functools import cache
from pathlib import Path

from PIL import Image

from regard.bench.tasks import emoji
from regard.bench.tasks.cutouts import CutOut, trimmed
from regard.bench.tasks.fetching import Told, checked, kept
from regard.errors import DataError

PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
FILE = "lobehub-fluent-emoji-3d-1.1.0.tgz"

_SHA256 = "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
_LEFT_OUT = "🐫"  # nearly the same picture as another
_MARK = "\ufe0f"  # asks for a picture in colour


def fetched(told: Told | None = None) -> Path:
    """The package in the user's cache folder, put there by npm if it is not. Raises DataError."""
    refusal = f"npm cannot pack {PACKAGE}: see that the registry can be reached, or give {FILE} yourself"
    return kept(PACKAGE, FILE, _SHA256, ["npm", "pack", "--silent", PACKAGE], refusal, told)


@cache
def fluent(package: Path | None = None) -> tuple[CutOut, ...]:
    """All of them, by name. package: the .tgz, fetched where there is none. Raises DataError."""
    blob = checked(PACKAGE, _SHA256, package or fetched())
    chars = [char for char in emoji.ANIMALS + emoji.FOOD + emoji.OBJECTS + emoji.VEHICLES if char not in _LEFT_OUT]
    wanted = {_path(char, mark): char for char in chars for mark in ("", _MARK)}
    found = []
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        for member in tar:
            char = wanted.get(member.name)
            if char and (content := tar.extractfile(member)) is not None:
                image = trimmed(Image.open(io.BytesIO(content.read())))
                found.append(CutOut(emoji.called(char), f"fluent/{char}", image))
    if len(found) != len(chars):
        raise DataError(f"{PACKAGE} has {len(found)} of {len(chars)} pictures: get that version again")
    return tuple(sorted(found, key=lambda cut: cut[:2]))


def _path(char: str, mark: str) -> str:
    return f"package/assets/{'-'.join(f'{ord(part):04x}' for part in char + mark)}.webp"
