"""`regard bench matrix` and `regard bench compare`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regard.cli._bench import bench
from regard.cli._shared import UsageError, console, names_in

if TYPE_CHECKING:
    from regard.bench.compare import Comparison


@bench.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A.jsonl", help="A run, a line an item.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B.jsonl", help="Another over the same.", show_default=False)],
    metric: Annotated[str | None, typer.Option(help="Keys, by commas.", show_default="every number")] = None,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Two runs of your own, paired by id: the differences B - A with intervals of 95 %.

    Lines hold "id" and numbers or true/false, such as {"id": "q7", "right": true, "seconds": 0.21}.
    """
    if resamples < 100 or seed < 0:
        raise UsageError(f"--resamples must be at least 100 and --seed 0 or more, got {resamples} and {seed}")
    names = names_in(metric)
    if names == []:
        raise UsageError(f"--metric must be keys separated by commas, got {metric!r}")
    from regard.bench.compare import compare as paired

    found = paired(a, b, names or (), resamples, seed)
    for note in found.notes:
        typer.echo(f"regard: {note}", err=True)
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"resamples": resamples, "seed": seed}))
    else:
        _show(found, a, b)


def _show(found: "Comparison", a: Path, b: Path) -> None:
    from rich.table import Table

    grid = Table("metric", "mean of A", "mean of B", "B - A", "95 %", "pairs", "unpaired", header_style="bold")
    for one in found.metrics:
        figures = [f"{value:.4g}" for value in (one.a, one.b)]
        between = "" if one.low is None else f"{one.low:+.4g} to {one.high:+.4g}"
        grid.add_row(one.name, *figures, f"{one.difference:+.4g}", between, str(one.pairs), str(one.unpaired))
    terminal = console()
    terminal.print(f"A: {a}, {found.only_a} items unpaired", markup=False, highlight=False)
    terminal.print(f"B: {b}, {found.only_b} items unpaired", markup=False, highlight=False)
    if found.metrics:
        terminal.print(grid)
    if found.same:
        terminal.print(f"Equal in every pair: {', '.join(found.same)}", markup=False, highlight=False)
