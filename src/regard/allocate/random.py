"""A random subset of the tokens: the first baseline that any selector has to beat (arXiv 2502.11501).

    S = the K tokens of the largest u_i,    u_i drawn from (0, 1) by the seed and i

The draw depends on the seed and on a token's place among the valid ones, not on the batch, the padding or the device.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from regard.allocate._base import Allocator, top_slots
from regard.allocation import Allocation
from regard.tokens import Question, VisualTokens


@dataclass(frozen=True)
class Random(Allocator):
    """Keep a random `budget` of the valid tokens, the same for the same seed."""

    seed: int = 0

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        place = tokens.valid.long().cumsum(dim=1) - 1
        draw = _splitmix(_splitmix(torch.full_like(place, self.seed % 2**63)) + place)
        draw = (draw >> 11) & (2**53 - 1)
        return Allocation.select(top_slots(draw.double(), tokens.valid, budget), place.shape[1])


def _splitmix(state: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """SplitMix64 (Steele, Lea and Flood 2014) in wrapping 64-bit arithmetic, the same on every device."""
    state = state - 0x61C8864680B583EB
    state = (state ^ ((state >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    state = (state ^ ((state >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return state ^ ((state >> 31) & (2**33 - 1))
