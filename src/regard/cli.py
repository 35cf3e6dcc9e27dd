"""The command line: `regard look`, `regard list`. Exit codes: 0, 1 for a failure, 2 for a usage that cannot work."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from regard import __version__
from regard.errors import BudgetError, DataError, ModelError, RegardError

if TYPE_CHECKING:
    from regard.record import Record

_INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    name="regard",
    help="Spend a vision-language model's attention where the question is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"regard {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


@app.command("list")
def list_names(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the allocators: each is a way of spending a token budget."""
    from regard.allocate import catalogue, load

    rows = []
    for name in catalogue():
        try:
            allocator = load(name)
        except ModelError as error:
            rows.append({"name": name, "needs": [], "what": str(error)})
            continue
        first = (type(allocator).__doc__ or "").strip().splitlines()[:1]
        rows.append({"name": name, "needs": list(allocator.needs), "what": first[0] if first else ""})
    if as_json:
        typer.echo(json.dumps(rows))
        return
    from rich.table import Table

    grid = Table("allocator", "needs", "what it does", header_style="bold")
    for row in rows:
        grid.add_row(row["name"], ", ".join(row["needs"]) or "-", row["what"])
    Console().print(grid)


@app.command()
def look(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="A photo: PNG, JPEG, WebP, GIF, TIFF or BMP.", show_default=False)
    ],
    questions: Annotated[
        list[str], typer.Argument(metavar="QUESTION", help="In English, one or several.", show_default=False)
    ],
    budget: Annotated[int | None, typer.Option(help="Tokens to keep.", show_default=False)] = None,
    keep: Annotated[float | None, typer.Option(help="Fraction of the tokens to keep.", show_default="0.1")] = None,
    allocator: Annotated[
        str | None, typer.Option(help="Names, separated by commas.", show_default="all that the eye can feed")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for record.json, the pictures and report.html.")] = Path(
        "regard-look"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON, not a table.")] = False,
    seed: Annotated[int, typer.Option(help="For allocators that draw.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """See where each way of spending a token budget looks, for a photo and a question."""
    from regard.looking import look as look_at

    names = None if allocator is None else [name.strip() for name in allocator.split(",") if name.strip()]
    _check_usage(questions, names)
    _check_writable(out)
    if len(questions) > 2 and not quiet and not any(" " in question.strip() for question in questions):
        typer.echo(f"regard: asking {len(questions)} questions of one word: put quotes around one question", err=True)
    with _Progress(quiet) as stage:
        record = look_at(image, questions, budget=budget, keep=keep, allocators=names, seed=seed, progress=stage)
        stage("draw")
        written = write(record, out)
    if as_json:
        typer.echo(record.to_json())
    elif not quiet:
        _show(record, written)


def write(record: "Record", folder: Path) -> Path:
    """Write record.json, a picture for each look and report.html; all are made before the first is written."""
    from regard.files import write_all
    from regard.report.page import page
    from regard.report.pictures import heat_map, png

    files: dict[str, str | bytes] = {"record.json": record.to_json()}
    for look in record.looks:
        files[f"{look.question + 1}-{look.allocator.replace('/', '_')}.png"] = png(heat_map(record, look))
    files["report.html"] = page(record)
    write_all(folder, files)
    return folder / "report.html"


def _show(record: "Record", written: Path) -> None:
    from regard.report.table import table

    console = Console(width=None if sys.stdout.isatty() else 120)
    for note in record.picture.notes:
        console.print(f"note: {note}", style="yellow", markup=False)
    console.print(table(record))
    console.print(f"Open {written}", markup=False, highlight=False, soft_wrap=True)


class _UsageError(RegardError):
    """A command line that cannot work, whatever the image."""


def _check_usage(questions: list[str], names: list[str] | None) -> None:
    from regard.allocate import catalogue, load
    from regard.looking import checked_questions

    try:
        checked_questions(questions)
        for name in [""] if names == [] else names or []:
            if name not in catalogue():
                load(name)
    except RegardError as error:
        raise _UsageError(str(error)) from error


def _check_writable(folder: Path) -> None:
    """Refuse a place that cannot be written before any work is done for it."""
    from regard.pixels import one_line

    place = folder
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        writable = place.is_dir() and os.access(place, os.W_OK)
    except OSError as error:
        raise DataError(f"cannot write to {one_line(str(folder))!r}: {error.strerror}: choose another --out") from error
    if not writable:
        raise DataError(f"cannot write to {str(folder)!r}: you may not write in {str(place)!r}: choose another --out")


class _Progress:
    """A line on stderr that names the stage at work, for people only."""

    def __init__(self, quiet: bool) -> None:
        self.status = None if quiet or not sys.stderr.isatty() else Console(stderr=True).status("start")

    def __enter__(self) -> Callable[[str], None]:
        if self.status is None:
            return lambda stage: None
        self.status.start()
        return self.status.update

    def __exit__(self, *error: object) -> None:
        if self.status is not None:
            self.status.stop()


def main() -> None:
    """Run the command line; a user's error is one line on stderr, with `--debug` a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app(standalone_mode=True)
    except RegardError as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"regard: {error}", err=True)
        sys.exit(2 if isinstance(error, BudgetError | _UsageError) else 1)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            typer.echo("regard: interrupted; nothing half-written is left", err=True)
        raise


if __name__ == "__main__":
    main()
