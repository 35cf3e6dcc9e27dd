"""Regions about a fixation, finest in its middle, over which a foveated mechanism averages the cells of a grid."""

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.errors import ModelError, ShapeError

KINDS = ("square", "polar")


def regions(kind: str, height: int, width: int, fovea: int, levels: int) -> Int[Tensor, "h2 w2"]:
    """The region of each cell by its offset from a corner between cells, from (-height, -width) on, int64.

    The 2 height x 2 width offsets hold all cells of a height x width grid about each of its corners. Regions are
    numbered from the middle outwards, level by level. kind: "square", fovea x fovea cells, then rings of 2 x 2, 4 x 4
    and so on cells, each ring twice as wide as all within; or "polar", single cells up to a radius of fovea / 2, then
    rings of a radius that doubles, of 3 * fovea sectors each. What is beyond the last level belongs to its outermost
    regions. Raises ModelError and ShapeError.
    """
    if kind not in KINDS:
        raise ModelError(f"no regions are named {kind!r}: there are {', '.join(KINDS)}")
    if fovea < 4 or fovea % 4 or levels < 2:
        raise ShapeError(f"fovea must be a multiple of 4 and levels 2 or more, got fovea={fovea} and levels={levels}")
    return _table(kind, height, width, fovea, levels)


def count_of(kind: str, fovea: int, levels: int) -> int:
    """How many regions there are. Raises as `regions`."""
    reach = fovea * 2**levels
    return int(regions(kind, reach, reach, fovea, levels).max()) + 1


@cache
def _table(kind: str, height: int, width: int, fovea: int, levels: int) -> Int[Tensor, "h2 w2"]:
    reach = fovea * 2 ** (levels - 1) // 2  # cells to each side that the levels hold
    tall, wide = (max(side, 2 * reach) for side in (height, width))
    y, x = torch.meshgrid(torch.arange(-tall, tall) + 0.5, torch.arange(-wide, wide) + 0.5, indexing="ij")
    if kind == "square":
        y, x = (part.clamp(-reach + 0.5, reach - 0.5) for part in (y, x))
        level = ((torch.maximum(y.abs(), x.abs()) + 0.5) / (fovea / 2)).log2().ceil().clamp(min=0)
        row, column = ((part / 2**level).floor() + fovea / 2 for part in (y, x))
        key = (level * fovea + row) * fovea + column
    else:
        level = ((y.square() + x.square()).sqrt() / (fovea / 2)).log2().floor().clamp(-1, levels - 2) + 1
        sector = ((torch.atan2(y, x) / (2 * torch.pi) + 0.5) * 3 * fovea).floor().clamp(max=3 * fovea - 1)
        single = (y.floor() + fovea) * 2 * fovea + x.floor() + fovea
        key = torch.where(level == 0, single, 4 * fovea**2 + level * 3 * fovea + sector)
    numbers = key.unique(return_inverse=True)[1]
    top, left = tall - height, wide - width
    return numbers[top : top + 2 * height, left : left + 2 * width].contiguous()


@dataclass(frozen=True, eq=False)
class Pooled:
    """means: (B, R, C), of the cells of each region. sizes: (B, R), its cells, 0 for one outside of the grid.
    centres: (B, R, 2), the mean of their places, x and y in [0, 1].
    """

    means: Float[Tensor, "b r c"]
    sizes: Int[Tensor, "b r"]
    centres: Float[Tensor, "b r 2"]


def about(table: Int[Tensor, "h2 w2"], at: Float[Tensor, "b 2"]) -> Int[Tensor, "b n"]:
    """The region of each cell, (B, h * w), about the corner between cells that is nearest to (x, y) in [-1, 1]."""
    height, width = table.shape[0] // 2, table.shape[1] // 2
    corner = ((at + 1) * 0.5 * at.new_tensor((width, height))).round().long()
    rows = torch.arange(height, device=at.device) + height - corner[:, 1:]
    columns = torch.arange(width, device=at.device) + width - corner[:, :1]
    return table.to(at.device)[rows[:, :, None], columns[:, None]].flatten(1)


def pooled(cells: Float[Tensor, "b n c"], region: Int[Tensor, "b n"], count: int, grid: tuple[int, int]) -> Pooled:
    """The means of cells (B, h * w, C) over `count` regions, by one sum by index for the whole batch."""
    height, width = grid
    batch, n, channels = cells.shape
    size = cells.new_tensor((width, height))
    step = torch.arange(n, device=cells.device)
    corner = torch.stack((step % width, step // width), dim=1)
    places = ((corner + 0.5) / size).expand(batch, -1, -1)
    row = region + torch.arange(batch, device=cells.device)[:, None] * count
    whole = torch.cat((cells, places, cells.new_ones(batch, n, 1)), dim=2).flatten(0, 1)
    sums = whole.new_zeros(batch * count, channels + 3).index_add(0, row.flatten(), whole)
    sums = sums.unflatten(0, (batch, count))
    sizes = sums[..., -1:]
    means = sums[..., :-1] / sizes.clamp(min=1)
    return Pooled(means[..., :channels], sizes[..., 0].long(), means[..., channels:])


def held(region: Int[Tensor, "b n"], count: int, grid: tuple[int, int]) -> Float[Tensor, "b r 4"]:
    """The boxes that hold the cells of each region, x0, y0, x1, y1 in [0, 1]; all 0 where there are none."""
    height, width = grid
    step, size = torch.arange(height * width, device=region.device), torch.tensor((width, height), device=region.device)
    corner = torch.stack((step % width, step // width), dim=1)
    edges = torch.cat((corner / size, -(corner + 1) / size), dim=1).expand(len(region), -1, -1)
    least = edges.new_zeros(len(region), count, 4)
    least = least.scatter_reduce(1, region[..., None].expand(-1, -1, 4), edges, "amin", include_self=False)
    return torch.cat((least[..., :2], -least[..., 2:]), dim=2)
