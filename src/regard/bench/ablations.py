"""Allocators to compare `relevance` with: simple ones on the same field, and itself with a part left out."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from regard.allocate import Allocator, load, top_slots
from regard.allocate.pool import areas
from regard.allocation import Allocation
from regard.record import WAYS
from regard.relevance import ways
from regard.relevance.quadtree import Quadtree
from regard.relevance.realizer import Realizer
from regard.tokens import Question, VisualTokens


def without(way: str) -> Realizer:
    """A realizer that gives one of the three ways no weight."""
    realizer = Realizer()
    with torch.no_grad():
        realizer.field.gain[WAYS.index(way)] = -1e4
    return realizer


@dataclass(frozen=True)
class TopOfField(Allocator):
    """The tokens with the largest relevance in the same field, whole."""

    needs = ("grid",)
    uses = ("question",)
    realizer: Realizer = field(default_factory=Realizer, repr=False, compare=False)

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        return Allocation.select(top_slots(self.field(tokens, question), tokens.valid, budget), tokens.valid.shape[1])

    @torch.no_grad()
    def field(self, tokens: VisualTokens, question: Question | None) -> Tensor:
        return self.realizer(tokens, question, 1).balance.field


@dataclass(frozen=True)
class HalfCoverage(TopOfField):
    """Half of the budget evenly over the image, half on the tokens with the largest relevance in the same field."""

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        relevance = self.field(tokens, question)
        if budget > 1:
            even = load("grid").allocate(tokens, question, budget // 2)
            relevance = relevance.scatter(1, even.anchor, torch.inf)
        return Allocation.select(top_slots(relevance, tokens.valid, budget), tokens.valid.shape[1])


@dataclass(frozen=True)
class SaliencyQuadtree(Allocator):
    """The same quadtree cut where that recovers most detail, whatever was asked."""

    needs = ("grid",)

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        grid, valid = ways.needed_grid(tokens), tokens.valid
        tree = Quadtree.of(ways.standardised(tokens), grid, valid)
        size = (tree.high - tree.low).clamp(min=1)
        return _cut(tokens, tree, tree.order(tree.energy / size), budget)


@dataclass(frozen=True)
class TwoLevels(TopOfField):
    """Two resolutions only: an even coarse grid of a quarter of the budget, and its most relevant cells in full."""

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        cells = max(1, budget // 4)
        cell = areas(tokens, cells)
        inside = torch.where(tokens.valid, cell, cells)
        size = torch.zeros(len(cell), cells + 1).scatter_add(1, inside, torch.ones_like(inside, dtype=torch.float32))
        total = torch.zeros(len(cell), cells + 1).scatter_add(1, inside, self.field(tokens, question).float())
        turn = (-total / size.clamp(min=1)).argsort(dim=1, stable=True).argsort(dim=1).gather(1, inside)
        order = torch.where(tokens.valid, turn, cells).argsort(dim=1, stable=True)
        first = turn.gather(1, order).diff(dim=1, prepend=torch.full_like(turn[:, :1], -1)) != 0
        opened = ~first & tokens.valid.gather(1, order)  # a cell's first token stays for the cell
        number = opened.cumsum(dim=1)
        own = opened & (number <= budget - cells)
        group = torch.where(own, cells + number - 1, cell.gather(1, order))
        return Allocation.merge(torch.empty_like(group).scatter(1, order, group), budget, boxes=tokens.boxes)


def _cut(tokens: VisualTokens, tree: Quadtree, rank: Tensor, budget: int) -> Allocation:
    region = (rank < budget - 1).cumsum(0) - 1
    region = region - region[tree.begin[:-1].clamp(max=len(region) - 1)][tree.image]
    group = torch.full((tokens.valid.numel(),), -1)
    group[tree.token] = region
    return Allocation.merge(group.view_as(tokens.valid), budget, boxes=tokens.boxes)
