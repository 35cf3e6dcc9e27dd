"""ToMe (arXiv 2210.09461): merge the most similar tokens by their keys, in pairs, until the budget is left.

    pairs (i even, j odd) of the largest cos(key_i, key_j) become one:    y = mean of its members, until K are left

Bipartite soft matching: tokens at even places each find the most similar one at an odd place, and the most similar
pairs merge, at most half of the tokens a round. The paper merges a few in every layer of the encoder; here it is done
to what leaves it, in as many rounds as the budget takes, a merged token's key being the mean of its members'. Between
rounds the tokens stand as in the authors' code, what was not merged first. A merged token is the mean of its members,
however many; that attention should then count it as many (proportional attention) is up to the language model.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from regard.allocate._base import Allocator
from regard.allocation import Allocation
from regard.tokens import Question, VisualTokens


@dataclass(frozen=True)
class ToMe(Allocator):
    """Merge the tokens with the most similar keys until `budget` are left."""

    needs = ("keys",)

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        assert tokens.keys is not None
        valid = tokens.valid
        keys = self.clean("keys", tokens.keys, valid)
        left = valid.sum(dim=1, keepdim=True)
        group = torch.where(valid, valid.long().cumsum(dim=1) - 1, -1)  # each input's place among the tokens
        keys = _summed(keys, group, int(left.max()))
        while bool((left > budget).any()):
            going = torch.minimum(left - budget, left // 2)  # 0 for an image that is done
            moves = _moves(F.normalize(keys, dim=2), left, going)
            left = left - going
            group = torch.where(group < 0, -1, moves.gather(1, group.clamp(min=0)))
            keys = _summed(keys, moves, int(left.max()))
        return Allocation.merge(group, budget, boxes=tokens.boxes)


def _summed(keys: Float[Tensor, "b m c"], place: Int[Tensor, "b m"], count: int) -> Float[Tensor, "b n c"]:
    """The sum of the keys that go to each of `count` places: the direction of their mean."""
    at = place.clamp(min=0) + torch.arange(len(keys), device=keys.device)[:, None] * count
    sums = keys.new_zeros(len(keys) * count, keys.shape[2]).index_add(0, at.flatten(), keys.flatten(0, 1))
    return sums.unflatten(0, (len(keys), count))


def _moves(keys: Float[Tensor, "b m c"], left: Int[Tensor, "b 1"], going: Int[Tensor, "b 1"]) -> Int[Tensor, "b m"]:
    """The new place of each token after one round that merges `going` pairs of the first `left` tokens."""
    similarity = keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)  # (B, even, odd)
    even = torch.arange(similarity.shape[1], device=keys.device)
    odd = torch.arange(similarity.shape[2], device=keys.device)
    n_even, n_odd = left - left // 2, left // 2
    if bool((left < keys.shape[1]).any()):
        similarity.masked_fill_((odd >= n_odd)[:, None] | (even >= n_even)[..., None], -torch.inf)
    best = similarity.argmax(dim=2)
    score = similarity.gather(2, best[..., None]).squeeze(2)
    rank = score.sort(dim=1, descending=True, stable=True).indices.argsort(dim=1)
    stay = n_even - going  # even tokens that stay, before the odd ones
    moves = torch.zeros(keys.shape[:2], dtype=torch.long, device=keys.device)
    moves[:, ::2] = torch.where(rank < going, stay + best, rank - going)
    moves[:, 1::2] = stay + odd
    return torch.where(torch.arange(keys.shape[1], device=keys.device) < left, moves, 0)
