"""What the pocket model is made from: its eye's weights, and the scenes that it learns from and is tested on.

`python -m regard.bench.pocket eye` makes the eye's weights, from scenes that no answer is learned from, and
`python -m regard.bench.pocket scenes DIR` keeps the scenes in a folder, as the eye sees them. From those to train with
`python -m regard.bench.pocket grounding DIR RUN` makes the eye's grounding, and what relevance learns for it, which
`python -m regard.bench.pocket realizer DIR` makes again by itself. A run of `regard train pocket` becomes the
package's by `python -m regard.bench.pocket export RUN`.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save, save_model
from torch import Tensor, nn

from regard.bench.mechanisms import asking
from regard.bench.results import Row, provenance, publish
from regard.bench.tasks.asked import asked, vocabulary
from regard.bench.tasks.asked.wording import KINDS
from regard.bench.tasks.encoded import Encoded, encoded
from regard.bench.tasks.fetching import Told
from regard.bench.tasks.seen import Sights, seen
from regard.errors import DataError
from regard.eyes.embedded import EmbeddedEye
from regard.eyes.grounding import Grounding
from regard.eyes.pocket import GROUNDING, WEIGHTS, PocketEye, fitted
from regard.files import write_whole
from regard.train import grounding
from regard.train.checkpoint import Checkpoint
from regard.train.loop import Recipe, Tell
from regard.train.pocket import train
from regard.vlm.pocket import FOLDER, Pocket, pocket

SCENES = {"train": range(2500), "val": range(400), "test": range(600), "new": range(100)}
GROUNDED = Recipe(6, batch=16, rate=2e-3, decay=0.1, warmup=1)
_FITTED = range(100_000, 100_160)  # scenes of training, far behind those that are learned from
_TUNED = range(100_000, 100_200)  # scenes of validation that are not reported, with things the grounding has not seen


@torch.no_grad()
def fit_eye() -> None:
    """Write the pocket eye's weights into the package: about a minute."""
    eye = EmbeddedEye(pyramid=False)
    rows = []
    for index in _FITTED:
        tokens, middle = eye.detailed(asked("train", index).image)
        rows.append(torch.cat((tokens.features, middle), dim=2)[0])
    write_whole(WEIGHTS, save(fitted(torch.cat(rows))))


def fit_grounding(folder: Path, run: Path, told: Told = print) -> None:
    """Learn the eye's grounding from the scenes to train with, into the package; about three minutes of a core."""
    eye = PocketEye()
    given, others = (encoded(eye, split, SCENES[split], folder, told) for split in ("train", "val"))

    def tell(epoch: int, samples: int, loss: float, right: float) -> None:
        if samples == len(given):
            told(f"epoch {epoch} of {GROUNDED.epochs}: loss {loss:.3f}, {100 * right:.1f} % found")

    model = grounding.train(given, GROUNDED, run, tell)
    told(f"of the scenes to validate with: {100 * hits(model, others):.1f} % found")
    write_whole(GROUNDING, save(_named("grounding.", model)))
    fit_realizer(folder, told)


def fit_realizer(folder: Path, told: Told = print) -> None:
    """Learn relevance's parameters for the eye as it is, into the package; some minutes of a core."""
    sights = seen(PocketEye(), "val", _TUNED, folder, told)
    batches = [sights.batch(side[at : at + 64]) for side in sights.sides() for at in range(0, len(side), 64)]
    there = {name: value for name, value in load_file(GROUNDING).items() if name.startswith("grounding.")}
    write_whole(GROUNDING, save(there | _named("realizer.", grounding.realizer(batches))))


def _named(prefix: str, model: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: value.half().contiguous() for name, value in model.state_dict().items()}


@torch.no_grad()
def hits(model: Grounding, scenes: Iterable[Encoded]) -> float:
    """How often the likeliest token is one where the answer's things are, of questions whose answer shows."""
    right = shown = 0
    for scene in scenes:
        best = grounding.found(model, [scene]).argmax(dim=1, keepdim=True)
        seen_at = scene.covered.float()
        right += int((seen_at.gather(1, best) > grounding.SHOWN).sum())
        shown += int((seen_at.amax(dim=1) > grounding.SHOWN).sum())
    return right / max(shown, 1)


def scenes(folder: Path, *splits: str, told: Told = print) -> dict[str, Sights]:
    """The splits, encoded where the folder has them not: about half an hour of two cores for all."""
    eye = PocketEye()
    return {split: seen(eye, split, SCENES[split], folder, told) for split in splits}


def trained(given: Sights, recipe: Recipe, folder: Path, tell: Tell, others: Sights | None = None) -> Pocket:
    """The model, by its recipe, ready to answer. others: to validate with after each epoch."""
    return train(vocabulary(), given, recipe, folder, tell, others).requires_grad_(False).eval()


def validated(model: Pocket, given: Sights, folder: Path) -> dict[str, float]:
    """The percent of questions that are answered right, by mechanism, with 64 tokens; into DIR/metrics.json too."""
    found = asking(model, given, budgets=(64,))
    right = {name: round(found.rate(name, budget), 2) for name, budget in found.right}
    kinds = {
        name: {kind: round(found.rate(name, budget, (kind,)), 2) for kind in KINDS} for name, budget in found.right
    }
    whole = {"right": right, "kinds": kinds, "questions": len(found.kinds), **provenance()}
    write_whole(folder / "metrics.json", json.dumps(whole, indent=1) + "\n")
    return right


def restored(run: Path | None) -> Pocket:
    """The model of a run, or the package's, ready to answer. Raises DataError where there is none."""
    if run is None:
        return pocket()
    state = Checkpoint.load(run)
    if state.kind != "pocket":
        raise DataError(f"{str(run)!r} is a run of {state.kind}: give one of regard train pocket")
    model = Pocket(state.arguments["words"])
    state.restore(model)
    return model.requires_grad_(False).eval()


def export(run: Path, folder: Path = FOLDER) -> None:
    """Write a run's weights, in half precision, and what made them, into the package, and what it answered into
    results/pocket.json. Raises DataError where there is no such run, or one that was not validated.
    """
    state, model = Checkpoint.load(run), restored(run)
    if not (run / "metrics.json").exists():
        raise DataError(f"{str(run)!r} was not trained to its end: run regard train pocket --out {run} again")
    found = json.loads((run / "metrics.json").read_text())
    made = {name: found.pop(name) for name in ("date", "commit", "machine", "versions")}
    folder.mkdir(exist_ok=True)
    weights = folder / "model.safetensors"
    save_model(model.half(), str(weights))
    weights.chmod(0o644)  # it is made for its owner alone
    about = {"words": state.arguments["words"], "settings": state.settings, "digest": state.digest, **made}
    about["seconds"] = round(sum(row["seconds"] for row in state.history), 1)
    write_whole(folder / "about.json", json.dumps(about) + "\n")
    rows = [Row(f"{name}: right", rate, "%") for name, rate in found["right"].items()]
    kinds = [[name, *(f"{rate:.1f}" for rate in of.values())] for name, of in found["kinds"].items()]
    tables = {"kinds": {"columns": ["right, %", *KINDS], "rows": kinds}}
    notes = {**state.settings, "questions": found["questions"], "tokens": 64, "seconds": about["seconds"]}
    publish("pocket", "regard train pocket", rows, made, seed=state.settings["seed"], notes=notes, tables=tables)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["eye"]:
            fit_eye()
        case ["grounding", folder, run]:
            fit_grounding(Path(folder), Path(run))
        case ["realizer", folder]:
            fit_realizer(Path(folder))
        case ["scenes", folder, *some]:
            scenes(Path(folder), *(some or SCENES))
        case ["export", run]:
            export(Path(run))
        case _:
            sys.exit(__doc__)
