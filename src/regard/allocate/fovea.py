"""Foveated tokens: regions that grow with the distance from where the eye rests.

    w_i = a_i^2 / sum_j a_j^2,    a_i = 1 / (1 + d_i / (0.15 d_max))        a token's acuity, squared for an area

A quadtree is cut where most acuity gains most: sum_i w_i log(n / n_part) over the tokens of each cut region, so that a
region far away stays one token. Pooling about a fixation is FoveaTer's (arXiv 2105.14173) and that of gaze tokens
(arXiv 2507.15833), whose regions are of a few fixed sizes; here they are what an exact budget pays for. The law of
acuity is that of relevance realization's looks.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from regard.allocate._base import Allocator
from regard.allocation import Allocation
from regard.errors import DataError
from regard.relevance.quadtree import Quadtree
from regard.relevance.ways import ACUITY_HALVES
from regard.tokens import Question, VisualTokens


@dataclass(frozen=True)
class Fovea(Allocator):
    """Average the tokens of regions that are small about a fixation.

    fixation: x and y in [0, 1], (0, 0) the top left; by default the token nearest to the question, or the centre where
    nothing is asked.
    """

    needs = ("grid",)
    uses = ("question",)
    fixation: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        given = self.fixation
        if given is not None and not (len(given) == 2 and all(0 <= side <= 1 for side in given)):
            raise DataError(f"fixation must be x and y from 0 to 1, got {given}")

    @torch.no_grad()
    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        assert tokens.grid is not None
        sharp = self._acuity(tokens, question)
        tree = Quadtree.of(sharp[..., None], tokens.grid, tokens.valid)
        weights = sharp.square()
        one, two = tree.sums(tree.along(weights / weights.sum(dim=1, keepdim=True)))
        cut = torch.arange(len(tree.low), device=tree.low.device)
        n1, n2 = (cut - tree.low).clamp(min=1).double(), (tree.high - cut).clamp(min=1).double()
        gains = one * ((n1 + n2) / n1).log() + two * ((n1 + n2) / n2).log()
        return Allocation.merge(tree.groups(tree.order(gains), budget, tokens.valid.shape), budget, boxes=tokens.boxes)

    def _acuity(self, tokens: VisualTokens, question: Question | None) -> Float[Tensor, "b n"]:
        """a_i, 0 where padded; distances are in tokens."""
        valid, boxes = tokens.valid[..., None], tokens.boxes.double()
        sizes = (boxes[..., 2:] - boxes[..., :2]).masked_fill(~valid, 0).sum(dim=1, keepdim=True)
        sizes = (sizes / valid.sum(dim=1, keepdim=True).clamp(min=1)).clamp(min=1e-6)
        away = ((boxes[..., :2] + boxes[..., 2:]) / 2 - self._places(tokens, question)[:, None]) / sizes
        share = torch.linalg.vector_norm(away, dim=2) / torch.linalg.vector_norm(1 / sizes, dim=2)
        return (1 / (1 + share / ACUITY_HALVES)).masked_fill(~tokens.valid, 0)

    def _places(self, tokens: VisualTokens, question: Question | None) -> Float[Tensor, "b 2"]:
        """Where each image's eye rests, (B, 2), x and y in [0, 1]."""
        if self.fixation is not None:
            return tokens.boxes.new_tensor(self.fixation).expand(len(tokens.boxes), -1)
        if question is None:
            return tokens.boxes.new_tensor((0.5, 0.5)).expand(len(tokens.boxes), -1)
        relevance = tokens.relevance(question)
        self.check_finite("relevance", relevance[..., None], tokens.valid)
        nearest = relevance.masked_fill(~tokens.valid, -torch.inf).argmax(dim=1)
        box = tokens.boxes[torch.arange(len(nearest), device=nearest.device), nearest]
        return (box[:, :2] + box[:, 2:]) / 2
