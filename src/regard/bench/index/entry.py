"""One entry of the index, and where its figures come from."""

import inspect
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

_ARXIV = re.compile(r"(?<![/\d])(\d{4}\.\d{4,5})(?!\d)")


@dataclass(frozen=True)
class Entry:
    """module: whose docstring has title, formula and source. pictures: paths from docs/. use: how it is made. cost,
    measured, when: sentences. page: where more of it stands, from docs/.
    """

    name: str
    module: str
    use: str
    cost: str
    measured: str
    when: str
    page: str
    pictures: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """Of its heading, as GitHub makes it."""
        return re.sub(r"[^\w\- ]", "", self.name.lower()).replace(" ", "-")

    def markdown(self) -> str:
        """The entry."""
        title, formula, papers = self._about()
        source = ", ".join(f"[{one}](https://arxiv.org/abs/{one})" for one in papers) or "no one paper"
        parts = [f"### {self.name}\n", f"{title}\n"]
        parts += [f"{' '.join(f'![{self.name}]({picture})' for picture in self.pictures)}\n"] if self.pictures else []
        parts += [f"{formula}\n"] if formula else []
        lines = {"use": self.use, "source": source, "cost": self.cost, "measured": self.measured, "when": self.when}
        parts += [f"- **{what}**: {said}" for what, said in lines.items()]
        return "\n".join([*parts, f"- [more]({self.page})\n"])

    def _about(self) -> tuple[str, str, list[str]]:
        """Title, formula and arXiv ids of the module's docstring."""
        said = inspect.cleandoc(import_module(self.module).__doc__ or "")
        title, _, rest = said.partition("\n")
        found = re.findall(r"(?:^ {4}.*\n?|^\n(?= {4}))+", rest, re.MULTILINE)
        formula = "\n\n".join(block.strip("\n") for block in found if block.strip())
        return title, formula, list(dict.fromkeys(_ARXIV.findall(said)))


@dataclass(frozen=True)
class Figures:
    """The files of a folder of results; what is not there yet has no rows."""

    folder: Path

    @cached_property
    def _read(self) -> dict[str, dict[str, Any]]:
        return {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(self.folder.glob("*.json"))}

    def rows(self, file: str) -> dict[str, float]:
        """The values of a file by the names of their rows."""
        return {row["name"]: row["value"] for row in self._read.get(file, {}).get("rows", ())}

    def table(self, file: str, name: str) -> list[dict[str, str]]:
        """The rows of a table by its columns; of two columns of one name the last."""
        table = self._read.get(file, {}).get("tables", {}).get(name, {"columns": (), "rows": ()})
        return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]

    def notes(self, file: str) -> dict[str, Any]:
        """What else a file says."""
        return self._read.get(file, {}).get("notes", {})


def number(text: str) -> float | None:
    """The first number of a cell; None where it has none."""
    found = re.search(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?", text)
    return float(found[0].replace(",", "")) if found else None


def listed(names: Sequence[str]) -> str:
    """Names as words: a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def short(value: float) -> str:
    """Three figures, with no exponent where there is room."""
    return (
        f"{value:.3g}" if 1e-3 <= abs(value) < 1e3 or value == 0 else f"{value:,.0f}" if value >= 1 else f"{value:.1e}"
    )
