"""Does the eye find what is asked for? `python -m regard.bench.tasks.mosaic` (part of `make bench`, 20 to 40 minutes).

Animal photos with names (gcompris) are put together so that the right place is known:
- mosaic: four photos of 224 x 224, 2 x 2; is the quadrant of the largest mean relevance the asked one? Chance is .25.
- large: the same at 1024 x 1024 a photo.
- small: four photos of 48 to 110 pixels on a monument of 512 x 512; how much of the asked one do a tenth of the tokens
  cover? Chance is .10.
Settings were chosen on one half of the names ("tune"); the figures are the other half's ("report").
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from regard.allocate import load
from regard.bench.results import Row, medians, provenance, publish
from regard.bench.tasks.gcompris import Photo, Photos, photos
from regard.eyes import Eye
from regard.eyes.embedded import EmbeddedEye
from regard.tokens import VisualTokens

SMALL, SCENE = (48, 110), 512  # pixels
COMPARED = ("top", "divprune", "grid", "random")


class Task(NamedTuple):
    """A picture and where the asked photo is on it: x0, y0, x1, y1 in [0, 1]."""

    image: Image.Image
    asked: str
    box: tuple[float, float, float, float]

    @property
    def question(self) -> str:
        return f"where is the {self.asked}?"


def mosaic(seed: int, pool: Photos, side: int = 224) -> Task:
    """Four photos, 2 x 2. Each photo of the pool is asked for in turn, in a place drawn from the seed."""
    rng = np.random.default_rng([seed, 1])
    chosen = _others(rng, pool.animals, seed)
    image = Image.new("RGB", (2 * side, 2 * side))
    places = rng.permutation(4)
    for photo, place in zip(chosen, places, strict=True):
        corner = (int(place % 2) * side, int(place // 2) * side)
        image.paste(photo.square.resize((side, side), Image.Resampling.LANCZOS), corner)
    x, y = places[0] % 2 / 2, places[0] // 2 / 2
    return Task(image, chosen[0].name, (x, y, x + 0.5, y + 0.5))


def small(seed: int, pool: Photos) -> Task:
    """Four photos of random sizes on a monument, apart from one another; the first is asked for."""
    rng = np.random.default_rng([seed, 2])
    chosen = _others(rng, pool.animals, seed)
    scene = pool.scenes[int(rng.integers(len(pool.scenes)))]
    image = scene.resize((SCENE, SCENE), Image.Resampling.LANCZOS)
    taken: list[tuple[int, int, int, int]] = []
    for photo in chosen:
        side = int(rng.integers(SMALL[0], SMALL[1] + 1))
        while True:
            x, y = (int(v) for v in rng.integers(0, SCENE - side + 1, 2))
            if all(x >= b[2] + 8 or x + side + 8 <= b[0] or y >= b[3] + 8 or y + side + 8 <= b[1] for b in taken):
                break
        taken.append((x, y, x + side, y + side))
        image.paste(photo.square.resize((side, side), Image.Resampling.LANCZOS), (x, y))
    x0, y0, x1, y1 = (edge / SCENE for edge in taken[0])
    return Task(image, chosen[0].name, (x0, y0, x1, y1))


def inside(tokens: VisualTokens, box: tuple[float, float, float, float]) -> Tensor:
    """The area that each token shares with the box, (N,), in parts of the box."""
    x0, y0, x1, y1 = tokens.boxes[0].unbind(dim=1)
    wide = (x1.clamp(max=box[2]) - x0.clamp(min=box[0])).clamp(min=0)
    high = (y1.clamp(max=box[3]) - y0.clamp(min=box[1])).clamp(min=0)
    return wide * high / ((box[2] - box[0]) * (box[3] - box[1]))


def found(eye: Eye, task: Task) -> dict[str, float]:
    """1 where the asked quadrant has the largest mean relevance."""
    tokens = eye.look(task.image)
    relevance = tokens.relevance(eye.ask(task.question))[0]
    quadrants = [(x, y, x + 0.5, y + 0.5) for y in (0.0, 0.5) for x in (0.0, 0.5)]
    means = [float((relevance * inside(tokens, q)).sum()) for q in quadrants]  # quadrants are of one size
    return {"": float(quadrants[int(np.argmax(means))] == task.box)}


def covered(eye: Eye, task: Task) -> dict[str, float]:
    """For each allocator, the part of the asked photo that a tenth of the tokens covers."""
    tokens, question = eye.look(task.image), eye.ask(task.question)
    share, budget = inside(tokens, task.box), round(0.1 * tokens.features.shape[1])
    spent = {name: load(name).allocate(tokens, question, budget).spent()[0] for name in COMPARED}
    return {name: float((kept * share).sum()) for name, kept in spent.items()}


Score = Callable[[Eye, Task], dict[str, float]]


def measure(eye: Eye, make: Callable[[int], Task], score: Score, count: int, what: str) -> dict[str, list[tuple]]:
    """(asked, score) of each of `count` tasks, for each thing scored."""
    scores: dict[str, list[tuple]] = defaultdict(list)
    for seed in track(range(count), what):
        task = make(seed)
        for name, value in score(eye, task).items():
            scores[name].append((task.asked, value))
    return scores


def _others(rng: np.random.Generator, pool: list[Photo], seed: int) -> list[Photo]:
    """The asked photo, the seed's in turn, and three others that its name does not fit."""
    chosen = [pool[seed % len(pool)]]
    for place in rng.permutation(len(pool)):
        if len(chosen) < 4 and pool[place].kin not in {photo.kin for photo in chosen}:
            chosen.append(pool[place])
    return chosen


def _summary(scores: list[tuple]) -> tuple[float, dict]:
    """The mean, its standard error over animals (their photos are few), and the animals that are missed most."""
    by: dict[str, list[float]] = defaultdict(list)
    for asked, value in scores:
        by[asked].append(value)
    means = {name: float(np.mean(values)) for name, values in by.items()}
    error = float(np.std(list(means.values()), ddof=1) / len(means) ** 0.5)
    worst = {name: round(means[name], 2) for name in sorted(means, key=lambda name: means[name])[:8]}
    return float(np.mean([value for _, value in scores])), {
        "tasks": len(scores),
        "animals": len(by),
        "standard error over animals": round(error, 3),
        "worst": worst,
    }


def main() -> None:
    """Measure the report half and write results/mosaic.json."""
    parser = argparse.ArgumentParser(description="Does the embedded eye find what is asked for?")
    parser.add_argument("--deb", type=Path, help="the file of gcompris-qt-data 3.1-2, if apt-get is not there")
    parser.add_argument("--half", choices=("tune", "report"), default="report")
    parser.add_argument("--tasks", type=int, default=1000, help="mosaics and small ones; a tenth as many large ones")
    chosen = parser.parse_args()
    made = provenance()
    pool = photos(chosen.half, chosen.deb)
    eye, once = EmbeddedEye(), EmbeddedEye(pyramid=False)
    count, few = chosen.tasks, max(1, chosen.tasks // 10)
    runs = {
        "asked quadrant found": (eye, lambda s: mosaic(s, pool), found, count, ">= 0.85"),
        "asked quadrant found, at its own size only": (once, lambda s: mosaic(s, pool), found, count, ""),
        "asked quadrant found at 2048 x 2048": (eye, lambda s: mosaic(s, pool, 1024), found, few, ""),
        "small object covered by a tenth of the tokens": (eye, lambda s: small(s, pool), covered, count, ">= 0.7"),
        "the same, at its own size only": (once, lambda s: small(s, pool), covered, count, ""),
    }
    rows, notes = [], {"half": chosen.half}
    for what, (seer, make, score, tasks, target) in runs.items():
        for name, scores in measure(seer, make, score, tasks, what).items():
            mean, note = _summary(scores)
            label = f"{what}, {name}" if name else what
            rows.append(Row(label, round(mean, 4), "share", target if name in ("", "top") else ""))
            notes[label] = note
    rows += _costs(eye, once, pool)
    name = "mosaic" if chosen.half == "report" else "mosaic-tune"
    line = f"python -m regard.bench.tasks.mosaic --half {chosen.half} --tasks {count}"
    publish(name, line, rows, made, seed=0, notes=notes)


def _costs(eye: Eye, once: Eye, pool: Photos) -> list[Row]:
    """What looking at several sizes costs."""
    rows = []
    for side in (512, 2048):
        image = pool.scenes[0].resize((side, side))
        seconds = medians({"two": lambda i=image: eye.look(i), "one": lambda i=image: once.look(i)}, rounds=5)
        rows.append(Row(f"look at {side} x {side}", seconds["two"], "s"))
        rows.append(Row(f"the same, at its own size only, at {side} x {side}", seconds["one"], "s"))
    return rows


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
