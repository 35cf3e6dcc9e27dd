"""Scenes with questions and answers and the exact places of what each answer needs, to train and test a small VLM.

A scene is a square photo with cut-outs (photos and emoji, one of them up to six times), simple shapes, signs with a
word or a number, and a note with a digit written by hand, each apart from the others. Some cut-outs are dyed. It has
5 to 8 pairs of the kinds in `wording.KINDS`:
- what: the only thing in one of nine places, or the one nearest to a named one. next: the nearest on a side of it.
- where: the place of a thing's centre, one of nine. exists: yes or no. count: one to six.
- colour: of a sign, note, shape or dyed thing. read: what is written; a number's digits are words of their own.
- missing: which of three is not there.
Splits are told in `splits`. In "new", only where and exists are asked, about names that no scene to train with has.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from regard.bench.tasks.asked import drawing, wording
from regard.bench.tasks.asked.layout import Canvas, Thing
from regard.bench.tasks.asked.questions import MAKERS, Made, Pair
from regard.bench.tasks.asked.splits import SPLITS, Stock, names, stock
from regard.bench.tasks.cutouts import CutOut, trimmed
from regard.errors import DataError

SIDES = {448: 0.3, 512: 0.3, 640: 0.2, 768: 0.12, 1024: 0.08}  # pixels, and how often
PAIRS = (5, 8)

_LARGEST = {448: 110, 512: 120, 640: 140, 768: 160, 1024: 160}  # pixels, a thing's longest side before it is turned
_SMALLEST = 40
_WIDEST = 0.45  # of the side, a sign
_LIGHT, _TURN = (0.8, 1.2), 12  # darker or lighter, and degrees to a side
_OFTEN = ("what", "where")  # asked up to twice
_NEW = ("where", "exists")


class Asked(NamedTuple):
    """A scene, all that is on it, and what is asked about it."""

    image: Image.Image  # RGB, square
    things: tuple[Thing, ...]
    pairs: tuple[Pair, ...]
    background: str  # the photo's name


def asked(split: str, index: int, seed: int = 0, pairs: tuple[int, int] = PAIRS) -> Asked:
    """Scene `index` of a seed, whatever others are made, with that many pairs, or as many as there are.

    split: of SPLITS. Fetches packages. Raises DataError.
    """
    return make(stock(split), index, seed, pairs)


def vocabulary(folder: Path | None = None) -> tuple[str, ...]:
    """All words, digits and marks (`wording.tokens`) of questions and answers of all splits, sorted. Raises DataError.

    folder: as in `stock`.
    """
    return wording.closed(names(folder))


def make(stock: Stock, index: int, seed: int = 0, pairs: tuple[int, int] = PAIRS) -> Asked:
    """As `asked`, from a stock. The picture does not depend on pairs. Raises DataError."""
    if min(index, seed) < 0:
        raise DataError(f"index and seed must be 0 or more, got {index} and {seed}")
    rng = np.random.default_rng([seed, 17, SPLITS.index(stock.split), index])
    side = int(rng.choice(list(SIDES), p=list(SIDES.values())))
    background = list(stock.backgrounds)[int(rng.integers(len(stock.backgrounds)))]
    canvas = Canvas(rng, stock.backgrounds[background], side)
    cuts, absent = _chosen(rng, stock)
    _put_plates(canvas, stock)
    _put_cutouts(canvas, cuts, dye=stock.split != "new")
    things = canvas.things
    made = Made(side, things, cuts[0].name, absent)
    return Asked(canvas.image, tuple(things), _pairs(rng, made, pairs, new=stock.split == "new"), background)


def _chosen(rng: np.random.Generator, stock: Stock) -> tuple[list[CutOut], list[str]]:
    """Four to six cut-outs, and names that are not there; no two are kin. The first is the one to count."""
    order = list(stock.things)
    count = int(rng.integers(4, 7))
    chosen: list[CutOut] = []
    absent: list[str] = []
    kin: set[str] = set()
    for place in rng.permutation(len(order)):
        of = stock.things[order[place]]
        cut = of[int(rng.integers(len(of)))]
        if cut.kin not in kin and len(chosen) < count:
            chosen.append(cut)
            kin.add(cut.kin)
        elif cut.kin not in kin:
            absent.append(cut.name)
    return chosen, absent


def _put_plates(canvas: Canvas, stock: Stock) -> None:
    """None to two signs, of two colours and at most one with a number; a note; none to two shapes."""
    rng = canvas.rng
    colours = [wording.COLOURS[place] for place in rng.permutation(len(wording.COLOURS))]
    signs = int(rng.choice(3, p=[0.2, 0.5, 0.3]))
    words = [wording.WORDS[place] for place in rng.permutation(len(wording.WORDS))[:signs]]
    if words and rng.random() < 0.4:
        words[0] = str(int(rng.integers(10, 100)) if rng.random() < 0.6 else int(rng.integers(10)))
    for says, colour in zip(words, colours, strict=False):
        picture = _turned(rng, drawing.sign(rng, says, colour, int(_WIDEST * canvas.side)), 4)
        canvas.put(picture, "sign", "sign", colour=colour, says=says)
    if rng.random() < 0.35:
        place, colour = int(rng.integers(len(stock.labels))), _colour(rng)
        picture = _turned(rng, drawing.note(rng, stock.digits[place], colour), 4)
        canvas.put(picture, "note", "note", colour=colour, says=str(stock.labels[place]))
    for place in rng.permutation(len(wording.SHAPES))[: int(rng.integers(3))]:
        name, colour = wording.SHAPES[place], _colour(rng)
        picture = drawing.shape(rng, name, colour)
        canvas.put(_turned(rng, _sized(rng, picture, canvas.side), 8), "shape", name, colour=colour)


def _put_cutouts(canvas: Canvas, cuts: list[CutOut], dye: bool) -> None:
    """Those that are there once, and the first one to six times."""
    rng = canvas.rng
    for cut in [*cuts[1:], *cuts[:1] * int(rng.integers(1, len(wording.NUMBERS) + 1))]:
        picture = _sized(rng, cut.image, canvas.side)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        colour = _colour(rng) if dye and cut is not cuts[0] and cut.name in drawing.DYED and rng.random() < 0.8 else ""
        picture = drawing.dyed(rng, picture, colour) if colour else _lit(rng, picture)
        canvas.put(_turned(rng, picture, _TURN), "cutout", cut.name, cut.source, colour)


def _pairs(rng: np.random.Generator, made: Made, most: tuple[int, int], new: bool) -> tuple[Pair, ...]:
    """As many as are drawn, of as many kinds as there are, nothing asked twice."""
    kinds = [*_NEW] * 8 if new else [*wording.KINDS, *_OFTEN]
    if new:
        made = made._replace(things=[thing for thing in made.things if thing.kind == "cutout"])
    wanted = int(rng.integers(most[0], most[1] + 1))
    kinds *= -(-most[1] // PAIRS[1])
    pairs: dict[tuple, Pair] = {}
    for place in rng.permutation(len(kinds)):
        pair = MAKERS[kinds[place]](rng, made)
        if pair is not None and len(pairs) < wanted:
            pairs.setdefault((pair.kind, pair.about), pair)
    return tuple(pairs.values())


def _colour(rng: np.random.Generator) -> str:
    return wording.COLOURS[int(rng.integers(len(wording.COLOURS)))]


def _sized(rng: np.random.Generator, picture: Image.Image, side: int) -> Image.Image:
    """In a size of its own, small ones as likely as large ones."""
    longest = _SMALLEST * (_LARGEST[side] / _SMALLEST) ** rng.random()
    size = (max(1, round(length * longest / max(picture.size))) for length in picture.size)
    return picture.resize((next(size), next(size)), Image.Resampling.BICUBIC)  # Pillow weights colours by alpha


def _lit(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    lit = np.clip(np.arange(256) * rng.uniform(*_LIGHT), 0, 255).round().astype(int).tolist()
    return picture.point(lit * 3 + list(range(256)))


def _turned(rng: np.random.Generator, picture: Image.Image, degrees: float) -> Image.Image:
    angle = float(rng.uniform(-degrees, degrees))
    return trimmed(picture.rotate(angle, Image.Resampling.BICUBIC, expand=True))
