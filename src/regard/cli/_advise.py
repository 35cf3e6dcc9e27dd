"""`regard advise`: what to use, from the committed measurements and the cost model."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from regard.cli._shared import UsageError, console
from regard.errors import DataError


def advise(
    resolution: Annotated[int, typer.Option(help="Pixels of a side of the image.")] = 1344,
    questions: Annotated[
        Literal["detail", "global", "mixed"], typer.Option(help="About something small, the whole image, or both.")
    ] = "mixed",
    device: Annotated[Literal["cpu", "gpu"], typer.Option(help="Where it runs.")] = "cpu",
    latency: Annotated[
        str | None, typer.Option(metavar="TIME", help="At most until the first word: 300ms, 0.3s.", show_default="any")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="At most, weights included: 8GB, 512MB.", show_default="any")
    ] = None,
    train: Annotated[
        Literal["none", "bridge", "all"], typer.Option(help="What may be trained: all is from the encoder on.")
    ] = "none",
    batch: Annotated[int, typer.Option(help="Questions at once.")] = 1,
    model: Annotated[
        str, typer.Option(help="Whose times they are: smollm2_135m, llava_1.5_7b or llava_1.5_13b.")
    ] = "smollm2_135m",
    results: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Measurements.", show_default="the package's")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Which mechanism or allocator to use, by what was measured: why, what would change it, the code to start with."""
    from regard.bench.advise import Asked, Results, folder, seconds, size
    from regard.bench.advise import advise as advised

    try:
        limits = (None if latency is None else seconds(latency), None if memory is None else size(memory))
        asked = Asked(resolution, questions, device, *limits, train, batch, model)
    except DataError as error:
        raise UsageError(str(error)) from error
    found = advised(asked, Results(folder() if results is None else results))
    if as_json:
        typer.echo(json.dumps(found.plain(), ensure_ascii=False))
    else:
        from regard.bench.advise.show import show

        show(found, console())
