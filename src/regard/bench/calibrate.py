"""Does a score point at what is asked for, or away from it? Measured on mosaics, before it is trusted.

CLIP's patches, for one, are less like the text where the object is (LiteLVLM, and issues of CDPruner and TRIM): whether
relevance rises or falls at the answer is a property of an encoder, not a convention. Four named photos stand 2 x 2, one
is asked for; the figure is the chance that a token of its quadrant scores above a token of another (0.5 is blind).
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regard.bench.tasks.gcompris import Photo, Photos
from regard.bench.tasks.mosaic import Task, inside, mosaic
from regard.errors import DataError, ImageError
from regard.eyes import Eye
from regard.images import load_image


@dataclass(frozen=True)
class Calibration:
    """above: how often a token of the asked quadrant scores higher than another, with a 95 % interval (Student's) over
    names; (0, 1) for fewer than 5.

    found: how often the asked quadrant has the highest mean score, and lowest: the lowest; chance is 0.25.
    """

    eye: str
    tasks: int
    names: int
    above: float
    interval: tuple[float, float]
    found: float
    lowest: float

    @property
    def sign(self) -> int:
        """1 where the score points at the answer, -1 where it points away, 0 where that cannot be told."""
        low, high = self.interval
        return 1 if low > 0.5 else -1 if high < 0.5 else 0

    @property
    def advice(self) -> str:
        """What follows, in one line."""
        return {
            1: "the relevance points at what is asked: use it as it is (sign 1)",
            -1: "the relevance points AWAY from what is asked: pass sign=-1 (--sign -1)",
            0: "it cannot be told whether relevance points at what is asked: take an allocator that needs no question",
        }[self.sign] + f" ({self.names} names, {self.tasks} mosaics)"


def calibrate(
    eye: Eye, pool: Photos, tasks: int, seed: int = 0, progress: Callable[[int], None] = lambda done: None
) -> Calibration:
    """Ask the eye for one of four photos, `tasks` times. progress: told how many are done. Raises DataError."""
    if len({photo.kin for photo in pool.animals}) < 4:
        raise DataError(f"mosaics need photos of 4 different things, got {len(pool.animals)}: add named photos")
    if tasks < 1:
        raise DataError(f"at least 1 task is needed, got {tasks}")
    above: dict[str, list[float]] = defaultdict(list)
    highest, lowest = [], []
    for number in range(tasks):
        task = mosaic(seed * tasks + number, pool)
        tokens = eye.look(task.image)
        relevance = tokens.relevance(eye.ask(task.question))[0].cpu()
        above[task.asked].append(chance_above(relevance, inside(tokens, task.box).cpu() > 0))
        means = _quadrants(relevance, tokens, task)
        highest.append(float(means[0] >= means.max()))
        lowest.append(float(means[0] <= means.min()))
        progress(number + 1)
    by_name = [float(np.mean(values)) for values in above.values()]
    share = float(np.mean(highest)), float(np.mean(lowest))
    return Calibration(eye.name, tasks, len(by_name), float(np.mean(by_name)), interval(by_name), *share)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of a few values in [0, 1], by Student's t; (0, 1) for fewer than 5."""
    if len(values) < 5:
        return 0.0, 1.0
    z, n = 1.959964, len(values) - 1
    t = z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)  # Cornish and Fisher's series
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    mean, reach = float(np.mean(values)), t * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return max(0.0, mean - reach), min(1.0, mean + reach)


def chance_above(scores: Tensor, asked: Tensor) -> float:
    """The chance that a score where `asked` is higher than one elsewhere, ties half (Mann and Whitney). Both (N,)."""
    _, rank, count = torch.unique(scores.double(), return_inverse=True, return_counts=True)
    middle = (count.cumsum(0) - (count - 1) / 2)[rank]  # the mean place of equal scores, from 1
    n = int(asked.sum())
    others = len(scores) - n
    return float((middle[asked].sum() - n * (n + 1) / 2) / (n * others))


def _quadrants(relevance: Tensor, tokens, task: Task) -> Tensor:
    """The mean relevance of the asked quadrant, then of the three others."""
    x0, y0, _, _ = task.box
    others = [(x, y) for x in (0.0, 0.5) for y in (0.0, 0.5) if (x, y) != (x0, y0)]
    shares = [inside(tokens, (x, y, x + 0.5, y + 0.5)).cpu() for x, y in [(x0, y0), *others]]
    return torch.stack([(relevance * share).sum() / share.sum() for share in shares])


def named_photos(folder: Path) -> Photos:
    """A folder's photos as a pool: the file's name, without digits and underscores, is what is asked for."""
    if not folder.is_dir():
        raise DataError(f"no folder {str(folder)!r}: give one with photos named for what they show, such as dog.jpg")
    found = []
    for path in sorted(folder.iterdir()):
        name = "".join(c if c.isalpha() else " " for c in path.stem).split()
        try:
            image = load_image(path)
        except ImageError:
            continue
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        found.append(Photo(" ".join(name), str(path), image.crop((left, top, left + side, top + side))))
    return Photos([photo for photo in found if photo.name], [])
