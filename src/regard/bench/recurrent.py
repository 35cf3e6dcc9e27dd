"""RAM as trained by `regard train ram`, beside its paper's tables, and what its glimpses cost: `regard bench ram`.

The paper is published with two tables for each task (arXiv 1406.6247: first version, and as at NIPS 2014). An error is
that of the mean over ten runs of an image, and beside it that of one run.
"""

import json
import math
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from regard.bench.results import Row, medians, provenance, publish
from regard.bench.tasks.data import data
from regard.errors import DataError
from regard.mechanisms.recurrent import COPIES, RecurrentAttention, loss, noise, retina
from regard.train.checkpoint import LAST, Checkpoint, complete
from regard.train.data import AT_ONCE, Data

PAPER = {  # task, glimpses: the first version's error, that of NIPS, and what must be reached
    ("mnist", 2): (6.27, 3.79, 3.79),
    ("mnist", 4): (1.73, 1.54, 1.6),
    ("mnist", 6): (1.29, 1.12, 1.29),
    ("translated", 6): (1.86, 1.22, 1.86),
    ("cluttered", 6): (5.88, 4.08, 5.88),
    ("cluttered-100", 8): (10.83, 8.11, None),
}
CANVASES = (60, 100, 400, 1600)


def main(runs: Path, add: bool = False) -> None:
    """Read every finished run of RAM in a folder of runs, measure the costs, and write results/ram.json.

    A run that another began with has no row of its own. add: to what results hold, with the costs that they have.
    """
    made, found, notes = provenance(), defaultdict(list), {}
    folders = [folder for folder in sorted(runs.glob("*")) if (folder / "metrics.json").exists()]
    states = {folder: state for folder in folders if (state := Checkpoint.load(folder / LAST)).kind == "ram"}
    begun_with = {state.settings.get("start") for state in states.values()}
    for folder, state in states.items():
        metrics = json.loads((folder / "metrics.json").read_text())
        notes[folder.name] = {**state.arguments, **state.settings, "seconds": metrics["seconds"]}
        if state.digest in begun_with:
            notes[folder.name]["digest"] = state.digest
            continue
        made_with = complete(RecurrentAttention, state.arguments)
        alike = json.dumps({**made_with, **state.settings, "seed": 0}, sort_keys=True)
        found[state.settings["task"], made_with["glimpses"], made_with["policy"], alike].append(errors(state))
    if not found:
        raise DataError(f"{str(runs)!r} holds no finished run of RAM: run regard train ram --out {runs}/NAME")
    rows = [row for key, errors in sorted(found.items()) for row in _error_rows(key, errors)]
    publish("ram", f"regard bench ram --runs {runs}", [*rows, *([] if add else costs())], made, notes=notes, add=add)


def _error_rows(key: tuple[str, int, str, str], errors: list[tuple[float, float]]) -> list[Row]:
    task, glimpses, policy, _ = key
    first, nips, must = PAPER.get((task, glimpses), (None, None, None))
    seeds = f", mean of {len(errors)} seeds" if len(errors) > 1 else ""
    name = f"{task}, {glimpses} glimpses{'' if policy == 'learned' else ', random policy'}{seeds}"
    paper = f" (paper: {first} / {nips})" if first and policy == "learned" else ""
    target = f"<= {must}" if must and policy == "learned" else ""
    mean, single = np.mean(errors, axis=0)
    return [
        Row(f"{name}, mean of {COPIES} runs an image{paper}", float(mean), "% error", target),
        Row(f"{name}, one run an image", float(single), "% error"),
    ]


def errors(state: Checkpoint) -> tuple[float, float]:
    """In percent, of the mean of ten runs and of one run of each image, every image and run with draws of its own."""
    model, given = RecurrentAttention(**state.arguments), data(state.settings["task"])
    state.restore(model)
    count, wrong = len(given.test), torch.zeros(2)
    draws = noise(COPIES * count, model.glimpses, torch.Generator().manual_seed(0)).unflatten(0, (COPIES, count))
    with torch.no_grad():
        for place in torch.arange(count).split(AT_ONCE):
            runs = torch.stack([model(given.test[place], draw[place]).logits.softmax(dim=1) for draw in draws])
            for kind, seen in enumerate((runs.mean(dim=0), runs[0])):
                wrong[kind] += (seen.argmax(dim=1) != given.test_labels[place]).sum()
    ten, one = (100 * wrong / count).tolist()
    return ten, one


def costs() -> list[Row]:
    """Seconds of an epoch, the retina beside a loop over samples, and how a look grows with the canvas."""
    images, at = torch.randint(0, 256, (128, 1, 60, 60), dtype=torch.uint8), torch.rand(128, 2) * 2 - 1
    times = medians({"ours": lambda: retina(images, at, 12, 3), "loop": lambda: looped(images, at, 12, 3)}, 9)
    rows = [
        Row("an epoch of mnist, 6 glimpses, batches of 128", _epoch(data("mnist")), "s", "<= 6"),
        Row(
            "retina, a loop over samples / ours, 128 of 60 x 60, 3 scales",
            times["loop"] / times["ours"],
            "ratio",
            ">= 20",
        ),
    ]
    model, draws = RecurrentAttention(glimpse=12, scales=3), noise(64, 6)
    canvases = {side: torch.randint(0, 256, (64, 1, side, side), dtype=torch.uint8) for side in CANVASES}

    def look(side: int) -> None:
        with torch.no_grad():
            model(canvases[side], draws)

    seconds = medians({str(side): lambda side=side: look(side) for side in CANVASES}, 15)
    for side in CANVASES[1:]:
        ratio = seconds[str(side)] / seconds[str(CANVASES[0])]
        rows.append(Row(f"6 glimpses on {side} x {side} / on 60 x 60, time", ratio, "ratio", "<= 1.1"))
    return rows


def looped(images: Tensor, at: Tensor, size: int, scales: int) -> Tensor:
    """The retina as it is commonly written: one sample and scale after the other, padded, cut out and averaged."""
    out = []
    for image, place in zip(images, at.tolist(), strict=True):
        levels = []
        for scale in range(scales):
            wide = size * 2**scale
            x, y = (math.floor((v + 1) / 2 * image.shape[-1] - wide / 2 + 0.5) + wide for v in place)
            crop = F.pad(image, (wide,) * 4)[:, y : y + wide, x : x + wide] / 255
            levels.append(F.avg_pool2d(crop, 2**scale))
        out.append(torch.stack(levels))
    return torch.stack(out)


def _epoch(given: Data) -> float:
    """Seconds of an epoch of training, from every tenth batch."""
    generator = torch.Generator().manual_seed(0)
    model = RecurrentAttention()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    order = torch.randperm(given.count, generator=generator).split(128)[::10]
    start = time.perf_counter()
    for index in order:
        images, labels = given.batch(index, generator)
        value = loss(model(images, noise(len(images), 6, generator)), labels)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
    return (time.perf_counter() - start) * given.count / sum(len(index) for index in order)
