"""`regard train vit`, and `dynamicvit`, `avit` and `evit`, which go on from what it trained."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from regard.cli._train import Batch, Debug, Epochs, Out, Quiet, Rate, Seed, Task, _run, train

Backbone = Annotated[Path, typer.Option(help="Folder of a run of regard train vit.", show_default=False)]
Keep = Annotated[float, typer.Option(help="Share of the patches that each of three stages keeps.")]


@train.command()
def vit(
    task: Task = "fashion",
    dim: Annotated[int, typer.Option(max=1024, help="Width.")] = 64,
    depth: Annotated[int, typer.Option(max=64, help="Blocks.")] = 8,
    heads: Annotated[int, typer.Option(help="Of a block.")] = 2,
    patch: Annotated[int, typer.Option(help="Pixels of its side.")] = 4,
    backbone: Annotated[Path | None, typer.Option(help="Go on from this run, with its sizes.")] = None,
    epochs: Epochs = 10,
    seed: Seed = 0,
    batch: Batch = 128,
    rate: Rate = 1e-3,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """A plain vision transformer, for dynamicvit, avit and evit to start from. Tasks: fashion, mnist."""
    if backbone is not None:
        _from("vit", backbone, {}, task, (epochs, seed, batch, rate), out, quiet)
        return
    from regard.train.dynamic import train_backbone
    from regard.train.loop import for_transformers

    folder = out or Path(f"regard-vit-{task}")
    recipe = for_transformers(epochs, seed, batch, rate)
    sizes = {"dim": dim, "depth": depth, "heads": heads, "hidden": 4 * dim}
    arguments = {"vision": {"image_size": 28, "channels": 1, "patch_size": patch, **sizes}, "classes": 10}
    _run(task, folder, quiet, lambda data, tell: train_backbone(arguments, data, recipe, folder, tell))


@train.command()
def dynamicvit(
    backbone: Backbone,
    task: Task = "fashion",
    keep: Keep = 0.7,
    ratio: Annotated[float, typer.Option(help="Weight of the loss of the shares.")] = 2.0,
    distill: Annotated[float, typer.Option(help="Weight of the loss of the backbone's answers.")] = 0.5,
    epochs: Epochs = 5,
    seed: Seed = 0,
    batch: Batch = 128,
    rate: Rate = 5e-4,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """DynamicViT: a small network says which patches go on."""
    recipe = (epochs, seed, batch, rate)
    _from("dynamicvit", backbone, {"keep": keep}, task, recipe, out, quiet, (ratio, distill))


@train.command()
def evit(
    backbone: Backbone,
    task: Task = "fashion",
    keep: Keep = 0.7,
    epochs: Epochs = 5,
    seed: Seed = 0,
    batch: Batch = 128,
    rate: Rate = 5e-4,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """EViT: what the class token attends to goes on, the others become one."""
    _from("evit", backbone, {"keep": keep}, task, (epochs, seed, batch, rate), out, quiet)


@train.command()
def avit(
    backbone: Backbone,
    task: Task = "fashion",
    gate: Annotated[float, typer.Option(help="What the first channel is multiplied by.")] = 5.0,
    centre: Annotated[float, typer.Option(help="What is then taken from it.")] = 7.5,
    ponder: Annotated[float, typer.Option(help="Weight of the loss of the depth; the paper: 0.0005.")] = 0.002,
    prior: Annotated[float, typer.Option(help="Weight of the loss of its distribution; the paper: 0.001.")] = 0.1,
    depth: Annotated[float, typer.Option(help="Share of the blocks after which most patches are to halt.")] = 2 / 3,
    epochs: Epochs = 5,
    seed: Seed = 0,
    batch: Batch = 128,
    rate: Rate = 5e-4,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """A-ViT: each patch halts at a depth of its own."""
    arguments = {"gate": gate, "centre": centre}
    _from("avit", backbone, arguments, task, (epochs, seed, batch, rate), out, quiet, (ponder, prior), depth)


def _from(
    kind: Literal["vit", "dynamicvit", "avit", "evit"],
    backbone: Path,
    arguments: dict[str, Any],
    task: str,
    recipe: tuple[int, int, int, float],
    out: Path | None,
    quiet: bool,
    weights: tuple[float, float] | None = None,
    depth: float = 2 / 3,
) -> None:
    from regard.train.dynamic import train as learn
    from regard.train.loop import Recipe

    folder = out or Path(f"regard-{kind}-{task}")
    whole = Recipe(*recipe, decay=0.05, clip=1.0)
    _run(
        task,
        folder,
        quiet,
        lambda data, tell: learn(kind, backbone, arguments, data, whole, folder, tell, weights, depth),
    )
