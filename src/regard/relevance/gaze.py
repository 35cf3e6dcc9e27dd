"""The fixation loop: allocate, attend, feed the attention back, allocate again.

What attends (a language model, or the question itself) says how much each output token was looked at, and how much it
is looked at when nothing is asked: sinks and recency. The difference, over what was spent there, is a belief that the
next field is drawn to; the region that earned most is fixated, and what was spent inhibits return. It stops when the
answer is certain, when the allocation hardly changes, or after three looks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.allocation import Allocation
from regard.errors import DataError, ShapeError
from regard.relevance.realized import Gaze, Realized
from regard.relevance.realizer import Realizer
from regard.relevance.tensions import States, shares
from regard.relevance.ways import mean_word
from regard.tokens import Question, VisualTokens

MOST_LOOKS = 3
STILL = 0.05  # the share of the budget under which an allocation counts as unchanged
CERTAIN = 0.1  # the uncertainty under which an answer counts as certain


@dataclass(frozen=True, eq=False)
class Attended:
    """weights: (B, K) >= 0, how much each output token was looked at. uncertainty: (B,) in [0, 1], of the answer (its
    entropy over an even one's), where there is one.
    """

    weights: Float[Tensor, "b k"]
    uncertainty: Float[Tensor, " b"] | None = None


Attend = Callable[[Allocation, Question | None], Attended]


@dataclass(frozen=True, eq=False)
class Gazed:
    """allocation: each image's at its last look. looks: every pass, for all images, those that had stopped as well.
    count: (B,), how many looks an image took. fixations: (B, F, 2), x and y in [0, 1], where it looked after each pass.
    """

    allocation: Allocation
    looks: tuple[Realized, ...]
    count: Int[Tensor, " b"]
    fixations: Float[Tensor, "b f 2"]


@torch.no_grad()
def gaze(
    realizer: Realizer,
    tokens: VisualTokens,
    question: Question | None,
    budget: int,
    attend: Attend,
    states: States | None = None,
    most: int = MOST_LOOKS,
) -> Gazed:
    """Look up to `most` times, each look at the budget: the cost is that of all of them.

    budget: at most each image's valid tokens. attend: called with each allocation and the question, and with None for
    the baseline. Raises DataError for attention that is negative or not finite, ShapeError for one of another shape.
    """
    if most < 1:
        raise DataError(f"at least 1 look is needed, got {most}")
    look = realizer(tokens, question, budget, states)
    looks, kept = [look], look.groups(budget)
    done = torch.zeros(len(kept), dtype=torch.bool, device=kept.device)
    count, state, fixations = torch.ones_like(done, dtype=torch.long), Gaze(), []
    while len(looks) < most and not bool(done.all()):
        before = look.allocation
        asked, nothing = (_checked(attend(before, heard), before) for heard in (question, None))
        if asked.uncertainty is not None:
            done = done | (asked.uncertainty < CERTAIN)
        done = done | ~((asked.weights > nothing.weights) & before.valid).any(dim=1)
        if bool(done.all()):
            break
        state = _fed_back(state, look, before, asked, nothing)
        look = realizer(tokens, question, budget, states, state)
        done = done | (changed(before, look.allocation) < STILL * budget)
        kept = torch.where(done[:, None], kept, look.groups(budget))
        count = count + (~done).long()
        looks.append(look)
        assert state.fixations is not None
        fixations.append(state.fixations[:, 0])
    path = torch.stack(fixations, dim=1) if fixations else tokens.boxes.new_zeros(len(done), 0, 2)
    return Gazed(Allocation.merge(kept, budget, boxes=tokens.boxes), tuple(looks), count, path)


def changed(one: Allocation, other: Allocation) -> Float[Tensor, " b"]:
    """Half of the tokens that two allocations spend in different places, (B,)."""
    return (one.spent() - other.spent()).abs().sum(dim=1) / 2


def by_likeness(realizer: Realizer, tokens: VisualTokens, sharpness: float = 8.0) -> Attend:
    """Attention without a language model: the question's words over the output tokens, softmax of their likeness."""

    def attend(allocation: Allocation, question: Question | None) -> Attended:
        k = allocation.valid.sum(dim=1, keepdim=True).double()
        if question is None:
            return Attended(allocation.valid / k)
        seen = allocation.apply(tokens)
        asked, bank = realizer.participatory.likeness(seen, question)
        alone = (mean_word(asked, question) - bank.mean(dim=2, keepdim=True)).squeeze(2)
        over = alone.masked_fill(~allocation.valid, -torch.inf).mul(sharpness).softmax(dim=1)
        entropy = -torch.special.xlogy(over, over).sum(dim=1) / k.squeeze(1).log().clamp(min=1e-9)
        return Attended(over, entropy.clamp(0, 1))

    return attend


def _fed_back(state: Gaze, look: Realized, allocation: Allocation, asked: Attended, nothing: Attended) -> Gaze:
    """What the next look is told: a region's tokens each earned what it did, so that its size does not count."""
    tokens, valid = look.tokens, look.tokens.valid
    earned = (asked.weights.double() - nothing.weights.double()).clamp(min=0).masked_fill(~allocation.valid, 0)
    found = shares(allocation.restore(earned[..., None]).squeeze(2), valid)
    belief = found if state.belief is None else shares((state.belief * found).sqrt(), valid)
    count = valid.sum(dim=1, keepdim=True).clamp(min=2)
    paid = ((allocation.spent() - 1 / count) / (1 - 1 / count)).clamp(min=0)
    best = earned.argmax(dim=1)[:, None, None].expand(-1, 1, 4)
    x0, y0, x1, y1 = allocation.apply(tokens).boxes.gather(1, best).unbind(dim=2)
    fixations = torch.stack(((x0 + x1) / 2, (y0 + y1) / 2), dim=2)
    visits = paid if state.visits is None else state.visits + paid
    return Gaze(fixations, visits, belief, asked.uncertainty)


def _checked(attended: Attended, allocation: Allocation) -> Attended:
    weights = attended.weights
    if weights.shape != allocation.anchor.shape:
        raise ShapeError(f"attention must have shape {tuple(allocation.anchor.shape)}, got {tuple(weights.shape)}")
    if not bool((weights >= 0).all()) or not bool(weights.isfinite().all()):
        raise DataError("attention must be finite and >= 0")
    doubt = attended.uncertainty
    if doubt is not None and not bool(((doubt >= 0) & (doubt <= 1)).all()):
        raise DataError("the uncertainty of an answer must be in [0, 1]")
    return attended
