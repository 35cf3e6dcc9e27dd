"""Where things stand in an asked scene: each in one of nine places, apart from the others, where it can be seen."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from regard.bench.tasks.asked.wording import PLACES
from regard.bench.tasks.cutouts import solid

LEAST = 40  # pixels, the longest side of a thing that was made smaller to find room
APART, EDGE = 8, 6  # pixels between two things, and to the edge
CONTRAST = 45  # of 255: how far a thing is, at the least, from what is behind it, where there is such a place
FAINT = 35  # of 255: a thing that is less far than this from all of one place goes to another
INSIDE = 0.03  # of the side: how far a thing's centre is, at the least, from the lines between the nine places

_TRIES, _SEEN = 40, 12  # places tried for room, and of those with room, for being seen
_SMALLER = 0.85  # each time that there is no room
_STEP = 3  # pixels: contrast is read on every third


class Thing(NamedTuple):
    """A thing in a scene and where its pixels are."""

    kind: str  # "cutout", "shape", "sign" or "note"
    name: str
    picture: str  # the source of a cut-out
    colour: str  # of COLOURS, where it is known; else nothing
    says: str  # what is written on it
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels
    mask: np.ndarray  # bool (y1 - y0, x1 - x0), where the thing is more than half opaque

    @property
    def centre(self) -> tuple[float, float]:
        """The mean x and y of its mask, in pixels."""
        x, y = _centre(self.mask)
        return self.box[0] + x, self.box[1] + y


def place_of(centre: tuple[float, float], side: int) -> str:
    """Of PLACES."""
    column, row = (min(2, int(3 * value / side)) for value in centre)
    return PLACES[3 * row + column]


def whole_masks(things: tuple[Thing, ...], side: int) -> np.ndarray:
    """One mask a thing in the scene's pixels, bool (T, side, side)."""
    masks = np.zeros((len(things), side, side), bool)
    for mask, thing in zip(masks, things, strict=True):
        x0, y0, x1, y1 = thing.box
        mask[y0:y1, x0:x1] = thing.mask
    return masks


class Canvas:
    """A square photo that things are set on."""

    def __init__(self, rng: np.random.Generator, photo: Image.Image, side: int):
        self.rng, self.side = rng, side
        self.image = _part(rng, photo, side)
        self.pixels = np.asarray(self.image)
        self.things: list[Thing] = []

    def put(self, picture: Image.Image, kind: str, name: str, source: str = "", colour: str = "", says: str = ""):
        """Set an RGBA picture in a place drawn from the nine; smaller if it has no room there."""
        picture, at = self._settled(picture)
        self.image.paste(picture, at, picture)
        box = (*at, at[0] + picture.width, at[1] + picture.height)
        self.things.append(Thing(kind, name, source, colour, says, box, solid(picture)))

    def _settled(self, picture: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
        """The picture, small enough, and a corner for it."""
        tried = 0
        while True:
            wanted = int(self.rng.integers(9))
            at, seen = self._found(picture, wanted)
            while at is None and max(picture.size) > LEAST / _SMALLER:
                size = (max(1, round(_SMALLER * picture.width)), max(1, round(_SMALLER * picture.height)))
                picture = picture.resize(size, Image.Resampling.BICUBIC)
                at, seen = self._found(picture, wanted)
            if at is not None and (seen >= FAINT or tried >= _TRIES):
                return picture, at
            tried += 1

    def _found(self, picture: Image.Image, place: int) -> tuple[tuple[int, int] | None, float]:
        """A corner for it with its centre in a place, with room, where it can be seen if it can; how far it can."""
        corners = self._roomy(picture, place)
        best, most = None, -1.0
        for x, y in corners[:_SEEN]:
            behind = self.pixels[y : y + picture.height, x : x + picture.width]
            seen = _contrast(np.asarray(picture), behind)
            if seen > most:
                best, most = (int(x), int(y)), seen
            if most >= CONTRAST:
                break
        return best, most

    def _roomy(self, picture: Image.Image, place: int) -> np.ndarray:
        """Some corners (n, 2) where a picture has its centre in a place and does not come near another."""
        centre, size = np.array(_centre(solid(picture))), np.array(picture.size)
        cell = np.array([place % 3, place // 3])
        low = np.ceil(np.maximum((cell / 3 + INSIDE) * self.side - centre, EDGE))
        high = np.floor(np.minimum(((cell + 1) / 3 - INSIDE) * self.side - centre, self.side - EDGE - size))
        if (low > high).any():
            return np.empty((0, 2), int)
        corners = self.rng.integers(low.astype(int), high.astype(int) + 1, (_TRIES, 2))
        if not self.things:
            return corners
        boxes = np.array([thing.box for thing in self.things])
        ends = corners + size
        near = (corners[:, None] < boxes[:, 2:] + APART) & (ends[:, None] + APART > boxes[:, :2])
        return corners[~np.logical_or.reduce(near.all(axis=2), axis=1)]


def _contrast(picture: np.ndarray, behind: np.ndarray) -> float:
    """How far a picture's colours are from what it would cover, mean over its solid part, of 255."""
    picture, behind = picture[::_STEP, ::_STEP].astype(np.int16), behind[::_STEP, ::_STEP].astype(np.int16)
    apart = np.abs(picture[..., :3] - behind).max(axis=2)[picture[..., 3] > 127]
    return float(apart.mean()) if apart.size else 0.0


def _centre(mask: np.ndarray) -> tuple[float, float]:
    """The mean x and y of a mask's pixels, whose own middles are half a pixel in."""
    down, across = mask.sum(axis=0), mask.sum(axis=1)
    area = max(1, int(down.sum()))
    x, y = (float((line * (np.arange(len(line)) + 0.5)).sum() / area) for line in (down, across))
    return x, y


def _part(rng: np.random.Generator, photo: Image.Image, side: int) -> Image.Image:
    """Some square of a photo, mirrored or not."""
    length = int(min(photo.size) * rng.uniform(0.55, 1))
    x, y = (int(rng.integers(0, whole - length + 1)) for whole in photo.size)
    part = photo.resize((side, side), Image.Resampling.BILINEAR, (x, y, x + length, y + length))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part
