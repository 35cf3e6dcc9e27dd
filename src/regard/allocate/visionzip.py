"""VisionZip (arXiv 2412.04467): the most attended tokens as they are, the rest merged into a few by their keys.

    the 27 K / 32 tokens of the largest a_i as they are;    of the rest, evenly spaced targets t:
    y_t = x_t + mean of x_i over the i whose nearest target is t, by cos(key_i, key_t)

Of the tokens that are not dominant, evenly spaced ones are targets; each other one joins the target with the most
similar key, and the target becomes itself plus the mean of those that joined it. Here that sum is an average with a
`gain` of 2. The authors keep 54 + 10 tokens or 135 + 25, which is one share, 27 / 32; their first number counts the
[CLS] token, which is none of ours. Outputs stand in the order of the image, not contextual ones last.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from regard.allocate._base import Allocator, top_slots
from regard.allocation import Allocation
from regard.errors import DataError
from regard.tokens import Question, VisualTokens


@dataclass(frozen=True)
class VisionZip(Allocator):
    """Keep the most attended tokens and merge the others into what is left of the budget.

    dominant: the share of the budget that is kept as it is, rounded to whole tokens.
    """

    needs = ("scores:attention", "keys")
    dominant: float = 54 / 64

    def __post_init__(self) -> None:
        if not 0 <= self.dominant <= 1:
            raise DataError(f"VisionZip: dominant must be a share from 0 to 1, got {self.dominant!r}")

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        assert tokens.keys is not None
        valid = tokens.valid
        attention = self.clean("scores:attention", tokens.scores["attention"], valid)
        keys = F.normalize(self.clean("keys", tokens.keys, valid), dim=2)
        dominant = round(budget * self.dominant)
        contextual = budget - dominant
        kept = top_slots(attention, valid, dominant)
        if not contextual:
            return Allocation.select(kept, attention.shape[1])
        kept_row = torch.arange(dominant, device=kept.device).expand_as(kept)
        group = torch.full_like(valid, -1, dtype=torch.long).scatter(1, kept, kept_row)
        rest = valid & (group < 0)
        place = rest.long().cumsum(dim=1) - 1  # among the rest
        step = rest.sum(dim=1, keepdim=True) // contextual
        is_target = rest & (place % step == 0) & (place < step * contextual)
        target = (~is_target).int().sort(dim=1, stable=True).indices[:, :contextual]
        similarity = keys @ keys.gather(1, target[..., None].expand(-1, -1, keys.shape[2])).transpose(1, 2)
        joins = torch.where(is_target, place // step, similarity.argmax(dim=2))
        group = torch.where(rest, joins + dominant, group)
        joined = torch.zeros(len(group), budget, device=group.device, dtype=keys.dtype)
        joined = joined.scatter_add(1, group.clamp(min=0), (rest & ~is_target).to(keys.dtype))
        weight = torch.where(rest & ~is_target, 1 / joined.gather(1, group.clamp(min=0)), 1)
        gain = torch.where(joined > 0, 2, 1).to(keys.dtype)
        return Allocation.merge(group, budget, weight, boxes=tokens.boxes, gain=gain)
