"""Evenly spread tokens: the one nearest to the centre of each of `budget` equal areas (those of `pool`).

    S = {the token nearest to the centre of A_k : k = 1 .. K},    A_1 .. A_K of equal size

A baseline of arXiv 2502.11501: of what `pool` averages it keeps one token.
"""

from dataclasses import dataclass

from regard.allocate._base import Allocator
from regard.allocate.pool import areas
from regard.allocation import Allocation
from regard.tokens import Question, VisualTokens


@dataclass(frozen=True)
class Grid(Allocator):
    """Keep `budget` tokens evenly spread over the grid."""

    needs = ("grid",)

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        spread = Allocation.merge(areas(tokens, budget), budget, boxes=tokens.boxes)
        return Allocation.select(spread.anchor, spread.n_in)
