"""RAM as its paper trains it, but for the optimizer: cross-entropy, a baseline, and REINFORCE for where to look."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.errors import ModelError
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
    start: Path | None = None,
) -> RecurrentAttention:
    """Train RAM, or go on. arguments: of `RecurrentAttention`. start: a run whose weights the new one begins with.

    Raises as `fit`, and ModelError where the start holds another mechanism or other sizes.
    """
    torch.manual_seed(recipe.seed)
    model = RecurrentAttention(**arguments)
    begun = None if start is None else Checkpoint.load(start)
    if begun is not None:
        if begun.kind != model.name:
            raise ModelError(f"{str(start)!r} holds {begun.kind}: give the folder of a run of regard train ram")
        begun.restore(model)

    def step(index: Tensor, generator: torch.Generator, done: float) -> tuple[Tensor, Tensor]:
        images, labels = data.batch(index, generator)
        seen = model(images, noise(len(images), model.glimpses, generator))
        return loss(seen, labels), (seen.logits.argmax(dim=1) == labels).sum()

    from_where = {} if begun is None else {"start": begun.digest}
    about = Checkpoint("ram", arguments, settings(recipe, task=data.name, **from_where), [], labels=data.labels)
    fit(model, step, data.count, recipe, folder, about, tell)
    return model
