"""When a cascade is sure enough to stop: thresholds solved on images that training never saw.

MSDNet's rule (Huang et al., arXiv 1703.09844): shares q_k = p^k / sum_j p^j of the images stop at exit k; threshold k
is below the confidence of the N q_k surest that got there, midway to the next; the last exit takes what is left.
`for_cost` finds the p whose mean cost is the target; `for_accuracy` takes the cheapest thresholds that keep an
accuracy. Confidences are of double precision: those near 1 must not tie. A threshold of 1 is no exit, even for a
confidence of 1; one that is solved for images to stop at is below it.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.errors import DataError

_GRID = {1: 1000, 2: 60}  # quantiles that are tried at each exit, by how many exits have a threshold
_AT_ONCE = 200  # combinations of thresholds
_HIGHEST = math.nextafter(1, 0)  # threshold at which an image can stop


def confidence(logits: Float[Tensor, "... k"]) -> Float[Tensor, "..."]:
    """The probability of the likeliest class, float64."""
    return logits.double().softmax(dim=-1).amax(dim=-1)


def going_on(sure: Float[Tensor, "*shape"], thresholds: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """Which images do not stop: those less sure than the threshold, and all where it is 1."""
    return (sure < thresholds) | (thresholds >= 1)


def exits(sure: Float[Tensor, "n s"], thresholds: Float[Tensor, "... t"]) -> Int[Tensor, "... n"]:
    """Where each image stops. sure: its confidence at each exit. thresholds: of each exit but the last."""
    return going_on(sure[:, :-1], thresholds[..., None, :]).long().cumprod(dim=-1).sum(dim=-1)


def for_shares(sure: Float[Tensor, "n s"], shares: Sequence[float]) -> Float[Tensor, " t"]:
    """Thresholds at which such shares of the images stop at each exit."""
    left, found, due = torch.ones_like(sure[:, 0], dtype=torch.bool), [], 0.0
    for exit, share in enumerate(shares[:-1]):
        due += share * len(sure)
        count = min(round(due) - int((~left).sum()), int(left.sum()))
        ranked = sure[left, exit].sort(descending=True).values
        between = ranked[max(0, count - 1) : count + 1].mean().clamp(max=_HIGHEST)
        found.append(between if count > 0 else sure.new_ones(()))
        left &= going_on(sure[:, exit], found[-1])
    return torch.stack(found) if found else sure.new_zeros(0)


def for_cost(sure: Float[Tensor, "n s"], costs: Sequence[float], target: float) -> Float[Tensor, " t"]:
    """Thresholds whose mean cost is the target. costs: of an image that stops at each exit. Raises DataError."""
    _check(sure, costs)
    if not costs[0] <= target <= costs[-1]:
        raise DataError(f"the mean cost of an image is from {costs[0]} to {costs[-1]}, it cannot be {target}")
    low, high = -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        if mean_cost(sure, for_shares(sure, geometric(middle, len(costs))), costs) < target:
            low = middle
        else:
            high = middle
    return for_shares(sure, geometric(high, len(costs)))


def for_accuracy(
    sure: Float[Tensor, "n s"], right: Bool[Tensor, "n s"], costs: Sequence[float], least: float | None = None
) -> Float[Tensor, " t"]:
    """The cheapest thresholds at which at least this share of the images is right, by default as many as at the last
    exit. right: which exits are right. Raises DataError where no thresholds are that good.
    """
    _check(sure, costs)
    if right.shape != sure.shape:
        raise DataError(f"right must be of the shape of the confidences, {tuple(sure.shape)}, got {tuple(right.shape)}")
    least = float(right[:, -1].double().mean()) if least is None else least
    tried = torch.linspace(0, 1, _GRID.get(len(costs) - 1, 20), dtype=sure.dtype, device=sure.device)
    axes = [
        torch.cat((sure[:, exit].quantile(tried).clamp(max=_HIGHEST), sure.new_ones(1)))
        for exit in range(len(costs) - 1)
    ]
    combined = torch.cartesian_prod(*axes).view(-1, len(axes)) if axes else sure.new_zeros(1, 0)
    best, cheapest, most = None, math.inf, 0.0
    price = sure.new_tensor(list(costs), dtype=torch.float64)
    for part in combined.split(_AT_ONCE):
        where = exits(sure, part)
        good = right.expand(len(part), -1, -1).gather(2, where[..., None])[..., 0].double().mean(dim=1)
        cost = price[where].mean(dim=1).masked_fill(good < least - 1e-12, math.inf)
        most, place = max(most, float(good.max())), int(cost.argmin())
        if cost[place] < cheapest:
            best, cheapest = part[place], float(cost[place])
    if best is None:
        raise DataError(f"no thresholds are right on a share of {least:.4f} of the images: the best reach {most:.4f}")
    return best


def mean_cost(sure: Float[Tensor, "n s"], thresholds: Float[Tensor, " t"], costs: Sequence[float]) -> float:
    """What an image costs at these thresholds."""
    return float(sure.new_tensor(list(costs), dtype=torch.float64)[exits(sure, thresholds)].mean())


def geometric(log_p: float, count: int) -> list[float]:
    """The shares of p = e^log_p, for so many exits."""
    return (torch.arange(count, dtype=torch.float64) * log_p).softmax(dim=0).tolist()


def _check(sure: Tensor, costs: Sequence[float]) -> None:
    if sure.ndim != 2 or not len(sure) or sure.shape[1] != len(costs):
        raise DataError(f"confidences must be (N, {len(costs)}) with N from 1, got {tuple(sure.shape)}")
