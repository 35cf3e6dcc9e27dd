"""RAM as its paper trains it, but for the optimizer: cross-entropy, a baseline, and REINFORCE for where to look."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.errors import ModelError
from regard.mechanisms.recurrent import RecurrentAttention, loss, noise
from regard.train.checkpoint import Checkpoint
from regard.train.data import Data
from regard.train.loop import Recipe, Tell, begun, fit, silent


def train(
    arguments: dict[str, Any],
    data: Data,
    recipe: Recipe,
    folder: Path,
    tell: Tell = silent,
    start: Path | None = None,
) -> RecurrentAttention:
    """Train RAM, or go on. arguments: of `RecurrentAttention`. start: a run whose weights the new one begins with.

    Raises as `fit`, and ModelError where the start holds another mechanism or other sizes.
    """
    torch.manual_seed(recipe.seed)
    model = RecurrentAttention(**arguments)
    other = None if start is None else Checkpoint.load(start)
    if other is not None:
        if other.kind != model.name:
            raise ModelError(f"{str(start)!r} holds {other.kind}: give the folder of a run of regard train ram")
        other.restore(model)

    def step(index: Tensor, generator: torch.Generator, done: float) -> tuple[Tensor, Tensor]:
        images, labels = data.batch(index, generator)
        seen = model(images, noise(len(images), model.glimpses, generator))
        return loss(seen, labels), (seen.logits.argmax(dim=1) == labels).sum()

    from_where = {} if other is None else {"start": other.digest}
    fit(model, step, data.count, recipe, folder, begun(model, arguments, data, recipe, **from_where), tell)
    return model
