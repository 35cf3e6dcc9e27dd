"""The cascade beside the same network that reads everything at the finest resolution: `regard bench cascade`.

Both are trained by `regard train cascade`, the second with --stages 1, the best of them where there are several.
Thresholds are those that training saved, solved on images held out; what is shown is of the test images. Times are of
batches of 64 pictures, from pixels.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.bench.results import Row, medians, provenance, publish
from regard.bench.tasks.held import held_task, pixels_of_test
from regard.errors import DataError
from regard.mechanisms.cascade import Cascade
from regard.mechanisms.exits import confidence, exits, for_cost
from regard.train.cascade import answers
from regard.train.checkpoint import LAST, Checkpoint
from regard.train.data import Held

BATCH = 64
TIMED = {"fashion": 10, "search": 1}  # batches that are timed
SHARES = (0.3, 0.35, 0.4, 0.45, 0.5, 0.6)  # of what reading all takes: mean costs that thresholds are solved for


class Run(NamedTuple):
    """A finished run: its model, its task, and whether its test images were right at each stage, and how sure."""

    name: str
    model: Cascade
    data: Held
    right: Tensor
    sure: Tensor
    about: dict[str, Any]


def main(runs: Path, rounds: int = 9, add: bool = False) -> None:
    """Read every finished run of the cascade in a folder of runs, and write results/cascade.json."""
    made, found = provenance(), defaultdict(list)
    for folder in sorted(runs.glob("*")):
        if (folder / "metrics.json").exists() and (state := Checkpoint.load(folder / LAST)).kind == "cascade":
            found[state.settings["task"]].append(opened(folder, state, runs))
    rows, notes, tables = [], {}, {}
    for task, several in sorted(found.items()):
        whole = [run for run in several if run.model.stages == 1]
        if whole:
            full = max(whole, key=lambda run: _mean(run.right[:, 0]))
            rows.append(Row(f"{task}: all at the finest resolution, accuracy", _mean(full.right[:, 0]), "%"))
            for run in several:
                if run.model.stages > 1:
                    rows += compared(task, run, full, rounds)
                    tables[f"{run.name}: mean cost and accuracy"] = curve(run, full)
        notes |= {run.name: run.about for run in several}
    if not rows:
        line = f"regard train cascade --out {runs}/NAME, and one more with --stages 1"
        raise DataError(f"{str(runs)!r} holds no finished cascade and what it is compared with: run {line}")
    publish("cascade", f"regard bench cascade --runs {runs}", rows, made, notes=notes, tables=tables, add=add)


def opened(folder: Path, state: Checkpoint, runs: Path) -> Run:
    """A run, and its answers to the test images."""
    model = Cascade(**state.arguments)
    state.restore(model)
    data = held_task(state.settings["task"], state.arguments, runs / "search-features")
    logits = answers(model.eval(), data.test)
    right = logits.argmax(dim=-1) == data.test_labels[:, None]
    metrics = json.loads((folder / "metrics.json").read_text())
    about = {**state.arguments, **state.settings, "seconds": metrics["seconds"], "images": len(data.test)}
    return Run(folder.name, model, data, right, confidence(logits), about)


def compared(task: str, run: Run, full: Run, rounds: int) -> list[Row]:
    """Accuracy, multiply-accumulates and time of a cascade beside the full model."""
    model, name = run.model, f"{task}, {run.model.stages} stages ({run.name})"
    stopped = exits(run.sure, model.thresholds)
    right = run.right.gather(1, stopped[:, None])[:, 0]
    macs = float(torch.tensor(model.costs)[stopped].double().mean())
    gap = _mean(full.right[:, 0]) - _mean(right)
    run.about["thresholds"] = [round(value, 6) for value in model.thresholds.tolist()]
    run.about["standard error of the difference, points"] = round(_error(full.right[:, 0], right), 3)
    stages = [
        Row(f"{name}: accuracy of stage {stage}, without exits", _mean(run.right[:, stage]), "%")
        for stage in range(model.stages)
    ]
    shares = [
        Row(f"{name}: images that stop at stage {stage}", _mean(stopped == stage), "%") for stage in range(model.stages)
    ]
    return [
        Row(f"{name}: accuracy", _mean(right), "%"),
        Row(f"{name}: accuracy lost to reading all", gap, "points", "<= 0.5"),
        Row(f"{name}: multiply-accumulates / reading all", macs / full.model.costs[-1], "ratio", "<= 0.5"),
        Row(f"{name}: time / reading all, batches of {BATCH}", timed(task, run, full, rounds), "ratio", "<= 0.75"),
        *stages,
        *shares,
    ]


def timed(task: str, run: Run, full: Run, rounds: int) -> float:
    """Seconds of the cascade over those of the full model, alternating, from pixels; the first batches of the test."""
    batches = pixels_of_test(task, BATCH * TIMED[task]).split(BATCH)

    def look(model: Cascade) -> None:
        for images in batches:
            model.look(images)

    seconds = medians({"cascade": lambda: look(run.model), "full": lambda: look(full.model)}, rounds)
    return seconds["cascade"] / seconds["full"]


def curve(run: Run, full: Run) -> dict[str, Any]:
    """Accuracy on the test at mean costs that thresholds were solved for on the images held out (MSDNet's rule)."""
    held = confidence(answers(run.model, run.data.held))
    rows, whole = [], full.model.costs[-1]
    for share in SHARES:
        if run.model.costs[0] <= share * whole <= run.model.costs[-1]:
            stopped = exits(run.sure, for_cost(held, run.model.costs, share * whole))
            macs = float(torch.tensor(run.model.costs)[stopped].double().mean()) / whole
            rows.append([f"{share:.2f}", f"{macs:.3f}", f"{_mean(run.right.gather(1, stopped[:, None])):.2f}"])
    return {"columns": ["asked for", "multiply-accumulates / reading all", "accuracy, %"], "rows": rows}


def _mean(right: Tensor) -> float:
    return 100 * float(right.double().mean())


def _error(one: Tensor, other: Tensor) -> float:
    """Of the difference of two accuracies on the same images, in points."""
    return 100 * float((one.double() - other.double()).std()) / len(one) ** 0.5
