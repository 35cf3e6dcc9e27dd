"""A cascade as the bridge: coarse tokens of the whole image, and the most salient of them read again, finer.

    c = pool(x) to half of the budget;    s_i = w tanh(U f(c_i)) + a n_i,    n how near c_i is to the question (`heard`)
    out = [f(c_i) g_i for all i, f(x_j) g_i for members j of the best c_i],    g = 1 + (sigmoid(s) - stop(sigmoid(s)))

CF-ViT's coarse-to-fine splitting (arXiv 2203.03821), over the tokens of one eye. The gate is 1 in value and lets the
loss teach s. The eye's tokens must be a grid.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.allocate import load
from regard.allocation import Allocation, Attribution
from regard.tokens import Question, VisualTokens
from regard.vlm.bridges.bridge import Bridge, Bridged, Reader, heard


class CascadeBridge(Bridge):
    """hidden: width of the MLP and of the score."""

    name = "cascade"
    hears = True

    def __init__(self, width: int, dim: int, hidden: int | None = None) -> None:
        super().__init__(width, dim)
        hidden = hidden or dim
        self.pool = load("pool")
        self.read, self.out = Reader(width, hidden), nn.Linear(hidden, dim)
        self.look, self.score = nn.Linear(hidden, hidden), nn.Linear(hidden, 1)
        self.hear = nn.Parameter(torch.ones(()))

    def bridged(self, tokens: VisualTokens, question: Question | None, budget: int) -> Bridged:
        coarse = self.pool.allocate(tokens, None, -(-budget // 2))
        seen = coarse.apply(tokens)
        read = self.read(seen.features, seen.boxes)
        near = coarse.apply(heard(tokens, question)).to(read.dtype)
        scores = self.score(self.look(read).tanh())[..., 0] + self.hear * near
        fine, parent = self._chosen(tokens, coarse, scores.detach(), budget - coarse.n_out)
        gate = scores.sigmoid()
        gate = (1 + (gate - gate.detach()))[..., None]
        slots = fine[..., None]
        finer = self.read(tokens.features.take_along_dim(slots, dim=1), tokens.boxes.take_along_dim(slots, dim=1))
        whole = torch.cat((read * gate, finer * gate.take_along_dim(parent[..., None], dim=1)), dim=1)
        features = self.out(nn.functional.gelu(whole))
        reading = None if self.training else _looked(coarse, fine)
        return Bridged(features, torch.ones_like(features[..., 0], dtype=torch.bool), reading)

    @torch.no_grad()
    def _chosen(
        self, tokens: VisualTokens, coarse: Allocation, scores: Float[Tensor, "b k"], count: int
    ) -> tuple[Int[Tensor, "b c"], Int[Tensor, "b c"]]:
        """Slots of the eye's tokens that are read again, and the coarse token of each.

        Members of the best coarse tokens, all of one before those of the next, as many as the budget has.
        """
        batch, n, _ = tokens.features.shape
        places = torch.arange(coarse.n_out, device=scores.device, dtype=torch.float64).expand(batch, -1)
        parent = coarse.restore(places[..., None])[..., 0].round().long()
        members = torch.zeros_like(scores).scatter_add(1, parent, tokens.valid.to(scores.dtype)).gather(1, parent)
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1).gather(1, parent)
        again = tokens.valid & (members > 1)  # what is one token already is fine enough
        chosen = torch.where(again, rank, n).argsort(dim=1, stable=True)[:, :count]
        return chosen, parent.gather(1, chosen)


@torch.no_grad()
def _looked(coarse: Allocation, fine: Tensor) -> Attribution:
    """The coarse tokens read their members, the fine ones themselves."""
    again = nn.functional.one_hot(fine, coarse.n_in)
    whole = coarse.matrix()
    return Attribution(torch.cat((whole, again.to(whole.dtype)), dim=1))
