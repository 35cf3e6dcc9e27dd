"""Two runs over the same items, paired: what changed, and whether it is more than chance: `regard bench compare`.

Each file is of JSON lines with an `id` of the item and any numbers, such as {"id": "q7", "right": true, "seconds":
0.21}. Items are paired by id; of each metric the differences B - A have a mean and a bootstrap interval of 95 %.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regard.bench.jsonl import read_lines
from regard.errors import DataError
from regard.intervals import interval

KEYS = '"id" (text or a whole number) and numbers or true/false, such as {"id": "q7", "right": true, "seconds": 0.21}'
NO_METRIC = ("id", "schema")
SHOWN = 5  # ids in a message


@dataclass(frozen=True)
class Metric:
    """a, b: means over the pairs. difference: of b - a, with its interval of 95 %, None for a single pair. pairs: items
    with both values; unpaired: items of both files where one or the other has no value.
    """

    name: str
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    pairs: int
    unpaired: int


@dataclass(frozen=True)
class Comparison:
    """same: metrics that are equal in every pair. only_a, only_b: items of one file alone. notes: what was cut off."""

    metrics: tuple[Metric, ...]
    same: tuple[str, ...]
    only_a: int
    only_b: int
    notes: tuple[str, ...]


def compare(a: Path, b: Path, metrics: Sequence[str] = (), resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Pair two files by id. metrics: by default every number that both have in some pair.

    Raises DataError for files that share no id, an item without an id or twice in a file, a metric that no pair has,
    a value of it that is no number, and as `read_lines`.
    """
    (ours, first), (theirs, second) = (_items(path) for path in (a, b))
    shared = [one for one in ours if one in theirs]
    if not shared:
        got = f"such as {_few(ours)} there and {_few(theirs)} here"
        raise DataError(f"{str(a)!r} and {str(b)!r} share no id, {got}: a pair is a line of each with the same id")
    rows = [(ours[one], theirs[one]) for one in shared]
    names = list(metrics) or _numbers(rows)
    if not names:
        raise DataError(f"no pair of {str(a)!r} and {str(b)!r} has a number in both: lines hold {KEYS}")
    found, same = [], []
    for name in names:
        pairs = np.array([pair for row in rows if (pair := _values(name, row)) is not None], dtype=float)
        if not len(pairs):
            has = ", ".join(_numbers(rows)) or "none"
            raise DataError(f"no pair has the metric {name!r} in both files: there are {has}")
        if not metrics and bool((pairs[:, 0] == pairs[:, 1]).all()):
            same.append(name)
            continue
        found.append(_metric(name, pairs, len(rows) - len(pairs), resamples, seed))
    notes = (note for note in (first, second) if note)
    return Comparison(tuple(found), tuple(same), len(ours) - len(shared), len(theirs) - len(shared), tuple(notes))


def _metric(name: str, pairs: np.ndarray, unpaired: int, resamples: int, seed: int) -> Metric:
    differences = pairs[:, 1] - pairs[:, 0]
    low, high = interval(differences, seed, resamples) if len(pairs) > 1 else (None, None)
    a, b = pairs.mean(axis=0).tolist()
    return Metric(name, a, b, float(differences.mean()), low, high, len(pairs), unpaired)


def _items(path: Path) -> tuple[dict[str | int, dict[str, Any]], str]:
    """Rows by id, and what is to be said of the file."""
    lines = read_lines(path)
    if not lines.rows:
        raise DataError(f"{str(path)!r} holds no whole line: expected lines with {KEYS}")
    for row, number in zip(lines.rows, lines.numbers, strict=True):
        if not isinstance(row.get("id"), str | int) or isinstance(row["id"], bool):
            got = ", ".join(row) or "nothing"
            raise DataError(f"{str(path)!r}, line {number} has no id: expected {KEYS}, got the keys {got}")
    twice = [one for one, count in Counter(row["id"] for row in lines.rows).items() if count > 1]
    if twice:
        raise DataError(f"{str(path)!r} has {len(twice)} ids more than once, such as {_few(twice)}: one line an item")
    note = f"{path}: the last line was cut off and is left out: {lines.torn[:60]}" if lines.torn else ""
    return {row["id"]: row for row in lines.rows}, note


def _numbers(rows: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """The names of numbers that both of some pair have, in the order that they come in."""
    names = dict.fromkeys(name for a, b in rows for name in a if _is_number(a[name]) and _is_number(b.get(name)))
    return [name for name in names if name not in NO_METRIC]


def _values(name: str, row: tuple[dict[str, Any], dict[str, Any]]) -> tuple[float, float] | None:
    """Of a pair, None where one has no value. Raises DataError for a value that is no number."""
    for one in row:
        if one.get(name) is not None and not _is_number(one[name]):
            got = f"{one[name]!r} of {one['id']!r}"
            raise DataError(f"the metric {name!r} must be numbers or true/false, got {got}: choose others by --metric")
    a, b = (one.get(name) for one in row)
    return None if a is None or b is None else (float(a), float(b))


def _is_number(value: object) -> bool:
    return isinstance(value, bool | int | float)


def _few(ids: Any) -> str:
    shown = [repr(one) for one in list(ids)[:SHOWN]]
    return ", ".join(shown)
