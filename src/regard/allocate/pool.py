"""Area pooling to exactly the budget, on any grid and for any budget: a second baseline (arXiv 2502.11501).

Where adaptive average pooling can only give rows x columns, this cuts the grid into bands of rows and each band into
areas of nearly equal size, so that every budget from 1 to N is met exactly; where the numbers allow, it is the same.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from regard.allocate._base import Allocator
from regard.allocation import Allocation
from regard.tokens import Question, VisualTokens


@dataclass(frozen=True)
class Pool(Allocator):
    """Average the tokens of `budget` areas that tile the grid."""

    needs = ("grid",)

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        return Allocation.merge(areas(tokens, budget), budget, boxes=tokens.boxes)


def areas(tokens: VisualTokens, count: int) -> Int[Tensor, "b n"]:
    """The area, 0 to count - 1, of each valid token, -1 of the others; no area is empty. The frames are stacked."""
    assert tokens.grid is not None
    frames, height, width = tokens.grid
    n, height = frames * height * width, frames * height
    valid = tokens.valid
    slot = torch.arange(n, device=valid.device)
    row, column = slot // width, slot % width
    filled = valid.unflatten(1, (height, width)).any(dim=2)
    rows = filled.sum(dim=1)
    bands = _bands(rows, valid.sum(dim=1), height, count)
    rank = filled.long().cumsum(dim=1)[:, row] - 1  # of the token's row among the rows in use
    band = torch.where(valid, rank * bands[:, None] // rows[:, None], height)
    order = ((band * width + column) * height + row).argsort(dim=1)  # by band, column, row
    band = band.gather(1, order)
    size = torch.zeros(len(band), height + 1, dtype=torch.long, device=band.device)
    size = size.scatter_add(1, band, torch.ones_like(band))[:, :height]
    end = size.cumsum(dim=1)
    last = count * end // valid.sum(dim=1, keepdim=True)  # areas up to the end of each band
    inside = band.clamp(max=height - 1)
    first = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], dim=1).gather(1, inside)
    place = slot - (end - size).gather(1, inside)
    area = first + place * (last.gather(1, inside) - first) // size.gather(1, inside).clamp(min=1)
    area = torch.where(band < height, area.clamp(max=count - 1), -1)
    return torch.empty_like(area).scatter(1, order, area)


def _bands(rows: Int[Tensor, " b"], tokens: Int[Tensor, " b"], height: int, count: int) -> Int[Tensor, " b"]:
    """Into how many bands of rows to cut: areas nearly square, and whole rows and columns where that costs little."""
    bands = torch.arange(1, height + 1, device=rows.device)
    columns = tokens / rows
    aspect = (rows / bands[:, None]).T * (count / bands) / columns[:, None]
    uneven = (count % bands != 0).int() + (rows[:, None] % bands != 0).int()
    allowed = (bands <= rows[:, None]) & (bands <= count) & (bands * columns[:, None] >= count)
    cost = aspect.log().abs() + uneven * 0.35
    return cost.masked_fill(~allowed, torch.inf).argmin(dim=1) + 1
