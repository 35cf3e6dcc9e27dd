"""The command line: `regard look`, `ablate`, `advise`, `app`, `ask`, `tiles`, `calibrate`, `claims`, `cost`, `doctor`,
`list`, `train`, `show` and `bench`.

Exit codes: 0, 1 for a failure, 2 for a usage that cannot work.
"""

import _thread
import io
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from regard import __version__
from regard.cli import _bench_matrix, _train_foveated, _train_pocket, _train_vit, _train_vlm  # noqa: F401
from regard.cli._ablate import ablate
from regard.cli._advise import advise
from regard.cli._app import app as app_command
from regard.cli._ask import ask
from regard.cli._bench import bench
from regard.cli._calibrate import calibrate
from regard.cli._claims import claims
from regard.cli._cost import cost
from regard.cli._doctor import doctor
from regard.cli._shared import (
    Progress,
    State,
    UsageError,
    check_allocators,
    check_writable,
    checked_fixation,
    checked_states,
    console,
    names_in,
    write,
)
from regard.cli._show import show
from regard.cli._tiles import tiles
from regard.cli._train import train
from regard.errors import BudgetError, ModelError, RegardError

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
    """List the allocators: each is a way of spending a token budget; what it can do without is in brackets."""
    from regard.allocate import catalogue, load

    rows = []
    for name in catalogue():
        try:
            allocator = load(name)
        except ModelError as error:
            rows.append({"name": name, "needs": [], "uses": [], "what": str(error)})
            continue
        first = (type(allocator).__doc__ or "").strip().splitlines()[:1]
        needs, uses = list(allocator.needs), list(allocator.uses)
        rows.append({"name": name, "needs": needs, "uses": uses, "what": first[0] if first else ""})
    if as_json:
        typer.echo(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    grid = Table("allocator", "needs", "what it does", header_style="bold")
    for row in rows:
        wants = [*row["needs"], *(f"({use})" for use in row["uses"])]
        grid.add_row(row["name"], ", ".join(wants) or "-", row["what"])
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
    scope: Annotated[str, State("scope")] = "auto",
    tempering: Annotated[str, State("tempering")] = "auto",
    prioritization: Annotated[str, State("prioritization")] = "auto",
    fixation: Annotated[
        str | None, typer.Option(help="Fovea: where the eye rests, x,y from 0 to 1.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="For allocators that draw.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """See where each way of spending a token budget looks, for a photo and a question."""
    from regard.looking import look as look_at

    names = names_in(allocator)
    _check_usage(questions, names)
    states = checked_states(scope, tempering, prioritization, names)
    place = checked_fixation(fixation, names)
    check_writable(out)
    if len(questions) > 2 and not quiet and not any(" " in question.strip() for question in questions):
        typer.echo(f"regard: asking {len(questions)} questions of one word: put quotes around one question", err=True)
    with Progress(quiet) as stage:
        amount = {"budget": budget, "keep": keep}
        given = {"states": states, "fixation": place}
        record = look_at(image, questions, **amount, allocators=names, **given, seed=seed, progress=stage)
        stage("draw")
        written = write(record, out)
    if as_json:
        typer.echo(record.to_json())
    elif not quiet:
        _show(record, written)


app.command()(ablate)
app.command()(advise)
app.command("app")(app_command)
app.command()(ask)
app.command()(tiles)
app.add_typer(bench, name="bench")
app.command()(calibrate)
app.command()(claims)
app.command()(cost)
app.command()(doctor)
app.command()(show)
app.add_typer(train, name="train")


def _show(record: "Record", written: Path) -> None:
    from regard.report.table import table

    terminal = console()
    for note in record.picture.notes:
        terminal.print(f"note: {note}", style="yellow", markup=False)
    terminal.print(table(record))
    terminal.print(f"Open {written}", markup=False, highlight=False, soft_wrap=True)


def _check_usage(questions: list[str], names: list[str] | None) -> None:
    from regard.looking import checked_questions

    try:
        checked_questions(questions)
    except RegardError as error:
        raise UsageError(str(error)) from error
    check_allocators([""] if names == [] else names or [])


def main() -> None:
    """Run the command line; a user's error is one line on stderr, with `--debug` a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    for name in ("torchao", "torch.utils._pytree"):  # transformers imports torchao, which tells what it cannot load
        logging.getLogger(name).setLevel(logging.ERROR)
    with _interrupts() as interrupts:
        try:
            app(standalone_mode=True)
        except Exception as error:
            if "--debug" in sys.argv or not (interrupts or isinstance(error, RegardError)):
                raise
            if interrupts:  # C code may take one for an error of its own
                _end_interrupted()
            typer.echo(f"regard: {error}", err=True)
            sys.exit(2 if isinstance(error, BudgetError | UsageError) else 1)
        except SystemExit as ended:
            if ended.code == _INTERRUPTED or (interrupts and ended.code):
                _end_interrupted()
            raise


def _end_interrupted() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    typer.echo("regard: interrupted; nothing half-written is left", err=True)
    sys.exit(_INTERRUPTED)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Filled at each Ctrl-C, which waits for a module that is being imported: half of one may abort the process."""
    seen: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if not _importing(frame):
            signal.default_int_handler(number, frame)
        again = threading.Timer(0.02, _thread.interrupt_main)
        again.daemon = True
        again.start()

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield seen
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False
