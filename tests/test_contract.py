"""Every allocator keeps the contract, and the contract catches an allocator that breaks any one of its rules."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch

from regard.allocate import Allocator, catalogue, checked_budget, load, missing_needs, top_slots
from regard.allocation import Allocation
from regard.errors import DataError
from regard.reading import Selected
from regard.testing import RULES, check_allocator
from regard.tokens import Question, VisualTokens

pytestmark = pytest.mark.usefixtures("unchecked")  # checks of shapes would take three quarters of the time


@pytest.mark.parametrize("name", catalogue())
def test_allocator_keeps_the_contract(name: str):
    check_allocator(load(name))


Decide = Callable[[VisualTokens, Question | None, int], Allocation]


@dataclass
class Good:
    """Keeps the tokens with the largest scores; all rules written out, so that one at a time can be broken."""

    needs: tuple[str, ...] = ("scores:worth",)
    breaks: str = ""
    calls: list[int] = field(default_factory=list)

    def allocate(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        return BROKEN[self.breaks](self, tokens, question, budget)

    def keep(self, tokens: VisualTokens, question: Question | None, budget: int, score=None) -> Allocation:
        budget = checked_budget(budget)
        if missing := missing_needs(self.needs, tokens, question):
            raise DataError(f"Good needs {missing}")
        score = tokens.scores["worth"].float() if score is None else score
        score = score.masked_fill(~tokens.valid, 0)
        batch, n = score.shape
        if budget >= n:
            return Allocation.identity(batch, n, tokens.mask)
        if bool(score.isnan().any()):
            raise DataError("Good: worth is not finite")
        count = tokens.valid.sum(dim=1, keepdim=True).clamp(max=budget)
        order = score.masked_fill(~tokens.valid, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        index = torch.where(torch.arange(budget) < count, order[:, :budget], -1)
        return Allocation.select(index, n)


def too_many_on_ties(self: Good, tokens, question, budget):
    allocation = self.keep(tokens, question, budget)
    if budget >= allocation.n_in or bool((allocation.valid.sum(dim=1) == 0).any()):
        return allocation
    score = tokens.scores["worth"].masked_fill(~tokens.valid, -torch.inf)
    least = score.gather(1, allocation.anchor).masked_fill(~allocation.valid, torch.inf).amin(dim=1, keepdim=True)
    keep = (score >= least) & tokens.valid
    order = (~keep).int().sort(dim=1, stable=True).indices
    return Allocation.select(torch.where(keep.gather(1, order), order, -1), allocation.n_in)


def doubled(self: Good, tokens, question, budget):
    allocation = self.keep(tokens, question, budget)
    return replace(allocation, reading=Twice(allocation.reading)) if budget < allocation.n_in else allocation


class Twice(Selected):
    def __init__(self, selected):
        super().__init__(selected.index, selected.n_in)

    def matrix(self):
        return 2 * super().matrix()


def unsorted(self: Good, tokens, question, budget):
    allocation = self.keep(tokens, question, budget)
    if budget >= allocation.n_in or allocation.mask is not None:
        return allocation
    index = allocation.anchor.flip(1)
    return Allocation(Selected(index, allocation.n_in), index)


def whole_batch(self: Good, tokens, question, budget):
    score = tokens.scores["worth"].float() if "worth" in tokens.scores else None
    if score is not None and len(score) > 1:
        score = (score - score.masked_fill(~tokens.valid, 0).mean()).abs()
    return self.keep(tokens, question, budget, score)


def counts_slots(self: Good, tokens, question, budget):
    n = tokens.features.shape[1]
    score = torch.arange(n).expand(len(tokens.features), n) * 1.0
    score = -(score - score.mean()).abs()
    return self.keep(tokens, question, budget, score)


def reads_padding(self: Good, tokens, question, budget):
    return self.keep(replace(tokens, mask=None), question, budget)


def forgetful(self: Good, tokens, question, budget):
    self.calls.append(1)
    score = torch.rand(tokens.features.shape[:2], generator=torch.Generator().manual_seed(len(self.calls)))
    return self.keep(tokens, question, budget, score)


def scales_everything(self: Good, tokens, question, budget):
    allocation = self.keep(tokens, question, budget)
    return replace(allocation, gain=torch.full(allocation.anchor.shape, 1.5))


def takes_any_budget(self: Good, tokens, question, budget):
    return self.keep(tokens, question, budget if type(budget) is int and budget > 0 else 1)


def leaks(self: Good, tokens, question, budget):
    allocation = self.keep(tokens, question, budget)
    return replace(allocation, reading=Leaky(allocation.reading)) if budget < allocation.n_in else allocation


class Leaky(Twice):
    def matrix(self):
        return Selected.matrix(self)

    def read(self, x):
        return self.matrix().to(x.dtype) @ x


def scores_nan(self: Good, tokens, question, budget):
    worth = tokens.scores.get("worth")
    return self.keep(tokens, question, budget, None if worth is None else worth.float().nan_to_num(1e9))


def nameless(self: Good, tokens, question, budget):
    try:
        return self.keep(tokens, question, budget)
    except DataError as error:
        raise DataError(str(error).replace("Good: ", "")) from error


def falls_back(self: Good, tokens, question, budget):
    worth = tokens.scores.get("worth", torch.zeros(tokens.features.shape[:2]))
    return self.keep(replace(tokens, scores={"worth": worth}), question, budget)


def anchors_at_the_first_slots(self: Good, tokens, question, budget):
    allocation = self.keep(tokens, question, budget)
    if budget >= allocation.n_in or tokens.mask is not None:
        return allocation
    return replace(allocation, anchor=torch.arange(budget).expand_as(allocation.anchor))


def pads_more(self: Good, tokens, question, budget):
    allocation = self.keep(tokens, question, budget)
    if budget >= allocation.n_in:
        return allocation
    index = torch.where(allocation.valid, allocation.anchor, -1)
    more = torch.cat([index, torch.full((len(index), 5), -1)], dim=1)
    return Allocation.select(more, allocation.n_in)


def draws_from_the_global_generator(self: Good, tokens, question, budget):
    torch.rand(1)
    return self.keep(tokens, question, budget)


def copies_to_numpy(self: Good, tokens, question, budget):
    tokens.features.float().numpy()
    return self.keep(tokens, question, budget)


def writes_to_features(self: Good, tokens, question, budget):
    tokens.features[:, :1] += 1
    return self.keep(tokens, question, budget)


def only_float32(self: Good, tokens, question, budget):
    if tokens.features.dtype != torch.float32:
        raise DataError("Good: float32 only")
    return self.keep(tokens, question, budget)


BROKEN: dict[str, Callable] = {
    "": Good.keep,
    "exact_count": too_many_on_ties,
    "rows_sum_to_one": doubled,
    "rows_sum_to_one (padding)": reads_padding,
    "anchors_are_slots": unsorted,
    "batch_neighbours_do_not_matter": whole_batch,
    "padding_does_not_matter": counts_slots,
    "same_call_same_result": forgetful,
    "large_budget_is_identity": scales_everything,
    "small_budget_is_an_error": takes_any_budget,
    "dropped_inputs_cannot_leak": leaks,
    "nan_in_a_score_is_an_error": scores_nan,
    "nan_in_a_score_is_an_error (name)": nameless,
    "needs_are_stated": falls_back,
    "features_are_untouched": writes_to_features,
    "features_may_need_gradients": copies_to_numpy,
    "exact_count (padding)": pads_more,
    "anchors_are_slots (unread)": anchors_at_the_first_slots,
    "same_call_same_result (generator)": draws_from_the_global_generator,
    "every_float_type": only_float32,
}


def test_every_rule_has_a_broken_allocator():
    assert {name.split(" ")[0] for name in BROKEN if name} == set(RULES)


def test_the_good_one_passes():
    check_allocator(Good())


@pytest.mark.parametrize("breaks", [name for name in BROKEN if name])
def test_the_contract_catches(breaks: str):
    with pytest.raises(AssertionError):
        check_allocator(Good(breaks=breaks), rules=[breaks.split(" ")[0]], examples=100)


@dataclass(frozen=True)
class Wrong(Allocator):
    """Each way of being wrong that the base class itself refuses."""

    how: str = ""

    def decide(self, tokens, question, budget):
        n = tokens.features.shape[1]
        if self.how == "count":
            return Allocation.select(torch.arange(budget - 1).expand(len(tokens.features), -1), n)
        return Allocation.merge(torch.arange(n).expand(len(tokens.features), n) % budget, budget)


def test_the_base_class_refuses_a_wrong_count_and_masked_inputs():
    mask = torch.arange(11) < torch.tensor([[7], [8]])
    tokens = VisualTokens(torch.randn(2, 11, 3), torch.rand(2, 11, 4), mask=mask)
    with pytest.raises(ValueError, match=r"Wrong: decide must give 5 outputs for each of 2 images, got \[4, 4\]"):
        Wrong("count").allocate(tokens, None, 5)
    with pytest.raises(ValueError, match="Wrong: decide reads inputs that the mask excludes"):
        Wrong("padding").allocate(tokens, None, 5)


def test_allocate_is_final():
    with pytest.raises(TypeError, match="Own.allocate is final: write decide"):
        type("Own", (Allocator,), {"allocate": lambda self: None})


def test_top_slots_breaks_ties_by_slot_and_never_takes_padding():
    scores = torch.tensor([[1.0, 3.0, 3.0, -torch.inf, 3.0, -torch.inf]])
    valid = torch.tensor([[True, True, True, False, True, True]])
    assert top_slots(scores, valid, 2).tolist() == [[1, 2]]
    assert top_slots(scores, valid, 5).tolist() == [[0, 1, 2, 4, 5]]
