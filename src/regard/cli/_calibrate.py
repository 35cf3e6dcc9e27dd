"""`regard calibrate`: does a model's relevance point at what is asked, or away from it?"""

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regard.cli._ask import Dtype
from regard.cli._shared import Progress, console, hush

if TYPE_CHECKING:
    from regard.bench.tasks.gcompris import Photos
    from regard.eyes import Eye


def calibrate(
    model: Annotated[
        str | None, typer.Option(help="A folder, or a name of the hub.", show_default="the embedded eye")
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            help="Photos named for what they show, such as dog.jpg; four or more.", show_default="animals, by apt-get"
        ),
    ] = None,
    tasks: Annotated[int, typer.Option(help="Mosaics to look at.")] = 200,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="auto is that of the model's files.")] = "auto",
    seed: Annotated[int, typer.Option(help="Which mosaics.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Does relevance point at what is asked? Measured on mosaics of four photos, one of which is asked for."""
    with Progress(quiet) as stage, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from regard.bench.calibrate import calibrate as measure

        stage("read the photos")
        pool = _pool(photos)
        stage("load the eye")
        eye = _eye(model, device, dtype)
        found = measure(eye, pool, tasks, seed, lambda done: stage(f"mosaic {done} of {tasks}"))
    if as_json:
        typer.echo(json.dumps({**asdict(found), "sign": found.sign, "advice": found.advice}))
        return
    from rich.table import Table

    grid = Table("what", "figure", "blind", title=found.eye, title_justify="left", header_style="bold")
    low, high = found.interval
    grid.add_row("a token of the asked quadrant scores higher", f"{found.above:.3f} ({low:.3f} to {high:.3f})", "0.5")
    grid.add_row("the asked quadrant scores highest", f"{found.found:.3f}", "0.25")
    grid.add_row("the asked quadrant scores lowest", f"{found.lowest:.3f}", "0.25")
    grid.caption = f"{found.tasks} mosaics of {found.names} names; the interval is of 95 %, over names"
    terminal = console()
    terminal.print(grid)
    terminal.print(found.advice, highlight=False)


def _pool(folder: Path | None) -> "Photos":
    from regard.bench.calibrate import named_photos
    from regard.bench.tasks.gcompris import photos

    return photos("report") if folder is None else named_photos(folder)


def _eye(model: str | None, device: str, dtype: str) -> "Eye":
    if model is None:
        from regard.eyes.embedded import EmbeddedEye

        return EmbeddedEye()
    hush()
    from regard.vlm.eye import VlmEye
    from regard.vlm.processors import load_model, load_processor

    processor = load_processor(model)
    return VlmEye(load_model(model, dtype=dtype, device=device), processor)
