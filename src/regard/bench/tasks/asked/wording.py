"""The words of the questions and answers of asked scenes: how each is put, and the closed list of them."""

import re
from collections.abc import Iterable
from functools import cache

import numpy as np

from regard.bench.tasks.cutouts import one, plural

KINDS = ("what", "where", "exists", "count", "colour", "next", "read", "missing")
PLACES = tuple(
    f"{high} {wide}".replace("center center", "center")
    for high in ("top", "center", "bottom")
    for wide in ("left", "center", "right")
)
SIDES = ("left", "right", "above", "below")
NUMBERS = ("one", "two", "three", "four", "five", "six")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross")
WORDS = tuple(
    "open closed exit entrance push pull stop shop slow sale free bakery hotel pharmacy museum library school office "
    "market station danger welcome garden kitchen parking reception theater hospital airport elevator private coffee "
    "bank pool gym beach harbor bridge castle tickets".split()
)

_PUT = {
    "what": (
        "what is in the {place}?",
        "what can you see in the {place}?",
        "name the thing in the {place}.",
        "which thing is in the {place} of the picture?",
    ),
    "beside": (
        "what is next to the {name}?",
        "what is closest to the {name}?",
        "which thing is nearest to the {name}?",
    ),
    "where": (
        "where is the {name}?",
        "where can you see the {name}?",
        "in which part of the picture is the {name}?",
        "find the {name}. where is it?",
    ),
    "exists": (
        "is there {one}?",
        "can you see {one}?",
        "is {one} in the picture?",
        "does the picture show {one}?",
    ),
    "count": (
        "how many {many} are there?",
        "how many {many} can you see?",
        "count the {many}.",
        "what is the number of {many} in the picture?",
    ),
    "colour": (
        "which colour is the {name}?",
        "what colour is the {name}?",
        "what is the colour of the {name}?",
        "name the colour of the {name}.",
    ),
    "left": ("what is to the left of the {name}?", "what is left of the {name}?", "which thing is left of the {name}?"),
    "right": (
        "what is to the right of the {name}?",
        "what is right of the {name}?",
        "which thing is right of the {name}?",
    ),
    "above": ("what is above the {name}?", "what do you see above the {name}?", "which thing is above the {name}?"),
    "below": ("what is below the {name}?", "what do you see below the {name}?", "which thing is below the {name}?"),
    "read": ("what does the {name} say?", "what is written on the {name}?", "read the {name}."),
    "number": ("which number is on the {name}?", "what does the {name} say?", "what number does the {name} show?"),
    "digit": ("which digit is on the {name}?", "what is written on the {name}?", "read the {name}."),
    "missing": (
        "which is missing: {first}, {second} or {third}?",
        "which of these is missing: {first}, {second} or {third}?",
        "which of these is not there: {first}, {second} or {third}?",
        "{first}, {second} or {third}: which one is not in the picture?",
    ),
}
_OTHERS = "a an yes no sign note that says with the word number".split()


def put(rng: np.random.Generator, way: str, **given: str) -> str:
    """A question, in one of the ways in which it can be put."""
    ways = _PUT[way]
    return ways[int(rng.integers(len(ways)))].format(**given)


def tokens(text: str) -> list[str]:
    """The words, digits and marks of a question or answer, in order; lower case."""
    return re.findall(r"[a-z]+(?:-[a-z]+)*|[0-9]|[?.,:]", text.lower())


def named(text: str) -> list[str]:
    """The words of a question that name things."""
    common = taken()
    return [word for word in tokens(text) if word not in common]


@cache
def taken() -> frozenset[str]:
    """The words that questions and answers have besides the names of things and their plurals."""
    ways = " ".join(re.sub(r"{\w+}", " ", way) for of in _PUT.values() for way in of)
    fillers = (*_OTHERS, *PLACES, *NUMBERS, *COLOURS, *SHAPES, *WORDS, *"0123456789")
    return frozenset((*tokens(ways), *tokens(" ".join(fillers))))


def closed(names: Iterable[str]) -> tuple[str, ...]:
    """All words that questions and answers can have, given the names of things; sorted."""
    said = (word for name in names for text in (one(name), plural(name)) for word in tokens(text))
    return tuple(sorted({*taken(), *said}))
