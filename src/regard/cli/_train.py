"""`regard train`: the mechanisms that choose where to look, trained from nothing on tasks that packages bring."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from regard.cli._shared import Progress, check_writable, logged
from regard.errors import ModelError

train = typer.Typer(no_args_is_help=True, help="Train a mechanism that looks; an interrupted run goes on.")

SMALL = ("mnist", "fashion")  # 28 x 28
Task = Annotated[str, typer.Option(help="What to learn from.")]
Epochs = Annotated[int, typer.Option(max=100_000, help="Passes over the training images.")]
Seed = Annotated[int, typer.Option(help="Decides weights, order and draws.")]
Batch = Annotated[int, typer.Option(max=1024, help="Images of a step.")]
Rate = Annotated[float, typer.Option(help="The highest learning rate.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="regard-MECHANISM-TASK")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@train.callback()
def _root() -> None:
    pass


@train.command()
def ram(
    task: Annotated[
        Literal["mnist", "fashion", "translated", "cluttered", "cluttered-100"],
        typer.Option(help="What to learn from."),
    ] = "mnist",
    glimpses: Annotated[int, typer.Option(max=100, help="Of one image.")] = 6,
    glimpse: Annotated[
        int | None, typer.Option(max=100, help="Pixels of its side.", show_default="8, 12 on canvases")
    ] = None,
    scales: Annotated[int | None, typer.Option(max=16, help="Of a glimpse.", show_default="1, 3 or 4")] = None,
    std: Annotated[float, typer.Option(help="Of the policy, half an image being 1.")] = 0.1,
    core: Annotated[Literal["rectifier", "lstm"], typer.Option(help="Of the recurrence.")] = "rectifier",
    policy: Annotated[Literal["learned", "random"], typer.Option(help="Where to look next.")] = "learned",
    start: Annotated[Path | None, typer.Option(help="A run whose weights this one begins with.")] = None,
    epochs: Epochs = 100,
    seed: Seed = 0,
    batch: Batch = 128,
    rate: Rate = 1e-3,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """RAM: glimpses, and a policy for where the next is."""
    from regard.train.loop import Recipe
    from regard.train.recurrent import train as learn

    folder = out or Path(f"regard-ram-{task}")
    recipe = Recipe(epochs, seed, batch, rate)
    arguments = {
        "glimpses": glimpses,
        "glimpse": glimpse if glimpse is not None else 8 if task in SMALL else 12,
        "scales": scales if scales is not None else {"cluttered-100": 4}.get(task, 1 if task in SMALL else 3),
        "std": std,
        "core": core,
        "policy": policy,
    }
    _run(task, folder, quiet, lambda data, tell: learn(arguments, data, recipe, folder, tell, start))


@train.command()
def cascade(
    task: Task = "fashion",
    stages: Annotated[int, typer.Option(max=16, help="Resolutions; 1 reads everything at once.")] = 2,
    keep: Annotated[str | None, typer.Option(help="Tokens that each later stage splits, by commas.")] = None,
    reuse: Annotated[bool, typer.Option(help="Give what is known of a token to its parts.")] = True,
    warm: Annotated[float, typer.Option(help="Share of the steps that split all tokens.")] = 0.4,
    tolerance: Annotated[float, typer.Option(help="Share of images that exits may get wrong.")] = 0.002,
    share: Annotated[float | None, typer.Option(help="Instead: the mean cost, of reading all.")] = None,
    epochs: Epochs = 10,
    seed: Seed = 0,
    batch: Batch = 128,
    rate: Rate = 2e-3,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """CF-ViT: coarse to fine, with early exits; their thresholds by images held out. Tasks: fashion, search."""
    from regard.bench.tasks.held import held_task
    from regard.train.cascade import sizes
    from regard.train.cascade import train as learn
    from regard.train.loop import for_transformers

    folder = out or Path(f"regard-cascade-{task}")
    recipe = for_transformers(epochs, seed, batch, rate)
    arguments = sizes(task, stages, keep, reuse)
    cache = folder.parent / "search-features"
    _run(
        task,
        folder,
        quiet,
        lambda data, tell: learn(arguments, data, recipe, folder, tell, warm, tolerance, share),
        lambda name, told: held_task(name, arguments, cache, told),
    )


def _run(
    task: str, folder: Path, quiet: bool, learn: Callable[..., Any], fetch: Callable[..., Any] | None = None
) -> None:
    """Fetch, train, test, and write metrics.json. fetch: what gives the task, by its name."""
    from regard.bench.results import provenance
    from regard.bench.tasks.data import data
    from regard.files import write_all
    from regard.report.curves import curves
    from regard.train.checkpoint import LAST, Checkpoint
    from regard.train.data import evaluate

    check_writable(folder)
    with Progress(quiet) as stage:
        stage("read the images")
        given = (fetch or data)(task, stage)
        shown = [0.0]

        def tell(epoch: int, done: int, loss: float, accuracy: float) -> None:
            if done == given.count:
                logged(quiet, f"epoch {epoch}: loss {loss:.4f}, {100 * accuracy:.2f} % right")
            elif time.perf_counter() - shown[0] > 0.2:
                shown[0] = time.perf_counter()
                line = f"epoch {epoch}: loss {loss:.4f}, {100 * accuracy:.2f} % right"
                stage(line, done, given.count)

        model = learn(given, tell)
        stage("test")
        figures = evaluate(model, given)
    history = Checkpoint.load(folder / LAST).history
    metrics = {
        "task": task,
        "mechanism": model.name,
        **figures,
        "seconds": round(sum(row["seconds"] for row in history), 1),
        "epochs": len(history),
        **provenance(),
    }
    files: dict[str, str | bytes] = {"metrics.json": json.dumps(metrics, indent=1) + "\n"}
    try:
        files["curves.png"] = curves(history)
    except ModelError as error:
        typer.echo(f"regard: no curves.png: {error}", err=True)
    write_all(folder, files)
    if not quiet:
        typer.echo(f"test error {figures['test_error']:.2f} %, {figures['macs'] / 1e6:.2f} M MACs an image: {folder}")
