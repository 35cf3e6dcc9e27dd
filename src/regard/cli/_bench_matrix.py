"""`regard bench matrix` and `regard bench compare`."""

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from regard.cli._bench import bench
from regard.cli._shared import Progress, UsageError, check_writable, console, names_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regard.bench.accuracy import Point
    from regard.bench.compare import Comparison
    from regard.bench.scaling import Power

MOST = 1_000_000  # resamples of the bootstrap
QUIET = "6"  # of torch's profiler, which takes peak memory: it says on stderr when it starts and stops


@bench.command()
def matrix(
    quick: Annotated[bool, typer.Option("--quick", help="Four sizes, few rounds, nothing written.")] = False,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="On a GPU by CUDA events.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Of torch on the CPU.")] = 1,
    summary: Annotated[
        bool, typer.Option("--summary", help="Measure nothing: sum up the file again, beside the other results.")
    ] = False,
    only: Annotated[str | None, typer.Option(help="Parts of names, by commas: shown, not summed up.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON lines, gone on with.", show_default="results/matrix.jsonl")
    ] = None,
    gmacs: Annotated[float, typer.Option(help="The most 10^9 multiply-accumulates of a call.")] = 100.0,
    gib: Annotated[float, typer.Option(help="The most memory that a cell is known to hold.")] = 6.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """The survey's mechanisms by resolution and batch: cost, time, memory, and how they grow.

    Twenty minutes on a quiet machine. Stopped, it goes on where it was.
    """
    if threads < 1 or not gmacs > 0 or not gib > 0:
        raise UsageError(f"--threads, --gmacs and --gib must be above 0, got {threads}, {gmacs:g} and {gib:g}")
    os.environ.setdefault("KINETO_LOG_LEVEL", QUIET)
    import torch

    from regard.bench.matrix import QUICK, Limits, cells, checked_device, run
    from regard.report.scaling import check_drawing

    checked_device(device)
    check_drawing()
    torch.set_num_threads(threads)
    name = "matrix" if device == "cpu" else f"matrix-{device}"
    path = out or Path("results") / f"{name}.jsonl"
    check_writable(path.parent)
    if summary:
        from regard.bench.jsonl import read_lines

        _summed_up(list(read_lines(path).rows), name, path, quick or only is not None)
        return
    todo, limits = cells(quick, names_in(only) or ()), QUICK if quick else Limits(gmacs, gib)
    with tempfile.TemporaryDirectory() as folder, Progress(quiet) as stage:
        place = Path(folder) / "quick.jsonl" if quick else path
        rows = run(place, device, todo, limits, stage, lambda line: typer.echo(f"regard: {line}", err=True))
    _summed_up(rows, name, path, quick or only is not None)


def _summed_up(rows: list[dict[str, Any]], name: str, path: Path, shown: bool) -> None:
    """The figures and tables; unless they are only to be shown results/NAME.json, the pictures and the page."""
    from regard.bench.accuracy import points
    from regard.bench.matrix import cells
    from regard.bench.results import provenance, publish
    from regard.bench.scaling import powers
    from regard.bench.summary import figures, tables
    from regard.files import write_all

    found, trained = powers(rows), points(Path("results"))
    tabled, device = tables(rows, found, trained), "" if name == "matrix" else " --device cuda"
    last = next(row for row in reversed(rows) if row.get("kind") == "cell")
    made = provenance() | {key: last[key] for key in ("date", "commit", "machine")}
    notes = {"cells": sum(row.get("kind") == "cell" for row in rows), "of": len(cells())}
    publish(
        name,
        f"regard bench matrix{device}",
        figures(rows, found),
        made,
        0,
        notes,
        tabled,
        not shown and path.parent == Path("results"),
    )
    if not shown:
        folder = path.with_suffix("")
        write_all(folder, _drawn(rows, found, trained, tabled, made))
        typer.echo(f"Open {folder / 'report.html'}")


def _drawn(
    rows: "Sequence[dict[str, Any]]",
    found: "dict[tuple[str, str], Power]",
    trained: "Sequence[Point]",
    tabled: dict[str, Any],
    made: dict[str, Any],
) -> dict[str, str | bytes]:
    """The pictures and the page, by the names of their files."""
    from regard.bench.scaling import series
    from regard.report.scaling import matrix_page, multiples, pareto, scaling

    curves, cost = series(rows), "ms an image alone, at the machine's median speed"
    powers = {
        name: f"n^{power.value:.2f} ({power.low:.2f} to {power.high:.2f})"
        for (name, of), power in found.items()
        if of == "time"
    }
    tasks: dict[str, list[tuple[str, float, float, bool]]] = {}
    for one in trained:
        tasks.setdefault(one.task, []).append((one.what, one.macs, one.accuracy, one.best))
    pictures = {
        "scaling.png": scaling(curves, cost),
        "multiples.png": multiples(curves, powers, cost),
        "pareto.png": pareto(tasks),
    }
    about = f"Median times with quartiles, on {made['machine']}, torch {made['versions']['torch']}, {made['date']}."
    titles = {"multiples.png": "Time of an image", "scaling.png": "All of them", "pareto.png": "Accuracy against cost"}
    page = matrix_page("The survey, measured", about, {titles[name]: pictures[name] for name in titles}, tabled)
    return {"report.html": page, **pictures}


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
    if not 100 <= resamples <= MOST or seed < 0:
        raise UsageError(f"--resamples must be from 100 to {MOST:,} and --seed 0 or more, got {resamples} and {seed}")
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
