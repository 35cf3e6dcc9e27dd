"""A small vision transformer, and what DynamicViT, A-ViT and EViT make of it when they are trained on from there."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.errors import DataError, ModelError
from regard.mechanisms import avit, dynamicvit
from regard.mechanisms.dynamic import KINDS, Kind
from regard.mechanisms.dynamicvit import DynamicViT
from regard.mechanisms.vit import StaticViT, ViTLooker
from regard.train.checkpoint import Checkpoint, looker
from regard.train.data import Data
from regard.train.loop import Recipe, Step, Tell, begun, fit, silent

DEPTH = 2 / 3  # of the blocks
Forward = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def train_backbone(
    arguments: dict[str, Any], data: Data, recipe: Recipe, folder: Path, tell: Tell = silent
) -> StaticViT:
    """Train the plain classifier, or go on. arguments: of `StaticViT`, vision as a dict. Raises as `fit`."""
    torch.manual_seed(recipe.seed)
    model = StaticViT(**arguments)

    def forward(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        logits, _ = model(images)
        return logits, F.cross_entropy(logits, labels)

    about = begun(model, arguments, data, recipe)
    fit(model, _step(forward, data), data.count, recipe, folder, about, tell)
    return model


def train(
    kind: Kind,
    backbone: Path,
    arguments: dict[str, Any],
    data: Data,
    recipe: Recipe,
    folder: Path,
    tell: Tell = silent,
    weights: tuple[float, float] | None = None,
    depth: float = DEPTH,
) -> ViTLooker:
    """Train one on from the plain classifier of a run's folder, or go on. arguments: of its class, but for the vision.

    kind: "vit" for the plain classifier itself, which shows what more training alone gives. weights: of its two losses
    beside the cross-entropy, by default the paper's: ratio and distillation of DynamicViT, ponder and depth of A-ViT.
    depth: of A-ViT, the share of the blocks after which most patches are to halt. Raises as `fit`, DataError for
    weights below 0 and a depth outside (0, 1], and ModelError where the folder holds another mechanism.
    """
    if not 0 < depth <= 1:
        raise DataError(f"depth must be a share of the blocks above 0 and at most 1, got {depth}")
    if weights is not None and not all(0 <= weight < math.inf for weight in weights):
        raise DataError(f"the weights of the losses must be numbers from 0 on, got {weights[0]} and {weights[1]}")
    torch.manual_seed(recipe.seed)
    teacher, _ = looker(backbone)
    if not isinstance(teacher, StaticViT):
        raise ModelError(f"{str(backbone)!r} holds {teacher.name}: give the folder of a run of regard train vit")
    start = Checkpoint.load(backbone)
    arguments = {**start.arguments, **arguments}
    model = KINDS[kind](**arguments)
    model.load_state_dict(teacher.state_dict(), strict=False)  # all but what predicts
    losses: dict[str, Any] = {} if weights is None else {"weights": list(weights)}
    losses |= {} if depth == DEPTH else {"depth": depth}
    about = begun(model, arguments, data, recipe, backbone=start.digest, **losses)
    forward = _forward(model, teacher, weights, depth)
    fit(model, _step(forward, data), data.count, recipe, folder, about, tell)
    return model


def _forward(model: ViTLooker, teacher: StaticViT, weights: tuple[float, float] | None, depth: float) -> Forward:
    """Logits and loss of a batch."""
    given = () if weights is None else weights

    def dynamic(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        assert isinstance(model, DynamicViT)
        with torch.no_grad():
            logits, tokens = teacher(images)
        seen = model(images, generator)
        taught = (logits, tokens[:, model.first :])
        return seen.logits, dynamicvit.loss(seen, labels, taught, model.shares, *given)

    def adaptive(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        seen: avit.Pondered = model(images)
        blocks = len(model.blocks)
        return seen.logits, avit.loss(seen, labels, avit.prior(blocks, blocks * depth), *given)

    def plain(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        logits = model(images) if model.name == "evit" else model(images)[0]
        return logits, F.cross_entropy(logits, labels)

    return {"dynamicvit": dynamic, "avit": adaptive}.get(model.name, plain)


def _step(forward: Forward, data: Data) -> Step:
    def step(index: Tensor, generator: torch.Generator, done: float) -> tuple[Tensor, Tensor]:
        images, labels = data.batch(index, generator)
        logits, loss = forward(images, labels, generator)
        return loss, (logits.argmax(dim=1) == labels).sum()

    return step
