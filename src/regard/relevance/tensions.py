"""Three opponents, each a state in [0, 1] between two poles, held by two antagonist drives.

scope: 0 compress .. 1 particularize. tempering: 0 exploit .. 1 explore. prioritization: 0 focus .. 1 diversify.
A state is A^2 / (A^2 + B^2) of its drives A (to 1) and B (to 0), moved by a learned correction that is 0 at first, or
what the user says. Everything downstream is affine in each state, so moving one moves its stated quantity one way only
(the exchange theorem, docs/relevance.md).
"""

from dataclasses import astuple, dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.errors import DataError
from regard.relevance.ways import entropy

State = float | Literal["auto"]
_TIES = 1e9
_LEAST = 0.05  # of a drive, so that no state is ever held by one side alone


@dataclass(frozen=True)
class States:
    """What the user says of each tension: a number in [0, 1] fixes it, "auto" leaves it to its drives.

    Raises DataError for anything else.
    """

    scope: State = "auto"
    tempering: State = "auto"
    prioritization: State = "auto"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value != "auto" and not (number and 0 <= value <= 1):
                raise DataError(f"{field.name} must be 'auto' or a number from 0 to 1, got {value!r}")

    @property
    def fixed(self) -> tuple[str, ...]:
        """The names of those that are given."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) != "auto")


class Tensions(nn.Module):
    """From drives to states. The correction reads the logarithms of all six drives."""

    def __init__(self) -> None:
        super().__init__()
        self.correction = nn.Linear(6, 3)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(self, drives: Float[Tensor, "b 3 2"], given: States) -> Float[Tensor, "b 3"]:
        """States (B, 3) in [0, 1]: those that are given, and of the others each rises with its first drive and falls
        with its second where the correction is 0.
        """
        logs = drives.double().log()
        weight, bias = self.correction.weight.to(logs), self.correction.bias.to(logs)
        moved = nn.functional.linear(logs.flatten(1), weight, bias)
        states = (2 * (logs[..., 0] - logs[..., 1]) + moved).sigmoid()
        columns = [
            states[:, i] if value == "auto" else torch.full_like(states[:, i], value)
            for i, value in enumerate(astuple(given))
        ]
        return torch.stack(columns, dim=1)


@dataclass(frozen=True, eq=False)
class Balance:
    """How R regions are weighed. field: (B, R), sum 1. mix: (B, 3), the weights of the ways in it. scores: (B, 3, R),
    the ways' robust scores. drives: (B, 3, 2), states: (B, 3), of scope, tempering and prioritization. poles:
    (B, 3, R), the field, and what exploring and diversifying would weigh by, each of sum 1.
    """

    field: Float[Tensor, "b r"]
    mix: Float[Tensor, "b 3"]
    scores: Float[Tensor, "b 3 r"]
    drives: Float[Tensor, "b 3 2"]
    states: Float[Tensor, "b 3"]
    poles: Float[Tensor, "b 3 r"]

    @property
    def terms(self) -> Float[Tensor, "b 3 r"]:
        """The three terms of each region's weight: (1 - d)(1 - e) field, (1 - d) e exploring and d diverse, for
        tempering e and prioritization d. All together sum to 1.
        """
        _, temper, priority = self.states.unbind(dim=1)
        parts = torch.stack(((1 - priority) * (1 - temper), (1 - priority) * temper, priority), dim=1)
        return parts[..., None] * self.poles


def drives(
    field: Float[Tensor, "b r"],
    z: Float[Tensor, "b 3 r"],
    detail: Float[Tensor, "b r"],
    scarcity: Float[Tensor, " b"],
    valid: Bool[Tensor, "b r"],
    uncertainty: Float[Tensor, " b"] | None = None,
) -> Float[Tensor, "b 3 2"]:
    """The antagonists of each tension, over 0.

    scope: the relevant detail that the floor cannot hold (1: as much as there is on average) against the scarcity of
    tokens (1: only the floor can be paid, 0: all can). tempering: uncertainty, in [0, 1] (of a pass before; at first
    the disagreement of the ways, a standard deviation in fours, under the field) against the field's certainty, the
    effective share of regions that it rules out. prioritization: the effective share that is relevant, exp(entropy)
    over R, against the share ruled out.
    detail: (B, R), what the floor loses of each region, 1 on average. scarcity: (B,), in [0, 1].
    """
    regions = valid.sum(dim=1).clamp(min=1).double()
    unresolved = (field * detail).sum(dim=1)
    if uncertainty is None:
        uncertainty = (field * disagreement(z)).sum(dim=1) / 4
    spread = entropy(field).exp() / regions
    pairs = torch.stack((unresolved, scarcity, uncertainty.to(field), 1 - spread, spread, 1 - spread), dim=1)
    return pairs.clamp(min=0).unflatten(1, (3, 2)) + _LEAST


def disagreement(z: Float[Tensor, "b 3 r"]) -> Float[Tensor, "b r"]:
    """The standard deviation of the three ways' scores at each region."""
    return z.var(dim=1, unbiased=False).clamp(min=1e-12).sqrt()


def explore(
    z: Float[Tensor, "b 3 r"], visits: Float[Tensor, "b r"], valid: Bool[Tensor, "b r"]
) -> Float[Tensor, "b r"]:
    """Where the ways disagree and nothing was spent before (inhibition of return): sqrt(var + 0.05) /
    sqrt(1 + visits), sum 1.
    """
    return shares((z.var(dim=1, unbiased=False) + 0.05).sqrt() / (1 + visits).sqrt(), valid)


def diversify(novel: Float[Tensor, "b r"], valid: Bool[Tensor, "b r"]) -> Float[Tensor, "b r"]:
    """By novelty, whatever was asked, sum 1."""
    return shares(novel + _LEAST, valid)


def novelty(x: Float[Tensor, "b r d"], valid: Bool[Tensor, "b r"], pivots: int = 8) -> Float[Tensor, "b r"]:
    """What of each region's descriptor a few others cannot tell, in [0, 1]: the residual of a pivoted Cholesky
    factorisation of their cosines after `pivots` steps, its square root; the first pivot is the longest vector. A
    region that holds nothing has none.
    """
    x = x.detach().double()
    length = torch.linalg.vector_norm(x, dim=2)
    length = torch.where(length > 0, length, torch.inf)
    left = (length.isfinite() & valid).to(x.dtype)
    longest = torch.where(left > 0, length, 0)  # all are left whole at first: the place must not choose
    longest = longest / longest.amax(dim=1, keepdim=True).clamp(min=1e-300)
    factors: list[Tensor] = []
    for step in range(min(pivots, x.shape[1])):
        pick = ((left if step else longest) * _TIES).round().argmax(dim=1, keepdim=True)  # nor must rounding
        pivot = x.gather(1, pick[..., None].expand(-1, -1, x.shape[2]))
        column = torch.bmm(x, pivot.transpose(1, 2)).squeeze(2) / length / length.gather(1, pick)
        for factor in factors:
            column = column - factor * factor.gather(1, pick)
        own = left.gather(1, pick)
        factors.append(torch.where(own > 1e-9, column * own.clamp(min=1e-9).rsqrt(), 0))
        left = left - factors[-1].square()
        left = torch.where(left > 1e-9, left, 0)  # the root of a rounding would be seen
    return left.sqrt().masked_fill(~valid, 0)


def shares(x: Float[Tensor, "b r"], valid: Bool[Tensor, "b r"]) -> Float[Tensor, "b r"]:
    """In proportion, sum 1; even where all is 0."""
    x = x.masked_fill(~valid, 0)
    total = x.sum(dim=1, keepdim=True)
    even = valid.to(x.dtype) / valid.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(total > 0, x / torch.where(total > 0, total, 1), even)
