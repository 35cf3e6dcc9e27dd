"""The rules that every allocator keeps, each a function that fails for one that breaks it. Run by `regard.testing`."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.allocation import Allocation
from regard.errors import BudgetError, DataError
from regard.reading import Mixed
from regard.tokens import Question, VisualTokens


@dataclass(frozen=True)
class Case:
    """What a rule is tried on."""

    allocator: Any
    tokens: VisualTokens
    question: Question | None
    budget: int

    @property
    def needs(self) -> tuple[str, ...]:
        return getattr(self.allocator, "needs", ())

    def decide(self, **changes: Any) -> Allocation:
        """The allocator's decision, with some of the case changed."""
        case = dataclasses.replace(self, **changes)
        return case.allocator.allocate(case.tokens, case.question, case.budget)


RULES: dict[str, Callable[[Case], None]] = {}


def _rule(check: Callable[[Case], None]) -> Callable[[Case], None]:
    RULES[check.__name__] = check
    return check


def _rows(allocation: Allocation, image: int) -> tuple[Tensor, Tensor, Tensor]:
    """One image's anchors, matrix and gain, without padding."""
    valid = allocation.valid[image]
    gain = torch.ones_like(allocation.anchor, dtype=torch.float32) if allocation.gain is None else allocation.gain
    return allocation.anchor[image, valid], allocation.matrix()[image, valid], gain[image, valid]


def _assert_same(got: Allocation, image: int, want: Allocation, of: int) -> None:
    for one, other, what in zip(_rows(got, image), _rows(want, of), ("anchors", "matrix", "gain"), strict=True):
        other = other[:, : one.shape[1]] if one.ndim == 2 else other
        assert one.shape == other.shape, f"{what}: {tuple(one.shape)} and {tuple(other.shape)}"
        assert torch.allclose(one.double(), other.double(), atol=1e-5), f"{what} differ: {one} and {other}"


@_rule
def exact_count(case: Case) -> None:
    """K == min(budget, valid tokens), no matter the ties."""
    want = case.tokens.valid.sum(dim=1).clamp(max=case.budget)
    allocation = case.decide()
    assert allocation.valid.sum(dim=1).tolist() == want.tolist()
    if case.budget < case.tokens.features.shape[1]:
        assert allocation.n_out <= case.budget, "more rows than the budget"
    assert allocation.n_in == case.tokens.features.shape[1]


@_rule
def rows_sum_to_one(case: Case) -> None:
    """Rows are >= 0, sum to 1 (padded rows to 0) and read valid inputs only."""
    allocation = case.decide()
    matrix = allocation.matrix()
    assert (matrix >= 0).all()
    assert torch.allclose(matrix.sum(dim=2), allocation.valid.float(), atol=1e-5)
    assert (matrix.transpose(1, 2)[~case.tokens.valid] == 0).all(), "reads an input that the mask excludes"


@_rule
def anchors_are_slots(case: Case) -> None:
    """Anchors are valid input slots that their rows read, unique in their image, in ascending order."""
    allocation = case.decide()
    read = allocation.matrix().gather(2, allocation.anchor[..., None]).squeeze(2)
    assert (read[allocation.valid] > 0).all(), "a row does not read its own anchor"
    for image, real in enumerate(allocation.valid):
        anchors = allocation.anchor[image, real]
        assert case.tokens.valid[image, anchors].all(), "an anchor is not a valid slot"
        assert (anchors.diff() > 0).all(), f"anchors are not ascending and unique: {anchors.tolist()}"


@_rule
def batch_neighbours_do_not_matter(case: Case) -> None:
    """An image alone gives what it gives in a batch, in whatever order."""
    whole = case.decide()
    for order in (torch.arange(len(whole.anchor)).flip(0), *torch.arange(len(whole.anchor))[:, None]):
        question = None if case.question is None else case.question.images(order)
        part = case.decide(tokens=case.tokens.images(order), question=question)
        for place, image in enumerate(order.tolist()):
            _assert_same(part, place, whole, image)


@_rule
def padding_does_not_matter(case: Case) -> None:
    """Padded tokens, before or after, whatever they hold, change nothing."""
    want = case.decide()
    for before in (False, True):
        padded, shift = _padded(case.tokens, before)
        got = case.decide(tokens=padded)
        got = dataclasses.replace(got, anchor=got.anchor - shift, reading=Mixed(got.matrix()[:, :, shift:]))
        for image in range(len(want.anchor)):
            _assert_same(want, image, got, image)


def _padded(tokens: VisualTokens, before: bool) -> tuple[VisualTokens, int]:
    """The tokens with one more row of them that are no tokens, and by how many slots the others moved."""
    extra, grid = 1, None
    if tokens.grid is not None:  # a row more, or a whole frame where there are several
        frames, height, width = tokens.grid
        extra, grid = (width, (1, height + 1, width)) if frames == 1 else (height * width, (frames + 1, height, width))

    def pad(x: Tensor, value: float) -> Tensor:
        x = x.clone()
        if x.is_floating_point():
            x[~tokens.valid] = value
        more = x.new_full((len(x), extra, *x.shape[2:]), value)
        return torch.cat([more, x] if before else [x, more], dim=1)

    padded = VisualTokens(
        pad(tokens.features, torch.nan),
        pad(tokens.boxes, torch.nan),
        mask=pad(tokens.valid, False),
        aligned=None if tokens.aligned is None else pad(tokens.aligned, torch.nan),
        keys=None if tokens.keys is None else pad(tokens.keys, torch.inf),
        scores={name: pad(score, torch.nan) for name, score in tokens.scores.items()},
        grid=grid,
        segment=None if tokens.segment is None else pad(tokens.segment, 0),
    )
    return padded, extra if before else 0


@_rule
def same_call_same_result(case: Case) -> None:
    """The same call gives the same result, bit for bit, and leaves the global generator alone."""
    state = torch.get_rng_state()
    one, two = case.decide(), case.decide()
    assert torch.equal(torch.get_rng_state(), state), "the global random generator was used"
    assert torch.equal(one.anchor, two.anchor)
    assert torch.equal(one.matrix(), two.matrix())


@_rule
def large_budget_is_identity(case: Case) -> None:
    """A budget of N or more is the identity, bit for bit, without a gain."""
    n = case.tokens.features.shape[1]
    for budget in (n, n + 3):
        allocation = case.decide(budget=budget)
        assert allocation.gain is None
        assert torch.equal(allocation.apply(case.tokens).features, case.tokens.features)


@_rule
def small_budget_is_an_error(case: Case) -> None:
    """A budget under 1, or not a whole number, is a BudgetError."""
    for budget in (0, -1, True, 1.5, "8", None):
        try:
            case.decide(budget=budget)
        except BudgetError:
            continue
        raise AssertionError(f"no BudgetError for a budget of {budget!r}")


@_rule
def dropped_inputs_cannot_leak(case: Case) -> None:
    """An inf or NaN in an input that is not read cannot reach the output."""
    allocation = case.decide()
    unread = allocation.spent() == 0
    want = allocation.apply(case.tokens.features)[allocation.valid]
    for value in (torch.inf, torch.nan):
        dirty = case.tokens.features.masked_fill(unread[..., None], value)
        assert torch.equal(allocation.apply(dirty)[allocation.valid], want)


@_rule
def nan_in_a_score_is_an_error(case: Case) -> None:
    """A NaN in what it scores by is a DataError that names the allocator; elsewhere it changes nothing."""
    spots = case.tokens.valid.nonzero().tolist()
    if not spots or case.budget >= int(case.tokens.valid.sum(dim=1).max()):
        return  # nothing to choose
    want, image_over = case.decide(), (case.tokens.valid.sum(dim=1) > case.budget).tolist()
    image, slot = next(spot for spot in spots if image_over[spot[0]])
    fields = {name: getattr(case.tokens, name) for name in ("features", "aligned", "keys")}
    fields |= {f"scores:{name}": score for name, score in case.tokens.scores.items()}
    for name, values in fields.items():
        if values is None:
            continue
        dirty = values.clone()
        dirty[image, slot] = torch.nan
        change = {"scores": {**case.tokens.scores, name[7:]: dirty}} if ":" in name else {name: dirty}
        try:
            got = case.decide(tokens=dataclasses.replace(case.tokens, **change))
        except DataError as error:
            names = {type(case.allocator).__name__, getattr(case.allocator, "name", "")}
            assert any(known in str(error) for known in names if known), f"the error names no allocator: {error}"
            continue
        _assert_same(got, image, want, image)


@_rule
def needs_are_stated(case: Case) -> None:
    """Without something that it needs it raises a DataError that names the thing, and never falls back."""
    for need in case.needs:
        tokens, question = case.tokens, case.question
        if need == "question":
            question = None
        elif need.startswith("scores:"):
            tokens = dataclasses.replace(tokens, scores={})
        else:
            tokens = dataclasses.replace(tokens, **{need: None})
        try:
            case.decide(tokens=tokens, question=question)
        except DataError as error:
            assert need in str(error), f"the error does not say {need!r}: {error}"
            continue
        raise AssertionError(f"no DataError without {need}")


@_rule
def features_are_untouched(case: Case) -> None:
    """Deciding changes nothing that it is given."""
    given = {name: value for name, value in vars(case.tokens).items() if isinstance(value, Tensor)}
    given |= case.tokens.scores
    if case.question is not None:
        given["question"] = case.question.features
    before = {name: value.clone() for name, value in given.items()}
    case.decide()
    for name, value in given.items():
        assert torch.allclose(value, before[name], rtol=0, atol=0, equal_nan=True), f"{name} was changed in place"


@_rule
def features_may_need_gradients(case: Case) -> None:
    """Works on tokens that are being trained, and its apply lets the gradient through."""
    features = case.tokens.features.clone().requires_grad_()
    tokens = dataclasses.replace(case.tokens, features=features)
    case.decide(tokens=tokens).apply(tokens).features.sum().backward()
    assert features.grad is not None


@_rule
def every_float_type(case: Case) -> None:
    """Works in bfloat16, float16 and float64, and its apply keeps the type."""
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        cast = {
            name: value.to(dtype)
            for name, value in vars(case.tokens).items()
            if isinstance(value, Tensor) and value.is_floating_point() and name != "boxes"
        }
        scores = {name: score.to(dtype) for name, score in case.tokens.scores.items()}
        tokens = dataclasses.replace(case.tokens, **cast, scores=scores)
        question = None if case.question is None else Question(case.question.features.to(dtype), case.question.mask)
        allocation = case.decide(tokens=tokens, question=question)
        assert allocation.apply(tokens).features.dtype == dtype
