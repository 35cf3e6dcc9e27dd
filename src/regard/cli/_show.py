"""`regard show`: what a trained mechanism looks at in an image."""

from pathlib import Path
from typing import Annotated

import typer

from regard.cli._shared import Progress, UsageError, check_writable, checked_fixation
from regard.errors import DataError


def show(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A run's folder, or its last.safetensors.")],
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture.", show_default=False)],
    fixation: Annotated[
        str | None, typer.Option(help="Where to look first, x,y from 0 to 1.", show_default=False)
    ] = None,
    fixations: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The same, the first of a tracker's: CSV with x and y.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for record.json, path.png and glimpses.png.")] = Path("regard-show"),
    seed: Annotated[int, typer.Option(help="For what is drawn.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Draw where a trained mechanism looks: the path of its fixations, and an animation of what it reads."""
    from regard.files import write_all
    from regard.report.glimpses import animation, caption, path
    from regard.report.pictures import png
    from regard.train.checkpoint import looker

    if fixation is not None and fixations is not None:
        raise UsageError("--fixation and --fixations say the same: give one of them")
    place = checked_fixation(fixation) if fixations is None else _first(fixations)
    check_writable(out)
    with Progress(quiet) as stage:
        stage("load")
        model, labels = looker(checkpoint)
        stage("look")
        seen = model.see(image, labels, seed, fixation=place)
    record = seen.record
    files = {"record.json": record.to_json(), "path.png": png(path(record)), "glimpses.png": animation(record)}
    write_all(out, files)
    if not quiet and record.trace is not None:
        typer.echo(caption(record.trace))
        typer.echo(f"Open {out / 'path.png'} and {out / 'glimpses.png'} (animated)")


def _first(file: Path) -> tuple[float, float]:
    """The first fixation of a tracker's file, x and y in [0, 1]. Raises DataError."""
    from regard.mechanisms.gaze import read_fixations

    places = read_fixations(file)
    if not len(places):
        raise DataError(f"{str(file)!r} has no fixation: expected a line with x and y after the line of names")
    x, y = ((places[0] + 1) / 2).tolist()
    return x, y
