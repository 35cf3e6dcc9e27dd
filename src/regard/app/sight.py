"""A picture that somebody looks at, read and encoded once for all that is asked about it."""

import hashlib
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from regard.allocation import Allocation
from regard.eyes import Eye
from regard.eyes.pocket import PocketEye
from regard.pixels import one_line
from regard.record import Picture, Realization
from regard.recorded import boxes_of, read_picture
from regard.relevance.realized import Measured
from regard.relevance.realizer import Realizer
from regard.relevance.tensions import States
from regard.tokens import Question, VisualTokens

LONGEST = 2048  # pixels: what is kept of a larger picture
SHOWN, SMALL = 640, 360  # pixels, the longest side of what is drawn: heat maps, and what stands in rows


@dataclass(frozen=True, eq=False)
class Sight:
    """image: RGB, as models get it. shown, small: the same, to draw on. tokens: of the eye. seconds: that it took."""

    image: Image.Image
    shown: Image.Image
    small: Image.Image
    picture: Picture
    tokens: VisualTokens
    boxes: tuple[tuple[float, ...], ...]
    seconds: float

    @property
    def count(self) -> int:
        """Its tokens."""
        return int(self.tokens.valid.sum())


class Spent(NamedTuple):
    """How an allocator spends a budget, why where it tells, and the seconds of deciding."""

    allocation: Allocation
    why: Realization | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Heard:
    """A question about one sight. realizer, measured, transjectivity: of relevance, at whatever budget; seconds:
    to measure. spent: the last decisions, by allocator, budget and states.
    """

    sight: Sight
    text: str
    question: Question
    realizer: Realizer
    measured: Measured
    transjectivity: float | None
    seconds: float
    spent: dict[tuple[str, int, States], Spent] = field(default_factory=dict)

    @classmethod
    def of(cls, eye: PocketEye, sight: Sight, text: str) -> "Heard":
        """Hear it. Raises DataError for a question that the eye cannot hear."""
        question = eye.ask(text)
        realizer = eye.realizer
        start = time.perf_counter()
        measured = realizer.measure(sight.tokens, question)
        seconds = time.perf_counter() - start
        shared = realizer.transjectivity(sight.tokens, question)
        return cls(sight, text, question, realizer, measured, shared, seconds)


class Sights:
    """Pictures by their content, the last few of all users: each is encoded once, one at a time."""

    def __init__(self, most: int = 32) -> None:
        self.most = most
        self._kept: OrderedDict[str, Sight] = OrderedDict()
        self._one_at_a_time = threading.Lock()

    def opened(self, path: str | Path, eye: Eye) -> Sight:
        """The picture in a file, read strictly. Raises ImageError."""
        path = Path(path)
        data, name = path.read_bytes(), one_line(path.name)
        key = hashlib.sha256(data).hexdigest()
        with self._one_at_a_time:
            if key not in self._kept:
                self._kept[key] = _encoded(data, name, eye)
            self._kept.move_to_end(key)
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
            sight = self._kept[key]
        return sight if sight.picture.name == name else replace(sight, picture=replace(sight.picture, name=name))


def _encoded(data: bytes, name: str, eye: Eye) -> Sight:
    image, picture = read_picture(data)
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS, reducing_gap=2.0)
    shown, small = image.copy(), image.copy()
    shown.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS, reducing_gap=2.0)
    small.thumbnail((SMALL, SMALL), Image.Resampling.LANCZOS, reducing_gap=2.0)
    start = time.perf_counter()
    tokens = eye.look(image)
    seconds = time.perf_counter() - start
    return Sight(image, shown, small, replace(picture, name=name), tokens, boxes_of(tokens), seconds)
