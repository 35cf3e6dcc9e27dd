"""`regard train pocket`: the model behind `regard ask` without a model's name."""

import time
from pathlib import Path
from typing import Annotated

import typer

from regard.cli._shared import Progress, check_writable, hush, logged
from regard.cli._train import Batch, Debug, Epochs, Quiet, Rate, Seed, train

Scenes = Annotated[Path, typer.Option(help="Folder of the scenes as the eye sees them, made where it has none.")]


@train.command()
def pocket(
    scenes: Scenes = Path("regard-scenes"),
    epochs: Epochs = 3,
    seed: Seed = 0,
    batch: Batch = 32,
    rate: Rate = 1e-3,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("regard-pocket"),
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The pocket model: one decoder, and a bridge for each mechanism, all at once."""
    check_writable(out)
    hush()
    from regard.bench import pocket as recipe
    from regard.train.loop import Recipe

    with Progress(quiet) as stage:
        given = recipe.scenes(scenes, "train", "val", told=stage)
        shown, count = [0.0], sum(map(len, given["train"].sides()))

        def tell(epoch: int, done: int, loss: float, accuracy: float) -> None:
            if done == count:
                logged(quiet, f"epoch {epoch}: loss {loss:.4f}, {100 * accuracy:.1f} % right")
            elif time.perf_counter() - shown[0] > 0.2:
                shown[0] = time.perf_counter()
                stage(f"epoch {epoch}: loss {loss:.4f}, {100 * accuracy:.1f} % right", done, count)

        how = Recipe(epochs, seed, batch, rate, decay=0.05, warmup=0.1, clip=1.0)
        model = recipe.trained(given["train"], how, out, tell, given["val"])
        stage("ask about scenes that were not learned from")
        right = recipe.validated(model, given["val"], out)
    if not quiet:
        said = ", ".join(f"{name} {rate:.1f}" for name, rate in right.items())
        typer.echo(f"right answers in percent, all tokens and 64 of each: {said}: {out}")
