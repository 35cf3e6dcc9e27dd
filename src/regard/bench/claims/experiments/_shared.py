"""What the experiments share: a short training, and figures of several seeds."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regard.intervals import student

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Series:
    """A figure of an experiment, one value for each seed."""

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of 95 %, Student's; None for one value."""
        count = len(self.values)
        if count < 2:
            return None
        half = student(count - 1) * statistics.stdev(self.values) / math.sqrt(count)
        return self.mean - half, self.mean + half


def less(name: str, unit: str, one: Sequence[float], other: Sequence[float]) -> Series:
    """The difference of two figures, seed by seed."""
    return Series(name, unit, tuple(a - b for a, b in zip(one, other, strict=True)))


def fit(parameters: Iterable[nn.Parameter], loss: Callable[[], Tensor], steps: int, rate: float = 3e-3) -> list[float]:
    """AdamW with a tenth of the steps to warm up and a cosine to 0; the losses."""
    learned = [value for value in parameters if value.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.01)
    warm = max(1, steps // 10)
    found = []
    for step in range(steps):
        share = (step - warm) / max(1, steps - warm)
        factor = (step + 1) / warm if step < warm else 0.5 + 0.5 * math.cos(math.pi * share)
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        found.append(float(value.detach()))
    return found


def percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())
