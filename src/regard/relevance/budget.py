"""The exact solver: which increments a budget pays for. Slopes of concave majorants, one order, the longest prefix.

Everett's and Fox's rule for separable concave allocation: taken by falling slope, increments are optimal for what they
cost; where values are not concave, the increments of their majorant are taken whole. So counts are nested in the budget
and monotone in a region's own weight, and an image's do not depend on its batch.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.amount import checked_budget
from regard.errors import BudgetError, DataError, ShapeError

_ROUNDING = 1e-12
LADDER = (64, 100, 144, 196, 256, 324, 400)  # tokens of a tile: 8, 10, ... 20 a side


def solve(
    weights: Float[Tensor, "b r"],
    values: Float[Tensor, "b r l"],
    ladder: Int[Tensor, " l"],
    budget: int,
    key: Int[Tensor, "b r"] | None = None,
) -> Int[Tensor, "b r"]:
    """How many tokens each region gets, (B, R): rungs of the ladder that sum to at most the budget.

    Maximises sum weights x values(rung). weights: >= 0. values: (B, R, L), of each rung; what is not concave is solved
    for its concave majorant. ladder: (L,), tokens of each rung, rising. key: (B, R), orders regions that tie, by
    default their index. The counts are optimal for the tokens that they sum to, and what is left of the budget is less
    than the next increment. Raises BudgetError where the budget is under the lowest rung for all, or over the highest;
    ShapeError and DataError for arguments that do not fit. O(R L log R L) for a ladder of L rungs.
    """
    _check(weights, values, ladder, key)
    regions, rungs = values.shape[1:]
    sizes = ladder.tolist()
    room = feasible(budget, regions, sizes) - regions * sizes[0]
    if key is not None:
        order = key.argsort(dim=1, stable=True)
        weights, values = weights.gather(1, order), values.gather(1, order[..., None].expand_as(values))
    slopes, first = majorant(values.double() * weights.double()[..., None], ladder)
    cost = ladder.diff().to(first.device)[:, None, None].expand_as(first)
    whole = torch.zeros_like(cost).scatter_add(0, first, cost)  # an increment of several rungs is paid at its first
    falling, steps = slopes.transpose(0, 1).flatten(1).sort(dim=1, descending=True, stable=True)  # ties: by rung, key
    paid = whole.transpose(0, 1).flatten(1).gather(1, steps).cumsum(dim=1) <= room
    paid = torch.zeros_like(paid).scatter(1, steps, paid & (falling >= 0))
    counts = ladder.to(first.device)[
        paid.unflatten(1, (rungs - 1, regions)).transpose(0, 1).gather(0, first).sum(dim=0)
    ]
    return counts if key is None else torch.zeros_like(counts).scatter(1, order, counts)


def majorant(
    values: Float[Tensor, "b r l"], ladder: Int[Tensor, " l"]
) -> tuple[Float[Tensor, "l1 b r"], Int[Tensor, "l1 b r"]]:
    """Slopes of the concave majorant between rungs, (L - 1, B, R), not rising, and the first step of the increment
    that each belongs to: rungs that lie under the majorant are no end of an increment.

    The slope at a step is the least, over where it may begin, of the steepest chord from there to beyond the step.
    """
    sizes, height = ladder.tolist(), values.permute(2, 0, 1).contiguous()
    steps = len(sizes) - 1
    slopes = torch.full_like(height[1:], torch.inf)
    first = torch.zeros_like(slopes, dtype=torch.long)
    for begin in range(steps):
        steepest = torch.full_like(height[0], -torch.inf)
        for step in range(steps - 1, begin - 1, -1):
            chord = (height[step + 1] - height[begin]) / (sizes[step + 1] - sizes[begin])
            steepest = torch.maximum(steepest, chord)
            torch.minimum(slopes[step], steepest, out=slopes[step])
    foot, size = height[0], torch.full_like(height[0], sizes[0] if sizes else 0)  # where the increment began
    for step in range(1, steps):
        touches = (height[step] - foot) / (sizes[step] - size) >= slopes[step] - slopes[step].abs() * _ROUNDING
        inside = (slopes[step] == slopes[step - 1]) & ~touches
        first[step] = torch.where(inside, first[step - 1], step)
        foot, size = torch.where(inside, foot, height[step]), torch.where(inside, size, sizes[step])
    return slopes, first


def feasible(budget: int, regions: int, sizes: Sequence[int]) -> int:
    """The budget as it is. Raises BudgetError where `regions` of the ladder's sizes cannot take it."""
    budget = checked_budget(budget)
    low, high = regions * sizes[0], regions * sizes[-1]
    if not low <= budget <= high:
        raise BudgetError(
            f"{regions} regions of {sizes[0]} to {sizes[-1]} tokens take a budget from {low} to {high}, got {budget}: "
            f"the nearest is {min(max(budget, low), high)}"
        )
    return budget


def _check(weights: Tensor, values: Tensor, ladder: Tensor, key: Tensor | None) -> None:
    if weights.ndim != 2 or values.ndim != 3 or values.shape[:2] != weights.shape or not weights.shape[1]:
        raise ShapeError(
            f"weights must be (B, R) and values (B, R, L), got {tuple(weights.shape)} and {tuple(values.shape)}"
        )
    if ladder.shape != values.shape[2:] or not len(ladder) or ladder.is_floating_point():
        raise ShapeError(f"ladder must be {values.shape[2]} whole numbers, got {ladder.dtype} {tuple(ladder.shape)}")
    if bool((ladder.diff() <= 0).any()) or int(ladder[0]) < 1:
        raise DataError(f"the ladder must rise from 1 or more, got {ladder.tolist()}")
    if key is not None and (key.shape != weights.shape or key.is_floating_point()):
        raise ShapeError(
            f"key must be whole numbers of shape {tuple(weights.shape)}, got {key.dtype} {tuple(key.shape)}"
        )
    if not bool((weights >= 0).all()) or not bool(weights.isfinite().all()) or not bool(values.isfinite().all()):
        raise DataError("weights must be finite and >= 0, and values finite")
