"""`regard train gaze`, `foveater` and `pervit`, which read finely where they look and coarsely elsewhere."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from regard.cli._train import Batch, Debug, Epochs, Out, Quiet, Rate, Seed, Task, _run, train

Dim = Annotated[int, typer.Option(max=1024, help="Width.")]
Depth = Annotated[int, typer.Option(max=64, help="Blocks.")]
Heads = Annotated[int, typer.Option(help="Of a block.")]


@train.command()
def gaze(
    task: Task = "search",
    reading: Annotated[Literal["gaze", "all"], typer.Option(help="Tokens about a gaze, or all there are.")] = "gaze",
    view: Annotated[int, typer.Option(max=256, help="Pixels of a side of what the gaze is predicted from.")] = 128,
    start: Annotated[Path | None, typer.Option(help="Begin with the ViT of this run.", show_default="random")] = None,
    dim: Dim = 96,
    depth: Depth = 3,
    heads: Heads = 4,
    epochs: Epochs = 40,
    seed: Seed = 0,
    batch: Batch = 64,
    rate: Rate = 1e-3,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Twenty tokens about a gaze, which is given or predicted. Tasks: search."""
    from regard.train.foveated import train_gaze
    from regard.train.loop import for_transformers

    folder = out or Path(f"regard-gaze-{task}")
    recipe = for_transformers(epochs, seed, batch, rate)
    arguments = {"dim": dim, "depth": depth, "heads": heads, "view": view, "reading": reading}
    _run(task, folder, quiet, lambda data, tell: train_gaze(arguments, data, recipe, folder, tell, start))


@train.command()
def foveater(
    task: Task = "search",
    regions: Annotated[Literal["square", "polar", "all"], typer.Option(help="About a fixation.")] = "square",
    glimpses: Annotated[int, typer.Option(max=100, help="Fixations of an image at most.")] = 4,
    threshold: Annotated[float, typer.Option(help="Of the largest probability, from which on it stops.")] = 0.9,
    backbone: Annotated[
        Literal["convolutions", "efficientnet"], typer.Option(help="Trained with it, or frozen.")
    ] = "efficientnet",
    dim: Dim = 96,
    depth: Depth = 2,
    heads: Heads = 4,
    epochs: Epochs = 20,
    seed: Seed = 0,
    batch: Batch = 64,
    rate: Rate = 1e-3,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """FoveaTer: fixates where its class token attends to, until it is sure. Tasks: search."""
    from regard.train.foveated import train_foveater
    from regard.train.loop import for_transformers

    folder = out or Path(f"regard-foveater-{task}")
    recipe = for_transformers(epochs, seed, batch, rate)
    arguments = {"dim": dim, "depth": depth, "heads": heads, "glimpses": glimpses, "threshold": threshold}
    arguments |= {"regions": regions, "backbone": backbone}
    _run(task, folder, quiet, lambda data, tell: train_foveater(arguments, data, recipe, folder, tell))


@train.command()
def pervit(
    task: Task = "fashion",
    attention: Annotated[Literal["peripheral", "plain"], typer.Option(help="Plain is its twin.")] = "peripheral",
    patch: Annotated[int, typer.Option(help="Pixels of a token's side.")] = 4,
    dim: Dim = 32,
    depth: Depth = 4,
    heads: Heads = 4,
    epochs: Epochs = 5,
    seed: Seed = 0,
    batch: Batch = 128,
    rate: Rate = 2e-3,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """PerViT: each head learns which distances it attends to. Tasks of 28 x 28: fashion, mnist."""
    from regard.train.foveated import train_pervit
    from regard.train.loop import for_transformers

    folder = out or Path(f"regard-pervit-{task}")
    recipe = for_transformers(epochs, seed, batch, rate)
    arguments = {"dim": dim, "depth": depth, "heads": heads, "patch": patch, "attention": attention}
    _run(task, folder, quiet, lambda data, tell: train_pervit(arguments, data, recipe, folder, tell))
