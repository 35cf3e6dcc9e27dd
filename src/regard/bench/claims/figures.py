"""Where a figure of a claim is: a name such as "ram:an epoch of mnist", "claims:loss of the text@low",
"allocators/parts:top-k on the field:verdict", "cost:blip2_qformer:params" or "now:tokens of 336 pixels, patch 14".

Of results/NAME.json the row whose name begins so, or a cell of one of its tables; @low and @high are the ends of its
interval, for a cell its second and third number. `now` is computed when the table is made, from the modules themselves.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regard.errors import DataError

_BENCHES = ("allocators", "cascade", "dynamic", "foveated", "layers", "matrix", "mechanisms", "ram")
COMMANDS = {
    "claims": "regard claims --run",
    **{name: f"regard bench {name}" for name in _BENCHES},
    **{name: f"python -m regard.bench.{name}" for name in ("relevance", "selectors", "shorten", "speed")},
}
NOW = "computed by `regard claims`"
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Figure:
    """value: None where it has not been measured. command: what measures it."""

    value: float | None
    unit: str
    command: str
    interval: tuple[float, float] | None = None

    @property
    def text(self) -> str:
        """To four figures, with its interval."""
        if self.value is None:
            return "not measured"
        ends = f" ({_short(self.interval[0])} to {_short(self.interval[1])})" if self.interval else ""
        unit = "" if self.unit in ("", "ratio", "exponent", "share") else ("" if self.unit == "%" else " ") + self.unit
        return f"{_short(self.value)}{unit}{ends}"


def figure(where: str, results: Path) -> Figure:
    """The figure of this name. Raises DataError for a name that cannot be, and for a file that cannot be read."""
    kind, _, rest = where.partition(":")
    if kind == "now":
        from regard.bench.claims.now import NOWS

        if rest not in NOWS:
            raise DataError(f"nothing that is computed is named {rest!r}")
        value, unit = NOWS[rest]()
        return Figure(value, unit, NOW)
    if kind == "cost":
        return _cost(*rest.split(":"))
    name, _, table = kind.partition("/")
    if name not in COMMANDS:
        raise DataError(f"no results are named {name!r}: there are {', '.join(COMMANDS)}")
    data = _read(results / f"{name}.json")
    row, _, end = rest.partition("@")
    if data is None:
        return Figure(None, "", COMMANDS[name])
    return _cell(data, table, row, end) if table else _row(data, row, end)


def _row(data: Mapping[str, Any], begin: str, end: str) -> Figure:
    found = [row for row in data["rows"] if row["name"].startswith(begin)]
    exact = [row for row in found if row["name"] == begin]
    found = exact or found
    command = data["command"]
    if not found:
        return Figure(None, "", command)
    if len(found) > 1:
        raise DataError(f"{len(found)} rows of results/{data['name']}.json begin with {begin!r}: name one")
    ends = data["notes"].get(found[0]["name"], {}).get("interval")
    if end:
        return Figure(None if ends is None else ends[end == "high"], found[0]["unit"], command)
    return Figure(found[0]["value"], found[0]["unit"], command, None if ends is None else (ends[0], ends[1]))


def _cell(data: Mapping[str, Any], table: str, place: str, end: str) -> Figure:
    row, _, column = place.rpartition(":")
    found = data.get("tables", {}).get(table)
    cells = [one for one in found["rows"] if one[0] == row] if found and column in found["columns"] else []
    numbers = _NUMBER.findall(cells[0][found["columns"].index(column)]) if cells else []
    which = {"": 0, "low": 1, "high": 2}[end]
    value = float(numbers[which]) if which < len(numbers) else None
    return Figure(value, "", data["command"])


def _cost(name: str, what: str) -> Figure:
    from regard import cost

    found = cost.of(name)
    return Figure(float(found.values[what]), found.units[what], f"regard cost {name}")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if missing := {"name", "command", "rows", "notes"} - set(found):
            raise KeyError(*missing)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{str(path)!r} is not a file of results: measure it again ({type(error).__name__})") from error
    return found


def _short(value: float) -> str:
    if value == 0 or abs(value) >= 1e7:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
