"""The documents' figures, from `results/`: `python -m regard.bench.readme` writes them, `--check` compares."""

import json
import re
import sys
from pathlib import Path

from regard.bench.index.page import PLACE, page
from regard.errors import DataError
from regard.files import write_whole

_DOCS = "app attention embedded-eye matrix measure mechanisms pocket relevance selectors shorten".split()
DOCUMENTS = ("README.md", *(f"docs/{name}.md" for name in _DOCS))
_BLOCK = re.compile(r"(<!-- (?:figures|table): ([^\n/]+?)(?:/([^\n]+?))? -->\n).*?(<!-- end -->)", re.DOTALL)


def generated(text: str, results: Path) -> str:
    """The text with each block `<!-- figures: NAME --> ... <!-- end -->` filled from results/NAME.json, and each
    `<!-- table: NAME/TABLE --> ... <!-- end -->` from one of its tables.
    """

    def block(found: re.Match[str]) -> str:
        file = results / f"{found[2]}.json"
        if not file.exists():
            raise DataError(f"a document shows figures of {str(file)!r}, which does not exist: run `make bench`")
        data = json.loads(file.read_text())
        return found[1] + (_table(data["tables"][found[3]]) if found[3] else _figures(data)) + found[4]

    return _BLOCK.sub(block, text)


def _figures(data: dict) -> str:
    lines = ["| what | figure | target | met |", "|---|---:|---:|---|"]
    for row in sorted(data["rows"], key=lambda row: row["met"] is not False):  # misses first
        met = {None: "", True: "yes", False: "**no**"}[row["met"]]
        figure = f"{row['value']:.3g}" if row["unit"] == "ratio" else f"{row['value']:.3g} {row['unit']}"
        lines.append(f"| {row['name']} | {figure} | {row['target'].replace('<=', '≤').replace('>=', '≥')} | {met} |")
    seed = "" if data["seed"] is None else f", seed {data['seed']}"
    lines.append("")
    lines.append(f"`{data['command']}`{seed}, {data['date']}, on {data['machine']}, torch {data['versions']['torch']}.")
    return "\n".join(lines) + "\n"


def _table(table: dict) -> str:
    columns = table["columns"]
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *table["rows"]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def written(path: Path, fresh: str, command: str, source: str = "results/") -> None:
    """Write a document, or with --check fail where it differs from its source, of which the command makes it."""
    if "--check" not in sys.argv:
        write_whole(path, fresh)
    elif not path.exists() or path.read_text(encoding="utf-8") != fresh:
        raise SystemExit(f"{path} differs from {source}: run {command}")


def main() -> None:
    """Fill the documents, or with --check fail where one differs from what the results say."""
    command = "python -m regard.bench.readme"
    for name in DOCUMENTS:
        written(Path(name), generated(Path(name).read_text(), Path("results")), command)
    written(PLACE, page(Path()), command)


if __name__ == "__main__":
    main()
