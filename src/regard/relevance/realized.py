"""What relevance realization found and decided at grid scale, readable, and the allocation it comes to.

A region is an interval of a quadtree's line (quadtree.py), one output token whatever its size, the average of its
tokens; K tokens are the first K - 1 cuts. Cutting a region of weight W and n tokens into n' and n'' is worth

    (1 - scope) (W' log(n / n') + W'' log(n / n'')) / log N  +  scope W / n E / v:

compressing takes more tokens to be worth the same everywhere, whatever is there (concave: as much for each halving),
particularizing takes them to be worth the detail E that they recover, over the image's mean squared deviation v. With
even weights both sum to 1 over an image. The worth of a cut is affine in every state, and which cuts there are depends
on the image alone; hence the exchange theorem (docs/relevance.md).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.allocation import Allocation
from regard.errors import ShapeError
from regard.record import STATES, TERMS, WAYS, Realization
from regard.relevance.quadtree import Quadtree
from regard.relevance.tensions import Balance
from regard.tokens import VisualTokens


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
class Measured:
    """What is there before anything is weighed, at whatever budget. seen: (B, 3, N), the three ways. detail: (B, N),
    squared distance from the image's mean over its average. diverse: (B, N), sum 1, what diversifying weighs by.
    tree: every region and its cuts.
    """

    tokens: VisualTokens
    seen: Float[Tensor, "b 3 n"]
    detail: Float[Tensor, "b n"]
    diverse: Float[Tensor, "b n"]
    tree: Quadtree


@dataclass(frozen=True, eq=False)
class Realized:
    """What was decided for what was measured. balance: how tokens are weighed at this budget."""

    measured: Measured
    balance: Balance
    budget: int

    @property
    def tokens(self) -> VisualTokens:
        """What was given to each region."""
        return self.measured.tokens

    @property
    def seen(self) -> Float[Tensor, "b 3 n"]:
        """The three ways, (B, 3, N)."""
        return self.measured.seen

    @property
    def detail(self) -> Float[Tensor, "b n"]:
        """Squared distance from the image's mean over its average, (B, N)."""
        return self.measured.detail

    @property
    def tree(self) -> Quadtree:
        """Every region and its cuts."""
        return self.measured.tree

    @cached_property
    def worth(self) -> Float[Tensor, "3 2 m"]:
        """What each cut on the line is worth by each pole's weights, to compress and to particularize."""
        tree, below = self.tree, []
        cut = torch.arange(len(tree.low), device=tree.low.device)
        n1, n2 = (cut - tree.low).clamp(min=1).double(), (tree.high - cut).clamp(min=1).double()
        n = n1 + n2
        count = self.tokens.valid.sum(dim=1).clamp(min=2).double()[tree.image]
        total = tree.energy.new_zeros(len(self.detail)).scatter_add(0, tree.image, tree.energy)[tree.image]
        recovered = tree.energy * count / torch.where(total > 0, total, 1) / n
        for pole in self.balance.poles.detach().unbind(dim=1):
            w1, w2 = tree.sums(tree.along(pole))
            general = (w1 * (n / n1).log() + w2 * (n / n2).log()) / count.log()
            below.append(torch.stack((general, (w1 + w2) * recovered)))
        return torch.stack(below).masked_fill(~tree.real, 0)

    @property
    def gains(self) -> Float[Tensor, " m"]:
        """What each cut is worth, at the states: affine in each of them."""
        states = self.balance.states.detach()[self.tree.image]
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
        return self.tree.groups(self.rank, budget, self.detail.shape)

    @property
    def allocation(self) -> Allocation:
        """Each region's average, at the budget."""
        return Allocation.merge(self.groups(self.budget), self.budget, boxes=self.tokens.boxes)

    def record(self, transjectivity: float | None, fixed: tuple[str, ...]) -> Realization:
        """As plain data. transjectivity: None where nothing was asked. fixed: the states that were given.

        Raises ShapeError for more than one image.
        """
        if len(self.detail) != 1:
            raise ShapeError(f"a record is of one image, got {len(self.detail)}: take tokens.images(...)")
        balance = self.balance
        states, drives, mix = (x[0].tolist() for x in (balance.states, balance.drives, balance.mix))
        return Realization(
            ways={name: _row(self.seen[0, i]) for i, name in enumerate(WAYS)},
            mix={name: _short(share) for name, share in zip(WAYS, mix, strict=True)},
            field=_row(balance.field[0]),
            terms={name: _row(balance.terms[0, i]) for i, name in enumerate(TERMS)},
            detail=_row(self.detail[0]),
            states={name: _short(state) for name, state in zip(STATES, states, strict=True)},
            drives={name: (_short(up), _short(down)) for name, (up, down) in zip(STATES, drives, strict=True)},
            fixed=fixed,
            transjectivity=None if transjectivity is None else _short(transjectivity),
            line=tuple(self.tree.token.tolist()),
            cuts=tuple(self.rank.argsort()[1:].tolist()),  # the first is where the image begins
        )


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _row(values: Tensor) -> tuple[float, ...]:
    return tuple(_short(value) for value in values.tolist())
