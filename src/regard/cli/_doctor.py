"""`regard doctor`: what is wrong with a model."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from regard.cli._shared import Progress, UsageError, check_writable, console, hush, names_in
from regard.errors import ModelError

if TYPE_CHECKING:
    from regard.doctor.examine import Examination
    from regard.record import Picture

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
COLOURS = {"error": "bold red", "warning": "yellow", "note": "blue", "skipped": "dim"}


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A folder, or a name of the Hugging Face hub.", show_default="the pocket model"
        ),
    ] = None,
    image: Annotated[str | None, typer.Option(help="A photo to show.", show_default="one that is drawn")] = None,
    question: Annotated[str | None, typer.Option(help="What to ask about it.", show_default="what is in it")] = None,
    only: Annotated[
        str | None, typer.Option(help="Checks to run: names, separated by commas.", show_default="all")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="auto is that of the model's files.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for report.html and findings.json.")] = Path("regard-doctor"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON, not a table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Examine a model: masks, positions, heads, gates, gradients, learned queries, sinks, and whether it sees."""
    names = names_in(only)
    if question is not None and not question.strip():
        raise UsageError("the question is empty: ask in words, such as 'where is the cat?'")
    check_writable(out)
    with Progress(quiet) as stage:
        stage("start")
        hush()
        from regard.doctor.examine import checked

        try:
            checked(names)
        except ModelError as error:
            raise UsageError(str(error)) from error
        result, about = _examined(model, image, question, names, device, dtype, stage)
        stage("draw")
        written = _written(result, about, out)
    if as_json:
        typer.echo(json.dumps(result.to_dict()))
    elif not quiet:
        _show(result, str(about["model"]), written)
    if result.failed:
        raise typer.Exit(1)


def _examined(
    name: str | None,
    image: str | None,
    question: str | None,
    only: list[str] | None,
    device: str,
    dtype: str,
    stage: Callable[[str], None],
) -> tuple["Examination", dict[str, Any]]:
    """Load the model and examine it, without a word on the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from regard.doctor.examine import examine
        from regard.doctor.subject import QUESTION, picture, subject
        from regard.recorded import read_picture
        from regard.vlm.processors import model_name

        photo, preview = read_picture(picture() if image is None else image)
        stage("load the model")
        asked = question or QUESTION
        found = subject(name, photo, asked, device, dtype)
        told = {"why": found.why, "progress": lambda check: stage(f"check: {check}")}
        result = examine(found.model, found.inputs, only=only, **told)
    parameters = sum(value.numel() for value in found.model.parameters())
    called = "the pocket model" if name in (None, "pocket") else model_name(str(name))
    facts = [
        f"{type(found.model).__name__}, {parameters / 1e6:,.1f} M parameters",
        f"{sum(result.seconds.values()):.1f} s",
    ]
    return result, {"model": called, "facts": facts, "question": asked, "picture": preview}


def _written(result: "Examination", about: dict[str, Any], out: Path) -> Path:
    from regard import __version__
    from regard.files import write_all
    from regard.report.doctor import page

    shown: Picture = about["picture"]
    findings = result.to_dict()["findings"]
    facts = [*about["facts"], f"regard {__version__}"]
    html = page(about["model"], findings, result.silent, facts, about["question"], shown.preview)
    seconds = {**result.to_dict(), "silent": result.silent, "seconds": result.seconds}
    write_all(out, {"findings.json": json.dumps(seconds, indent=1) + "\n", "report.html": html})
    return out / "report.html"


def _show(result: "Examination", name: str, written: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    grid = Table("check", "severity", "evidence", "what to do", title=escape(name), title_justify="left")
    grid.columns[0].no_wrap = grid.columns[1].no_wrap = True
    grid.columns[2].overflow = grid.columns[3].overflow = "fold"
    for finding in result.findings:
        kind = f"[{COLOURS[finding.severity]}]{finding.severity}[/]"
        grid.add_row(finding.check, kind, escape(finding.evidence), escape(finding.advice), end_section=True)
    terminal = console()
    if result.findings:
        terminal.print(grid)
    if result.silent:
        terminal.print(f"Nothing found by {', '.join(result.silent)}.", markup=False)
    took = sum(result.seconds.values())
    terminal.print(f"Open {written} ({took:.1f} s)", markup=False, highlight=False, soft_wrap=True)
