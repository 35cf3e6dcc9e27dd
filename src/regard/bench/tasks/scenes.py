"""Scenes of which it is known where the things are that a question needs: cut-outs and words set on photographs.

- mosaic: four photos of animals, 2 x 2; one is asked for.
- cutout: 5 to 8 things on a photo of a monument; one is asked for.
- count: 3 to 7 copies of one thing and 2 to 4 others; how many are there?
- missing: 4 to 6 things; which of three is missing? The two that are there must be seen.
- wrong: as cutout, but what is asked for is not there, and one of those that are is what is needed.
- vague: as cutout, and the question names nothing; all are needed.
- text: 3 to 5 plates with words and 2 to 4 things; what does the sign say? All the plates are needed.
A thing is 40 to 130 pixels, apart from the others, where it can be told from what is behind it.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from regard.bench.tasks import emoji, gcompris, stamps, words
from regard.bench.tasks.cutouts import CutOut, half_of, one, plural, solid
from regard.bench.tasks.gcompris import Photos
from regard.bench.tasks.mosaic import mosaic
from regard.errors import DataError

SIDE = 1024  # pixels
KINDS = ("mosaic", "cutout", "count", "missing", "wrong", "vague", "text")
THING = (40, 130)  # pixels, the longest side
APART, EDGE = 16, 8  # pixels between two things, and to the edge
CONTRAST = 40  # of 255: how far a thing's edge is, at the least, from what is behind it, where there is such a place
_TRIES = 24
_SMALL = 500  # pixels: a photo with a shorter side than this is no background
_UNFIT = ("colosseum", "castleClinton")  # photos with words of their own, or without colour

VAGUE = ("what is unusual here?", "what stands out?", "what can you see?", "describe the picture.")
READ = ("what does the sign say?", "what is written here?", "read the signs.", "what do the words say?")


class Scene(NamedTuple):
    """A picture, a question, and where the things are that the answer needs."""

    kind: str
    image: Image.Image  # RGB, SIDE x SIDE
    question: str
    name: str  # the thing asked for, there or not; where nothing is named, the photo behind: intervals go over names
    targets: np.ndarray  # bool (T, SIDE, SIDE), one mask a thing; they do not overlap


class Pool(NamedTuple):
    """What scenes are made from."""

    photos: Photos
    cutouts: list[CutOut]
    backgrounds: dict[str, Image.Image]  # by name, RGB of any size
    sayings: list[str]


def scene(kind: str, seed: int, half: str) -> Scene:
    """The same for the same kind (of KINDS), seed and half ("tune" or "report"). Fetches packages. Raises DataError."""
    return make(kind, seed, pool(half))


def make(kind: str, seed: int, pool: Pool) -> Scene:
    """A scene from a pool. Names are asked for in turn: as many seeds as names ask for each once."""
    if kind not in KINDS:
        raise DataError(f"no scene of kind {kind!r}: there are {', '.join(KINDS)}")
    return _MAKERS[kind](np.random.default_rng([seed, 3, KINDS.index(kind)]), seed, pool)


@cache
def pool(half: str, folder: Path | None = None) -> Pool:
    """The half "tune" or "report": no name, photo or saying is in both. Takes about ten seconds.

    folder: where the .deb files of the three packages are; fetched where there is none. Raises DataError.
    """
    if half not in ("tune", "report"):
        raise DataError(f"no half {half!r}: there are tune and report")
    monuments = gcompris.PACKAGE.within(folder)
    photos = {which: gcompris.photos(which, monuments) for which in ("tune", "report")}
    cutouts = [
        *stamps.stamps(stamps.PACKAGE.within(folder)),
        *emoji.emoji(emoji.PACKAGE.within(folder)),
    ]
    names = {which: {photo.name for photo in photos[which].animals} for which in photos}
    return Pool(
        photos[half],
        half_of(cutouts, half, names),
        backgrounds(half, monuments),
        words.sayings(half),
    )


def backgrounds(half: str, package: Path | None = None) -> dict[str, Image.Image]:
    """The half's photos to set things on, RGB of any size, by name. package: the .deb of gcompris. Raises DataError."""
    return {
        name: photo
        for name, photo in gcompris.monuments(half, package).items()
        if min(photo.size) >= _SMALL and name not in _UNFIT
    }


class _Canvas:
    """A photo that things are set on, apart from one another."""

    def __init__(self, rng: np.random.Generator, pool: Pool):
        self.rng = rng
        self.name = sorted(pool.backgrounds)[int(rng.integers(len(pool.backgrounds)))]
        self.image = _square(rng, pool.backgrounds[self.name])
        self.taken: list[tuple[int, int, int, int]] = []

    def put(self, thing: Image.Image) -> np.ndarray:
        """Set an RGBA picture where there is room for it and it can be told from the photo; where it is, as a mask."""
        places = [self._place(thing.size) for _ in range(_TRIES)]
        best, most = places[0], -1.0
        for place in places:
            seen = contrast(thing, self.image.crop((*place, place[0] + thing.width, place[1] + thing.height)))
            if seen > most:
                best, most = place, seen
            if most >= CONTRAST:
                break
        x, y = best
        self.taken.append((x, y, x + thing.width, y + thing.height))
        self.image.paste(thing, best, thing)
        mask = np.zeros((SIDE, SIDE), bool)
        mask[y : y + thing.height, x : x + thing.width] = solid(thing)
        return mask

    def put_things(self, things: Sequence[CutOut]) -> np.ndarray:
        """Set all, in sizes of their own and some mirrored; (T, SIDE, SIDE)."""
        return np.stack([self.put(_sized(self.rng, thing.image)) for thing in things])

    def _place(self, size: tuple[int, int]) -> tuple[int, int]:
        w, h = size
        while True:
            x, y = int(self.rng.integers(EDGE, SIDE - EDGE - w + 1)), int(self.rng.integers(EDGE, SIDE - EDGE - h + 1))
            if all(
                x >= b[2] + APART or x + w + APART <= b[0] or y >= b[3] + APART or y + h + APART <= b[1]
                for b in self.taken
            ):
                return x, y


def _mosaic(rng: np.random.Generator, seed: int, pool: Pool) -> Scene:
    task = mosaic(seed, pool.photos, SIDE // 2)
    x0, y0, x1, y1 = (round(edge * SIDE) for edge in task.box)
    mask = np.zeros((1, SIDE, SIDE), bool)
    mask[0, y0:y1, x0:x1] = True
    return Scene("mosaic", task.image, task.question, task.asked, mask)


def _cutout(rng: np.random.Generator, seed: int, pool: Pool) -> Scene:
    canvas = _Canvas(rng, pool)
    things = _things(rng, pool, seed, int(rng.integers(5, 9)))
    masks = canvas.put_things(things)
    return Scene("cutout", canvas.image, f"where is the {things[0].name}?", things[0].name, masks[:1])


def _count(rng: np.random.Generator, seed: int, pool: Pool) -> Scene:
    canvas = _Canvas(rng, pool)
    counted, *others = _things(rng, pool, seed, int(rng.integers(3, 6)))
    masks = canvas.put_things([counted] * int(rng.integers(3, 8)))
    canvas.put_things(others)
    return Scene("count", canvas.image, f"how many {plural(counted.name)} are there?", counted.name, masks)


def _missing(rng: np.random.Generator, seed: int, pool: Pool) -> Scene:
    canvas = _Canvas(rng, pool)
    missing, *things = _things(rng, pool, seed, int(rng.integers(5, 8)))
    masks = canvas.put_things(things)
    named = [one(thing.name) for thing in (missing, *things[:2])]
    first, second, third = (named[place] for place in rng.permutation(3))
    question = f"which of these is missing: {first}, {second} or {third}?"
    return Scene("missing", canvas.image, question, missing.name, masks[:2])


def _wrong(rng: np.random.Generator, seed: int, pool: Pool) -> Scene:
    canvas = _Canvas(rng, pool)
    absent, *things = _things(rng, pool, seed, int(rng.integers(6, 10)))
    masks = canvas.put_things(things)
    return Scene("wrong", canvas.image, f"where is the {absent.name}?", absent.name, masks[:1])


def _vague(rng: np.random.Generator, seed: int, pool: Pool) -> Scene:
    canvas = _Canvas(rng, pool)
    masks = canvas.put_things(_things(rng, pool, seed, int(rng.integers(5, 9))))
    return Scene("vague", canvas.image, VAGUE[int(rng.integers(len(VAGUE)))], canvas.name, masks)


def _text(rng: np.random.Generator, seed: int, pool: Pool) -> Scene:
    canvas = _Canvas(rng, pool)
    said = rng.permutation(len(pool.sayings))[: int(rng.integers(3, 6))]
    masks = np.stack([canvas.put(words.plate(rng, pool.sayings[place])) for place in said])
    canvas.put_things(_things(rng, pool, seed, int(rng.integers(2, 5))))
    return Scene("text", canvas.image, READ[int(rng.integers(len(READ)))], canvas.name, masks)


_MAKERS: dict[str, Callable[[np.random.Generator, int, Pool], Scene]] = dict(
    zip(KINDS, (_mosaic, _cutout, _count, _missing, _wrong, _vague, _text), strict=True)
)


def _things(rng: np.random.Generator, pool: Pool, seed: int, count: int) -> list[CutOut]:
    """The seed's thing and others that none of the names before fits; which picture of a name is drawn."""
    by: dict[str, list[CutOut]] = {}
    for cut in pool.cutouts:
        by.setdefault(cut.name, []).append(cut)
    names = sorted(by)
    turn = np.random.default_rng(len(names)).permutation(len(names))  # so that a few seeds do not ask for A to C only
    order = [names[turn[seed % len(names)]], *(names[place] for place in rng.permutation(len(names)))]
    chosen: list[CutOut] = []
    for name in order:
        cut = by[name][int(rng.integers(len(by[name])))]
        if len(chosen) < count and cut.kin not in {other.kin for other in chosen}:
            chosen.append(cut)
    return chosen


def _sized(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    scale = int(rng.integers(THING[0], THING[1] + 1)) / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)  # Pillow weights colours by alpha
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def _square(rng: np.random.Generator, photo: Image.Image) -> Image.Image:
    """Some square of a photo, nearly as large as the photo allows."""
    side = int(min(photo.size) * rng.uniform(0.85, 1))
    x, y = (int(rng.integers(0, length - side + 1)) for length in photo.size)
    return photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (x, y, x + side, y + side))


def contrast(thing: Image.Image, behind: Image.Image) -> float:
    """How far the colours of a thing's solid part are from what it would cover, mean over pixels, of 255."""
    at = solid(thing)
    apart = np.abs(np.asarray(thing)[..., :3].astype(int) - np.asarray(behind).astype(int)).max(axis=2)
    return float(apart[at].mean()) if at.any() else 0.0
