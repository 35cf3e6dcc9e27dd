"""One file for each measured run, with the command, commit, machine and seed that made it."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from regard import __version__
from regard.files import write_whole


@dataclass(frozen=True)
class Row:
    """One figure. target: what it should be, such as "<= 80", or "" where there is none."""

    name: str
    value: float
    unit: str
    target: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if not self.target:
            return None
        sign, bound = self.target.split()
        return self.value <= float(bound) if sign == "<=" else self.value >= float(bound)


def provenance() -> dict[str, Any]:
    """What made a figure: asked for before measuring, as the checkout may change meanwhile."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "machine": _machine(),
        "versions": {"regard": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def publish(
    name: str,
    command: str,
    rows: list[Row],
    made: dict[str, Any],
    seed: int | None = None,
    notes: dict | None = None,
    tables: dict[str, dict[str, Any]] | None = None,
    write: bool = True,
    add: bool = False,
) -> None:
    """Print the rows as a table and as one line of JSON, and write them to results/NAME.json.

    tables: by name, each of columns and rows of text, for documents. write: False for a run that shows a part only.
    add: what the file holds already stays beside them, rows with the day and commit that made them.
    """
    data: dict[str, Any] = {
        "name": name,
        "command": command,
        **made,
        "seed": seed,
        "rows": [asdict(row) | {"met": row.met} for row in rows],
        "notes": notes or {},
        **({"tables": tables} if tables else {}),
    }
    path = Path("results") / f"{name}.json"
    if add and path.exists():
        data = added(data, json.loads(path.read_text()))
    grid = Table("what", "figure", "unit", "target", "met", title=command, title_justify="left")
    for row in rows:
        grid.add_row(row.name, f"{row.value:.4g}", row.unit, row.target, {None: "", True: "yes", False: "NO"}[row.met])
    Console(width=130).print(grid)
    if write:
        write_whole(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    Console().out(json.dumps({key: value for key, value in data.items() if key != "tables"}, ensure_ascii=False))


def added(data: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A file's new content, and of what it held before all that the new one has not: rows, notes and tables."""
    new = {row["name"] for row in data["rows"]}
    made = {"made": {key: before[key] for key in ("date", "commit", "machine") if key in before}}
    older = [made | row for row in before["rows"] if row["name"] not in new]
    parts = {part: before.get(part, {}) | data.get(part, {}) for part in ("notes", "tables")}
    return data | {"rows": [*data["rows"], *older]} | {part: value for part, value in parts.items() if value}


def medians(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each piece of work, all of them alternating, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, do in work.items():
            start = time.perf_counter()
            do()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _commit() -> str:
    """The checkout's commit, with a + where files have changed since."""
    try:
        line = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _machine() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.system()}"
