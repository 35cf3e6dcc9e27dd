"""The survey's Sections 3.1 and 3.2, measured: `regard bench matrix`.

A cell is a mechanism (`regard.bench.cells`) at a resolution and a batch size. In each of its rounds it is timed beside
a matrix product and a copy of memory, in an order that turns round from one to the next, so that a figure comes with
what the machine could do in the same moments. Cells are written to a file of JSON lines as they are done; what is in
it is not measured again. The first call of a cell is not timed: its peak memory is taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regard.bench.cells import MECHANISMS, Work, made, pixels
from regard.bench.jsonl import read_lines, write_lines
from regard.bench.results import provenance
from regard.bench.roofline import Probes, seconds
from regard.bench.shorten import peak
from regard.bench.tail import TAIL, measured_tail
from regard.errors import DataError, ModelError

SIDES, BATCHES, MANY = (224, 448, 672, 896, 1344), (1, 8, 32), 64  # MANY: at the smallest side alone
QUICK_SIZES = ((224, 1), (224, 8), (448, 1), (672, 1))  # side and batch
FEWEST, MOST = 5, 15  # rounds
Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """mechanism: a name of `MECHANISMS`. side: of the images, in pixels. batch: images at once."""

    mechanism: str
    side: int
    batch: int

    @property
    def id(self) -> str:
        return f"{self.mechanism}/{self.side}/{self.batch}"


@dataclass(frozen=True)
class Limits:
    """What a cell may take. gmacs: 10^9 multiply-accumulates of a call. gib: memory that it is known to hold. spend:
    seconds for its timed rounds.
    """

    gmacs: float = 100.0
    gib: float = 6.0
    spend: float = 2.0

    def rounds(self, once: float) -> int:
        """How many, of a call that takes so many seconds."""
        return min(MOST, max(FEWEST, int(self.spend / once)))


QUICK = Limits(gmacs=10.0, spend=0.2)


def cells(quick: bool = False, only: Sequence[str] = ()) -> list[Cell]:
    """All mechanisms of one size after another, the fewest pixels first. only: parts of names. Raises ModelError where
    none has one.
    """
    sizes = QUICK_SIZES if quick else (*((side, batch) for side in SIDES for batch in BATCHES), (SIDES[0], MANY))
    known = [one.name for one in MECHANISMS]
    names = [name for name in known if not only or any(part.lower() in name.lower() for part in only)]
    if not names:
        raise ModelError(f"no mechanism has {', '.join(only)} in its name: there are {'; '.join(known)}")
    ordered = sorted(sizes, key=lambda size: size[0] ** 2 * size[1])
    return [Cell(name, side, batch) for side, batch in ordered for name in names]


def checked_device(device: str) -> str:
    """Raises ModelError for a device that cannot be measured on here."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device cuda: torch sees no GPU here: leave the option out, or install torch for CUDA")
    return device


def started(path: Path, here: Row, told: Callable[[str], None]) -> dict[str, Row]:
    """What a file holds, by id, where it exists; half of a last line becomes a row of its own, and is told.

    Raises DataError where a row was not made `here`: on this machine, device and torch, with as many threads.
    """
    if not path.exists():
        return {}
    lines = read_lines(path)
    for row, number in zip(lines.rows, lines.numbers, strict=True):
        if "id" not in row:
            raise DataError(f"{str(path)!r}, line {number} has no id: it is no result of regard bench matrix")
        other = [f"{key} {row[key]!r}, here {value!r}" for key, value in here.items() if row.get(key, value) != value]
        if other:
            raise DataError(f"{str(path)!r}, line {number} is of {other[0]}: choose another --out, or delete the file")
    rows = {row["id"]: row for row in lines.rows}
    if lines.torn:
        told(f"{path}: the last line was cut off; it is kept as a row of its kind, and its cell is measured again")
        rows[f"torn/{len(rows)}"] = {"id": f"torn/{len(rows)}", "kind": "torn", "text": lines.torn}
    return rows


def run(
    path: Path,
    device: str,
    todo: Sequence[Cell],
    limits: Limits,
    told: Callable[[str], None] = lambda line: None,
    warned: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Measure what the file has not, each cell written when it is done, and the cascade's tail; all rows.

    A cell that was left out under other limits is tried again.
    """
    made_by = provenance()
    here = {"machine": made_by["machine"], "torch": made_by["versions"]["torch"], "device": device}
    stamp = {**here, "commit": made_by["commit"], "date": made_by["date"]}
    rows = started(path, here, warned)
    works: dict[str, Cell | None] = {**{cell.id: cell for cell in todo}, TAIL: None}
    tried = {one for one, row in rows.items() if row.get("limits", asdict(limits)) == asdict(limits)}
    left = [one for one in works if one not in tried]
    probes = Probes.on(device) if left else None
    for place, one in enumerate(left):
        told(f"{one}, {place + 1} of {len(left)}")
        cell = works[one]
        assert probes is not None
        found = measured_tail(device, limits.spend) if cell is None else measured(cell, device, probes, limits)
        rows[one] = {"id": one, **found, **stamp}
        write_lines(path, rows.values())
    return list(rows.values())


@torch.no_grad()
def measured(cell: Cell, device: str, probes: Probes, limits: Limits) -> Row:
    """One cell, or why it is left out."""
    row: Row = {"kind": "cell", "mechanism": cell.mechanism, "resolution": cell.side, "batch": cell.batch}
    held = next(one for one in MECHANISMS if one.name == cell.mechanism).holds(cell.side) / 2**30
    if held > limits.gib:
        return row | _skipped(f"holds {held:.1f} GiB at least, the limit is {limits.gib:g}", limits)
    work = made(cell.mechanism, cell.side, device)
    row |= {"macs": work.macs, "tokens": work.tokens, "parameters": work.parameters}
    gmacs = work.macs * cell.batch / 1e9
    if gmacs > limits.gmacs:
        return row | _skipped(f"takes {gmacs:.3g} G multiply-accumulates, the limit is {limits.gmacs:g} G", limits)
    try:
        return row | timed(work, cell, device, probes, limits)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        return row | _skipped("out of memory", limits)


def timed(work: Work, cell: Cell, device: str, probes: Probes, limits: Limits) -> Row:
    """Peak memory of a first call, and then seconds, with quartiles, of rounds beside the probes."""
    images = pixels(cell.side, cell.batch, device)
    most = peak(lambda: work.run(images))
    once = seconds(lambda: work.run(images), device)
    jobs = [lambda: work.run(images), probes.multiply, probes.copy]
    spent = np.empty((limits.rounds(once), 3))
    for turn in range(len(spent)):
        for place in range(3)[:: 1 - 2 * (turn % 2)]:
            spent[turn, place] = seconds(jobs[place], device)
    low, middle, high = np.quantile(spent[:, 0], (0.25, 0.5, 0.75)).tolist()
    _, multiply, copy = np.median(spent, axis=0).tolist()
    return {
        "seconds": middle,
        "low": low,
        "high": high,
        "rounds": len(spent),
        "peak": most,
        "matmul": probes.macs / multiply,
        "copy": probes.bytes / copy,
    }


def _skipped(why: str, limits: Limits) -> Row:
    return {"skipped": why, "limits": asdict(limits)}
