"""`regard bench dynamic`: DynamicViT, A-ViT and EViT beside the transformer they were made of: error, MACs and time.

DynamicViT's paper (arXiv 2106.02034) has -37 % of the multiply-accumulates for at most 0.5 points. Time should follow
them: its ratio over theirs. An error is set against the plain transformer trained on for as long, where there is one.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from regard.attention.vision import VisionTransformer
from regard.bench.results import Row, medians, provenance, publish
from regard.bench.tasks.data import data
from regard.errors import DataError
from regard.mechanisms.dynamic import KINDS, Kind, wrap
from regard.mechanisms.looker import Looked, Looker
from regard.train.checkpoint import LAST, Checkpoint, looker

POINTS, SHARE, FOLLOWS = "<= 0.5", "<= 0.63", "<= 1.15"
SINGLES = 8  # images that are read one by one


def main(runs: Path, rounds: int = 15, add: bool = False) -> None:
    """Read the finished runs of a folder, measure, and write results/dynamic.json."""
    made = provenance()
    found = {
        folder.name: Checkpoint.load(folder / LAST)
        for folder in sorted(runs.glob("*"))
        if (folder / "metrics.json").exists()
    }
    found = {name: state for name, state in found.items() if state.kind in KINDS}
    plain = {state.digest: name for name, state in found.items() if "backbone" not in state.settings}
    groups = {
        name: [other for other, s in found.items() if s.settings.get("backbone") == d] for d, name in plain.items()
    }
    if not any(groups.values()):
        raise DataError(f"{str(runs)!r} holds no plain run with another made of it: see regard train dynamicvit --help")
    rows, notes = [], {}
    for name, others in groups.items():
        rows += _group(runs, name, others, found, rounds)
        notes |= {one: {**found[one].arguments, **found[one].settings} for one in (name, *others)}
    line = f"regard bench dynamic --runs {runs}"
    publish("dynamic", line, [*rows, *sized(rounds)], made, notes=notes, add=add)


def _group(runs: Path, name: str, others: list[str], found: dict[str, Checkpoint], rounds: int) -> list[Row]:
    """A plain transformer and what was made of it."""
    figures = {one: json.loads((runs / one / "metrics.json").read_text()) for one in (name, *others)}
    models = {one: looker(runs / one)[0] for one in (name, *others)}
    longer = [one for one in others if found[one].kind == "vit"]
    base = min(figures[one]["test_error"] for one in (name, *longer))
    rows = [Row(f"{one}, error", figures[one]["test_error"], "%") for one in (name, *longer)]
    images = data(found[name].settings["task"]).test[:64]
    for one in others:
        if one not in longer:
            error = figures[one]["test_error"]
            rows += [
                Row(f"{one}, error", error, "%"),
                Row(f"{one}, error over the plain one's", error - base, "points", POINTS),
                Row(f"{one}, MACs / plain", figures[one]["macs"] / figures[name]["macs"], "ratio", SHARE),
            ]
    chosen = {one: model for one, model in models.items() if one not in longer}
    return rows + timed(chosen, name, {"1": list(images[:SINGLES].split(1)), "64": [images]}, rounds)


def timed(models: dict[str, Looker], base: str, batches: dict[str, list[Tensor]], rounds: int) -> list[Row]:
    """Each one's time over the base's, all of them in turn, and that over their MACs."""
    rows = []
    for size, images in batches.items():
        work = {one: _reading(model, images) for one, model in models.items()}
        macs = {one: sum(float(looked.macs.sum()) for looked in read()) for one, read in work.items()}
        seconds = medians(dict(work), rounds)
        for one in models:
            if one != base:
                time, share = seconds[one] / seconds[base], macs[one] / macs[base]
                rows.append(Row(f"{one}, time / plain, batch {size}", time, "ratio"))
                rows.append(Row(f"{one}, time / MACs, both over plain, batch {size}", time / share, "ratio", FOLLOWS))
    return rows


def _reading(model: Looker, images: list[Tensor]) -> Callable[[], list[Looked]]:
    def read() -> list[Looked]:
        with torch.no_grad():
            return [model.look(x) for x in images]

    return read


def sized(rounds: int) -> list[Row]:
    """At the size of DeiT-S, whose time does not hang on its weights: 197 tokens of 384, 12 blocks."""
    torch.manual_seed(0)
    vision = VisionTransformer(224, 16, 384, 12, 6, 1536)
    kinds: tuple[Kind, ...] = ("vit", "dynamicvit", "evit")
    models = {f"{kind} of DeiT-S's size": wrap(vision, kind).eval() for kind in kinds}
    images = torch.rand(8, 3, 224, 224)
    base = next(iter(models))
    full = models[base].full_macs(224, 224)
    with torch.no_grad():
        shares = {one: float(model.look(images[:1]).macs) / full for one, model in models.items()}
    rows = [Row(f"{one}, keep 0.7, MACs / plain", share, "ratio") for one, share in shares.items() if one != base]
    return rows + timed(dict(models), base, {"1": [images[:1]], "8": [images]}, rounds)
