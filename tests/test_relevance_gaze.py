"""The fixation loop: when it ends, what is fed back, and that images of a batch keep to themselves."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import Allocation, DataError, Question, ShapeError, VisualTokens
from regard.relevance.gaze import Attended, by_likeness, changed, gaze
from regard.relevance.realizer import Realizer
from regard.relevance.tensions import States
from relevance_toys import asking, drawn

few = settings(max_examples=5, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
REALIZER = Realizer()
GRID = (1, 8, 8)


@dataclass
class Looker:
    """Attends to what is spent on some tokens, the more so when asked, and always to a sink; counts its calls."""

    target: torch.Tensor
    sink: torch.Tensor | None = None
    uncertainty: torch.Tensor | None = None
    heard: list[Question | None] = field(default_factory=list)

    def __call__(self, allocation: Allocation, question: Question | None) -> Attended:
        self.heard.append(question)
        matrix = allocation.matrix().double()
        on = (matrix * self.target[:, None]).sum(dim=2)
        weights = allocation.valid * 0.01 + (0 if question is None else on)
        if self.sink is not None:
            weights = weights + 5 * (matrix * self.sink[:, None]).sum(dim=2)
        return Attended(weights * allocation.valid, self.uncertainty)


def region(rows: slice, columns: slice, batch: int = 2) -> torch.Tensor:
    found = torch.zeros(batch, 8, 8, dtype=torch.bool)
    found[:, rows, columns] = True
    return found.flatten(1)


CORNER = region(slice(6, 8), slice(0, 2))
OTHER = region(slice(0, 2), slice(4, 6))


@few
@given(seeds, st.integers(1, 23), st.booleans(), st.sampled_from([1, 2, 3, 5]))
def test_it_ends(seed: int, budget: int, masked: bool, most: int):
    tokens, question = drawn(seed, GRID, masked, d=13), asking(seed, 13)
    looker = Looker(torch.rand(2, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    found = gaze(REALIZER, tokens, question, budget, looker, most=most)
    assert 1 <= len(found.looks) <= most
    assert ((found.count >= 1) & (found.count <= len(found.looks))).all()
    assert found.fixations.shape == (2, len(found.looks) - 1, 2)
    assert ((found.fixations >= 0) & (found.fixations <= 1)).all()
    assert (found.allocation.valid.sum(dim=1) == budget).all()
    assert all(look.budget == budget for look in found.looks)
    for image in range(2):  # what is kept is the image's last look
        last = found.looks[int(found.count[image]) - 1].allocation
        assert found.allocation.spent()[image].equal(last.spent()[image])


def test_it_looks_three_times_where_nothing_says_otherwise_and_once_where_told():
    tokens, question = drawn(1, GRID, d=13), asking(1, 13)
    looker = Looker(CORNER)
    found = gaze(REALIZER, tokens, question, 16, looker)
    assert len(found.looks) <= 3
    assert len(looker.heard) == 2 * (len(found.looks) - 1)
    assert looker.heard[:2] == [question, None]
    looker = Looker(CORNER)
    found = gaze(REALIZER, tokens, question, 16, looker, most=1)
    assert (looker.heard, len(found.looks), found.count.tolist()) == ([], 1, [1, 1])
    with torch.no_grad():
        assert found.allocation.spent().equal(REALIZER(tokens, question, 16).allocation.spent())
    with pytest.raises(DataError, match="at least 1 look is needed, got 0"):
        gaze(REALIZER, tokens, question, 16, looker, most=0)


def test_it_stops_where_the_answer_is_certain():
    tokens, question = drawn(2, GRID, d=13), asking(2, 13)
    certain = gaze(REALIZER, tokens, question, 16, Looker(CORNER, uncertainty=torch.tensor([0.09, 0.0])))
    assert (certain.count.tolist(), len(certain.looks)) == ([1, 1], 1)
    doubtful = gaze(REALIZER, tokens, question, 16, Looker(CORNER, uncertainty=torch.tensor([0.09, 0.1])))
    assert doubtful.count[0] == 1
    assert doubtful.count[1] > 1
    assert doubtful.allocation.spent()[0].equal(certain.allocation.spent()[0])


def test_it_stops_where_nothing_moves():
    """A budget of 1 is one token for the whole image, whatever is attended to."""
    tokens, question = drawn(3, GRID, d=13), asking(3, 13)
    found = gaze(REALIZER, tokens, question, 1, Looker(CORNER))
    assert found.count.tolist() == [1, 1]
    assert len(found.looks) == 2  # the second is how it is known


def test_it_asks_no_more_where_nothing_moves():
    tokens, question, looker = drawn(3, GRID, d=13), asking(3, 13), Looker(CORNER)
    gaze(REALIZER, tokens, question, 1, looker)
    assert len(looker.heard) == 2


def test_changed_is_half_of_what_is_spent_elsewhere():
    one = Allocation.merge(torch.tensor([[0, 0, 1, 2]]), 3)
    other = Allocation.merge(torch.tensor([[0, 1, 2, 2]]), 3)
    assert changed(one, other).tolist() == [0.5 * (0.5 + 0.5 + 0.5 + 0.5)]
    assert changed(one, one).tolist() == [0]


def test_what_is_attended_to_gets_more_next_time_and_is_fixated():
    tokens = drawn(4, GRID, d=13)
    states = States(0.5, 0.0, 0.0)
    question = asking(4, 13)
    for target in (CORNER, OTHER):
        found = gaze(REALIZER, tokens, question, 16, Looker(target), states, most=2)
        before, after = (look.allocation.spent() * target for look in found.looks)
        assert (after.sum(dim=1) >= before.sum(dim=1)).all()
        assert after.sum() > before.sum() + 0.5
        boxes = tokens.boxes.view(2, 64, 4)
        x0, y0, x1, y1 = (boxes[0, target[0], k] for k in range(4))
        # the region that earned most may be larger than the target: it holds some of it
        close = (found.fixations[:, 0] - torch.stack([x0.min() + x1.max(), y0.min() + y1.max()]) / 2).abs()
        assert (close <= 0.25).all()


def test_a_sink_is_ignored():
    tokens, question = drawn(5, GRID, d=13), asking(5, 13)
    plain, sunk = (gaze(REALIZER, tokens, question, 16, Looker(CORNER, sink)) for sink in (None, OTHER * 1.0))
    assert sunk.allocation.spent().equal(plain.allocation.spent())
    torch.testing.assert_close(sunk.fixations, plain.fixations)


@pytest.mark.parametrize("target", [CORNER * torch.linspace(1, 2, 64), CORNER * 0.0], ids=["corner", "nothing"])
def test_a_mirrored_image_is_looked_at_in_the_mirror(target: torch.Tensor):
    """Also where attention says nothing beyond its baseline: no place is fixated because it comes first."""
    x = torch.randn(2, 8, 8, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    question = asking(6, 5)

    def after(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        tokens = VisualTokens.from_grid(image.flatten(1, 2), (8, 8))
        return gaze(REALIZER, tokens, question, 16, Looker(target), most=2).allocation.spent().view(2, 8, 8)

    mirrored = target.view(2, 8, 8).flip(1, 2).flatten(1)
    assert after(x.flip(1, 2), mirrored).equal(after(x, target).flip(1, 2))


class Watched(Realizer):
    """A realizer that keeps what it was told of earlier looks."""

    def forward(self, tokens, question, budget, states=None, gaze=None):
        self.told = [*getattr(self, "told", []), gaze]
        return super().forward(tokens, question, budget, states, gaze)


@few
@given(seeds, st.integers(2, 31))
def test_visits_are_bounded_by_the_looks(seed: int, budget: int):
    tokens, question, realizer = drawn(seed, GRID, seed % 2 == 0, d=13), asking(seed, 13), Watched()
    gaze(realizer, tokens, question, budget, Looker(CORNER))
    assert realizer.told[0] is None
    for number, state in enumerate(realizer.told[1:], start=1):
        assert state is not None
        assert ((state.visits >= 0) & (state.visits <= number)).all()
        torch.testing.assert_close(state.belief.sum(dim=1), torch.ones(2).double())
        assert state.belief[~tokens.valid].abs().sum() == 0
        assert state.visits[~tokens.valid].abs().sum() == 0


def test_what_is_fed_back_is_what_was_earned_and_spent():
    tokens, question, realizer = drawn(1, GRID, True, d=13), asking(1, 13), Watched()
    target = torch.rand(2, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    looker = Looker(target, uncertainty=torch.tensor([0.5, 0.3]))
    looks = gaze(realizer, tokens, question, 16, looker, States(0.5, 0.5, 0.0)).looks
    assert len(looks) == 3
    valid = tokens.valid.numpy()
    for image in range(2):
        belief, visits, count = valid[image] * 1.0, valid[image] * 0.0, int(valid[image].sum())
        for look, state in zip(looks[:-1], realizer.told[1:], strict=True):
            assert state is not None
            found = valid[image] * 0.0
            for row in look.allocation.matrix()[image].double().numpy():
                found[row > 0] = row @ target[image].numpy()  # each token of a region earns what the region did
                visits[row > 0] += max(0, (row.max() - 1 / count) / (1 - 1 / count))
            belief = found if state is realizer.told[1] else (belief * found) ** 0.5
            belief = belief / belief.sum()
            assert state.belief[image].tolist() == pytest.approx(belief.tolist(), rel=1e-5)
            assert state.visits[image].tolist() == pytest.approx(visits.tolist(), rel=1e-5, abs=1e-7)
            assert state.uncertainty.tolist() == pytest.approx([0.5, 0.3])


def test_an_image_alone_is_looked_at_as_in_a_batch():
    tokens, question = drawn(7, GRID, True, d=13, batch=4), asking(7, 13, batch=4)
    targets = torch.cat([CORNER, OTHER]) * 1.0
    doubt = torch.tensor([0.5, 0.05, 0.9, 0.4])
    whole = gaze(REALIZER, tokens, question, 16, Looker(targets, uncertainty=doubt))
    assert whole.count[1] == 1
    for image in range(4):
        one = torch.tensor([image])
        looker = Looker(targets[one], uncertainty=doubt[one])
        alone = gaze(REALIZER, tokens.images(one), question.images(one), 16, looker)
        assert alone.count[0] == whole.count[image]
        assert alone.allocation.spent()[0].equal(whole.allocation.spent()[image])
        looks = int(alone.count[0]) - 1
        torch.testing.assert_close(alone.fixations[0, :looks], whole.fixations[image, :looks])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1])
def test_bad_attention_is_an_error(bad: float):
    tokens, question = drawn(8, GRID, d=13), asking(8, 13)

    def attends(weights: torch.Tensor, uncertainty: torch.Tensor | None = None):
        return lambda allocation, question: Attended(weights, uncertainty)

    even = torch.full((2, 16), 0.1)
    dirty = even.clone()
    dirty[1, 3] = bad
    with pytest.raises(DataError, match="attention must be finite and >= 0"):
        gaze(REALIZER, tokens, question, 16, attends(dirty))
    with pytest.raises(ShapeError, match=r"attention must have shape \(2, 16\), got \(2, 15\)"):
        gaze(REALIZER, tokens, question, 16, attends(even[:, :15]))
    with pytest.raises(DataError, match="uncertainty"):
        gaze(REALIZER, tokens, question, 16, attends(even, torch.tensor([0.5, bad])))


def test_the_words_attend_by_likeness_and_masked_words_do_not():
    tokens, padded = drawn(9, GRID, d=13, batch=1), asking(9, 13, 5, masked=True, batch=1)
    plain = Question(padded.features[:, :3], reference=padded.reference)
    allocation = REALIZER(tokens, plain, 16).allocation
    attend = by_likeness(REALIZER, tokens)
    one, nothing = attend(allocation, plain), attend(allocation, None)
    assert float(one.weights.sum()) == pytest.approx(1)
    assert nothing.weights.tolist() == [[pytest.approx(1 / 16)] * 16]
    assert one.uncertainty is not None
    p = one.weights[0]
    assert float(one.uncertainty) == pytest.approx(-float((p * p.log()).sum()) / math.log(16))
    seen = allocation.apply(tokens).features[0]
    length = seen.square().sum(dim=1).mean().sqrt()
    words, bank = (x / x.norm(dim=1, keepdim=True) for x in (plain.features[0], padded.reference))  # pyright: ignore
    score = 8 * (seen @ (words.mean(dim=0) - bank.mean(dim=0))) / length
    torch.testing.assert_close(p, score.softmax(dim=0), rtol=1e-6, atol=0)
    torch.testing.assert_close(attend(allocation, padded).weights[0], p)
