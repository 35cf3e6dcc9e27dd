"""CDPruner (arXiv 2506.10967): the subset that is diverse and relevant at once, by a determinantal point process.

    L_ij = r_i r_j cos(x_i, x_j),    S <- S + argmax_i det L_{S+i},    r = relevance in (0, 1], or exp of it (theta)

The kernel is the cosine of two tokens times the relevance of both; the subset with the largest determinant is picked
greedily. Relevance is brought to (0, 1] over the tokens of each image; the authors' code does it over the whole batch,
so that an image's tokens change with its neighbours. It also turns the relevance round, as CLIP's is inverted one layer
before the last; here a larger relevance is taken for more relevant, and an eye that needs the turn makes it. Where the
budget exceeds the rank of the features, that code's residuals become NaN and it keeps some tokens twice; see
`greedy_map` for what happens here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from regard.allocate._base import Allocator
from regard.allocate._similar import LazyRows
from regard.allocation import Allocation
from regard.errors import DataError
from regard.tokens import Question, VisualTokens

_FLOOR = 1e-6  # of the relevance, as in the authors' code


@dataclass(frozen=True)
class CDPruner(Allocator):
    """Keep the `budget` tokens that are most relevant to the question and least alike.

    theta: None for the relevance itself; a number from 0 to under 1 takes exp(theta / (2 - 2 theta) relevance), from
    diversity alone (0) to relevance above all.
    """

    needs = ("question",)
    theta: float | None = None

    def __post_init__(self) -> None:
        if self.theta is not None and not 0 <= self.theta < 1:
            raise DataError(f"CDPruner: theta must be None or from 0 to under 1, got {self.theta!r}")

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        assert question is not None
        valid = tokens.valid
        x = F.normalize(self.clean("features", tokens.features, valid), dim=2)
        raw = self.clean("relevance", tokens.relevance(question), valid)
        low = raw.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True)
        high = raw.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True)
        share = torch.where(high > low, (raw - low) / torch.where(high > low, high - low, 1), 1)
        relevance = _FLOOR + (1 - _FLOOR) * share
        if self.theta is not None:
            relevance = (self.theta / (2 - 2 * self.theta) * relevance).exp()
        own = relevance**2 * (x != 0).any(dim=2)  # a token that holds nothing adds nothing
        rows = LazyRows(x * relevance.to(x.dtype)[..., None])
        own = torch.where(valid, own, -torch.inf).to(x.dtype)
        return Allocation.select(_greedy(rows.at, own, budget), x.shape[1])


def greedy_map(kernel: Float[Tensor, "b n n"], k: int) -> Int[Tensor, "b {k}"]:
    """The k items, in the order picked, that each enlarge the determinant of the picked ones' kernel the most.

    Fast greedy MAP inference (Chen, Zhang and Zhou, arXiv 1709.05135): a column of the Cholesky factor a pick. kernel:
    positive semi-definite; an item with -inf on its diagonal is never picked while others are left. Ties go to the
    lower item. Items that would make the determinant 0 come last, the largest diagonal first: an item counts as such
    when less than 128 epsilon of its own diagonal is left.
    """
    kernel = kernel.detach().to(torch.promote_types(kernel.dtype, torch.float32))
    rows, first_row = kernel.flatten(0, 1), torch.arange(len(kernel), device=kernel.device) * kernel.shape[1]
    return _greedy(lambda pick, _: rows.index_select(0, first_row + pick), kernel.diagonal(dim1=1, dim2=2), k)


def _greedy(row: Callable[[Tensor, Tensor], Tensor], diagonal: Float[Tensor, "b n"], k: int) -> Int[Tensor, "b {k}"]:
    """The same from the kernel's diagonal and, for one pick in each image, its row. row: (B,), (B, N) -> (B, N)."""
    batch, n = diagonal.shape
    limits = torch.finfo(diagonal.dtype)
    absent = diagonal == -torch.inf
    left = diagonal.masked_fill(absent, 0)  # by what factor each item would enlarge the determinant
    floor = left.abs() * 128 * limits.eps
    last = torch.where(absent, -torch.inf, -1 / left.clamp(min=limits.tiny))
    factor = diagonal.new_empty(batch, k, n)
    picked = torch.empty(batch, k, dtype=torch.long, device=diagonal.device)
    for step in range(k):
        value = torch.where(left > floor, left, last)
        pick = value.argmax(dim=1)
        picked[:, step] = pick
        at, column = pick[:, None], row(pick, value)
        if step:
            earlier = factor[:, :step]
            weight = earlier.gather(2, at[..., None].expand(-1, step, 1))
            column = torch.baddbmm(column[:, None], weight.transpose(1, 2), earlier, alpha=-1).squeeze(1)
        own = left.gather(1, at)
        factor[:, step] = column * torch.where(own > floor.gather(1, at), own.rsqrt(), 0)
        left.addcmul_(factor[:, step], factor[:, step], value=-1)
        last.scatter_(1, at, -torch.inf)
        floor.scatter_(1, at, torch.inf)
    return picked
