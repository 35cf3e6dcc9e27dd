"""What `relevance` is compared with: simple ones on the same field, and itself with a part left out.

Each decides from one `Measured`, so that all see the same ways of the same image.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from regard.allocate import load, top_slots
from regard.allocate.pool import areas
from regard.allocation import Allocation
from regard.record import STATES, WAYS
from regard.relevance.realized import Measured, Realized
from regard.relevance.realizer import Realizer
from regard.relevance.tensions import States

Decide = Callable[[Measured, int], Allocation]


def without(way: str, realizer: Realizer | None = None) -> Realizer:
    """A realizer that gives one of the three ways no weight. realizer: that it is made from, an untrained one."""
    realizer = Realizer() if realizer is None else deepcopy(realizer)
    with torch.no_grad():
        realizer.field.gain[WAYS.index(way)] = -1e4
    return realizer


def realized(realizer: Realizer, **states: float) -> Decide:
    """Relevance itself, by a realizer and at states of which some may be fixed."""
    return lambda measured, budget: realizer.decide(measured, budget, States(**states)).allocation


def top_of_field(measured: Measured, budget: int) -> Allocation:
    """The tokens with the largest relevance in the same field, whole."""
    return Allocation.select(top_slots(_field(measured), measured.tokens.valid, budget), measured.detail.shape[1])


def half_coverage(measured: Measured, budget: int) -> Allocation:
    """Half of the budget evenly over the image, half on the tokens with the largest relevance in the same field."""
    relevance = _field(measured)
    if budget > 1:
        even = load("grid").allocate(measured.tokens, None, budget // 2)
        relevance = relevance.scatter(1, even.anchor, torch.inf)
    return Allocation.select(top_slots(relevance, measured.tokens.valid, budget), relevance.shape[1])


def saliency_quadtree(measured: Measured, budget: int) -> Allocation:
    """The same quadtree cut where that recovers most detail, whatever was asked (after arXiv 2304.00287)."""
    even = measured.tokens.valid.double() / measured.tokens.valid.sum(dim=1, keepdim=True)
    balance = Realizer().decide(measured, budget, States(1.0, 0.0, 0.0)).balance
    balance = replace(balance, field=even, poles=torch.stack((even, even, even), dim=1))
    return Realized(measured, balance, budget).allocation


def two_levels(measured: Measured, budget: int) -> Allocation:
    """Two resolutions only: a quarter of the budget as an even coarse grid, its most relevant cells in full."""
    tokens, cells = measured.tokens, max(1, budget // 4)
    cell = areas(tokens, cells)
    inside = torch.where(tokens.valid, cell, cells)
    size, total = (
        torch.zeros(len(cell), cells + 1).scatter_add(1, inside, values.float())
        for values in (torch.ones_like(inside), _field(measured))
    )
    turn = (-total / size.clamp(min=1)).argsort(dim=1, stable=True).argsort(dim=1).gather(1, inside)
    order = torch.where(tokens.valid, turn, cells).argsort(dim=1, stable=True)
    first = turn.gather(1, order).diff(dim=1, prepend=torch.full_like(turn[:, :1], -1)) != 0
    opened = ~first & tokens.valid.gather(1, order)  # a cell's first token stays for the cell
    number = opened.cumsum(dim=1)
    group = torch.where(opened & (number <= budget - cells), cells + number - 1, cell.gather(1, order))
    return Allocation.merge(torch.empty_like(group).scatter(1, order, group), budget, boxes=tokens.boxes)


def components() -> dict[str, Decide]:
    """Relevance with a part left out: a way without weight, a tension held at 0 or all of them at the middle."""
    parts = {f"relevance without {way}": realized(without(way)) for way in WAYS}
    full = Realizer()
    parts |= {f"relevance without {state}": realized(full, **{state: 0.0}) for state in STATES}
    parts |= {"relevance, scope 1": realized(full, scope=1.0)}
    parts |= {"relevance, prioritization 1": realized(full, prioritization=1.0)}
    return parts | {"relevance, all tensions 0.5": realized(full, **dict.fromkeys(STATES, 0.5))}


def _field(measured: Measured) -> Tensor:
    with torch.no_grad():
        return Realizer().field(measured.seen, measured.tokens.valid)[0]
