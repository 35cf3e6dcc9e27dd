"""`regard cost`: what a model, a mechanism, an allocator or a layer costs, by formula."""

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from regard.cli._shared import UsageError, console
from regard.errors import BudgetError, RegardError

if TYPE_CHECKING:
    from regard.cost import Answer

SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def cost(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="What to cost; without it, all names.", show_default=False)
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Pixels of a side of the image.", show_default="its own")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images or prompts at once.")] = 1,
    tokens: Annotated[int | None, typer.Option(help="Visual tokens to keep.", show_default="all")] = None,
    text: Annotated[int | None, typer.Option(help="Tokens of the prompt's text.", show_default="its own")] = None,
    layer: Annotated[
        int | None, typer.Option(help="Of the language model: the first that reads the kept ones.", show_default="0")
    ] = None,
    convention: Annotated[
        Literal["published", "exact", "divprune"],
        typer.Option(help="Count as its source, every product, or two matrices of a feed-forward."),
    ] = "published",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Parameters, MACs, FLOPs, memory and tokens, by formula: nothing is built or downloaded."""
    from regard.cost import names, of

    if name is None:
        if as_json:
            typer.echo(json.dumps(names()))
        else:
            _list(names())
        return
    try:
        answer = of(name, resolution, batch, tokens, text, layer, convention)
    except BudgetError:
        raise
    except RegardError as error:
        raise UsageError(str(error)) from error
    if as_json:
        about = {"name": answer.name, "convention": convention, "units": answer.units, "notes": answer.notes}
        typer.echo(json.dumps({**answer.values, **about}))
    else:
        _show(answer)


def _list(groups: dict[str, tuple[str, ...]]) -> None:
    for group, found in groups.items():
        typer.echo(f"{group}:")
        for name in found:
            typer.echo(f"  {name}")


def _show(answer: "Answer") -> None:
    from rich.table import Table

    grid = Table("what", "how much", "unit", title=answer.name, title_justify="left", header_style="bold")
    grid.columns[1].justify = "right"
    for what, value in answer.values.items():
        unit = answer.units[what]
        shown = _sized(value) if unit == "bytes" else (f"{value:,.4g}" if value < 1000 else f"{value:,.1f}", unit)
        grid.add_row(what, *shown)
    terminal = console()
    terminal.print(grid)
    for note in answer.notes:
        terminal.print(note, style="dim", markup=False, highlight=False)


def _sized(count: float) -> tuple[str, str]:
    place = 0
    while count >= 1024 and place + 1 < len(SIZES):
        count, place = count / 1024, place + 1
    return f"{count:,.4g}", SIZES[place]
