"""The matrix's cells at sizes that were not measured, by powers fitted to those that were."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regard.bench.advise.sources import Kind, Results

Cells = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Grown:
    """A value at another size. source: the cell that it is from, and what was done to it."""

    value: float
    source: str
    kind: Kind


def cells_of(results: Results, mechanism: str, file: str = "matrix.jsonl") -> Cells:
    return [row for row in results.cells(file) if row["mechanism"] == mechanism]


def power(cells: Cells, key: str) -> float | None:
    """The slope of log `key` over log n, n proportional to the pixels, at the batch size with the most resolutions (the
    smallest of them); None of fewer than two.
    """
    by = {batch: [row for row in cells if row["batch"] == batch] for batch in sorted({row["batch"] for row in cells})}
    most = max(by.values(), key=len, default=[])
    if len(most) < 2:
        return None
    return statistics.linear_regression(
        [2 * math.log(row["resolution"]) for row in most], [math.log(row[key]) for row in most]
    ).slope


def at(cells: Cells, key: str, side: int, batch: int) -> Grown | None:
    """A figure of a mechanism at a resolution and batch; None where it cannot be told.

    From the cell of the nearest resolution and then of the nearest batch; another batch takes in proportion.
    """
    fitted = power(cells, key)
    if not cells:
        return None
    near = min(cells, key=lambda row: (_apart(row["resolution"], side), _apart(row["batch"], batch)))
    source = f"results/matrix{'-cuda' if near.get('device') == 'cuda' else ''}.jsonl: {near['id']}"
    if (near["resolution"], near["batch"]) == (side, batch):
        return Grown(near[key], source, "measured")
    value = near[key] * batch / near["batch"]
    source += f", x {batch / near['batch']:g} for the batch" if batch != near["batch"] else ""
    if near["resolution"] != side:
        if fitted is None:
            return None
        sides = [row["resolution"] for row in cells]
        value *= (side / near["resolution"]) ** (2 * fitted)
        lies = "between" if min(sides) < side < max(sides) else "beyond"
        source += f", x (n / n there)^{fitted:.2f}, fitted; {lies} the measured sizes"
    return Grown(value, source, "extrapolated")


def _apart(one: float, other: float) -> float:
    return abs(math.log(one / other))
