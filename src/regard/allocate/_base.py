"""The rules that every allocator keeps, and the steps they share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.allocation import Allocation
from regard.amount import checked_budget
from regard.errors import DataError, ShapeError
from regard.reading import Grouped, Mixed, Reading, Selected
from regard.record import Realization
from regard.tokens import Question, VisualTokens


class Allocates(Protocol):
    """Anything that decides."""

    def allocate(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        """K = min(budget, valid tokens) outputs for each image."""
        ...


class Explains(ABC):
    """An allocator that can say why."""

    @abstractmethod
    def explain(self, tokens: VisualTokens, question: Question | None, budget: int) -> Realization:
        """What led to the decision about one image (B = 1), as plain data."""


@dataclass(frozen=True)
class Allocator(ABC):
    """Decides how a budget of tokens reads the tokens of an image; knows no model. A subclass writes `decide`.

    needs: what `decide` uses beyond features and boxes: "question", "aligned", "keys", "grid", "segment",
    "scores:NAME". uses: what it takes where it is there, and does without where it is not. Parameters are fields of
    the (frozen) dataclass.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        if "allocate" in cls.__dict__:
            raise TypeError(f"{cls.__name__}.allocate is final: write decide")

    @property
    def name(self) -> str:
        """The name in errors and records."""
        return type(self).__name__

    @abstractmethod
    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        """Exactly `budget` outputs for each image; every image has more valid tokens than that."""

    @final
    def allocate(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        """K = min(budget, valid tokens) outputs for each image; the identity where the budget is no less than N.

        Raises BudgetError for a budget under 1 or not whole, DataError where something that the allocator needs is
        missing or not finite, ShapeError where question and tokens do not fit.
        """
        budget = checked_budget(budget)
        self._check_needs(tokens, question)
        batch, n, _ = tokens.features.shape
        if budget >= n:
            return Allocation.identity(batch, n, tokens.mask, tokens.features.device)
        if tokens.mask is None:
            return self._decided(tokens, question, budget)
        over = tokens.mask.sum(dim=1) > budget
        if bool(over.all()):
            return self._decided(tokens, question, budget)
        kept = _keep_all(tokens.mask[~over], n)
        if not bool(over.any()):
            return kept
        rows = over.nonzero().squeeze(1)
        asked = None if question is None else question.images(rows)
        return _together(over, self._decided(tokens.images(rows), asked, budget), kept)

    def _decided(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        decision = self.decide(tokens, question, budget)
        shape, real = (len(tokens.features), budget), decision.valid.sum(dim=1)
        if decision.anchor.shape != shape or bool((real != budget).any()):
            raise ShapeError(
                f"{self.name}: decide must give {budget} outputs for each of {shape[0]} images, "
                f"got {real.tolist()} in {tuple(decision.anchor.shape)}"
            )
        if tokens.mask is not None and bool((decision.spent()[~tokens.mask] != 0).any()):
            raise ShapeError(f"{self.name}: decide reads inputs that the mask excludes")
        return decision

    def _check_needs(self, tokens: VisualTokens, question: Question | None) -> None:
        missing = missing_needs(self.needs, tokens, question)
        if missing:
            raise DataError(f"{self.name} needs {', '.join(missing)}: take an eye that gives it, or another allocator")
        if question is not None and len(question.features) != len(tokens.features):
            asked, seen = len(question.features), len(tokens.features)
            raise ShapeError(f"{asked} questions for {seen} images: one each is needed")

    def clean(self, what: str, values: Tensor, valid: Tensor) -> Tensor:
        """What the allocator scores by, ready for arithmetic: detached, in float32 at least, 0 where it is no token.

        values: (B, N, ...). Raises DataError where a valid token's are inf or NaN.
        """
        self.check_finite(what, values, valid)
        values = values.detach().to(torch.promote_types(values.dtype, torch.float32))
        if bool(valid.all()):
            return values
        return values.masked_fill(~(valid if values.ndim == 2 else valid[..., None]), 0)

    def check_finite(self, what: str, values: Tensor, valid: Tensor) -> None:
        """Raise DataError where what the allocator scores by is inf or NaN at a valid token. values: (B, N, ...)."""
        if values.ndim > 2:
            values = values.detach().flatten(2)
            if bool(torch.linalg.vector_norm(values, dim=2).isfinite().all()):  # far quicker than to ask every number
                return
        bad = ~(values.isfinite().all(dim=2) if values.ndim > 2 else values.isfinite()) & valid
        if bool(bad.any()):
            image, slot = (int(i) for i in bad.nonzero()[0])
            raise DataError(f"{self.name}: {what} of image {image} is not finite at token {slot}: mend or mask it")


def missing_needs(needs: tuple[str, ...], tokens: VisualTokens, question: Question | None) -> list[str]:
    """Those of an allocator's needs that neither the tokens nor the question supply."""
    given = {"question": question, "aligned": tokens.aligned, "keys": tokens.keys}
    given |= {"grid": tokens.grid, "segment": tokens.segment}
    given |= {f"scores:{name}": score for name, score in tokens.scores.items()}
    return [need for need in needs if given.get(need) is None]


def top_slots(scores: Float[Tensor, "b n"], valid: Bool[Tensor, "b n"], k: int) -> Int[Tensor, "b {k}"]:
    """The k valid slots with the highest scores, ties to the lower slot, in the order of the slots."""
    order = scores.masked_fill(~valid, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    if bool((scores == -torch.inf).any()):  # a valid -inf must still go before padding
        order = order.gather(1, (~valid).gather(1, order).int().sort(dim=1, stable=True).indices)
    return order[:, :k].sort(dim=1).values


def _keep_all(mask: Bool[Tensor, "b n"], n: int) -> Allocation:
    """Every valid token of each image, padded to the fullest."""
    most = max(int(mask.sum(dim=1).max()), 1)
    order = (~mask).int().sort(dim=1, stable=True).indices[:, :most]
    return Allocation.select(torch.where(mask.gather(1, order), order, -1), n)


def _together(over: Bool[Tensor, " b"], decided: Allocation, kept: Allocation) -> Allocation:
    """One batch again: `decided` where `over`, `kept` (selections, no gain) elsewhere."""
    batch = partial(_batch, over)
    alike = kept.reading
    assert isinstance(alike, Selected)
    reading: Reading
    match decided.reading:
        case Selected(index=index, n_in=n):
            reading = Selected(batch(index, alike.index, -1), n)
        case Grouped(group=group, weight=weight):
            one = alike.grouped()
            reading = Grouped(batch(group, one.group, -1), batch(weight, one.weight, 0), decided.n_out)
        case Mixed(weights=weights):
            reading = Mixed(batch(weights, alike.matrix(), 0))
    gain = None if decided.gain is None else batch(decided.gain, torch.ones_like(kept.anchor), 1)
    mask = batch(decided.valid, kept.valid, False)
    return Allocation(reading, batch(decided.anchor, kept.anchor, 0), gain, None if bool(mask.all()) else mask)


def _batch(over: Bool[Tensor, " b"], a: Tensor, b: Tensor, pad: float) -> Tensor:
    """`a` where `over`, `b` elsewhere, padded to the width of `a`."""
    whole = a.new_full((len(over), *a.shape[1:]), pad)
    whole[over] = a
    part = whole.new_full((len(b), *a.shape[1:]), pad)
    part[:, : b.shape[1]] = b.to(part.dtype)
    whole[~over] = part
    return whole
