"""LLaVA's bridge (arXiv 2310.03744): an MLP for each token, of all of them or of those that an allocator makes.

    out_i = W_2 gelu(h_i [+ W_r r_i + W_g sum_j softmax(a r)_j h_j])        h_i = W_1 LN(x_i) + places(box_i)

Where it is `hearing`, each token is told r_i, how near it is to the question, among those of its image
(`bridge.heard`) and by itself, as the eye has it; and what is seen where that is most.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.allocate import load
from regard.allocation import Allocation
from regard.errors import DataError
from regard.tokens import Question, VisualTokens
from regard.vlm.bridges.bridge import Bridge, Bridged, Reader, heard

_MOST = 10.0  # of what a token is told of its nearness by itself


class Hearing(nn.Module):
    """What tokens are told of the question: how near each is, and what is seen where that is most."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.near, self.found = nn.Linear(2, dim), nn.Linear(dim, dim, bias=False)
        self.sharp = nn.Parameter(torch.tensor([1.0, _MOST]))  # a

    def forward(
        self, read: Float[Tensor, "b k d"], near: Float[Tensor, "b k 2"], valid: Bool[Tensor, "b k"]
    ) -> Float[Tensor, "b k d"]:
        """What is added to what was read. near: as `heard`, and by itself."""
        likely = (near @ self.sharp).masked_fill(~valid, torch.finfo(near.dtype).min).softmax(dim=1)
        return self.near(near) + self.found(likely[:, None] @ read)


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
        self.hearing = Hearing(hidden or dim) if hearing else None
        self.out = nn.Linear(hidden or dim, dim)

    def bridged(self, tokens: VisualTokens, question: Question | None, budget: int) -> Bridged:
        allocation = self.allocation(tokens, question, budget)
        kept = allocation.apply(tokens)
        read = self.read(kept.features, kept.boxes)
        if self.hearing is not None:
            read = read + self.hearing(read, _near(kept, question).to(read.dtype), kept.valid)
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


@torch.no_grad()
def _near(tokens: VisualTokens, question: Question | None) -> Tensor:
    """(B, N, 2); 0 where none is asked."""
    itself = torch.zeros_like(tokens.boxes[..., 0]) if question is None else tokens.relevance(question)
    return torch.stack((heard(tokens, question), itself.clamp(-_MOST, _MOST) / _MOST), dim=2)


def _rows(allocation: Allocation, tokens: VisualTokens) -> Tensor:
    """(B, K), True where an output is real: an identity keeps padding in its place."""
    return tokens.valid if allocation.is_identity else allocation.valid
