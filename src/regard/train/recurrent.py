"""RAM as its paper trains it, but for the optimizer: cross-entropy, a baseline, and REINFORCE for where to look."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.mechanisms.recurrent import RecurrentAttention, loss, noise
from regard.train.checkpoint import Checkpoint
from regard.train.data import Data
from regard.train.loop import Recipe, Tell, fit, settings, silent


def train(
    arguments: dict[str, Any],
    data: Data,
    recipe: Recipe,
    folder: Path,
    tell: Tell = silent,
) -> RecurrentAttention:
    """Train RAM, or go on. arguments: of `RecurrentAttention`. Raises as `fit`."""
    torch.manual_seed(recipe.seed)
    model = RecurrentAttention(**arguments)

    def step(index: Tensor, generator: torch.Generator, done: float) -> tuple[Tensor, Tensor]:
        images, labels = data.batch(index, generator)
        seen = model(images, noise(len(images), model.glimpses, generator))
        return loss(seen, labels), (seen.logits.argmax(dim=1) == labels).sum()

    about = Checkpoint("ram", arguments, settings(recipe, task=data.name), [], labels=data.labels)
    fit(model, step, data.count, recipe, folder, about, tell)
    return model
