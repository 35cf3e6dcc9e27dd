"""How cost grows with the visual tokens: powers fitted to the matrix's cells, beside what the survey says.

A power is the slope of log cost over log n, n the patches of 16 pixels, by least squares over the resolutions of one
batch size, with an interval of 95 % by Student's t. Time is in units of the matrix product that was measured in the
same rounds, so that a slow moment of the machine does not count. `last` is the power between the two largest sizes: an
encoder whose linear part still outweighs its quadratic one has a power between 1 and 2 that grows on.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from regard.bench.cells import MECHANISMS, Mechanism, patches
from regard.intervals import slope

Row = dict[str, Any]


@dataclass(frozen=True)
class Power:
    """One fit. of: "macs", "time" or "memory". points: how many resolutions it is of."""

    mechanism: str
    of: str
    value: float
    low: float
    high: float
    last: float
    points: int

    def __str__(self) -> str:
        if self.of == "macs":
            return f"{self.value:.2f}"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def powers(rows: Iterable[Row], batch: int = 1) -> dict[tuple[str, str], Power]:
    """Of each mechanism with three resolutions or more at this batch size, by its name and what is fitted."""
    cells = [row for row in rows if row.get("kind") == "cell" and row["batch"] == batch and "seconds" in row]
    found = {}
    for mechanism in MECHANISMS:
        own = sorted((row for row in cells if row["mechanism"] == mechanism.name), key=lambda row: row["resolution"])
        if len(own) < 3:
            continue
        tokens = [math.log(patches(row["resolution"])) for row in own]
        for of, cost in _COSTS.items():
            costs = [math.log(cost(row)) for row in own]
            last = (costs[-1] - costs[-2]) / (tokens[-1] - tokens[-2])
            found[mechanism.name, of] = Power(mechanism.name, of, *slope(tokens, costs), last, len(own))
    return found


_COSTS = {
    "macs": lambda row: row["macs"],
    "time": lambda row: row["seconds"] * row["matmul"],
    "memory": lambda row: row["peak"],
}


def table(found: dict[tuple[str, str], Power]) -> dict[str, Any]:
    """Powers beside the survey's letters, as text."""
    columns = ["mechanism", "survey: time", "power", "of MACs", "of time (95 %)", "last", "survey: memory", "power"]
    rows = []
    for one in MECHANISMS:
        fits = [found.get((one.name, of)) for of in ("macs", "time", "memory")]
        macs, time, memory = (str(fit) if fit else "" for fit in fits)
        last = f"{fits[1].last:.2f}" if fits[1] else ""
        said, kept = (_said(one, power) for power in (one.power, one.memory_power))
        rows.append([one.name, one.time or "nothing", said, macs, time, last, one.memory or "nothing", kept, memory])
    return {"columns": [*columns, "of peak memory (95 %)"], "rows": rows}


def _said(mechanism: Mechanism, power: float | None) -> str:
    return "" if power is None else f"{power:g}"


def series(rows: Sequence[Row], batch: int = 1) -> dict[str, list[tuple[float, float, float, float]]]:
    """For a picture: of each mechanism its n, and the milliseconds of an image with their quartiles, as they would be
    if the machine's matrix product had been as fast in all cells as in their median.
    """
    cells = [row for row in rows if row.get("kind") == "cell" and row["batch"] == batch and "seconds" in row]
    usual = statistics.median(row["matmul"] for row in cells) if cells else 1.0
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in sorted(cells, key=lambda row: row["resolution"]):
        times = (1e3 * row[name] / batch * row["matmul"] / usual for name in ("seconds", "low", "high"))
        found.setdefault(row["mechanism"], []).append((patches(row["resolution"]), *times))
    return found
