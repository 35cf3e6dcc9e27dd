"""What the commands have in common."""

import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from regard.errors import DataError, ModelError, RegardError

if TYPE_CHECKING:
    from rich.console import Console

    from regard.record import Record
    from regard.relevance.tensions import States


class UsageError(RegardError):
    """A command line that cannot work, whatever the image."""


def State(name: str) -> Any:  # noqa: N802
    """The option of a tension."""
    poles = {"scope": "compress", "tempering": "exploit", "prioritization": "focus"}
    others = {"scope": "particularize", "tempering": "explore", "prioritization": "diversify"}
    return typer.Option(metavar="0..1|auto", help=f"Relevance: 0 {poles[name]} .. 1 {others[name]}.")


def checked_states(scope: str, tempering: str, prioritization: str, names: Iterable[str] | None) -> "States":
    """The tensions as they were given on the command line. names: the allocators, None for all. Raises UsageError."""
    from regard.relevance.tensions import States

    values: dict[str, Any] = {"scope": scope, "tempering": tempering, "prioritization": prioritization}
    for name, text in values.items():
        try:
            values[name] = text if text == "auto" else float(text)
        except ValueError:
            raise UsageError(f"--{name} must be 'auto' or a number from 0 to 1, got {text!r}") from None
    try:
        states = States(**values)
    except RegardError as error:
        raise UsageError(f"--{error}") from error
    if states.fixed and names is not None and "relevance" not in (names := list(names)):
        given = ", ".join(f"--{name}" for name in states.fixed)
        raise UsageError(f"{given} is for the allocator relevance (or --tiles), not for {', '.join(names)}")
    return states


def checked_fixation(text: str | None, names: Iterable[str] | None = None) -> tuple[float, float] | None:
    """x,y as two numbers in [0, 1]. names: the allocators, None for all. Raises UsageError."""
    if text is None:
        return None
    if names is not None and "fovea" not in (names := list(names)):
        raise UsageError(f"--fixation is for the allocator fovea, which is not among {', '.join(names)}")
    parts = text.split(",")
    try:
        x, y = (float(part) for part in parts)
    except ValueError:
        raise UsageError(f"--fixation must be x,y such as 0.3,0.7, got {text!r}") from None
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise UsageError(f"--fixation must be from 0 to 1 (0,0 is the top left), got {text!r}")
    return x, y


class Progress:
    """What is at work, and a bar where it is known how much of it there is: on a terminal's stderr, for people only."""

    def __init__(self, quiet: bool) -> None:
        self.bar = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
            from rich.progress import TimeRemainingColumn as RemainingColumn

            self.line = (SpinnerColumn(), TextColumn("{task.description}", markup=False))
            self.known = (*self.line, BarColumn(24), MofNCompleteColumn(), RemainingColumn())
            self.bar = Progress(*self.line, console=Console(stderr=True), transient=True)

    def __enter__(self) -> Callable[..., None]:
        """Called with a line, how much of it is done, and of how much, where that is known."""
        if self.bar is not None:
            self.bar.start()
            self.bar.add_task("start", total=None)
        return self._shows

    def _shows(self, line: str, done: int = 0, total: int = 0) -> None:
        if self.bar is not None:
            (task,) = self.bar.tasks
            if not total or done < task.completed:  # something else begins
                self.bar.reset(task.id, total=total or None)
            self.bar.columns = self.known if total else self.line
            self.bar.update(task.id, description=line, completed=done, total=total or None)

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()


def logged(quiet: bool, line: str) -> None:
    """Say a line on stderr where it is no terminal, which would show it as it happens: for logs of long runs."""
    if not quiet and not sys.stderr.isatty():
        typer.echo(f"regard: {line}", err=True)


def names_in(text: str | None) -> list[str] | None:
    """Names separated by commas; None where nothing was given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def check_allocators(names: Iterable[str]) -> None:
    """Raise UsageError where one is not known."""
    from regard.allocate import catalogue, load

    known = catalogue()
    try:
        for name in names:
            if name not in known:
                load(name)
    except RegardError as error:
        raise UsageError(str(error)) from error


def check_writable(folder: Path) -> None:
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


def console() -> "Console":
    """Where tables are printed: as wide as the terminal, 120 columns where there is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def hush() -> None:
    """Keep what transformers and the hub say while they load off the terminal."""
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        raise ModelError("asking a model needs transformers: pip install 'regard[hf]'")
    import huggingface_hub.utils
    import transformers

    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()
    huggingface_hub.utils.disable_progress_bars()
