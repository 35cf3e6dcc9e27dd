"""DivPrune (arXiv 2503.02175): the most diverse subset, by greedy max-min cosine distance.

    S <- S + argmax_i min_{j in S} (1 - cos(x_i, x_j)),    the first: argmax_i min_{j not i} (1 - cos(x_i, x_j))

The first token is the one farthest from its nearest neighbour, each next one the farthest from those kept. The kept
slots are sorted, which the paper's run did not do and its release does.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from regard.allocate._base import Allocator
from regard.allocate._similar import every_pair
from regard.allocation import Allocation
from regard.tokens import Question, VisualTokens


@dataclass(frozen=True)
class DivPrune(Allocator):
    """Keep the `budget` tokens that a greedy rule finds farthest from one another."""

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        valid = tokens.valid
        self.check_finite("features", tokens.features, valid)
        x = tokens.features.detach().to(torch.promote_types(tokens.features.dtype, torch.float32))
        if tokens.mask is not None:
            x = x.masked_fill(~valid[..., None], 0)
        x = F.normalize(x, dim=2)
        similarity = every_pair(x)  # (B, N, N): the first token needs them all
        similarity.diagonal(dim1=1, dim2=2).fill_(-2)
        if tokens.mask is not None:
            similarity.masked_fill_(~valid[:, None], -2)
        nearest = similarity.amax(dim=2).masked_fill(~valid, torch.inf)
        rows, first_row = similarity.flatten(0, 1), torch.arange(len(x), device=x.device) * x.shape[1]
        alike = 16 * torch.finfo(nearest.dtype).eps  # two that are each other's nearest differ by rounding alone
        kept = [(nearest <= nearest.amin(dim=1, keepdim=True) + alike).int().argmax(dim=1)]
        nearest = torch.full_like(nearest, -2).masked_fill(~valid, torch.inf)
        for _ in range(1, budget):
            torch.maximum(nearest, rows.index_select(0, first_row + kept[-1]), out=nearest)
            nearest.scatter_(1, kept[-1][:, None], torch.inf)
            kept.append(nearest.argmin(dim=1))
        return Allocation.select(torch.stack(kept, dim=1), x.shape[1])
