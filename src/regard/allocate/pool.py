"""Area pooling to exactly the budget, on any grid and for any budget: a second baseline (arXiv 2502.11501).

    y_k = mean of x_i over i in A_k,    A_1 .. A_K of equal size

Where adaptive average pooling can only give rows x columns, this cuts the grid into bands of rows and each band into
areas of nearly equal size, so that every budget from 1 to N is met exactly; where the numbers allow, it is the same.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
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
    """The area, 0 to count - 1, of each valid token, -1 of the others; no area is empty.

    Areas lie within a frame where the count allows one for each frame; otherwise the frames are stacked.
    """
    assert tokens.grid is not None
    frames, height, width = tokens.grid
    valid = tokens.valid.unflatten(1, (frames, height, width))
    sizes = valid.sum(dim=(2, 3))
    last = count * sizes.cumsum(dim=1) // sizes.sum(dim=1, keepdim=True)
    share = last.diff(dim=1, prepend=torch.zeros_like(last[:, :1]))
    if bool(((share == 0) & (sizes > 0)).any()):
        return _areas(valid.flatten(1, 2), torch.full_like(sizes[:, 0], count))
    area = _areas(valid.flatten(0, 1), share.flatten()).unflatten(0, (-1, frames))
    return torch.where(area < 0, area, area + (last - share)[..., None]).flatten(1)


def _areas(valid: Bool[Tensor, "b h w"], count: Int[Tensor, " b"]) -> Int[Tensor, "b n"]:
    """The same for one frame each, with a count for each."""
    height, width = valid.shape[1:]
    filled, count = valid.any(dim=2), count[:, None]
    rows = filled.sum(dim=1, keepdim=True).clamp(min=1)
    valid = valid.flatten(1)
    total = valid.sum(dim=1, keepdim=True).clamp(min=1)
    bands = _bands(rows, total, height, count)
    slot = torch.arange(height * width, device=valid.device)
    row, column = slot // width, slot % width
    rank = filled.long().cumsum(dim=1)[:, row] - 1  # of the token's row among the rows in use
    band = torch.where(valid, rank * bands // rows, height)
    order = ((band * width + column) * height + row).argsort(dim=1)  # by band, column, row
    band = band.gather(1, order)
    size = torch.zeros(len(band), height + 1, dtype=torch.long, device=band.device)
    size = size.scatter_add(1, band, torch.ones_like(band))[:, :height]
    end = size.cumsum(dim=1)
    last = count * end // total  # areas up to the end of each band
    inside = band.clamp(max=height - 1)
    first = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], dim=1).gather(1, inside)
    place = slot - (end - size).gather(1, inside)
    area = first + place * (last.gather(1, inside) - first) // size.gather(1, inside).clamp(min=1)
    area = torch.where(band < height, torch.minimum(area, count - 1), -1)
    return torch.empty_like(area).scatter(1, order, area)


def _bands(
    rows: Int[Tensor, "b 1"], tokens: Int[Tensor, "b 1"], height: int, count: Int[Tensor, "b 1"]
) -> Int[Tensor, "b 1"]:
    """Into how many bands of rows to cut: areas nearly square, and whole rows and columns where that costs little."""
    bands = torch.arange(1, height + 1, device=rows.device)
    columns = tokens / rows
    aspect = rows / bands * count.clamp(min=1) / bands / columns
    uneven = (count % bands != 0).int() + (rows % bands != 0).int()
    allowed = (bands <= rows) & (bands <= count) & (bands * columns >= count)
    cost = aspect.log().abs() + uneven * 0.35
    return cost.masked_fill(~allowed, torch.inf).argmin(dim=1, keepdim=True) + 1
