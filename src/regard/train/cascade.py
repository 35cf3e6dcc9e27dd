"""The cascade as CF-ViT trains it: all tokens split at first, then the salient ones; and thresholds for its exits.

Where a task knows the thing's box, each stage's attention is drawn to it too, that of its twin in the same way.
Thresholds are solved on images that training never saw, and saved with the weights.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.errors import DataError
from regard.mechanisms.cascade import Cascade, loss
from regard.mechanisms.exits import confidence, for_accuracy, for_cost
from regard.train.checkpoint import LAST
from regard.train.data import Held
from regard.train.guide import GUIDE, drawn, overlapping
from regard.train.loop import Recipe, Tell, begun, fit, silent

AT_ONCE = 250  # images

_SIZES: dict[str, dict[str, Any]] = {
    "fashion": {"channels": 1, "side": 32, "patch": 4, "width": 64, "depth": 3, "heads": 4, "expand": 2},
    "search": {
        "channels": 3,
        "side": 512,
        "patch": 32,
        "width": 96,
        "depth": 3,
        "heads": 4,
        "expand": 2,
        "stem": "embedded",
    },
}
_KEEP = {"fashion": 10, "search": 4}  # tokens that the second stage splits


def sizes(task: str, stages: int = 2, keep: str | None = None, reuse: bool = True) -> dict[str, Any]:
    """The arguments of a `Cascade` for a task. keep: numbers by commas. Raises DataError."""
    if task not in _SIZES:
        raise DataError(f"unknown task {task!r}: choose from {', '.join(_SIZES)}")
    try:
        kept = [_KEEP[task]] * (stages - 1) if keep is None else [int(part) for part in keep.split(",")]
    except ValueError:
        raise DataError(f"expected numbers of tokens by commas, got {keep!r}") from None
    return {"classes": 10, **_SIZES[task], "stages": stages, "keep": kept, "reuse": reuse}


def train(
    arguments: dict[str, Any],
    data: Held,
    recipe: Recipe,
    folder: Path,
    tell: Tell = silent,
    warm: float = 0.4,
    tolerance: float = 0.002,
    share: float | None = None,
) -> Cascade:
    """Train a cascade, or go on, and solve its thresholds. arguments: of `Cascade`, as JSON has them. warm: the share
    of all steps in which every token is split (CF-ViT: two thirds). tolerance, share: as `solve`. Raises as `fit`.
    """
    for name, value in (("warm", warm), ("tolerance", tolerance), ("share", share)):
        if value is not None and not 0 <= value <= 1:
            raise DataError(f"{name} must be from 0 to 1, got {value}")
    torch.manual_seed(recipe.seed)
    model = Cascade(**arguments)
    if share is not None and model.stages > 1:
        _cost_of(model, share)  # before training, not after it

    def step(index: Tensor, generator: torch.Generator, done: float) -> tuple[Tensor, Tensor]:
        images, labels = data.batch(index, generator)
        seen = model.scan(images, everything=done < warm)
        logits, total = [one.logits for one in seen], torch.zeros(())
        if data.boxes is not None:
            boxes = data.boxes(index)
            for one in seen:
                attention = one.saliency / one.saliency.sum(dim=1, keepdim=True)
                total = total + GUIDE * drawn(attention, overlapping(one.boxes, boxes)) / len(seen)
        return total + loss(logits, labels), (logits[-1].argmax(dim=1) == labels).sum()

    about = begun(model, arguments, data, recipe, warm=warm, tolerance=tolerance, share=share)
    state = fit(model, step, data.count, recipe, folder, about, tell)
    solve(model, data.held, data.held_labels, tolerance, share)
    replace(state, tensors=state.tensors | {"model.thresholds": model.thresholds.clone()}).save(folder / LAST)
    return model


def solve(model: Cascade, held: Tensor, labels: Tensor, tolerance: float = 0.002, share: float | None = None) -> None:
    """Set the thresholds: the cheapest whose accuracy is that of the last stage less the tolerance, or those whose
    mean cost is this share of reading all at the finest resolution. Raises DataError where there are none.
    """
    if model.stages == 1:
        return
    logits = answers(model, held)
    sure = confidence(logits)
    if share is not None:
        model.set_thresholds(for_cost(sure, model.costs, _cost_of(model, share)))
        return
    right = logits.argmax(dim=-1) == labels[:, None]
    least = float(right[:, -1].double().mean()) - tolerance
    model.set_thresholds(for_accuracy(sure, right, model.costs, least))


def _cost_of(model: Cascade, share: float) -> float:
    """What a share of reading all is. Raises DataError where that is not between the first and the last exit."""
    side = model.side or 0
    full = model.full_macs(side, side)
    first, last = (model.costs[exit] / full for exit in (0, -1))
    if not first <= share <= last:
        raise DataError(f"share must be from {first:.4f} to {last:.4f} with these stages, got {share}")
    return share * full


@torch.no_grad()
def answers(model: Cascade, images: Tensor) -> Tensor:
    """The logits of all stages, (N, stages, classes). images: pixels, or features of `Cascade.read`."""
    model.eval()
    return torch.cat([torch.stack(model(some), dim=1) for some in images.split(AT_ONCE)])
