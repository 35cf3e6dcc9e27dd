"""Deletion and insertion: which method's importance to believe of a model (Petsiuk et al., arXiv 1806.07421)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.doctor.importance import Importance, checked_model, importance
from regard.doctor.probe import Probe
from regard.errors import DataError
from regard.vlm.shorten import shorten
from regard.vlm.shortened import Shortened


@dataclass(frozen=True, eq=False)
class Curves:
    """shares: (T,), of the image tokens of a prompt, from 0 to 1. deletion: (B, T), the probability of the target where
    that share is hidden, the most important first; insertion: where only that share is shown.
    """

    method: str
    shares: Float[Tensor, " t"]
    deletion: Float[Tensor, "b t"]
    insertion: Float[Tensor, "b t"]

    @property
    def deleted(self) -> float:
        """The area under deletion, the mean of the prompts: the lower, the more can be believed."""
        return float(torch.trapezoid(self.deletion, self.shares, dim=1).mean())

    @property
    def inserted(self) -> float:
        """The area under insertion: the higher, the more can be believed."""
        return float(torch.trapezoid(self.insertion, self.shares, dim=1).mean())


def curves(model: nn.Module, inputs: Mapping[str, Any], of: Importance, steps: int = 10) -> Curves:
    """Hide and show the tokens of the images of each prompt by their importance, in `steps` equal shares.

    A hidden token is masked out of attention; the others keep their places. Runs the model 2 x steps times, and encodes
    the images once. Raises DataError for steps under 1, ModelError for an importance of other inputs.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise DataError(f"steps must be a whole number of at least 1, got {steps!r}")
    probe = Probe.of(model, inputs, of.target.tolist())
    checked_model(of, probe)
    image = torch.zeros_like(of.columns, dtype=torch.bool)
    for one in of.images:
        image[one.row, one.columns] = True
    order = of.columns.masked_fill(~image, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    counts = image.sum(dim=1, keepdim=True)
    shares = torch.linspace(0, 1, steps + 1)
    deletion, insertion = [], []
    for share in shares.tolist():
        first = image & (rank < (share * counts).round())
        deletion.append(probe.likely(first).exp())
        insertion.append(probe.likely(image & ~first).exp())
    return Curves(of.method, shares.double(), torch.stack(deletion, dim=1).cpu(), torch.stack(insertion, dim=1).cpu())


def compare(
    model: nn.Module,
    inputs: Mapping[str, Any],
    methods: Mapping[str, Mapping[str, Any]],
    *,
    target: Any = None,
    steps: int = 10,
) -> list[Curves]:
    """The curves of several methods, the most believable first: by the area under insertion less that under deletion.

    methods: names, and what `importance` is given for each: {"gradient": {}, "ablation": {"regions": 4}}. The images
    are encoded once.
    """
    if not isinstance(inputs, Shortened):
        inputs = shorten(model, inputs, "random", keep=1.0)
    found = [
        curves(model, inputs, importance(model, inputs, name, target=target, **given), steps)
        for name, given in methods.items()
    ]
    return sorted(found, key=lambda one: one.deleted - one.inserted)
