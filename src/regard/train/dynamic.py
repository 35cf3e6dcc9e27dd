"""A small vision transformer, and what DynamicViT, A-ViT and EViT make of it when they are trained on from there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.attention.vision import VisionTransformer
from regard.mechanisms.vit import StaticViT
from regard.train.checkpoint import Checkpoint
from regard.train.data import Data
from regard.train.loop import Recipe, fit, settings

Tell = Callable[[int, int, float, float], None]
SIZES = {"image_size": 28, "patch_size": 4, "dim": 64, "depth": 8, "heads": 2, "hidden": 256, "channels": 1}


def _silent(epoch: int, done: int, loss: float, accuracy: float) -> None:
    pass


def backbone(arguments: dict[str, Any]) -> StaticViT:
    """A plain classifier of these sizes: `classes`, and those of `VisionTransformer`."""
    sizes = dict(arguments)
    classes = sizes.pop("classes", 10)
    return StaticViT(VisionTransformer(**sizes), classes)


def train_backbone(
    arguments: dict[str, Any], data: Data, recipe: Recipe, folder: Path, tell: Tell = _silent
) -> StaticViT:
    """Train the plain classifier, or go on. arguments: as for `backbone`. Raises as `fit`."""
    torch.manual_seed(recipe.seed)
    model = backbone(arguments)

    def step(index: Tensor, generator: torch.Generator, done: float) -> tuple[Tensor, Tensor]:
        images, labels = data.batch(index, generator)
        logits, _ = model(images)
        return F.cross_entropy(logits, labels), (logits.argmax(dim=1) == labels).sum()

    about = Checkpoint("vit", arguments, settings(recipe, task=data.name), [])
    fit(model, step, data.count, recipe, folder, about, tell)
    return model
