"""PruMerge (arXiv 2403.15388): the most attended tokens, each with a little of its nearest ones, and one of the rest.

    y_k = x_k + sum_j a_j x_j over the 32 j of the largest cos(key_j, key_k),    k among the K - 1 largest a_k
    y_K = sum_j a_j x_j over all j that are not kept

Each kept token becomes itself plus the attention-weighted sum of the 32 tokens with the most similar keys; one more
token is the attention-weighted sum of all that is dropped. Here each sum is an average, and `gain` says of how much.
The paper keeps as many tokens as its attention has outliers (over Q3 + 1.5 IQR); here the budget says, and the extra
token is one of it. The authors' code takes attention and keys from one great head over the last layer; here they are
what the eye gives. The extra token stands where the most attended dropped one does, not at the end.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from regard.allocate._base import Allocator, top_slots
from regard.allocation import Allocation
from regard.errors import DataError
from regard.tokens import Question, VisualTokens


@dataclass(frozen=True)
class PruMerge(Allocator):
    """Keep the most attended tokens but one, each with its nearest, and gather all others into the last.

    neighbours: how many tokens each kept one takes in, kept ones among them.
    """

    needs = ("scores:attention", "keys")
    neighbours: int = 32

    def __post_init__(self) -> None:
        if self.neighbours < 0:
            raise DataError(f"PruMerge: neighbours must be 0 or more tokens, got {self.neighbours!r}")

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        assert tokens.keys is not None
        valid = tokens.valid
        attention = self.clean("scores:attention", tokens.scores["attention"], valid)
        keys = F.normalize(self.clean("keys", tokens.keys, valid), dim=2)
        # a weight is no less than nothing; not 0, so that a row is never empty
        weight = attention.clamp(min=torch.finfo(attention.dtype).tiny).masked_fill(~valid, 0)
        kept = top_slots(attention, valid, budget - 1)
        own = valid.new_zeros(*kept.shape, valid.shape[1]).scatter(2, kept[..., None], True)  # (B, K - 1, N)
        cosine = keys.gather(1, kept[..., None].expand(-1, -1, keys.shape[2])) @ keys.transpose(1, 2)
        cosine = cosine.masked_fill(own | ~valid[:, None], -torch.inf)
        near = _largest(cosine, min(self.neighbours, valid.shape[1] - 1)) & (cosine > -torch.inf)
        dropped = valid & ~own.any(dim=1)
        extra = torch.where(dropped, weight, 0)[:, None]
        rows = torch.cat([torch.where(near, weight[:, None], 0).masked_fill(own, 1), extra], dim=1)
        most = torch.where(dropped, weight, -1).argmax(dim=1, keepdim=True)
        gain = rows.sum(dim=2)
        return Allocation.mix(rows / gain[..., None], anchor=torch.cat([kept, most], dim=1), gain=gain)


def _largest(values: Float[Tensor, "b k n"], count: int) -> Bool[Tensor, "b k n"]:
    """True for the `count` largest of the last dimension, ties to the lower place."""
    if not count:
        return torch.zeros_like(values, dtype=torch.bool)
    least = values.topk(count, dim=-1).values[..., -1:]
    above, equal = values > least, values == least
    return above | (equal & (equal.cumsum(dim=-1) <= count - above.sum(dim=-1, keepdim=True)))
