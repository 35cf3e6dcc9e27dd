"""`regard bench`: what the project measures of itself."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from regard.cli._shared import Progress, UsageError, hush, names_in

bench = typer.Typer(no_args_is_help=True, help="Measure: writes results/ in the current folder.")
QUICK = (0.1,)
Add = Annotated[
    bool, typer.Option("--add", help="Keep what results/ holds of other runs, with the commit that made it.")
]


@bench.callback()
def _root() -> None:
    pass


@bench.command()
def layers(
    rounds: Annotated[int, typer.Option(help="Of each measurement.")] = 21,
    only: Annotated[str | None, typer.Option(help="Parts of names, by commas: shown, not written.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """The attention layers beside their references, in time and memory."""
    if rounds < 3:
        raise UsageError(f"--rounds must be at least 3, got {rounds}")
    hush()
    from regard.bench.layers import main

    main(rounds, names_in(only) or ())


@bench.command()
def allocators(
    scenes: Annotated[int, typer.Option(help="Of each of the seven kinds, for each seed.")] = 20,
    seeds: Annotated[int, typer.Option(help="Sets of scenes.")] = 3,
    half: Annotated[
        Literal["tune", "report"], typer.Option(help="Settings were chosen on tune, and are shown on report.")
    ] = "report",
    quick: Annotated[bool, typer.Option("--quick", help="Two scenes of a kind, one budget, nothing written.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """When relevance realization is worth it: every allocator on scenes whose answer's place is known."""
    if scenes < 1 or seeds < 1:
        raise UsageError(f"--scenes and --seeds must be at least 1, got {scenes} and {seeds}")
    from regard.bench.allocators import BUDGETS, run
    from regard.bench.proof import publish_proof, show, tables
    from regard.bench.results import provenance
    from regard.eyes.embedded import EmbeddedEye

    made = provenance()
    count, sets, budgets = (2, 1, QUICK) if quick else (scenes, seeds, BUDGETS)
    with Progress(quiet) as stage:
        stage("read the photos")
        eye = EmbeddedEye()
        cells = run(eye, half, count, sets, budgets, lambda done, of: stage(f"scene {done} of {of}"))
    if quick:
        show(tables(cells))
        return
    line = f"regard bench allocators --scenes {scenes} --seeds {seeds} --half {half}"
    publish_proof("allocators" if half == "report" else f"allocators-{half}", line, cells, made)


@bench.command()
def ram(
    runs: Annotated[Path, typer.Option(help="Folder of folders that regard train ram wrote.")] = Path("runs"),
    add: Add = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """RAM beside its paper's tables, and what its glimpses cost."""
    from regard.bench.recurrent import main

    main(runs, add)


@bench.command()
def dynamic(
    runs: Annotated[Path, typer.Option(help="Folder of folders that regard train vit and others wrote.")] = Path(
        "runs"
    ),
    rounds: Annotated[int, typer.Option(help="Of each timing.")] = 15,
    add: Add = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """DynamicViT, A-ViT and EViT beside the transformer they were made of."""
    if rounds < 1:
        raise UsageError(f"--rounds must be at least 1, got {rounds}")
    from regard.bench.dynamic import main

    main(runs, rounds, add)


@bench.command()
def foveated(
    runs: Annotated[Path, typer.Option(help="Folder of the runs; those that are missing are trained.")] = Path(
        "runs/foveated"
    ),
    only: Annotated[str | None, typer.Option(help="Parts of names of runs, by commas: shown, not written.")] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Only what the networks hold, untrained: a minute.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Gaze tokens, FoveaTer and PerViT beside their twins that read everything. Hours, where nothing is trained yet."""
    from regard.bench import foveated as bench_foveated

    with Progress(quiet) as stage:
        if memory:
            bench_foveated.memory(stage)
        else:
            bench_foveated.main(runs, tuple(names_in(only) or ()), stage)


@bench.command()
def cascade(
    runs: Annotated[Path, typer.Option(help="Folder of folders that regard train cascade wrote.")] = Path("runs"),
    rounds: Annotated[int, typer.Option(help="Of each timing.")] = 9,
    add: Add = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """The cascade beside reading everything at the finest resolution."""
    if rounds < 1:
        raise UsageError(f"--rounds must be at least 1, got {rounds}")
    from regard.bench.cascade import main

    main(runs, rounds, add)


@bench.command()
def mechanisms(
    scenes: Annotated[Path, typer.Option(help="Folder of the scenes as the eye sees them.")] = Path("regard-scenes"),
    run: Annotated[
        Path | None, typer.Option(help="A run of regard train pocket.", show_default="the package's weights")
    ] = None,
    split: Annotated[
        Literal["val", "test", "new"], typer.Option(help="Settings are chosen on val; test alone is written.")
    ] = "test",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Every mechanism as the pocket model's bridge, at equal budgets, on scenes that it was not trained on."""
    hush()
    from regard.bench.mechanisms import main
    from regard.bench.pocket import restored
    from regard.bench.pocket import scenes as encoded

    with Progress(quiet) as stage:
        given = encoded(scenes, split, *(["new"] if split == "test" else []), told=stage)
        model = restored(run)
        main(model, given[split], split, f"regard bench mechanisms --split {split}", stage, given.get("new"))
