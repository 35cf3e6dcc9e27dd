"""The committed measurements, read once: every figure that comes out of here says which file and row it is from."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from regard.bench.jsonl import SCHEMA, read_lines
from regard.errors import DataError

Kind = Literal["measured", "extrapolated", "cost model", "data sheet", "definition"]
FILES = {  # what measures each
    "allocators.json": "regard bench allocators",
    "cascade.json": "regard bench cascade",
    "dynamic.json": "regard bench dynamic",
    "foveated.json": "regard bench foveated",
    "matrix.jsonl": "regard bench matrix",
    "matrix-cuda.jsonl": "regard bench matrix --device cuda",
    "mechanisms.json": "regard bench mechanisms",
    "ram.json": "regard bench ram",
    "relevance.json": "python -m regard.bench.relevance",
    "selectors.json": "python -m regard.bench.selectors",
    "shorten.json": "python -m regard.bench.shorten",
    "shorten-cuda.json": "python -m regard.bench.shorten --device cuda",
}
_KEYS = {"name": str, "command": str, "rows": list, "notes": dict}
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Figure:
    """A number that advice rests on. of: what it is. source: a file and its row, or a formula. kind: "measured" as it
    stands there, "extrapolated" from it, by the "cost model" alone, of a maker's
    "data sheet", or so by "definition".
    """

    of: str
    value: float
    unit: str
    source: str
    kind: Kind = "measured"


def folder() -> Path:
    """Where the results are: in the package where it was built, in the checkout where it is worked on."""
    package = Path(__file__).parents[2]
    built = package / "results"
    return built if built.is_dir() else package.parents[1] / "results"


@dataclass(frozen=True)
class Results:
    """A folder of results. Reading one raises DataError where it is no file of results of this version.

    torn: files that were read, and whose last line was cut off.
    """

    path: Path
    torn: list[str] = field(default_factory=list, compare=False)
    _read: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise DataError(f"{str(self.path)!r} is no folder of results: give one by --results, such as a checkout's")

    def has(self, file: str) -> bool:
        """Whether the folder has a file of this name."""
        return (self.path / file).exists()

    def data(self, file: str) -> dict[str, Any]:
        """The content of a JSON file."""
        if file not in self._read:
            self._read[file] = _content(self.path / file, FILES[file])
        return self._read[file]

    def row(self, file: str, name: str) -> float | None:
        """The value of the row of this name, None where there is none."""
        found = [row for row in self.data(file)["rows"] if row.get("name") == name]
        return None if not found else _number(found[0].get("value"), file, name)

    def must(self, file: str, name: str) -> float:
        """The same. Raises DataError where there is none."""
        value = self.row(file, name)
        if value is None:
            raise DataError(f"results/{file} has no row {name!r}: measure it again by {FILES[file]}")
        return value

    def table(self, file: str, name: str) -> list[dict[str, str]]:
        """The rows of a table, by its columns. Raises DataError where there is no such table."""
        table = self.data(file).get("tables", {}).get(name)
        try:
            return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(f"results/{file} has no table {name!r}: measure it again by {FILES[file]}") from error

    def cells(self, file: str = "matrix.jsonl") -> list[dict[str, Any]]:
        """The cells of the matrix that were timed. Raises DataError where one lacks what a cell has."""
        if file not in self._read:
            lines = read_lines(self.path / file)
            if lines.torn:
                self.torn.append(file)
            for row, number in zip(lines.rows, lines.numbers, strict=True):
                if row.get("kind") == "cell" and "seconds" in row:
                    for key in ("resolution", "batch", "macs", "seconds", "matmul", "copy", "peak", "parameters"):
                        _number(row.get(key), file, f"line {number}, {key}")
            self._read[file] = {"rows": [r for r in lines.rows if r.get("kind") == "cell" and "seconds" in r]}
        return self._read[file]["rows"]


def number_in(text: str, file: str, row: str) -> float:
    """The first number of a cell of text. Raises DataError where there is none."""
    found = _NUMBER.search(text)
    return _number(None if found is None else float(found[0]), file, row)


def _number(value: Any, file: str, row: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"results/{file}, {row}: expected a number, got {value!r}: measure it again by {FILES[file]}")
    return float(value)


def _content(path: Path, command: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}: measure it by {command}") from error
    except ValueError as error:
        raise DataError(f"{str(path)!r} is not whole JSON: measure it again by {command}") from error
    if isinstance(found, Mapping) and found.get("schema", SCHEMA) != SCHEMA:
        got = f"schema {found['schema']!r}, this version reads schema {SCHEMA}"
        raise DataError(f"{str(path)!r} is of {got}: measure it again by {command}, or use the version that wrote it")
    if not isinstance(found, dict) or any(not isinstance(found.get(key), kind) for key, kind in _KEYS.items()):
        raise DataError(f"{str(path)!r} is no file of results, with {', '.join(_KEYS)}: measure it again by {command}")
    return found
