"""BLIP-2's bridge (arXiv 2301.12597): learned queries read the image through a Q-Former, and go on by a linear map.

    out_k = W QFormer(queries, V LN(x) + places(box))_k,    k = 1 .. K

The first queries are used where the budget is smaller than their number, so a bridge that is trained with budgets drawn
at random serves them all. Ours differs in that the eye's features tell where they are (`Places`).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.allocation import Attribution
from regard.attention.qformer import QFormer
from regard.tokens import Question, VisualTokens
from regard.vlm.bridges.bridge import Bridged, Reader
from regard.vlm.bridges.queried import Queried, Start


class QueryBridge(Queried):
    """queries: how many there are. depth, heads, inner: of the Q-Former, its hidden width being 4 x inner. inner: its
    width, `dim` by default. start: as of `Queried`.
    """

    name = "qformer"
    spread = 0.02

    def __init__(
        self,
        width: int,
        dim: int,
        queries: int = 64,
        depth: int = 2,
        heads: int = 4,
        inner: int | None = None,
        start: Start = "random",
    ) -> None:
        super().__init__(width, dim, queries, start)
        inner = inner or dim
        self.read = Reader(width, inner)
        self.former = QFormer(inner, heads, depth, 4 * inner, encoder_dim=inner, queries=queries)
        self.out = nn.Linear(inner, dim)

    @property
    def learned(self) -> nn.Parameter:
        """The queries, (K, D)."""
        return self.former.queries

    def bridged(self, tokens: VisualTokens, question: Question | None, budget: int) -> Bridged:
        states = self.read(tokens.features, tokens.boxes)
        queries = self.former.queries[:budget].expand(len(states), -1, -1)
        found = self.out(self.former(queries, states, encoder_mask=tokens.mask))
        reading = None if self.training else Attribution(self._weights(queries, states, tokens.mask))
        return Bridged(found, torch.ones_like(found[..., 0], dtype=torch.bool), reading)

    @torch.no_grad()
    def _weights(self, queries: Tensor, states: Tensor, mask: Tensor | None) -> Float[Tensor, "b k n"]:
        """Where each looked in the first layer, the mean of its heads."""
        return self.former.weights(queries, states, encoder_mask=mask).mean(dim=1)
