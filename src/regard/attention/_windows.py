"""How the tokens of a grid are put in shifted windows: an order of tokens, made once for a grid and kept."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from regard.errors import ShapeError

Grid = tuple[int, int]


def check_grid(grid: Grid, tokens: int) -> None:
    """Raise ShapeError unless grid is two whole numbers of at least 1 that hold so many tokens."""
    fits = isinstance(grid, tuple | list) and len(grid) == 2 and all(isinstance(side, int) for side in grid)
    if not fits or min(grid) < 1 or grid[0] * grid[1] != tokens:
        raise ShapeError(f"grid must be (h, w) with h * w = {tokens} tokens, got {grid}")


class Plan(NamedTuple):
    """How the tokens of a grid are put in windows, n to each."""

    padded: Grid
    order: Int[Tensor, " slots"]  # of each place in the windows, the place in the padded grid
    back: Int[Tensor, " tokens"]  # of each token, its place in the windows
    tokens: Int[Tensor, "windows n"]  # of each place, its token, or -1 for padding
    together: Bool[Tensor, "windows n n"] | None  # not only by the cycle; None where nothing is shifted


def _kept(function: Callable) -> Callable:
    """A function of plain arguments, evaluated once; while a graph is compiled, in the graph."""

    @lru_cache(maxsize=128)
    def cached(*args: Any) -> Any:
        with torch.inference_mode(False):
            return function(*args)

    return lambda *args: function(*args) if torch.compiler.is_compiling() else cached(*args)


@_kept
def plan_of(h: int, w: int, side: int, shift: int, device: torch.device) -> Plan:
    ph, pw = -(-h // side) * side, -(-w // side) * side
    places = torch.arange(ph * pw, device=device).view(ph, pw)
    order = _cut(places.roll((-shift, -shift), (0, 1)), side)
    back = order.flatten().argsort().view(ph, pw)[:h, :w].flatten()
    row, column = order // pw, order % pw
    tokens = torch.where((row < h) & (column < w), row * w + column, -1)
    if not shift:
        return Plan((ph, pw), order.flatten(), back, tokens, None)
    rows, columns = (torch.arange(size, device=device) >= size - shift for size in (ph, pw))  # brought by the cycle
    region = _cut(2 * rows[:, None] + columns, side)
    return Plan((ph, pw), order.flatten(), back, tokens, region[:, :, None] == region[:, None, :])


def _cut(places: Int[Tensor, "h w"], side: int) -> Int[Tensor, "windows n"]:
    return places.unflatten(1, (-1, side)).unflatten(0, (-1, side)).transpose(1, 2).reshape(-1, side**2)


@_kept
def apart_of(h: int, w: int, side: int, shift: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of a shifted grid: 0, or minus infinity between those apart, (windows, 1, n, n)."""
    together = plan_of(h, w, side, shift, device).together
    return torch.zeros_like(together, dtype=dtype).masked_fill(~together, -torch.inf)[:, None]


@_kept
def relative_of(window: int, side: int, device: torch.device) -> Int[Tensor, " pairs"]:
    """Of each pair of places in a window of this side, the row of the table."""
    places = torch.arange(side, device=device)
    apart = places[:, None] - places + window - 1
    return (apart[:, None, :, None] * (2 * window - 1) + apart[None, :, None, :]).flatten()


def taken(x: Shaped[Tensor, "b n c"], places: Int[Tensor, " m"]) -> Shaped[Tensor, "b m c"]:
    """x[:, places], by whole rows, whose gradient is fast too."""
    batch, count = x.shape[:2]
    if batch == 0:
        return x[:, places]
    if batch > 1:
        places = (torch.arange(batch, device=x.device)[:, None] * count + places).flatten()
    return x.flatten(0, 1).index_select(0, places).unflatten(0, (batch, -1))


def restored(y: Shaped[Tensor, "bw n c"], plan: Plan, batch: int) -> Shaped[Tensor, "b tokens c"]:
    """Out of the windows, in raster order, without the padding."""
    count, n = plan.tokens.shape
    y = y.reshape(batch, count * n, y.shape[-1])
    return y if count == 1 else taken(y, plan.back)


def within(shown: Bool[Tensor, "b q k"], plan: Plan) -> tuple[Bool[Tensor, "bw 1 n n"], Bool[Tensor, "bw n 1"]]:
    """A mask in the windows, and which rows see a token. Padding is seen by rows that see a token."""
    tokens, n = plan.tokens, plan.tokens.shape[1]
    if shown.shape[1] == 1:
        inside = shown[:, 0, tokens][:, :, None].expand(-1, -1, n, -1)
    else:
        inside = shown[:, tokens[:, :, None], tokens[:, None, :]]
    padding = (tokens < 0)[:, None, :]
    together = ~padding if plan.together is None else plan.together & ~padding
    seen = (inside & together).any(dim=-1, keepdim=True)
    inside = (inside & together) | padding if plan.together is None else (inside | padding) & plan.together
    return (inside & seen).flatten(0, 1)[:, None], seen.flatten(0, 1)
