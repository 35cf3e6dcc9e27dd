"""HoloV (arXiv 2510.02912): every part of the image gets a share of the budget, by its attention and its variety.

    s_i = a_i + alpha v_i mean(a) / mean(v),    v_i = var_j cos(x_i, x_j),    within a crop
    K_c = K mean(s of crop c) / sum of the crops' means,    of crop c the K_c tokens of the largest a_i

The tokens are cut, in order, into `crops` of nearly equal size. A token scores its attention plus `alpha` times the
variance of its cosines to the others of its crop, scaled to the crop's attention; a crop gets its share of the sum of
mean scores; within a crop the most attended tokens stay. All as in the authors' code, whose scaling takes the variety
out again: a crop's mean score is 1 + alpha times its mean attention whatever the features hold. That code fills up with
zero vectors where a crop is smaller than its share; here what is over goes to the other crops by the same rule. It also
scores a crop of one token a thousandth of what it scores the others.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.allocate._base import Allocator
from regard.allocation import Allocation
from regard.errors import DataError
from regard.tokens import Question, VisualTokens


@dataclass(frozen=True)
class HoloV(Allocator):
    """Keep the most attended tokens of each crop, as many as the crop's share of the budget.

    crops: into how many parts the tokens are cut. alpha: the weight of variety beside attention.
    """

    needs = ("scores:attention",)
    crops: int = 16
    alpha: float = 0.09

    def __post_init__(self) -> None:
        if self.crops < 1 or self.alpha < 0:
            raise DataError(f"HoloV: crops must be at least 1 and alpha at least 0, got {self.crops!r}, {self.alpha!r}")

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        valid = tokens.valid
        attention = self.clean("scores:attention", tokens.scores["attention"], valid).clamp(min=0)
        x = F.normalize(self.clean("features", tokens.features, valid), dim=2)
        slot, size = _cut(valid, self.crops)
        inside = torch.arange(slot.shape[2], device=slot.device) < size[..., None]  # (B, P, S)
        image = torch.arange(len(slot), device=slot.device)[:, None, None]
        attended = torch.where(inside, attention[image, slot], 0)
        score = attended + self.alpha * _scaled_variance(x[image, slot], attended, inside)
        share = _shares(score.sum(dim=2) / size.clamp(min=1), size, budget)
        best = attended.masked_fill(~inside, -1).sort(dim=2, descending=True, stable=True).indices
        kept = torch.arange(slot.shape[2], device=slot.device) < share[..., None]
        return Allocation.select(slot.gather(2, best)[kept].view(len(slot), budget), valid.shape[1])


def _cut(valid: Bool[Tensor, "b n"], crops: int) -> tuple[Int[Tensor, "b p s"], Int[Tensor, "b p"]]:
    """The slots of each crop, padded to the largest, and how many they are."""
    count, crop = valid.sum(dim=1, keepdim=True), torch.arange(crops, device=valid.device)
    size = count // crops + (crop < count % crops)
    place = (size.cumsum(dim=1) - size)[..., None] + torch.arange(max(int(size.max()), 1), device=valid.device)
    order = (~valid).int().sort(dim=1, stable=True).indices
    return order.gather(1, place.flatten(1).clamp(max=valid.shape[1] - 1)).view(place.shape), size


def _scaled_variance(
    x: Float[Tensor, "b p s d"], attended: Float[Tensor, "b p s"], inside: Bool[Tensor, "b p s"]
) -> Float[Tensor, "b p s"]:
    """The variance of each token's cosines within its crop, brought to the mean of the crop's attention."""
    pair = inside[..., None] & inside[:, :, None]
    itself = torch.eye(x.shape[2], dtype=torch.bool, device=x.device)
    cosine = (x @ x.transpose(2, 3)).masked_fill(~pair | itself, 0)
    size = inside.sum(dim=2, keepdim=True)
    others = (size - 1).clamp(min=1)
    mean = cosine.sum(dim=3) / others
    # the token's place among its own cosines counts as a 0, as in the authors' code
    variance = (cosine - mean[..., None]).square().masked_fill(~pair, 0).sum(dim=3) / others
    per_token = size.clamp(min=1)
    scale = attended.sum(dim=2, keepdim=True) / per_token / (variance.sum(dim=2, keepdim=True) / per_token + 1e-6)
    return variance * scale


def _shares(score: Float[Tensor, "b p"], size: Int[Tensor, "b p"], budget: int) -> Int[Tensor, "b p"]:
    """The budget by score, whole tokens, remainders to the largest scores, and no crop more than it has."""
    share, left = torch.zeros_like(size), torch.full_like(size[:, :1], budget)
    while bool((left > 0).any()):
        room = size - share
        weight = score.masked_fill(room == 0, 0)
        weight = torch.where(weight.sum(dim=1, keepdim=True) > 0, weight, room.to(score.dtype))
        weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        give = (weight * left).floor().long()
        order = weight.masked_fill(room == 0, -1).sort(dim=1, descending=True, stable=True).indices
        give = give + (order.argsort(dim=1) < left - give.sum(dim=1, keepdim=True))
        give = torch.minimum(give, room)
        share, left = share + give, left - give.sum(dim=1, keepdim=True)
    return share
