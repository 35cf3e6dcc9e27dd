"""`regard train bridge`, `two-stage` and `full`: a vision-language model of parts, as a file says."""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from regard.cli._shared import Progress, UsageError, check_writable, hush, logged
from regard.cli._train import Debug, Quiet, train
from regard.cli._train_vlm_parts import PARTS, begun, started
from regard.errors import DataError

if TYPE_CHECKING:
    from regard.train.run import Tell
    from regard.vlm.compose import VLM

Config = Annotated[Path, typer.Option(help="A TOML, YAML or JSON file of settings.", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="In place of the file's, such as bridge.queries=32.", metavar="K=V")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be trained, and stop.")]


@dataclass(frozen=True)
class Rows:
    """Of the settings: the files. held: to validate with. cache: of what eyes saw. ask, longest: as `Source`."""

    train: tuple[str, ...]
    held: tuple[str, ...] = ()
    cache: str = "regard-cache"
    ask: str = "Describe the image."
    longest: int = 8000


@dataclass(frozen=True)
class Adapters:
    """Of the settings: LoRA, in place of all of the language model's weights. rank 0: no LoRA."""

    rank: int = 0
    alpha: int = 32
    dropout: float = 0.05
    targets: tuple[str, ...] = ("all-linear",)


@dataclass(frozen=True)
class Settings:
    """eye, bridge, fusion: a table each, with a `name` and arguments. language_model: by its folder or name; dtype: of
    it. start: a folder that `VLM.from_pretrained` reads, in place of these. recipe, first: as
    `regard.train.settings.Recipe`.
    """

    data: Rows
    out: str = "regard-vlm"
    start: str | None = None
    language_model: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    eye: dict[str, Any] | None = None
    bridge: dict[str, Any] | None = None
    fusion: dict[str, Any] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)
    lora: Adapters = field(default_factory=Adapters)
    train_eye: bool = False


@train.command()
def bridge(
    config: Config, set: Set = None, dry_run: DryRun = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Bridge and fusion alone, between a frozen eye and a frozen language model."""
    from regard.train import bridge as paradigm
    from regard.train.settings import Recipe, settled

    settings = _settings(config, set or [])
    recipe = settled(Recipe, settings.recipe, "recipe.")
    _unused(settings, "bridge", "first", "lora", "train_eye")
    vlm = _announced(settings, recipe.seed, ("bridge", "fusion"), quiet)
    if not dry_run:
        with Progress(quiet or not _main()) as tell:
            found = paradigm.train(
                vlm, _rows(settings), settings.out, recipe, **_given(settings, tell, quiet, recipe.log)
            )
        _written(Path(settings.out), found.metrics, quiet)


@train.command("two-stage")
def two_stage(
    config: Config, set: Set = None, dry_run: DryRun = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """BLIP-2's two stages: pictures and texts first, then through the frozen language model."""
    from regard.train import two_stage as paradigm
    from regard.train.settings import Recipe, settled

    settings = _settings(config, set or [])
    recipe = settled(Recipe, settings.recipe, "recipe.")
    first = settled(Recipe, settings.first, "first.", paradigm.FIRST_RECIPE)
    _unused(settings, "two-stage", "lora", "train_eye")
    vlm = _announced(settings, recipe.seed, ("bridge", "fusion"), quiet)
    if not dry_run:
        with Progress(quiet or not _main()) as tell:
            found = paradigm.train(
                vlm, _rows(settings), settings.out, recipe, first=first, **_given(settings, tell, quiet, recipe.log)
            )
        _written(Path(settings.out) / paradigm.FIRST, found.first, quiet)
        _written(Path(settings.out) / paradigm.SECOND, found.second, quiet)


@train.command()
def full(config: Config, set: Set = None, dry_run: DryRun = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Bridge, fusion and language model, whole or by LoRA, and the eye too if asked."""
    from regard.train import full as paradigm
    from regard.train.settings import Recipe, settled

    settings = _settings(config, set or [])
    lora = paradigm.Lora(**asdict(settings.lora)) if settings.lora.rank else None
    base = paradigm.LORA_RECIPE if lora else paradigm.RECIPE
    recipe = settled(Recipe, settings.recipe, "recipe.", base)
    _unused(settings, "full", "first")
    learn = ("bridge", "fusion", "language_model", *(("eye",) if settings.train_eye else ()))
    vlm = _announced(settings, recipe.seed, learn, quiet, lora)
    if not dry_run:
        given = {"lora": lora, "eye": settings.train_eye}
        with Progress(quiet or not _main()) as tell:
            found = paradigm.train(
                vlm, _rows(settings), settings.out, recipe, **given, **_given(settings, tell, quiet, recipe.log)
            )
        _written(Path(settings.out), found.metrics, quiet)


def _settings(config: Path, changes: list[str]) -> Settings:
    """The file's settings with the changes. Raises UsageError for what is not known or of another type."""
    from regard.train.settings import settled

    values = _read(config)
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals or not path:
            raise UsageError(f"--set takes NAME=VALUE, such as bridge.queries=32, got {change!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        table, *names = values, *path.split(".")
        for name in names[:-1]:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise UsageError(f"--set {path}: {name} is no table of settings in {str(config)!r}")
        table[names[-1]] = value
    try:
        settings = settled(Settings, values)
    except DataError as error:
        raise UsageError(f"{error} ({config})") from error
    for name in PARTS:
        part = getattr(settings, name)
        if part is not None and not isinstance(part.get("name"), str):
            raise UsageError(f"the setting {name}.name is missing: give it in {str(config)!r}")
    if settings.language_model is None and settings.start is None:
        raise UsageError("give language_model, by its folder or name, or start, a model that was trained before")
    if not settings.lora.rank and settings.lora != Adapters():
        raise UsageError("the setting lora.rank is missing: give 1 or more, or leave lora out to train without")
    return settings


def _read(config: Path) -> dict[str, Any]:
    try:
        text = config.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the settings {str(config)!r} cannot be read: {error.strerror}") from error
    try:
        if config.suffix == ".toml":
            import tomllib

            values = tomllib.loads(text)
        elif config.suffix == ".json":
            values = json.loads(text)
        elif config.suffix in (".yaml", ".yml"):
            import yaml

            values = yaml.safe_load(text)
        else:
            raise UsageError(f"settings come from .toml, .yaml and .json files, got {str(config)!r}")
    except UsageError:
        raise
    except Exception as error:  # each reader has its own
        raise UsageError(f"the settings {str(config)!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"the settings {str(config)!r} must be a table, got {type(values).__name__}")
    return values


def _unused(settings: Settings, paradigm: str, *names: str) -> None:
    """Raise UsageError for settings of another paradigm."""
    for name in names:
        plain = Settings.__dataclass_fields__[name]
        value = getattr(settings, name)
        default = plain.default_factory() if callable(plain.default_factory) else plain.default
        if value != default:
            raise UsageError(f"the setting {name} is not for regard train {paradigm}: leave it out")


def _rows(settings: Settings) -> Any:
    from regard.train.rows import Source

    return Source(settings.data.train, settings.data.ask, settings.data.longest)


def _given(settings: Settings, bar: "Tell", quiet: bool, log: int) -> dict[str, Any]:
    """What every paradigm is given beside its own. log: steps between lines where no bar is seen."""

    def tell(stage: str, done: int, total: int) -> None:
        bar(stage, done, total)
        if total and (done % log == 0 or done == total) and _main():
            logged(quiet, f"step {done} of {total}: {stage}")

    held = replace(_rows(settings), files=settings.data.held) if settings.data.held else None
    return {"held": held, "cache": settings.data.cache, "tell": tell}


def _announced(settings: Settings, seed: int, learn: tuple[str, ...], quiet: bool, lora: Any = None) -> "VLM":
    """The model, after saying what of it is trained. seed: of the weights that are new."""
    check_writable(Path(settings.out))
    hush()
    import torch

    from regard.train.full import adapt
    from regard.train.guards import freeze_all_but, parts_of

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.manual_seed(seed)
    vlm = begun(settings) if settings.start is None else started(settings, settings.start)
    if lora is not None:
        adapt(vlm, lora)
    found = parts_of(vlm)
    learned = freeze_all_but(found, learn)
    if not quiet and _main():
        for name, part in found.items():
            trained = sum(value.numel() for value in learned.get(name, {}).values())
            whole = sum(value.numel() for value in part.parameters())
            said = f"{trained:,} of {whole:,} parameters are trained" if trained else f"{whole:,} parameters, frozen"
            typer.echo(f"{name}: {said}")
    return vlm


def _main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _written(folder: Path, metrics: dict[str, Any], quiet: bool) -> None:
    """metrics.json with where it came from, by the main process, and a line."""
    from regard.bench.results import provenance
    from regard.files import write_all

    if not _main():
        return
    write_all(folder, {"metrics.json": json.dumps({**metrics, **provenance()}, indent=1) + "\n"})
    skipped = "".join(
        f"; {count} {rows} skipped, {why}"
        for rows, some in (("rows", metrics["skipped"]), ("held-out rows", metrics["held_skipped"]))
        for why, count in some.items()
    )
    held = "" if metrics["held_loss"] is None else f", of held-out rows {metrics['held_loss']:.4f}"
    if not quiet:
        typer.echo(f"loss {metrics['loss']:.4f}{held} after {metrics['steps']} steps: {folder}{skipped}")
