"""The loop that every recipe runs: AdamW, a cosine schedule, an epoch at a time, each decided by seed and number alone.

`DIR/last.safetensors` holds the run after each epoch. A run that was interrupted, at any moment and by anything, goes
on from there and gives the losses that it would have given.
"""

import csv
import io
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regard.errors import DataError, ModelError
from regard.files import locked, sweep, write_all
from regard.mechanisms.looker import Looker
from regard.train.checkpoint import LAST, Checkpoint, complete
from regard.train.data import Data

HISTORY = "history.csv"
Step = Callable[[Tensor, torch.Generator, float], tuple[Tensor, Tensor]]
Tell = Callable[[int, int, float, float], None]
HeldOut = Callable[[], dict[str, float]]


def silent(epoch: int, samples: int, loss: float, accuracy: float) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Recipe:
    """How to train. batch: samples of a step. rate: learning rate after `warmup` epochs, which falls to 0 by a cosine.
    decay: of the weights (AdamW). clip: of the gradient's norm, 0 for none.
    """

    epochs: int
    seed: int = 0
    batch: int = 128
    rate: float = 1e-3
    decay: float = 0.0
    warmup: float = 0.0
    clip: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise DataError(f"epochs and batch must be 1 or more, got {self.epochs} and {self.batch}")
        if not 0 < self.rate < math.inf:
            raise DataError(f"the learning rate must be a number above 0, got {self.rate}")
        if not 0 <= self.seed < 2**63:
            raise DataError(f"the seed must be a whole number from 0 to 2^63 - 1, got {self.seed}")

    def rate_at(self, done: float) -> float:
        """The learning rate when `done` of all steps are made, in [0, 1]."""
        warm = self.warmup / self.epochs
        if done < warm:
            return self.rate * done / warm
        return self.rate * 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))


def for_transformers(epochs: int, seed: int, batch: int, rate: float) -> Recipe:
    """With weight decay, an epoch of warm-up and clipped gradients, as small transformers want it."""
    return Recipe(epochs, seed, batch, rate, decay=0.05, warmup=min(1, epochs / 2), clip=1.0)


def fit(
    model: nn.Module,
    step: Step,
    count: int,
    recipe: Recipe,
    folder: Path,
    about: Checkpoint,
    tell: Tell = silent,
    held_out: HeldOut | None = None,
) -> Checkpoint:
    """Train a model, or go on; the run's last checkpoint.

    step(index, generator, done) gives the mean loss of a batch and how many of it were right; index: the places of its
    samples among `count`; done: the share of all steps that are made. about: kind, arguments and settings of the run.
    tell(epoch, samples, loss, accuracy): called for every step. held_out(): figures of what is not learned from, which
    stand in the history of each epoch. Raises ModelError where a loss or a weight is not finite, and DataError where
    the folder holds another run, or another process is at work in it.
    """
    with locked(folder / "lock"):
        sweep(folder, (LAST, HISTORY))
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay, fused=True)
        state = _found(folder, about, type(model))
        if state.epoch:
            state.restore(model, optimizer)
            write_all(folder, {HISTORY: _csv(state.history)})
        for epoch in range(state.epoch, recipe.epochs):
            start = time.perf_counter()
            row = _epoch(model, optimizer, step, count, recipe, epoch, folder, tell)
            model.eval()
            row |= held_out() if held_out else {}
            state = state.holding(model, optimizer, {**row, "seconds": round(time.perf_counter() - start, 2)})
            state.save(folder / LAST)
            write_all(folder, {HISTORY: _csv(state.history)})
        model.eval()
        return state


def _epoch(
    model: nn.Module, optimizer: Optimizer, step: Step, count: int, recipe: Recipe, epoch: int, folder: Path, tell: Tell
) -> dict[str, float]:
    """All samples once; the epoch's number, and its mean loss and accuracy."""
    generator = torch.Generator().manual_seed((1_000_003 * recipe.seed + epoch) % 2**63)
    losses, right, seen, steps = 0.0, 0, 0, -(-count // recipe.batch)
    model.train()
    for number, index in enumerate(torch.randperm(count, generator=generator).split(min(recipe.batch, count))):
        done = (epoch + number / steps) / recipe.epochs
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(done)
        loss, hits = step(index, generator, done)
        value = loss.item()
        if not math.isfinite(value):
            raise _broken(f"the loss is {value} at step {number + 1} of epoch {epoch + 1}", folder, epoch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        losses, right, seen = losses + value * len(index), right + int(hits), seen + len(index)
        tell(epoch + 1, seen, losses / seen, right / seen)
    if not all(bool(value.isfinite().all()) for value in model.parameters()):
        raise _broken(f"weights are not finite at the end of epoch {epoch + 1}", folder, epoch)
    return {"epoch": epoch + 1, "loss": losses / seen, "accuracy": right / seen}


def settings(recipe: Recipe, **others: Any) -> dict[str, Any]:
    """All that decides a run's losses, for its checkpoint."""
    return {**asdict(recipe), **others}


def begun(model: Looker, arguments: Mapping[str, Any], data: Data, recipe: Recipe, **settings_of: Any) -> Checkpoint:
    """A run before its first epoch, of a model that was made with these arguments. settings_of: more that decides its
    losses.
    """
    whole = settings(recipe, task=data.name, **settings_of)
    return Checkpoint(model.name, complete(type(model), arguments), whole, [], labels=data.labels)


def _found(folder: Path, about: Checkpoint, kind: type) -> Checkpoint:
    """The run to go on with: what the folder holds, or a new one. kind: the model's class.

    Runs that were saved with fewer arguments have today's defaults for the others.
    """
    if not (folder / LAST).exists():
        return about
    state = Checkpoint.load(folder / LAST)
    with suppress(TypeError):  # another class's
        state = replace(state, arguments=complete(kind, state.arguments))
    there, asked = ({"kind": one.kind, **one.arguments, **one.settings} for one in (state, about))
    other = [
        f"{name} {there.get(name)} (asked for {asked.get(name)})" for name in asked if there.get(name) != asked[name]
    ]
    if other or there.keys() != asked.keys():
        different = ", ".join(other) or "other settings"
        raise DataError(f"{str(folder)!r} holds a run with {different}: choose another --out, or remove it")
    return replace(state, labels=about.labels)


def _broken(what: str, folder: Path, epoch: int) -> ModelError:
    kept = f"{str(folder / LAST)!r} is of epoch {epoch}" if epoch else "nothing was written yet"
    return ModelError(f"{what}: {kept}; try a lower --rate")


def _csv(history: list[dict[str, float]]) -> str:
    text = io.StringIO()
    names = dict.fromkeys(name for row in history for name in row)  # a run may go on with others held out
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
