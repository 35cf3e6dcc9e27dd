"""LLaVA's bridge (arXiv 2310.03744): an MLP for each token, of all of them or of those that an allocator makes.

out_i = W_2 gelu(W_1 LN(x_i) + places(box_i) [+ w r_i])

Where it is `hearing`, it is told r_i, how near each token is to the question (`bridge.heard`).
"""

import torch
from torch import Tensor, nn

from regard.allocate import load
from regard.allocation import Allocation
from regard.errors import DataError
from regard.tokens import Question, VisualTokens
from regard.vlm.bridges.bridge import Bridge, Bridged, Reader, heard


class Projector(Bridge):
    """allocator: by name, what spends the budget; None: all tokens go on, whatever the budget. hidden: of the MLP.
    hearing: whether tokens are told how near they are to the question.
    """

    name = "projector"
    ragged = True

    def __init__(
        self, width: int, dim: int, allocator: str | None = None, hidden: int | None = None, hearing: bool = False
    ) -> None:
        super().__init__(width, dim)
        self.allocator = None if allocator is None else load(allocator)
        self.hears = hearing or (
            self.allocator is not None and "question" in (*self.allocator.needs, *self.allocator.uses)
        )
        self.read = Reader(width, hidden or dim)
        self.near = nn.Linear(1, hidden or dim) if hearing else None
        self.out = nn.Linear(hidden or dim, dim)

    def bridged(self, tokens: VisualTokens, question: Question | None, budget: int) -> Bridged:
        allocation = self.allocation(tokens, question, budget)
        kept = allocation.apply(tokens)
        read = self.read(kept.features, kept.boxes)
        if self.near is not None:
            read = read + self.near(heard(kept, question)[..., None].to(read.dtype))
        return Bridged(self.out(nn.functional.gelu(read)), _rows(allocation, tokens), allocation)

    @torch.no_grad()
    def allocation(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        """How the budget is spent. Raises DataError where the allocator needs what the eye does not give."""
        batch, count, _ = tokens.features.shape
        if self.allocator is None:
            return Allocation.identity(batch, count, tokens.mask, tokens.features.device)
        if question is None and "question" in self.allocator.needs:
            raise DataError(f"the allocator {self.allocator.name} needs a question: give the eye's")
        return self.allocator.allocate(tokens, question, budget)


def _rows(allocation: Allocation, tokens: VisualTokens) -> Tensor:
    """(B, K), True where an output is real: an identity keeps padding in its place."""
    return tokens.valid if allocation.is_identity else allocation.valid
