"""A cascade as the bridge: coarse tokens of the whole image, and the most salient of them read again, finer.

    c = pool(x) to half of the budget;    s_i = w tanh(U LN(c_i) + V q)        what the question needs finer, q its mean
    out = [f(c_i) g_i for all i, f(x_j) g_i for the members j of the best c_i],    g = 1 + sigmoid(s) - stop(sigmoid(s))

CF-ViT's coarse-to-fine splitting (arXiv 2203.03821), over the tokens of one eye. The gate is 1 in value and lets the
loss teach s.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.allocate import load
from regard.allocation import Allocation, Attribution
from regard.errors import DataError
from regard.tokens import Question, VisualTokens
from regard.vlm.bridges.bridge import Bridge, Bridged, Reader


class CascadeBridge(Bridge):
    """hidden: width of the MLP and of the score. asked: width of the eye's questions, 0 where they are not read."""

    name = "cascade"

    def __init__(self, width: int, dim: int, hidden: int | None = None, asked: int = 0) -> None:
        super().__init__(width, dim)
        hidden = hidden or dim
        self.pool, self.asked = load("pool"), asked
        self.read, self.out = Reader(width, hidden), nn.Linear(hidden, dim)
        self.look, self.hear = nn.Linear(hidden, hidden), nn.Linear(asked, hidden, bias=False) if asked else None
        self.score = nn.Linear(hidden, 1)

    def bridged(self, tokens: VisualTokens, question: Question | None, budget: int) -> Bridged:
        coarse = self.pool.allocate(tokens, None, -(-budget // 2))
        seen = coarse.apply(tokens)
        read = self.read(seen.features, seen.boxes)
        scores = self._scores(read, question).masked_fill(~coarse.valid, -torch.inf)
        fine, parent = self._chosen(tokens, coarse, scores.detach(), budget - coarse.n_out)
        gate = scores.sigmoid()
        gate = 1 + gate - gate.detach()
        rows = torch.arange(len(parent), device=parent.device)[:, None]
        slots = fine.clamp(min=0)
        finer = self.read(
            tokens.features.take_along_dim(slots[..., None], dim=1),
            tokens.boxes.take_along_dim(slots[..., None], dim=1),
        )
        whole = torch.cat((read * gate[..., None], finer * gate[rows, parent][..., None]), dim=1)
        mask = torch.cat((coarse.valid, fine >= 0), dim=1)
        whole = self.out(nn.functional.gelu(whole)).masked_fill(~mask[..., None], 0)
        return Bridged(whole, mask, None if self.training else _looked(coarse, fine))

    def _scores(self, read: Float[Tensor, "b k h"], question: Question | None) -> Float[Tensor, "b k"]:
        heard = self.look(read)
        if self.hear is not None:
            if question is None:
                raise DataError("the cascade was made to hear a question: give the eye's")
            heard = heard + self.hear(question.mean().to(read.dtype))[:, None]
        return self.score(heard.tanh())[..., 0]

    @torch.no_grad()
    def _chosen(self, tokens: VisualTokens, coarse: Allocation, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Slots of the eye's tokens that are read again (B, count), -1 for none, and the coarse token of each.

        Members of the best coarse tokens, all of one before those of the next, as many as the budget has.
        """
        batch, n = tokens.features.shape[:2]
        places = torch.arange(coarse.n_out, device=scores.device, dtype=torch.float64).expand(batch, -1)
        parent = coarse.restore(places[..., None])[..., 0].round().long()
        members = torch.zeros_like(scores).scatter_add(1, parent, tokens.valid.to(scores.dtype)).gather(1, parent)
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1).gather(1, parent)
        again = tokens.valid & (members > 1)  # what is one token already is fine enough
        best = torch.where(again, rank, n).sort(dim=1, stable=True)
        chosen = best.indices[:, :count]
        return torch.where(best.values[:, :count] < n, chosen, -1), parent.gather(1, chosen)


@torch.no_grad()
def _looked(coarse: Allocation, fine: Tensor) -> Attribution:
    """The coarse tokens read their members, the fine ones themselves."""
    again = nn.functional.one_hot(fine.clamp(min=0), coarse.n_in) * (fine >= 0)[..., None]
    whole = coarse.matrix()
    return Attribution(torch.cat((whole, again.to(whole.dtype)), dim=1))
