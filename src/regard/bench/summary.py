"""What the cells of the matrix come to: the rows and tables of results/matrix.json, and of its document."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from regard.bench.accuracy import Point
from regard.bench.cells import MECHANISMS
from regard.bench.results import Row as Figure
from regard.bench.scaling import Power, table

Row = dict[str, Any]
Table = dict[str, Any]


def figures(rows: Sequence[Row], found: dict[tuple[str, str], Power]) -> list[Figure]:
    """The powers, the machine's speeds, and the cascade's tail."""
    known = {one.name: one for one in MECHANISMS}
    shown = []
    for (name, of), power in found.items():
        if of != "macs":
            letters = known[name].time if of == "time" else known[name].memory
            said = f"; survey: {letters}" if letters else ""
            between = f"{power.low:.2f} to {power.high:.2f}"
            what = f"{name}: power of {of} over visual tokens ({between}{said})"
            shown.append(Figure(what, round(power.value, 3) + 0.0, "exponent"))
    timed = [row for row in rows if "seconds" in row]
    if timed:
        for name, unit in (("matmul", "G MACs/s"), ("copy", "GB/s")):
            speed = statistics.median(row[name] for row in timed) / 1e9
            shown.append(Figure(f"{_PROBES[name]}, median over the cells", speed, unit))
    for row in rows:
        if row.get("kind") == "tail" and "times" in row:
            shown += _tail(row)
    return shown


_PROBES = {"matmul": "the machine's matrix product", "copy": "the machine's copy of memory, read and written"}


def _tail(row: Row) -> list[Figure]:
    where = f"single images at {row['resolution']}, {row['first']:.0%} stop at the first of two stages"
    found = []
    for percentile in row["times"]["all"]:
        cascade, whole = (row["times"][kind][percentile] for kind in ("cascade", "all"))
        found.append(Figure(f"cascade / reading all, {where}: {percentile}th percentile", cascade / whole, "ratio"))
    ratio = row["means"]["cascade"] / row["means"]["all"]
    return [Figure(f"cascade / reading all, {where}: mean", ratio, "ratio"), *found]


def tables(rows: Sequence[Row], found: dict[tuple[str, str], Power], points: Sequence[Point]) -> dict[str, Table]:
    """By name, each of columns and rows of text."""
    cells = [row for row in rows if row.get("kind") == "cell"]
    return {
        "scaling": table(found),
        "time": _by_size(cells, _time),
        "memory": _by_size(cells, lambda row: _plain(row["peak"] / 2**20)),
        "cost": _by_size([row for row in cells if row["batch"] == 1], _cost),
        "throughput": _throughput(cells),
        "roofline": _by_size(cells, _roofline),
        "accuracy": _accuracy(points),
        "skipped": _skipped(cells),
    }


def _by_size(cells: Sequence[Row], text: Callable[[Row], str]) -> Table:
    """A row a mechanism, a column a resolution and batch; what was left out is a dash."""
    sizes = sorted({(row["resolution"], row["batch"]) for row in cells}, key=lambda size: (size[1], size[0]))
    by = {(row["mechanism"], row["resolution"], row["batch"]): row for row in cells}
    lines = []
    for mechanism in MECHANISMS:
        own = [by.get((mechanism.name, *size)) for size in sizes]
        if any(own):
            lines.append([mechanism.name, *("" if row is None else _or_dash(row, text) for row in own)])
    several = len({batch for _, batch in sizes}) > 1
    columns = [f"{side} px, batch {batch}" if several else f"{side} px" for side, batch in sizes]
    return {"columns": ["mechanism", *columns], "rows": lines}


def _or_dash(row: Row, text: Callable[[Row], str]) -> str:
    return text(row) if "seconds" in row or (text is _cost and "macs" in row) else "-"


def _time(row: Row) -> str:
    """Milliseconds an image, and the quartiles."""
    middle, low, high = (1e3 * row[name] / row["batch"] for name in ("seconds", "low", "high"))
    return f"{_plain(middle)} ({_plain(low)} to {_plain(high)})"


def _plain(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _cost(row: Row) -> str:
    return f"{row['tokens']}; {row['macs'] / 1e9:.3g}"


def _roofline(row: Row) -> str:
    """Shares of the two speeds: of products by the multiply-accumulates, of the copy by what must be read once."""
    products = row["macs"] * row["batch"] / row["seconds"] / row["matmul"]
    read = 3 * row["resolution"] ** 2 * row["batch"] + 4 * row["parameters"]
    return f"{products:.0%}; {read / row['seconds'] / row['copy']:.1%}"


def _throughput(cells: Sequence[Row]) -> Table:
    """Images a second at the smallest resolution, and how many times as many the largest batch gives."""
    side = min((row["resolution"] for row in cells), default=0)
    batches = sorted({row["batch"] for row in cells if row["resolution"] == side})
    by = {(row["mechanism"], row["batch"]): row for row in cells if row["resolution"] == side and "seconds" in row}
    lines = []
    for mechanism in MECHANISMS:
        # in units of the machine's products, so that what is compared is not when it was measured
        rates = {batch: row["batch"] / row["seconds"] for batch in batches if (row := by.get((mechanism.name, batch)))}
        level = {batch: rate / by[mechanism.name, batch]["matmul"] for batch, rate in rates.items()}
        if rates:
            gain = f"{level[batches[-1]] / level[1]:.2f}" if {1, batches[-1]} <= set(level) else ""
            lines.append(
                [mechanism.name, *(f"{rates[batch]:.3g}" if batch in rates else "-" for batch in batches), gain]
            )
    columns = [f"images/s, batch {batch}" for batch in batches]
    return {"columns": ["mechanism", *columns, f"batch {batches[-1] if batches else 0} over 1"], "rows": lines}


def _accuracy(points: Sequence[Point]) -> Table:
    lines = [
        [
            one.mechanism,
            one.what,
            one.task,
            f"{one.accuracy:.1f}",
            f"{one.macs / 1e6:.3g}",
            "yes" if one.best else "",
            one.source,
        ]
        for one in points
    ]
    columns = ["mechanism", "trained run", "task", "accuracy, %", "M MACs an image", "on the front", "from"]
    return {"columns": columns, "rows": lines}


def _skipped(cells: Sequence[Row]) -> Table:
    lines = [
        [row["mechanism"], str(row["resolution"]), str(row["batch"]), row["skipped"]]
        for row in cells
        if "skipped" in row
    ]
    return {"columns": ["mechanism", "pixels", "batch", "why it was left out"], "rows": lines}
