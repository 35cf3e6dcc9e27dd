"""How relevance is learned: gradients through the budget, and a teacher that tries each region.

The solver counts in whole tokens and has no gradient. Water-filling is its continuous relative: n = clip(v w - c, low,
high) with the level v at which all sum to the budget. Its derivative stands in for the solver's (straight through):
what each output token says is multiplied by 1 + g - g', g its relaxed count and g' the same without a gradient. The
teacher needs none: the value of a region is what the loss falls by when it alone is raised from the floor to the top.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.allocation import Allocation
from regard.errors import BudgetError, DataError
from regard.relevance.realized import Realized
from regard.tokens import VisualTokens


class _WaterFill(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights: Tensor, budget: float, low: float, high: float, offset: float) -> Tensor:  # pyright: ignore
        w = weights.clamp(min=torch.finfo(weights.dtype).tiny ** 0.5)
        turns = torch.cat(((low + offset) / w, (high + offset) / w), dim=1)  # where a region leaves its bounds
        slopes = torch.cat((w, -w), dim=1)
        turns, order = turns.sort(dim=1)
        slope = slopes.gather(1, order).cumsum(dim=1)
        steps = slope[:, :-1] * turns.diff(dim=1)
        total = low * w.shape[1] + torch.nn.functional.pad(steps.cumsum(dim=1), (1, 0))
        last = ((total <= budget).sum(dim=1, keepdim=True) - 1).clamp(min=0, max=turns.shape[1] - 2)
        rise = slope.gather(1, last).clamp(min=torch.finfo(w.dtype).tiny)
        level = turns.gather(1, last) + (budget - total.gather(1, last)) / rise
        filled = (w * level - offset).clamp(low, high)
        free = (filled > low) & (filled < high)
        ctx.save_for_backward(w, level, free)
        return filled

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore
        w, level, free = ctx.saved_tensors
        grad, own = grad * free, w * free
        mean = (grad * own).sum(dim=1, keepdim=True) / own.sum(dim=1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
        return level * (grad - mean) * free, None, None, None, None


def water_fill(
    weights: Float[Tensor, "b r"], budget: float, low: float, high: float, offset: float = 0.0
) -> Float[Tensor, "b r"]:
    """Counts clip(level x weight - offset, low, high) that sum to the budget, (B, R), with their derivative.

    On the regions within their bounds dn_i/dw_j = level (1[i = j] - w_i / sum w); 0 on the others. weights: > 0.
    Raises BudgetError for a budget outside R x low .. R x high.
    """
    count = weights.shape[1]
    if not count * low <= budget <= count * high:
        raise BudgetError(f"{count} regions of {low} to {high} take a budget from {count * low} to {count * high}")
    if not bool((weights > 0).all()):
        raise DataError("the weights of water-filling must be over 0")
    filled: Tensor = _WaterFill.apply(weights, float(budget), float(low), float(high), float(offset))  # pyright: ignore
    return filled


def relaxed(realized: Realized) -> Float[Tensor, "b n"]:
    """The share of a whole token that each input would get by water-filling at the same budget, with gradients to every
    parameter of the scorer and the tensions. Only for images without padding.

    A token's weight is what all of its detail would be worth: (1 - scope) + scope x detail, times its terms.
    """
    if realized.tokens.mask is not None:
        raise DataError("learning takes tokens without a mask: batch images of one size")
    scope = realized.balance.states[:, :1]
    weights = realized.balance.terms.sum(dim=1) * ((1 - scope) + scope * realized.detail)
    return water_fill(weights + 1e-9, float(realized.budget), 0.0, 1.0)


def straight_through(
    features: Float[Tensor, "b k d"], allocation: Allocation, share: Float[Tensor, "b n"]
) -> Float[Tensor, "b k d"]:
    """The same values, with the gradient of their relaxed counts. share: `relaxed`; a region's is its tokens' mean."""
    gate = allocation.reading.read(share[..., None].to(features.dtype))
    return features * (1 + (gate - gate.detach()))


@torch.no_grad()
def counterfactual(
    loss: Callable[[Allocation], Float[Tensor, " b"]], tokens: VisualTokens, region: Int[Tensor, "b n"], count: int
) -> Float[Tensor, "b r"]:
    """The value of each region: the loss with all at one token, less that with this one alone in full, (B, R).

    loss: of an answer, (B,), with the tokens of an allocation; called count + 1 times. region: (B, N) in [0, count),
    each of the same size in all images. Raises DataError for regions of different sizes.
    """
    sizes = torch.zeros(len(region), count, dtype=torch.long, device=region.device)
    sizes = sizes.scatter_add(1, region, torch.ones_like(region))
    if bool((sizes != sizes[:1]).any()) or bool((sizes == 0).any()):
        raise DataError("regions must be of the same sizes, over 0, in all images of the batch")
    floor = loss(Allocation.merge(region, count, boxes=tokens.boxes))
    values = []
    for raised in range(count):
        inside = region == raised
        own = inside.long().cumsum(dim=1) - 1
        group = torch.where(inside, torch.where(own == 0, raised, count - 1 + own), region)
        size = count - 1 + int(sizes[0, raised])
        values.append(floor - loss(Allocation.merge(group, size, boxes=tokens.boxes)))
    return torch.stack(values, dim=1)


def distillation(
    field: Float[Tensor, "b n"], region: Int[Tensor, "b n"], values: Float[Tensor, "b r"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """How far the field is from the teacher, KL(softmax(values / temperature) || field), the mean over images."""
    share = field.new_zeros(values.shape).scatter_add(1, region, field)
    target = (values.to(share) / temperature).softmax(dim=1)
    return (torch.special.xlogy(target, target) - target * share.clamp(min=1e-12).log()).sum(dim=1).mean()
