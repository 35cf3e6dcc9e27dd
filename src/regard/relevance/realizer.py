"""Realising relevance: three ways make a field, three tensions weigh it, a budget cuts regions where it is worth most.

At grid scale a region is an interval of a quadtree's line (quadtree.py), one output token whatever its size, the
average of its tokens; K tokens are the first K - 1 cuts. Cutting a region is worth, for its weight W,

    (1 - scope) W log(n / n') / log N  +  scope W / n E / (mean squared distance from the image's mean):

compressing takes more tokens to be worth the same everywhere (a concave law: the same for each halving), and
particularizing takes them to be worth the detail E that they recover. Both sum to 1 over an even image.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.allocation import Allocation
from regard.errors import ShapeError
from regard.record import STATES, TERMS, WAYS, Realization
from regard.relevance import tensions, ways
from regard.relevance.quadtree import Quadtree
from regard.relevance.tensions import State, Tensions, checked_state
from regard.relevance.ways import Field, Participatory
from regard.tokens import Question, VisualTokens


@dataclass(frozen=True, eq=False)
class Gaze:
    """What earlier looks left. fixations: (B, F, 2), x and y in [0, 1], where the last looked. visits: (B, N) >= 0,
    what was spent. belief: (B, N), sum 1, where it found something. uncertainty: (B,), in [0, 1], of its answer.
    """

    fixations: Float[Tensor, "b f 2"] | None = None
    visits: Float[Tensor, "b n"] | None = None
    belief: Float[Tensor, "b n"] | None = None
    uncertainty: Float[Tensor, " b"] | None = None


@dataclass(frozen=True, eq=False)
class Realized:
    """What was found and decided, readable. Regions are tokens here, (B, N), until cuts join them.

    seen: (B, 3, N), the three ways. mix: (B, 3), their weights. field: (B, N), sum 1. scores: (B, 3, N), the ways'
    robust scores. drives: (B, 3, 2), states: (B, 3): scope, tempering, prioritization. poles: (B, 3, N): the field,
    what exploring and what diversifying would weigh by, each sum 1. detail: (B, N), squared distance from the image's
    mean over its average. tree: every region and its cuts.
    """

    tokens: VisualTokens
    budget: int
    seen: Float[Tensor, "b 3 n"]
    mix: Float[Tensor, "b 3"]
    field: Float[Tensor, "b n"]
    scores: Float[Tensor, "b 3 n"]
    drives: Float[Tensor, "b 3 2"]
    states: Float[Tensor, "b 3"]
    poles: Float[Tensor, "b 3 n"]
    detail: Float[Tensor, "b n"]
    tree: Quadtree

    @property
    def terms(self) -> Float[Tensor, "b 3 n"]:
        """The three terms of each token's weight; all together sum to 1."""
        return tensions.weights(self.states, *self.poles.unbind(dim=1))

    @cached_property
    def worth(self) -> Float[Tensor, "3 2 m"]:
        """What each cut on the line is worth by each pole's weights, to compress and to particularize."""
        tree, below = self.tree, []
        cut = torch.arange(len(tree.low), device=tree.low.device)
        n1, n2 = (cut - tree.low).clamp(min=1).double(), (tree.high - cut).clamp(min=1).double()
        n = n1 + n2
        count = self.tokens.valid.sum(dim=1).clamp(min=2).double()[tree.image]
        total = tree.energy.new_zeros(len(self.states)).scatter_add(0, tree.image, tree.energy)[tree.image]
        recovered = tree.energy * count / torch.where(total > 0, total, 1) / n
        for pole in self.poles.detach().unbind(dim=1):
            w1, w2 = tree.sums(tree.along(pole))
            general = (w1 * (n / n1).log() + w2 * (n / n2).log()) / count.log()
            below.append(torch.stack((general, (w1 + w2) * recovered)))
        return torch.stack(below).masked_fill(~tree.real, 0)

    @property
    def gains(self) -> Float[Tensor, " m"]:
        """What each cut is worth, at the states: affine in each of them."""
        states = self.states.detach()[self.tree.image]
        scope, temper, priority = states.unbind(dim=1)
        parts = torch.stack(((1 - priority) * (1 - temper), (1 - priority) * temper, priority))
        sides = torch.stack((1 - scope, scope))
        return (self.worth * parts[:, None] * sides).sum(dim=(0, 1))

    @cached_property
    def rank(self) -> Int[Tensor, " m"]:
        """The order of the cuts in each image, the first made first; -1 where an image begins."""
        return self.tree.order(self.gains)

    def groups(self, budget: int) -> Int[Tensor, "b n"]:
        """The output that each token goes to with `budget` tokens an image (or as many as it has), -1 where padded."""
        made = self.rank < budget - 1
        region = made.cumsum(0) - 1
        region = region - region[self.tree.begin[:-1].clamp(max=len(region) - 1)][self.tree.image]
        group = torch.full((self.field.numel(),), -1, device=region.device)
        group[self.tree.token] = region
        return group.view_as(self.field)

    @property
    def allocation(self) -> Allocation:
        """Each region's average, at the budget."""
        return Allocation.merge(self.groups(self.budget), self.budget, boxes=self.tokens.boxes)

    def record(self, question: Question | None, likeness: tuple[Tensor, Tensor] | None, given: tuple) -> Realization:
        """Of one image, as plain data. likeness: of its tokens with the words and the bank. given: the states asked for.

        Raises ShapeError for more than one image.
        """
        if len(self.field) != 1:
            raise ShapeError(f"a record is of one image, got {len(self.field)}: take tokens.images(...)")
        shared = None if likeness is None else float(ways.transjectivity(*likeness, self.tokens.valid)[0])
        order = self.rank.argsort()[1:]  # the first is the image's beginning
        return Realization(
            ways={name: _row(self.seen[0, i]) for i, name in enumerate(WAYS)},
            mix={name: _short(value) for name, value in zip(WAYS, self.mix[0].tolist(), strict=True)},
            field=_row(self.field[0]),
            terms={name: _row(self.terms[0, i]) for i, name in enumerate(TERMS)},
            detail=_row(self.detail[0]),
            states={name: _short(value) for name, value in zip(STATES, self.states[0].tolist(), strict=True)},
            drives={n: (_short(a), _short(b)) for n, (a, b) in zip(STATES, self.drives[0].tolist(), strict=True)},
            fixed=tuple(name for name, value in zip(STATES, given, strict=True) if value != "auto"),
            transjectivity=None if shared is None else _short(shared),
            line=tuple(self.tree.token.tolist()),
            cuts=tuple(order.tolist()),
        )


class Realizer(nn.Module, PyTorchModelHubMixin):
    """The parameters of relevance, few and readable; untrained it has none of them moved.

    spaces, rank: of `Participatory`, where tokens and questions have no space in common.
    """

    def __init__(self, spaces: tuple[int, int] | None = None, rank: int = 64) -> None:
        super().__init__()
        self.participatory = Participatory(spaces, rank)
        self.field = Field()
        self.tensions = Tensions()

    def forward(
        self,
        tokens: VisualTokens,
        question: Question | None,
        budget: int,
        *,
        scope: State = "auto",
        tempering: State = "auto",
        prioritization: State = "auto",
        gaze: Gaze | None = None,
    ) -> Realized:
        """Measure, balance and order; `Realized.allocation` is what the budget pays for.

        tokens: on a grid. question: None for a relevance that is the image's alone. budget: tokens an image, at most
        the valid ones. Raises DataError for tokens without a grid and for a state outside [0, 1], ShapeError for a
        question of another space.
        """
        given = (
            checked_state("scope", scope),
            checked_state("tempering", tempering),
            checked_state("prioritization", prioritization),
        )
        grid, valid, gaze = ways.needed_grid(tokens), tokens.valid, gaze or Gaze()
        x = ways.standardised(tokens)
        seen = torch.stack(
            (
                ways.propositional(x, grid, valid),
                ways.perspectival(x, grid, valid, gaze.fixations),
                self.participatory(tokens, question),
            ),
            dim=1,
        )
        field, mix, scores = self.field(seen, valid)
        if gaze.belief is not None:
            field = tensions.shares((field * gaze.belief).sqrt(), valid)
        square = torch.linalg.vector_norm(x, dim=2).double().square().masked_fill(~valid, 0)
        detail = square / (square.sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True)).clamp(min=1e-12)
        count = valid.sum(dim=1).double()
        scarcity = 1 - (budget - 1) / (count - 1).clamp(min=1)
        pulls = tensions.drives(field, scores, detail, scarcity, valid, gaze.uncertainty)
        visits = torch.zeros_like(field) if gaze.visits is None else gaze.visits.double()
        exploring = tensions.explore(scores, visits, valid)
        diverse = tensions.diversify(valid.double(), tensions.novelty(x, valid), valid)
        return Realized(
            tokens,
            budget,
            seen,
            mix,
            field,
            scores,
            pulls,
            self.tensions(pulls, given),
            torch.stack((field, exploring, diverse), dim=1),
            detail,
            Quadtree.of(x, grid, valid),
        )


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _row(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values.tolist())
