"""Questions about an asked scene, with answers that are known from how the scene was made.

A maker gives a pair, or nothing where its question would have no answer or more than one.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from regard.bench.tasks.asked.layout import Thing, place_of
from regard.bench.tasks.asked.wording import NUMBERS, PLACES, SIDES, named, put
from regard.bench.tasks.cutouts import one, plural

CLEAR = 1.35  # so many times as far as the nearest thing is the next, where the nearest is asked for
_ASIDE = 0.7  # how steeply a thing to the left may lie above or below
_PEEPING = 0.3  # the part of another thing that may reach into a place that is asked about


class Pair(NamedTuple):
    """A question, its answer, and the things that the answer needs; none where the answer is that it is not there."""

    kind: str
    question: str
    answer: str
    targets: tuple[Thing, ...]

    @property
    def answered(self) -> tuple[Thing, ...]:
        """Those that the answer is about, not such as it is found by."""
        return self.targets[:1] if self.kind in ("what", "next") else self.targets

    @property
    def about(self) -> tuple[str | int, ...]:
        """What no other question of its kind and scene may have: its things, or the words that name none."""
        return tuple(map(id, self.targets)) or tuple(named(self.question))


class Made(NamedTuple):
    """What is known about a scene."""

    side: int  # pixels
    things: list[Thing]
    counted: str  # the name that is there one to six times; any other is there once
    absent: list[str]  # names that are not there, nor is any of their kin, in drawn order

    def said(self, thing: Thing) -> str:
        """What a thing is called so that no other is meant, or nothing."""
        alike = [other for other in self.things if other.name == thing.name]
        if len(alike) == 1:
            return thing.name
        return f"{thing.colour} {thing.name}" if thing.kind == "sign" else ""

    def cutouts(self) -> list[Thing]:
        """Those that are there once and are not counted."""
        return [thing for thing in self.things if thing.kind == "cutout" and thing.name != self.counted]


def _what(rng: np.random.Generator, made: Made) -> Pair | None:
    if rng.random() < 0.35:
        return _beside(rng, made)
    for place in rng.permutation(9):
        within = [thing for thing in made.things if place_of(thing.centre, made.side) == PLACES[place]]
        if len(within) != 1 or within[0].kind not in ("cutout", "shape"):
            continue
        if all(thing is within[0] or _reach(thing, int(place), made.side) <= _PEEPING for thing in made.things):
            return Pair("what", put(rng, "what", place=PLACES[place]), within[0].name, (within[0],))
    return None


def _beside(rng: np.random.Generator, made: Made) -> Pair | None:
    for asked in _drawn(rng, made.cutouts()):
        others = [thing for thing in made.things if thing is not asked]
        nearest = _nearest(asked, others)
        if nearest is not None:
            return Pair("what", put(rng, "beside", name=asked.name), nearest.name, (nearest, asked))
    return None


def _where(rng: np.random.Generator, made: Made) -> Pair | None:
    for thing in _drawn(rng, made.things):
        if name := made.said(thing):
            return Pair("where", put(rng, "where", name=name), place_of(thing.centre, made.side), (thing,))
    return None


def _exists(rng: np.random.Generator, made: Made) -> Pair | None:
    if rng.random() < 0.5:
        return Pair("exists", put(rng, "exists", one=one(made.absent[int(rng.integers(len(made.absent)))])), "no", ())
    names = sorted({thing.name for thing in made.things if thing.kind == "cutout"})
    name = names[int(rng.integers(len(names)))]
    return Pair("exists", put(rng, "exists", one=one(name)), "yes", _all(made, name))


def _count(rng: np.random.Generator, made: Made) -> Pair | None:
    counted = _all(made, made.counted)
    return Pair("count", put(rng, "count", many=plural(made.counted)), NUMBERS[len(counted) - 1], counted)


def _colour(rng: np.random.Generator, made: Made) -> Pair | None:
    for thing in _drawn(rng, [thing for thing in made.things if thing.colour]):
        name = made.said(thing)
        if thing.kind == "sign" and name != "sign":  # which of two is told by what is written
            name = "sign with the number" if thing.says[0].isdigit() else f"sign that says {thing.says}"
        if name:
            return Pair("colour", put(rng, "colour", name=name), thing.colour, (thing,))
    return None


def _next(rng: np.random.Generator, made: Made) -> Pair | None:
    sides = [SIDES[place] for place in rng.permutation(4)]
    for asked in _drawn(rng, made.cutouts()):
        for side in sides:
            beyond = [thing for thing in made.things if thing is not asked and _offset(asked, thing, side)[0] > 0]
            nearest = _nearest(asked, beyond)
            if nearest is None:
                continue
            ahead, aside = _offset(asked, nearest, side)
            if abs(aside) <= _ASIDE * ahead:
                return Pair("next", put(rng, side, name=asked.name), nearest.name, (nearest, asked))
    return None


def _read(rng: np.random.Generator, made: Made) -> Pair | None:
    for thing in _drawn(rng, [thing for thing in made.things if thing.says]):
        digits = thing.says[0].isdigit()
        way = "digit" if thing.kind == "note" else "number" if digits else "read"
        return Pair(
            "read", put(rng, way, name=made.said(thing)), " ".join(thing.says) if digits else thing.says, (thing,)
        )
    return None


def _missing(rng: np.random.Generator, made: Made) -> Pair | None:
    there = _drawn(rng, [*made.cutouts(), _all(made, made.counted)[0]])[:2]
    absent = made.absent[int(rng.integers(len(made.absent)))]
    named = [absent, *(thing.name for thing in there)]
    first, second, third = (one(named[place]) for place in rng.permutation(3))
    targets = tuple(thing for of in there for thing in _all(made, of.name))
    return Pair("missing", put(rng, "missing", first=first, second=second, third=third), absent, targets)


MAKERS: dict[str, Callable[[np.random.Generator, Made], Pair | None]] = {
    "what": _what,
    "where": _where,
    "exists": _exists,
    "count": _count,
    "colour": _colour,
    "next": _next,
    "read": _read,
    "missing": _missing,
}


def _drawn(rng: np.random.Generator, things: list[Thing]) -> list[Thing]:
    return [things[place] for place in rng.permutation(len(things))]


def _all(made: Made, name: str) -> tuple[Thing, ...]:
    return tuple(thing for thing in made.things if thing.name == name)


def _nearest(asked: Thing, others: list[Thing]) -> Thing | None:
    """Whose centre is nearest, if it is a cut-out or shape and no other is nearly as near."""
    ranked = sorted((_far(asked, thing), place) for place, thing in enumerate(others))
    if not ranked or (len(ranked) > 1 and ranked[1][0] < CLEAR * ranked[0][0]):
        return None
    thing = others[ranked[0][1]]
    return thing if thing.kind in ("cutout", "shape") else None


def _far(one: Thing, other: Thing) -> float:
    return float(np.hypot(*np.subtract(one.centre, other.centre)))


def _offset(asked: Thing, other: Thing, side: str) -> tuple[float, float]:
    """How far a thing's centre lies on a side of another's, and across that, in pixels."""
    x, y = (float(value) for value in np.subtract(other.centre, asked.centre))
    return {"left": (-x, y), "right": (x, y), "above": (-y, x), "below": (y, x)}[side]


def _reach(thing: Thing, place: int, side: int) -> float:
    """The part of a thing's box that is in a place."""
    x0, y0, x1, y1 = thing.box
    low = np.array([place % 3, place // 3]) * side / 3
    within = np.clip(np.minimum((x1, y1), low + side / 3) - np.maximum((x0, y0), low), 0, None)
    return float(within.prod() / ((x1 - x0) * (y1 - y0)))
