"""`regard ablate`: what a layer, a head, a way of knowing, a tension or a mechanism is worth, in answers."""

import json
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from regard.cli._shared import Progress, UsageError, check_writable, console, hush, names_in
from regard.errors import DataError

if TYPE_CHECKING:
    from regard.doctor.ablate import Ablation
    from regard.doctor.answers import Row

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
SHOWN = 40  # effects of a table


def ablate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A folder, or a name of the Hugging Face hub.", show_default="the pocket model"
        ),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Such as 3,5.", show_default=False)] = None,
    heads: Annotated[str | None, typer.Option(help="LAYER.HEAD, such as 3.0,3.5.", show_default=False)] = None,
    each: Annotated[
        Literal["layer", "head"] | None, typer.Option(help="Every layer, or every head.", show_default="layer")
    ] = None,
    ways: Annotated[bool, typer.Option("--ways", help="Of relevance: leave out each way of knowing.")] = False,
    tensions: Annotated[bool, typer.Option("--tensions", help="Of relevance: hold each in the middle.")] = False,
    mechanism: Annotated[
        str | None,
        typer.Option(help="Of the pocket model: names, or blind, in the place of relevance.", show_default=False),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            help="JSONL or Parquet of image, question and answer.", show_default="scenes, of the pocket model"
        ),
    ] = None,
    scenes: Annotated[Path, typer.Option(help="Folder of the scenes as the pocket eye sees them.")] = Path(
        "regard-scenes"
    ),
    count: Annotated[int, typer.Option(help="Scenes, or rows at most.")] = 50,
    budget: Annotated[
        int | None, typer.Option(help="Tokens an image.", show_default="64 of relevance and the pocket model, else all")
    ] = None,
    part: Annotated[str, typer.Option(help="language, vision, cross, qformer or bridge.")] = "language",
    by: Annotated[Literal["zero", "mean"], typer.Option(help="What takes a head's place.")] = "zero",
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="auto is that of the model's files.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for ablation.json, and heads.png.")] = Path("regard-ablate"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Take parts out of a model and measure what that does to answers: bits and right ones, with intervals of 95 %."""
    names, ablated = names_in(mechanism) or [], {"layers": _layers(layers), "heads": _heads(heads), "each": each}
    relevance = ways or tensions or bool(names)
    attention = any(ablated.values()) or part != "language" or by != "zero"
    _check(model, rows, count, budget, {"relevance": relevance, "attention": attention, "mechanism": names, **ablated})
    check_writable(out)
    with Progress(quiet) as stage, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stage("load the model")
        hush()
        loaded = _Loaded(model, device, dtype, budget, relevance)
        settled = not relevance and part in ("language", "cross")
        task = loaded.of_scenes(scenes, count, stage) if rows is None else loaded.of_rows(rows, count, settled)
        if relevance:
            found = loaded.without_relevance(task, ways, tensions, names, seed, stage)
        else:
            from regard.doctor.ablate import removals

            found = removals(loaded.model, task, **ablated, part=part, by=by, seed=seed, progress=stage)
        written = _written(found, loaded.name, out)
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
    elif not quiet:
        _show(found, loaded.name, written)


class _Loaded:
    """The model, as it is asked. relevant: whether it is relevance that is looked into."""

    def __init__(self, name: str | None, device: str, dtype: str, budget: int | None, relevant: bool) -> None:
        from regard.doctor.subject import seeing_model
        from regard.vlm.compose import VLM
        from regard.vlm.pocket import pocket
        from regard.vlm.processors import model_name

        self.pocket = pocket() if name in (None, "pocket") else None
        self.model: Any
        if self.pocket is not None:
            self.name, self.model, self.processor = "the pocket model", self.pocket.vlm("relevance").eval(), None
        else:
            self.name = model_name(str(name))
            self.model, self.processor = seeing_model(str(name), device, dtype)
        if budget is not None and not (relevant or isinstance(self.model, VLM)):
            raise UsageError("--budget is of relevance, the pocket model or a model of regard: leave it out")
        self.budget = budget or (64 if relevant or self.pocket is not None else None)

    def of_scenes(self, folder: Path, count: int, stage: Callable[[str], None]) -> Any:
        from regard.bench.ablate import Scenes
        from regard.bench.tasks.seen import seen

        assert self.pocket is not None
        return Scenes(self.model, seen(self.pocket.eye, "val", range(count), folder, stage), self.budget)

    def of_rows(self, file: Path, count: int, settled: bool) -> Any:
        from regard.doctor.answers import Task

        return Task(self.model, _rows(file, count), self.processor, self.budget, settled)

    def without_relevance(
        self, task: Any, ways: bool, tensions: bool, names: list[str], seed: int, stage: Callable[[str], None]
    ) -> "Ablation":
        from regard.allocate.relevance import Relevance
        from regard.bench.ablate import Shortening, mechanisms, of_relevance, relevance_of, through
        from regard.doctor.ablate import measure
        from regard.vlm.compose import VLM

        if not isinstance(self.model, VLM):
            short = Shortening(Relevance(), of_relevance(ways, tensions, Relevance()), self.budget or 0)
            return measure(task, short.whole, short.ways, seed, stage)
        found = through(self.model, of_relevance(ways, tensions, relevance_of(self.model)))
        if self.pocket is not None:
            found |= mechanisms(self.pocket, names)
        return measure(task, lambda asked: asked.said(), found, seed, stage)


def _check(model: str | None, rows: Path | None, count: int, budget: int | None, taken: dict[str, Any]) -> None:
    """Raise UsageError for what cannot be meant."""
    pocket = model in (None, "pocket")
    if count < 1 or (budget is not None and budget < 1):
        raise UsageError(f"--count and --budget must be at least 1, got {count} and {budget}")
    if taken["relevance"] and taken["attention"]:
        raise UsageError("--ways, --tensions and --mechanism are measured apart from attention: ask twice")
    if taken["mechanism"] and not pocket:
        raise UsageError("--mechanism is for the pocket model, which has several: leave MODEL out")
    if rows is None and not pocket:
        raise UsageError("there is nothing to measure on: give --rows FILE.jsonl of image, question and answer")
    if taken["each"] and (taken["layers"] or taken["heads"]):
        raise UsageError("--each is all of them: give --layers and --heads, or --each")


def _layers(text: str | None) -> list[int]:
    try:
        return [int(name) for name in names_in(text) or ()]
    except ValueError:
        raise UsageError(f"--layers must be whole numbers such as 3,5, got {text!r}") from None


def _heads(text: str | None) -> list[tuple[int, int]]:
    found = []
    for name in names_in(text) or ():
        layer, dot, head = name.rpartition(".")
        if not dot or not layer.lstrip("-").isdigit() or not head.isdigit():
            raise UsageError(f"--heads must be LAYER.HEAD such as 3.0,3.5, got {text!r}")
        found.append((int(layer), int(head)))
    return found


def _rows(file: Path, count: int) -> Iterator["Row"]:
    """Rows of a file, the paths of their images beside it."""
    from regard.doctor.answers import Row
    from regard.train.rows import Source, given_images, raw_rows, written

    source = Source((str(file),))
    for raw in islice(raw_rows(file), count):
        question, answer, _, _ = written(raw.values, raw.where, source)
        images = given_images(raw.values, raw.where)
        if None in images:
            raise DataError(f"{raw.where} has an image that is neither a path nor bytes")
        yield Row([raw.beside / one if isinstance(one, str) else one for one in images if one], question, answer)


def _written(found: "Ablation", name: str, out: Path) -> list[Path]:
    from regard import __version__
    from regard.files import write_all

    whole = {"model": name, **found.to_dict(), "regard": __version__}
    files: dict[str, str | bytes] = {"ablation.json": json.dumps(whole, indent=1) + "\n"}
    heads = {effect.place: effect.bits for effect in found.effects if len(effect.place) == 2}
    if len(heads) > 1 and find_spec("matplotlib") is not None:
        from regard.report.ablation import heads_map

        files["heads.png"] = heads_map(heads, found.by)  # pyright: ignore[reportArgumentType]
    write_all(out, files)
    return [out / file for file in files]


def _show(found: "Ablation", name: str, written: list[Path]) -> None:
    from rich.markup import escape
    from rich.table import Table

    title = f"{name}: {found.bits:+.3f} bits an answer, {found.right:.1f} % right"
    what = f"taken out ({found.by})" if found.by else "taken out"
    grid = Table(what, "bits", "95 %", "right, points", "95 %", title=escape(title), title_justify="left")
    for one in found.effects[:SHOWN]:
        bits, right = f"{one.bits_low:+.3f} to {one.bits_high:+.3f}", f"{one.right_low:+.1f} to {one.right_high:+.1f}"
        grid.add_row(escape(one.part), f"{one.bits:+.3f}", bits, f"{one.right:+.1f}", right)
    terminal = console()
    terminal.print(grid)
    for note in _notes(found):
        terminal.print(note, markup=False, highlight=False)
    places = ", ".join(str(place) for place in written)
    terminal.print(f"Open {places}", markup=False, highlight=False, soft_wrap=True)


def _notes(found: "Ablation") -> list[str]:
    from regard.doctor.finding import listed

    notes = [f"{found.rows} rows about {found.images} images; intervals are over images."]
    if found.images == 1:
        notes.append("Of one image no interval can be told: give more.")
    apart = [one for one in found.effects if one.bits_low > 0 or one.bits_high < 0]
    if len(found.effects) >= 20:
        chance = f"some {0.05 * len(found.effects):.0f} would by chance"
        notes.append(f"{len(apart)} of {len(found.effects)} intervals of bits leave 0 out, and {chance}.")
    if len(found.effects) > SHOWN:
        notes.append(f"{len(found.effects) - SHOWN} smaller effects are in ablation.json.")
    notes += [f"Skipped {count}: {why}" for why, count in found.skipped.items()]
    return notes + ([f"Not reached: {listed(list(found.missed))}"] if found.missed else [])
