"""VisPruner (arXiv 2412.01818): part of the budget by attention, the rest by dropping duplicates.

    K / 2 tokens of the largest a_i;    of the rest, by rounds, until K / 2 are left:
    drop the 8 even i of the largest max_{j odd} cos(x_i, x_j),    even and odd by their places in the order of a

The tokens that attention leaves over stand in its order. Each round, those at even places are compared with those at
odd places, and the 8 with the most similar partner are dropped, until the rest of the budget is left. As in the
authors' code, the even tokens that stay come first in the next round, the most similar foremost. That code stops with
an error when an odd number of tokens is left over, or when 8 is more than all the even ones; here a round drops no more
than it compared. All cosines are computed once, not in every round.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from regard.allocate._base import Allocator
from regard.allocation import Allocation
from regard.errors import DataError
from regard.tokens import Question, VisualTokens


@dataclass(frozen=True)
class VisPruner(Allocator):
    """Keep the most attended tokens and those of the others that are no duplicates.

    ratio: the share of the budget that goes by attention, rounded down. drop: how many tokens a round drops.
    """

    needs = ("scores:attention",)
    ratio: float = 0.5
    drop: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise DataError(f"VisPruner: ratio must be a share from 0 to 1, got {self.ratio!r}")
        if self.drop < 1:
            raise DataError(f"VisPruner: drop must be at least 1 token a round, got {self.drop!r}")

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        valid = tokens.valid
        attention = self.clean("scores:attention", tokens.scores["attention"], valid)
        x = F.normalize(self.clean("features", tokens.features, valid), dim=2)
        order = attention.masked_fill(~valid, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        important = int(budget * self.ratio)
        rest, left = order[:, important:], valid.sum(dim=1, keepdim=True) - important
        if important < budget:
            rest = self._distinct(x @ x.transpose(1, 2), rest, left, budget - important)
        kept = torch.cat([order[:, :important], rest[:, : budget - important]], dim=1)
        return Allocation.select(kept, x.shape[1])

    def _distinct(
        self, similarity: Float[Tensor, "b n n"], rest: Int[Tensor, "b r"], left: Int[Tensor, "b 1"], count: int
    ) -> Int[Tensor, "b s"]:
        """Drop duplicates until `count` are left. rest: slots; left: how many of them, from the first, are there."""
        n = similarity.shape[1]
        rows, first_row = similarity.flatten(0, 1), torch.arange(len(rest), device=rest.device)[:, None] * n
        place = torch.arange(rest.shape[1], device=rest.device)
        while (most := int(left.max())) > count:
            even, odd = rest[:, 0:most:2], rest[:, 1:most:2]
            n_even, n_odd = (left + 1) // 2, left // 2
            other = torch.where(place[: odd.shape[1]] < n_odd, odd, odd[:, :1]) + first_row
            nearest = rows.index_select(0, other.flatten()).unflatten(0, other.shape).amax(dim=1)  # of every token
            score = nearest.gather(1, even).masked_fill(place[: even.shape[1]] >= n_even, -torch.inf)
            by_score = score.sort(dim=1, descending=True, stable=True).indices
            going = torch.minimum(left - count, n_even).clamp(max=self.drop)  # 0 for an image that is done
            even_to = place[: even.shape[1]] - going
            even_to = torch.where((even_to >= 0) & (even_to < n_even - going), even_to, most)
            odd_to = torch.where(place[: odd.shape[1]] < n_odd, place[: odd.shape[1]] + n_even - going, most)
            slots = torch.cat([even.gather(1, by_score), odd], dim=1)
            rest = rest.new_zeros(len(rest), most + 1).scatter(1, torch.cat([even_to, odd_to], dim=1), slots)
            left = left - going
        return rest
