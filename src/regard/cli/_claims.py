"""`regard claims`: the survey's statements, what their sources say, what was measured, and verdicts."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regard.cli._shared import Progress, UsageError, console
from regard.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regard.bench.claims import Claim, Ruled

_STYLES = {"holds": "green", "holds with limits": "yellow", "refuted": "red"}


def claims(
    only: Annotated[
        str | None, typer.Option(help="An id, a section such as 7.2, or a part of the words.", show_default=False)
    ] = None,
    verdict: Annotated[
        str | None,
        typer.Option(help="holds, holds with limits, refuted, or cannot be tested here.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
    run: Annotated[
        bool,
        typer.Option("--run", help="First run all experiments: minutes; writes results/claims.json."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """What the survey claims, and whether it holds: figures from results/, of the package where the current folder has
    none, and computed now.
    """
    chosen = _chosen(only, verdict)
    if run:
        from regard.bench.claims.experiments import main

        with Progress(quiet) as stage:
            main(stage)
    from regard.bench.advise.sources import folder
    from regard.bench.claims import ruled

    results = Path("results") if Path("results").is_dir() else folder()
    rows = [row for row in (ruled(one, results) for one in chosen) if verdict in (None, row.verdict)]
    if as_json:
        typer.echo(json.dumps([row.plain() for row in rows], ensure_ascii=False))
    elif len(rows) == 1:
        _show_one(rows[0])
    else:
        _show(rows)


def _chosen(only: str | None, verdict: str | None) -> "list[Claim]":
    from regard.bench.claims import checked_verdict, select

    try:
        checked_verdict(verdict)
        return select(only)
    except DataError as error:
        raise UsageError(str(error)) from error


def _show(rows: "Sequence[Ruled]") -> None:
    from rich.markup import escape
    from rich.table import Table

    grid = Table("id", "§", "the survey says", "measured", "verdict", header_style="bold", show_lines=True)
    for row in rows:
        one, style = row.claim, _STYLES.get(row.verdict, "dim")
        grid.add_row(one.id, one.section, escape(one.says), escape(row.measured), f"[{style}]{row.verdict}[/]")
    terminal = console()
    terminal.print(grid)
    counts = Counter(row.verdict for row in rows)
    told = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    terminal.print(f"{len(rows)} claims: {told or 'none has this verdict'}", markup=False, highlight=False)
    for command in sorted({command for row in rows for command in row.missing}):
        terminal.print(f"Some figures are not measured: run {command}", markup=False, highlight=False)


def _show_one(row: "Ruled") -> None:
    terminal, one = console(), row.claim
    parts = {"says": one.says, "source": one.source, "measured": row.measured, "verdict": row.verdict, "why": row.why}
    terminal.print(f"{one.id}, section {one.section}", style="bold", markup=False, highlight=False)
    for name, text in parts.items():
        terminal.print(f"{name}: {text}", markup=False, highlight=False)
