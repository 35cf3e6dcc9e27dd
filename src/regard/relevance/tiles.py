"""Tile scale: an image cut into rows x columns of tiles, and what of each a resolution of s x s tokens can hold."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.errors import BudgetError, ShapeError
from regard.relevance.budget import LADDER
from regard.tokens import grid_boxes

_FULLEST = 0.25  # the share of a tile's tokens that speaks for it
_CHANNELS = 128


def layout(grid: tuple[int, int, int], budget: int, aspect: float) -> tuple[int, int]:
    """Rows and columns of tiles: as many as give each about 160 tokens, the middle of the ladder, and nearly square.

    aspect: width over height. Raises BudgetError for less than one tile's least or more than all can take.
    """
    most = grid[1] * grid[2] * LADDER[-1]
    if not LADDER[0] <= budget <= most:
        nearest = min(max(budget, LADDER[0]), most)
        raise BudgetError(
            f"tiles of {LADDER[0]} to {LADDER[-1]} tokens, at most one for each of the eye's tokens, take a budget "
            f"from {LADDER[0]} to {most}, got {budget}: the nearest is {nearest}"
        )
    middle = math.sqrt(LADDER[0] * LADDER[-1])
    best, least = (1, 1), math.inf
    for rows in range(1, grid[1] + 1):
        for columns in range(1, grid[2] + 1):
            if not LADDER[0] <= budget / (rows * columns) <= LADDER[-1]:
                continue
            shape = abs(math.log(aspect * rows / columns))
            cost = shape + abs(math.log(budget / (rows * columns) / middle))
            if cost < least:
                best, least = (rows, columns), cost
    return best


def checked_layout(tiles: tuple[int, int], grid: tuple[int, int, int]) -> tuple[int, int]:
    """Rows and columns as they are. Raises ShapeError where a tile would hold no token."""
    rows, columns = tiles
    if not (1 <= rows <= grid[1] and 1 <= columns <= grid[2]):
        raise ShapeError(f"tiles must be rows x columns within the grid of {grid[1]} x {grid[2]} tokens, got {tiles}")
    return rows, columns


def boxes(rows: int, columns: int) -> Float[Tensor, "1 r 4"]:
    """x0, y0, x1, y1 in [0, 1] of each tile, in raster order."""
    return grid_boxes(torch.arange(columns + 1) / columns, torch.arange(rows + 1) / rows)


def members(grid: tuple[int, int, int], rows: int, columns: int) -> Int[Tensor, " n"]:
    """The tile that the middle of each token lies in."""
    y = (torch.arange(grid[1]) + 0.5) * rows / grid[1]
    x = (torch.arange(grid[2]) + 0.5) * columns / grid[2]
    return (y.long()[:, None] * columns + x.long()).flatten()


def fullest(values: Float[Tensor, "b c n"], tile: Int[Tensor, "b n"], count: int) -> Float[Tensor, "b c r"]:
    """The mean of the largest quarter of each tile's values; 0 for a tile without any. tile: -1 for a padded token."""
    batch, kinds, _ = values.shape
    tile = torch.where(tile >= 0, tile, count)[:, None].expand_as(values)
    order = values.argsort(dim=2, descending=True, stable=True)
    order = order.gather(2, tile.gather(2, order).argsort(dim=2, stable=True))
    tile, values = tile.gather(2, order), values.gather(2, order)
    ones = torch.ones_like(values)
    size = values.new_zeros(batch, kinds, count + 1).scatter_add(2, tile, ones)
    first = (size.cumsum(dim=2) - size).gather(2, tile)
    place = torch.arange(values.shape[2], device=values.device) - first
    kept = (place < (size.gather(2, tile) * _FULLEST).ceil()).to(values.dtype)
    total = values.new_zeros(batch, kinds, count + 1).scatter_add(2, tile, values * kept)
    number = values.new_zeros(batch, kinds, count + 1).scatter_add(2, tile, kept)
    return (total / number.clamp(min=1))[..., :count]


def losses(
    x: Float[Tensor, "b n d"], grid: tuple[int, int, int], rows: int, columns: int, tile: Int[Tensor, "b n"]
) -> Float[Tensor, "b r l"]:
    """What each rung of the ladder loses of each tile: the squared distance of its tokens from their area averages over
    s x s cells, spread back. 0 where the cells are no larger than tokens.
    """
    _, h, w = grid
    found = []
    for size in LADDER:
        side = math.isqrt(size)
        down, across = (_blocks(n, parts, side, x.device) for n, parts in ((h, rows), (w, columns)))
        lost = torch.zeros(tile.shape, dtype=torch.float64, device=x.device)
        for part in x.split(_CHANNELS, dim=2):
            part = part.double().unflatten(1, (h, w))
            held = torch.matmul(across, torch.matmul(down, part.flatten(2)).view_as(part))
            lost += torch.linalg.vector_norm(part - held, dim=3).square().flatten(1)
        by_tile = lost.new_zeros(len(x), rows * columns + 1)
        by_tile = by_tile.scatter_add(1, torch.where(tile >= 0, tile, rows * columns), lost)
        found.append(by_tile[:, :-1])
    return torch.stack(found, dim=2)


def recovered(
    x: Float[Tensor, "b n d"],
    sums: Float[Tensor, "b r d"],
    tile: Int[Tensor, "b n"],
    lost: Float[Tensor, "b r l"],
    general: Float[Tensor, " l"],
) -> Float[Tensor, "b r l"]:
    """The detail that each rung wins back from the lowest, over the average tile's at the top.

    Where the eye's grid is no finer than the lowest rung it cannot tell: a tile is then taken to hold detail beyond it
    in proportion to its own variance, won back by the concave law. sums: of each tile's tokens.
    """
    count = lost.shape[1]
    gained = (lost[..., :1] - lost).cummax(dim=2).values
    total = gained[..., -1].sum(dim=1)[:, None, None] / count
    square = torch.linalg.vector_norm(x, dim=2).double().square()
    inside = torch.where(tile >= 0, tile, count)
    own, size = (
        square.new_zeros(len(x), count + 1).scatter_add(1, inside, part)[:, :-1]
        for part in (square, torch.ones_like(square))
    )
    own = own - torch.linalg.vector_norm(sums, dim=2).double().square() / size.clamp(min=1)
    guess = own.clamp(min=0)[..., None] * general
    average = own.clamp(min=0).sum(dim=1)[:, None, None] / count
    known = total > 1e-6 * average
    return torch.where(known, gained / total.clamp(min=1e-12), guess / average.clamp(min=1e-12))


def _blocks(n: int, parts: int, side: int, device: torch.device) -> Float[Tensor, "n n"]:
    """Averages over `side` equal cells of each of `parts` equal parts of n tokens, spread back over the tokens."""
    cells = parts * side
    if cells >= n:
        return torch.eye(n, dtype=torch.float64, device=device)
    edge = torch.arange(cells + 1, dtype=torch.float64, device=device) * n / cells
    token = torch.arange(n, dtype=torch.float64, device=device)[:, None]
    overlap = (torch.minimum(edge[1:], token + 1) - torch.maximum(edge[:-1], token)).clamp(min=0)  # (N, cells)
    return overlap @ (overlap / overlap.sum(dim=0)).T
