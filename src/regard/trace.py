"""Where a mechanism that chooses where to look did so, as plain data: a part of its Record."""

from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Trace:
    """Where a mechanism that chooses looked, in order, and what it took.

    stages: for each of the record's boxes, the stage (glimpse, resolution, layer) at which it was read, from 0; where
    `narrows`, at which it was read last: everything was at first, and less at each stage.
    fixations: x and y in [0, 1]. exit: the stage at which it stopped. tokens: visual tokens read in all. macs:
    multiply-accumulates spent; macs_full: what reading everything would have taken. probabilities: of the classes;
    labels: their names, or none.
    """

    mechanism: str
    stages: tuple[int, ...]
    fixations: tuple[tuple[float, float], ...]
    exit: int
    tokens: int
    macs: int
    macs_full: int
    probabilities: tuple[float, ...]
    labels: tuple[str, ...] = ()
    narrows: bool = False

    def read_at(self, stage: int) -> tuple[bool, ...]:
        """Of each box, whether it had been read by this stage, or where it narrows was still read at it."""
        return tuple(at >= stage if self.narrows else at <= stage for at in self.stages)

    @property
    def answer(self) -> str:
        """The name of the most likely class, or its number."""
        best = max(range(len(self.probabilities)), key=self.probabilities.__getitem__)
        return self.labels[best] if self.labels else str(best)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From JSON's lists. Raises KeyError, TypeError or ValueError where it is none."""
        lists = {name: tuple(data.pop(name)) for name in ("stages", "probabilities", "labels")}
        fixations = tuple((x, y) for x, y in data.pop("fixations"))
        return cls(fixations=fixations, **lists, **data)

    def check(self, n: int) -> None:
        """Raise ValueError where it does not fit n boxes."""
        if len(self.stages) != n or any(not 0 <= stage <= self.exit for stage in self.stages):
            raise ValueError("a trace must have a stage for each box, none after the exit")
        if not self.probabilities or not all(0 <= p <= 1 for p in self.probabilities):
            raise ValueError("a trace must have the probabilities of its classes")
        if self.labels and len(self.labels) != len(self.probabilities):
            raise ValueError("a trace must have a name for each class, or none")
        if not all(0 <= side <= 1 for place in self.fixations for side in place):
            raise ValueError("fixations must be in [0, 1]")
        if min(self.tokens, self.macs, self.macs_full) < 0:
            raise ValueError("what a trace took must not be negative")
