"""Results as JSON lines: one object a line, of one schema. A last line that was cut off is kept, and said."""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regard.errors import DataError
from regard.files import write_whole

SCHEMA = 1  # of the lines that this version writes and reads


@dataclass(frozen=True)
class Lines:
    """rows: the objects of a file, in order; numbers: the line that each stands on, from 1. torn: a last line that is
    no whole object, as it stands there, or "".
    """

    rows: tuple[dict[str, Any], ...]
    numbers: tuple[int, ...]
    torn: str = ""


def read_lines(path: str | os.PathLike) -> Lines:
    """The lines of a file; empty ones are passed over.

    Raises DataError for a file that cannot be read, a line before the last that is no JSON object, a number that is
    not finite, or an object of another schema.
    """
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise DataError(f"cannot read {str(path)!r}: {why}: give a file of JSON lines") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows, numbers = [], []
    for number, line in lines:
        try:
            row = json.loads(line, parse_constant=_refused, parse_float=_finite, parse_int=_finite_int)
        except _NotFiniteError as error:
            raise DataError(f"{str(path)!r}, line {number}: {error} is no number: leave the key out, or null") from None
        except json.JSONDecodeError as error:
            if number == lines[-1][0] and not text.endswith("\n"):
                return Lines(tuple(rows), tuple(numbers), line)
            raise DataError(f"{str(path)!r}, line {number} is not JSON: {error.msg}: one object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{str(path)!r}, line {number} is {type(row).__name__}, not an object such as {{...}}")
        if row.get("schema", SCHEMA) != SCHEMA:
            got = f"schema {row['schema']!r}, this version reads schema {SCHEMA}"
            raise DataError(
                f"{str(path)!r}, line {number} is of {got}: measure again, or use the version that wrote it"
            )
        rows.append(row)
        numbers.append(number)
    return Lines(tuple(rows), tuple(numbers))


def write_lines(path: str | os.PathLike, rows: Iterable[dict[str, Any]]) -> None:
    """Write them all, or none, each of this schema."""
    given = ({"schema": SCHEMA, **row} for row in rows)
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in given))


class _NotFiniteError(ValueError):
    """NaN or an infinity, which JSON does not have."""


def _refused(name: str) -> float:
    raise _NotFiniteError(name)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text[:20])


def _finite_int(text: str) -> int:
    _finite(text)
    return int(text)
