"""`regard tiles`: a photo as crops, each of the resolution that the question gives it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regard.cli._shared import Progress, State, UsageError, check_writable, checked_states, console

if TYPE_CHECKING:
    from regard.eyes.crops import Tile


def tiles(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A photo.", show_default=False)],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In English.", show_default=False)],
    budget: Annotated[int, typer.Option(help="Tokens of all tiles together, at most.", show_default=False)],
    layout: Annotated[
        str | None, typer.Option(metavar="ROWSxCOLUMNS", help="How to cut.", show_default="about 160 tokens a tile")
    ] = None,
    token_pixels: Annotated[int, typer.Option(help="The side of a token: 28 for Qwen2.5-VL, 32 for Qwen3-VL.")] = 28,
    scope: Annotated[str, State("scope")] = "auto",
    tempering: Annotated[str, State("tempering")] = "auto",
    prioritization: Annotated[str, State("prioritization")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the crops and manifest.json.")] = Path("regard-tiles"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest, not a table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Cut a photo into tiles, each of the resolution that the question gives it, under one budget of tokens."""
    parts = _layout(layout)
    if token_pixels < 1:
        raise UsageError(f"--token-pixels must be at least 1, got {token_pixels}")
    states = checked_states(scope, tempering, prioritization, None)
    check_writable(out)
    with Progress(quiet) as stage:
        stage("look")
        from regard.tiling import tiles as cut

        made = cut(image, question, budget, layout=parts, token_pixels=token_pixels, states=states)
        stage("write")
        manifest = _write(made, out, {"image": str(image), "question": question, "budget": budget})
    if as_json:
        typer.echo(json.dumps(manifest))
    elif not quiet:
        _show(made, manifest, out)


def _layout(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise UsageError(f"--layout must be ROWSxCOLUMNS, such as 2x3, got {text!r}")
    return int(parts[0]), int(parts[1])


def _write(made: "list[Tile]", out: Path, about: dict) -> dict:
    """The crops as PNG and manifest.json, all or none; the manifest."""
    from regard.files import write_all
    from regard.report.pictures import png

    digits = len(str(len(made)))
    names = [f"tile-{number:0{digits}}.png" for number in range(1, len(made) + 1)]
    rows = [
        {"file": name, "box": tile.box, "tokens": tile.tokens, "pixels": tile.crop.size}
        for name, tile in zip(names, made, strict=True)
    ]
    manifest = {**about, "tokens": sum(tile.tokens for tile in made), "tiles": rows}
    files: dict[str, str | bytes] = {name: png(tile.crop) for name, tile in zip(names, made, strict=True)}
    write_all(out, {**files, "manifest.json": json.dumps(manifest, indent=1) + "\n"})
    return manifest


def _show(made: "list[Tile]", manifest: dict, out: Path) -> None:
    from rich.table import Table

    title = f"{len(made)} tiles, {manifest['tokens']} of at most {manifest['budget']} tokens"
    grid = Table(
        "tile", "part of the photo", "tokens", "pixels", title=title, title_justify="left", header_style="bold"
    )
    for row in manifest["tiles"]:
        x0, y0, x1, y1 = row["box"]
        part = f"x {x0:.2f} to {x1:.2f}, y {y0:.2f} to {y1:.2f}"
        grid.add_row(row["file"], part, str(row["tokens"]), "{} x {}".format(*row["pixels"]))
    terminal = console()
    terminal.print(grid)
    terminal.print(f"Open {out / 'manifest.json'}", markup=False, highlight=False, soft_wrap=True)
