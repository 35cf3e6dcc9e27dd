"""Foveated mechanisms beside their twins that read everything: `regard bench foveated`.

On the search task (a thing of 32 to 64 pixels on a photo of 512 x 512) tokens about a gaze that is given, and about one
that is predicted, and FoveaTer; on Fashion-MNIST PerViT beside the same ViT at equal cost, over seeds. What is not
trained yet, or not to its end, is trained first, into a folder of runs.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.bench.results import Row, medians, provenance, publish
from regard.bench.tasks.data import data
from regard.mechanisms.foveated import FoveaTer
from regard.mechanisms.gaze_vit import GazeViT, centre_of
from regard.mechanisms.looker import Looked, Looker
from regard.train.data import Data
from regard.train.foveated import train_foveater, train_gaze, train_pervit
from regard.train.loop import Recipe, for_transformers
from regard.vlm.measure import PeakMemory

SEEDS = (0, 1, 2)
AT_ONCE = 50
AGAINST = (  # what reads everything, what is beside it, and how many points that may lose at most
    ("all tokens", "gaze given", None),  # trained for 3 epochs only, which shows nothing
    ("all tokens", "gaze predicted", None),
    ("foveater-all", "gaze given", 3),  # the best of the task
    ("foveater-all", "gaze predicted", 2),
    ("foveater-all", "foveater, first fixation given", 3),
    ("foveater-all", "foveater", 2),
)
TIMED = ("gaze-all", "gaze", "foveater-all", "foveater")
SIDE = 512  # pixels of a side of the search task's images
GAZE = {"dim": 96, "depth": 3, "heads": 4, "view": 128}
FOVEA = {"dim": 96, "depth": 2, "heads": 4, "glimpses": 4, "threshold": 0.9, "backbone": "efficientnet"}
PERIPHERY = {"dim": 32, "depth": 4, "heads": 4, "patch": 4}


@dataclass(frozen=True)
class Run:
    """What is trained: by which function, on which task. start: the run that it begins with."""

    learn: Callable[..., Looker]
    task: str
    arguments: dict[str, Any]
    recipe: Recipe
    start: str | None = None


def recipe(epochs: int, batch: int, rate: float = 1e-3, seed: int = 0) -> Recipe:
    return for_transformers(epochs, seed, batch, rate)


RUNS = {
    "gaze": Run(train_gaze, "search", {**GAZE, "reading": "gaze"}, recipe(40, 64)),
    "gaze-all": Run(train_gaze, "search", {**GAZE, "reading": "all"}, recipe(3, 32, 5e-4), "gaze"),
    "foveater": Run(train_foveater, "search", {**FOVEA, "regions": "square"}, recipe(20, 64)),
    "foveater-polar": Run(train_foveater, "search", {**FOVEA, "regions": "polar"}, recipe(20, 64)),
    "foveater-all": Run(train_foveater, "search", {**FOVEA, "regions": "all"}, recipe(6, 32)),
    **{
        f"pervit-{kind}-{seed}": Run(
            train_pervit, "fashion", {**PERIPHERY, "attention": kind}, recipe(5, 128, 2e-3, seed)
        )
        for seed in SEEDS
        for kind in ("peripheral", "plain")
    },
}


def main(runs: Path, only: tuple[str, ...] = (), told: Callable[[str], None] = lambda line: None) -> None:
    """Train what is missing, test, and write results/foveated.json. only: parts of names of RUNS, not written."""
    made, given, models = provenance(), {}, {}
    for name, run in RUNS.items():
        if not only or any(part in name for part in only):
            if run.task not in given:
                given[run.task] = data(run.task, told)
            models[name] = trained(name, given[run.task], runs, told)
    rows = [*_search(models, given.get("search")), *_fashion(models, given.get("fashion"))]
    notes = {name: {**run.arguments, **vars(run.recipe), "start": run.start} for name, run in RUNS.items()}
    publish("foveated", f"regard bench foveated --runs {runs}", rows, made, seed=0, notes=notes, write=not only)


def memory(told: Callable[[str], None] = lambda line: None) -> None:
    """Measure what the search task's networks hold, untrained, and add it to results/foveated.json, with what its
    figures come to beside one another.
    """
    made, rows = provenance(), against(_figures(Path("results") / "foveated.json"))
    for name in TIMED:
        told(name)
        line = [sys.executable, "-m", "regard.bench.foveated", name]  # a process of its own, whose peak is its own
        held = float(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
        rows.append(Row(f"search, {name}: memory of one image", held, "MiB"))
    publish("foveated", "regard bench foveated", rows, made, seed=0, add=True)


def _figures(path: Path) -> dict[str, dict[str, float]]:
    """As `of_all`, of the search task's rows in a file; nothing where there is none."""
    found: dict[str, dict[str, float]] = {}
    for row in json.loads(path.read_text())["rows"] if path.exists() else []:
        about = re.fullmatch(r"search, (.+): (right|tokens)", row["name"])
        if about is not None:
            found.setdefault(about[1], {})[about[2]] = row["value"]
    return found


@torch.no_grad()
def held(name: str) -> float:
    """MiB that a run's network and one look at an image take, none stopping early, in a process that has neither."""
    run, before = RUNS[name], PeakMemory(torch.device("cpu"))
    model = GazeViT(**run.arguments) if run.learn is train_gaze else FoveaTer(**{**run.arguments, "threshold": 1.0})
    model.eval().look(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))
    assert before.peak is not None, "this system does not count peaks"
    assert before.before is not None
    return (before.peak - before.before) / 2**20


def trained(name: str, given: Data, runs: Path, told: Callable[[str], None] = lambda line: None) -> Looker:
    """The model of a run, trained to its end."""
    run, more = RUNS[name], {}
    if run.start is not None:
        more = {"start": runs / run.start}

    def tell(epoch: int, done: int, loss: float, accuracy: float) -> None:
        told(f"{name}, epoch {epoch}, {100 * done // given.count} %: loss {loss:.3f}, {100 * accuracy:.1f} % right")

    return run.learn(run.arguments, given, run.recipe, runs / name, tell, **more).eval()


def of_all(parts: Iterable[Looked], labels: Tensor) -> dict[str, float]:
    """right: percent of the images; tokens, macs and exit: means."""
    whole = list(parts)
    right = torch.cat([part.logits for part in whole]).argmax(dim=1) == labels
    means = {
        name: float(torch.cat([getattr(part, name) for part in whole]).double().mean())
        for name in ("tokens", "macs", "exits")
    }
    return {"right": 100 * float(right.double().mean()), **means}


@torch.no_grad()
def tested(model: Looker, given: Data, at_boxes: bool) -> dict[str, float]:
    """As `of_all`, of the test images. at_boxes: looked at first at the things' centres."""
    parts: list[Looked] = []
    for index in torch.arange(len(given.test)).split(AT_ONCE):
        images, boxes = given.test[index], given.test_boxes
        at = centre_of(boxes[index]) if at_boxes and boxes is not None else None
        parts.append(model.look(images) if at is None else model.look_at(images, at))
    return of_all(parts, given.test_labels)


@torch.no_grad()
def _fixating(models: dict[str, FoveaTer], given: Data) -> dict[str, dict[str, float]]:
    """FoveaTer's figures: from the centre, stopping and not, and from where the thing is. Its backbone reads once."""
    if not models:
        return {}
    first, boxes = next(iter(models.values())), given.test_boxes
    assert boxes is not None
    read = [first.features(images) for images in given.test.split(AT_ONCE)]
    grid, macs, found = read[0][1], first.backbone.macs(*given.test.shape[2:]), {}
    for name, model in models.items():
        sure = model.threshold
        found[name] = of_all([model.look_on(cells, grid, macs) for cells, _ in read], given.test_labels)
        if model.kind != "all":
            places = centre_of(boxes).split(AT_ONCE)
            looks = [model.look_on(cells, grid, macs, at) for (cells, _), at in zip(read, places, strict=True)]
            found[f"{name}, first fixation given"] = of_all(looks, given.test_labels)
            model.threshold = 2.0
            found[f"{name}, never sure"] = of_all(
                [model.look_on(cells, grid, macs) for cells, _ in read], given.test_labels
            )
            model.threshold = sure
    return found


def _search(models: dict[str, Looker], given: Data | None) -> list[Row]:
    if given is None:
        return []
    rows: list[Row] = []
    found: dict[str, dict[str, float]] = {}
    for name, at_boxes in (("gaze-all", False), ("gaze", True), ("gaze", False)):
        if name in models:
            title = {"gaze-all": "all tokens", "gaze": "gaze given" if at_boxes else "gaze predicted"}[name]
            found[title] = tested(models[name], given, at_boxes)
    found |= _fixating({name: model for name, model in models.items() if isinstance(model, FoveaTer)}, given)
    for title, figures in found.items():
        rows += [
            Row(f"search, {title}: right", figures["right"], "%"),
            Row(f"search, {title}: tokens", figures["tokens"], "tokens"),
            Row(f"search, {title}: cost", figures["macs"] / 1e6, "M MACs"),
        ]
    return [*rows, *against(found), *_seconds(models, given)]


def against(found: dict[str, dict[str, float]]) -> list[Row]:
    """What each loses to its twin that reads everything, and its share of that one's tokens."""
    rows = []
    for whole, short, most in AGAINST:
        if whole in found and short in found:
            lost = found[whole]["right"] - found[short]["right"]
            target = "" if most is None else f"<= {most}"
            rows.append(Row(f"search, {whole} less {short}", lost, "points", target))
            share = found[short]["tokens"] / found[whole]["tokens"]
            rows.append(Row(f"search, {short}: tokens of {whole}", share, "share", "" if most is None else "<= 0.1"))
    return rows


def _seconds(models: dict[str, Looker], given: Data) -> list[Row]:
    """Wall-clock of one image, one after the other."""
    image, work = given.test[:1], {}
    for name in TIMED:
        if name in models:
            work[name] = lambda model=models[name]: model.look(image)
    if "gaze" in models:
        work["gaze given"] = lambda: models["gaze"].look_at(image, torch.zeros(1, 2))
    with torch.no_grad():
        seconds = medians(work, 15)
    return [Row(f"search, {name}: one image", value * 1e3, "ms") for name, value in seconds.items()]


def _fashion(models: dict[str, Looker], given: Data | None) -> list[Row]:
    if given is None:
        return []
    right: dict[str, list[float]] = {}
    rows: list[Row] = []
    for kind in ("peripheral", "plain"):
        figures = [tested(model, given, False) for name, model in models.items() if name.startswith(f"pervit-{kind}")]
        if figures:
            right[kind] = [one["right"] for one in figures]
            mean = sum(right[kind]) / len(figures)
            rows.append(Row(f"fashion, {kind} attention: right, mean of {len(figures)} seeds", mean, "%"))
            rows.append(Row(f"fashion, {kind} attention: cost", figures[0]["macs"] / 1e6, "M MACs"))
    if len(right) == 2:
        better = sum(right["peripheral"]) / len(right["peripheral"]) - sum(right["plain"]) / len(right["plain"])
        rows.append(Row("fashion, peripheral less plain attention", better, "points", ">= 0"))
    return rows


if __name__ == "__main__":
    print(held(sys.argv[1]))
