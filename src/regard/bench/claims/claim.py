"""A claim, the rule of its verdict, and which of them are asked for."""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from regard.bench.claims.figures import NOW, Figure, figure
from regard.errors import DataError

HOLDS, LIMITS, REFUTED, UNTESTED = "holds", "holds with limits", "refuted", "cannot be tested here"
VERDICTS = (HOLDS, LIMITS, REFUTED, UNTESTED)
SECTIONS = ("taxonomy", "glimpses", "history", "matrix", "patterns", "innovations", "relevance", "practice", "sources")
_CONDITION = re.compile(r"(\S+) (<=|>=|<|>) (\S+)")


@dataclass(frozen=True)
class Claim:
    """A statement of the survey. section: where it stands. says: in its words or nearly. source: what the work it is
    about says, with where that is. figures: by a short name, what is read of results or computed (`figures.figure`).
    holds, limits: conditions on them, all of which must be met, such as "exponent >= 1.9". verdict: where no figure
    decides it. otherwise: where the figures meet no condition. why: what the reader must know beside it.
    """

    id: str
    section: str
    says: str
    source: str
    why: str
    figures: Mapping[str, str] = field(default_factory=dict)
    holds: Sequence[str] = ()
    limits: Sequence[str] = ()
    verdict: str = ""
    otherwise: str = REFUTED

    def __post_init__(self) -> None:
        rule = [*self.holds, *self.limits]
        if bool(rule) == bool(self.verdict):
            raise DataError(f"claim {self.id!r} must have a verdict or a rule of figures, and not both")
        for verdict in (self.verdict, self.otherwise):
            if verdict and verdict not in VERDICTS:
                raise DataError(f"claim {self.id!r} has the verdict {verdict!r}: there are {', '.join(VERDICTS)}")
        for condition in rule:
            found = _CONDITION.fullmatch(condition)
            names = set() if found is None else {side for side in (found[1], found[3]) if not _number(side)}
            if found is None or not names or not names <= set(self.figures):
                raise DataError(f"claim {self.id!r}: {condition!r} must compare one of {', '.join(self.figures)}")

    @property
    def rule(self) -> str:
        """The rule in words, or nothing."""
        parts = [
            f"{verdict} where {' and '.join(found)}"
            for verdict, found in ((HOLDS, self.holds), (LIMITS, self.limits))
            if found
        ]
        return "; ".join([*parts, f"{self.otherwise} otherwise"]).replace("_", " ") if parts else ""

    def given(self, values: Mapping[str, float | None]) -> str:
        """The verdict at these figures: where the rule needs one that is None, that it cannot be tested here."""
        if self.verdict:
            return self.verdict
        known = {name: value for name, value in values.items() if value is not None}
        if not self.needs <= set(known):
            return UNTESTED
        for verdict, conditions in ((HOLDS, self.holds), (LIMITS, self.limits)):
            if conditions and all(_met(condition, known) for condition in conditions):
                return verdict
        return self.otherwise

    @property
    def needs(self) -> set[str]:
        """The figures that the rule compares."""
        sides = {side for one in (*self.holds, *self.limits) for side in one.split(" ")[::2]}
        return {side for side in sides if not _number(side)}


@dataclass(frozen=True)
class Ruled:
    """A claim with its figures, and the verdict that follows."""

    claim: Claim
    figures: Mapping[str, Figure]
    verdict: str

    @property
    def missing(self) -> list[str]:
        """What to run for figures that are not there."""
        return sorted({one.command for one in self.figures.values() if one.value is None})

    @property
    def measured(self) -> str:
        """The figures and their commands, in a line."""
        if not self.figures:
            return "-"
        parts: dict[str, list[str]] = {}
        for name, one in self.figures.items():
            if one.value is not None:
                parts.setdefault(one.command, []).append(f"{name.replace('_', ' ')} = {one.text}")
        found = [f"{', '.join(some)} ({_told(command)})" for command, some in parts.items()]
        return "; ".join([*found, *(f"not measured: run `{command}`" for command in self.missing)])

    @property
    def why(self) -> str:
        """The reason, with the rule where there is one."""
        rule = self.claim.rule
        return f"{self.claim.why} Rule: {rule}." if rule else self.claim.why

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        figures = {
            name: {"value": one.value, "unit": one.unit, "command": one.command, "from": self.claim.figures[name]}
            for name, one in self.figures.items()
        }
        one = self.claim
        told = {"id": one.id, "section": one.section, "says": one.says, "source": one.source}
        return told | {
            "figures": figures,
            "measured": self.measured,
            "verdict": self.verdict,
            "rule": one.rule,
            "why": one.why,
        }


@cache
def claims() -> tuple[Claim, ...]:
    """Every claim, in the survey's order."""
    found: list[Claim] = []
    for name in SECTIONS:
        rows = tomllib.loads((Path(__file__).parent / f"{name}.toml").read_text(encoding="utf-8"))["claim"]
        found += [Claim(**row) for row in rows]
    return tuple(found)


def ruled(claim: Claim, results: Path = Path("results")) -> Ruled:
    """The claim's figures as they are now, and the verdict that follows from them."""
    found = {name: figure(where, results) for name, where in claim.figures.items()}
    return Ruled(claim, found, claim.given({name: one.value for name, one in found.items()}))


def select(only: str | None = None, among: Sequence[Claim] | None = None) -> list[Claim]:
    """The claims of this id, of this section, or whose id or words have this text in them. Raises DataError where
    there is none, with the nearest ids.
    """
    rows = list(claims() if among is None else among)
    if only is None:
        return rows
    wanted = only.strip().lower()
    found = [row for row in rows if row.id == wanted] or [
        row for row in rows if wanted and (row.section == wanted or wanted in f"{row.id} {row.says}".lower())
    ]
    if not found:
        near = difflib.get_close_matches(wanted, [row.id for row in rows], 3, 0.4)
        offered = f": the nearest ids are {', '.join(near)}" if near else ": regard claims lists them all"
        raise DataError(f"no claim has {only!r} in its id, section or words{offered}")
    return found


def checked_verdict(text: str | None) -> str | None:
    """The verdict as it is. Raises DataError for another, with the nearest."""
    if text is None or text in VERDICTS:
        return text
    near = difflib.get_close_matches(text, VERDICTS, 1, 0.3)
    nearest = f": the nearest is {near[0]!r}" if near else ""
    raise DataError(f"no verdict is {text!r}{nearest}; there are {', '.join(map(repr, VERDICTS))}")


def _met(condition: str, values: Mapping[str, float]) -> bool:
    left, sign, right = condition.split(" ")
    a, b = (float(side) if _number(side) else values[side] for side in (left, right))
    return {"<=": a <= b, ">=": a >= b, "<": a < b, ">": a > b}[sign]


def _number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None


def _told(command: str) -> str:
    return command if command == NOW else f"`{command}`"
