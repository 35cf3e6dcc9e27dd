"""What learning takes: gradients through the budget, a teacher, and a toy that is learned."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import Allocation, BudgetError, DataError, Question, VisualTokens
from regard.relevance.learning import counterfactual, distillation, relaxed, straight_through, water_fill
from regard.relevance.realizer import Realizer
from regard.relevance.tensions import States
from regard.relevance.ways import standardised
from relevance_toys import asking, drawn

few = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def bisected(weights: np.ndarray, budget: float, low: float, high: float, offset: float) -> np.ndarray:
    """The level by bisection, at which clipped counts sum to the budget."""
    under, over = 0.0, (high + offset) / weights.min()
    for _ in range(200):
        level = (under + over) / 2
        under, over = (level, over) if np.clip(weights * level - offset, low, high).sum() < budget else (under, level)
    return np.clip(weights * over - offset, low, high)


BOUNDS = [(0.0, 1.0, 0.0), (64.0, 400.0, 0.0), (1.0, 7.0, 3.0), (0.0, 5.0, 2.0)]


@few
@given(seeds, st.sampled_from(BOUNDS), st.floats(0, 1), st.sampled_from([1.0, 0.01]), st.integers(1, 11))
def test_counts_rise_with_a_level_until_they_spend_the_budget(
    seed: int, bounds, share: float, least: float, regions: int
):
    low, high, offset = bounds
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(3, regions, generator=generator, dtype=torch.float64) ** (1 / least) + least
    budget = regions * (low + share * (high - low))
    filled = water_fill(weights, budget, low, high, offset)
    assert ((filled >= low) & (filled <= high)).all()
    torch.testing.assert_close(filled.sum(dim=1), torch.full((3,), budget).double())
    for image in range(3):
        want = bisected(weights[image].numpy(), budget, low, high, offset)
        np.testing.assert_allclose(filled[image], want, atol=1e-6 * high)
        alone = water_fill(weights[image : image + 1], budget, low, high, offset)
        torch.testing.assert_close(alone, filled[image : image + 1], rtol=1e-12, atol=1e-12)
        by_weight = filled[image, weights[image].argsort()]
        assert (by_weight.diff() >= -1e-9).all()


@pytest.mark.parametrize(
    ("weights", "budget", "free"),
    [
        ([0.31, 0.29, 0.23, 0.37, 0.19], 2.1, 5),  # none at a bound
        ([9.1, 7.3, 0.29, 0.23, 0.37], 2.4, 3),  # two at the top
        ([9.1, 0.31, 0.29, 0.001, 0.0007], 1.9, 4),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 13.0])
def test_the_gradient_is_that_of_finite_differences(weights: list[float], budget: float, free: int, scale: float):
    x = (torch.tensor([weights, weights[::-1]], dtype=torch.float64) * scale).requires_grad_()
    filled = water_fill(x, budget, 0.0, 1.0)
    if free != 4:
        assert ((filled > 0) & (filled < 1)).sum(dim=1).tolist() == [free, free]
    assert torch.autograd.gradcheck(lambda w: water_fill(w, budget, 0.0, 1.0), x, eps=1e-7, atol=1e-5)
    assert torch.autograd.gradcheck(lambda w: water_fill(w, 9.0, 1.0, 4.0, 2.0), x, eps=1e-7, atol=1e-5)


def test_what_cannot_be_filled_is_an_error():
    weights = torch.ones(2, 3)
    for budget in (2.9, 12.1, math.nan):
        with pytest.raises(BudgetError, match=r"3 regions of 1\.0 to 4\.0 take a budget from 3\.0 to 12\.0"):
            water_fill(weights, budget, 1.0, 4.0)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(DataError, match="must be over 0"):
            water_fill(weights.index_fill(1, torch.tensor([1]), bad), 6.0, 1.0, 4.0)
    assert water_fill(weights, 3.0, 1.0, 4.0).tolist() == [[1.0] * 3] * 2
    assert water_fill(weights, 12.0, 1.0, 4.0).tolist() == [[4.0] * 3] * 2


def through(dtype: torch.dtype):
    """Features of four regions, their tokens' shares, and both straight through."""
    generator = torch.Generator().manual_seed(1)
    allocation = Allocation.merge(torch.tensor([[0, 0, 1, 2, 2, 2, 3]]), 4)
    features = torch.randn(1, 4, 257, generator=generator).to(dtype)
    share = torch.rand(1, 7, generator=generator, dtype=torch.float64).requires_grad_()
    return features, share, straight_through(features, allocation, share)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_straight_through_changes_no_value(dtype: torch.dtype):
    features, _, same = through(dtype)
    assert same.dtype == dtype
    assert same.equal(features)


def test_straight_through_lets_the_gradient_through():
    features, share, same = through(torch.float64)
    same.sum().backward()
    total = features.sum(dim=2)[0]
    want = torch.stack([total[0] / 2] * 2 + [total[1]] + [total[2] / 3] * 3 + [total[3]])
    assert share.grad is not None
    torch.testing.assert_close(share.grad[0], want)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(3)
    realizer, tokens, question = Realizer(spaces=(7, 5), rank=3), drawn(3, (1, 5, 7), d=7), asking(3, 5)
    found = realizer(tokens, question, 11)
    share = relaxed(found)
    torch.testing.assert_close(share.sum(dim=1), torch.full((2,), 11.0).double())
    read = straight_through(found.allocation.apply(tokens.features), found.allocation, share)
    (read * torch.randn(2, 11, 7, generator=torch.Generator().manual_seed(5))).sum().backward()
    names = [name for name, _ in realizer.named_parameters()]
    assert len(names) == 7
    for name, parameter in realizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).all(), name


def test_the_relaxation_weighs_by_what_detail_is_worth():
    tokens = drawn(4, (1, 5, 7), d=7)
    for scope in (0.0, 0.4, 1.0):
        with torch.no_grad():
            found = Realizer()(tokens, asking(4, 7), 9, States(scope=scope))
        weights = found.balance.terms.sum(dim=1) * (1 - scope + scope * found.detail)
        for image in range(2):
            want = bisected(weights[image].numpy() + 1e-9, 9, 0, 1, 0)
            np.testing.assert_allclose(relaxed(found)[image], want, atol=1e-6)
    masked = drawn(4, (1, 5, 7), True, d=7)
    with pytest.raises(DataError, match="without a mask"):
        relaxed(Realizer()(masked, None, 9))


def toy(seed: int, batch: int, question_map: torch.Tensor) -> tuple[VisualTokens, Question, torch.Tensor]:
    """Images of 8 x 8 tokens of 6 kinds in blocks of 2 x 2; the question names a kind in another space."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(6, (batch, 4, 4), generator=generator)
    kind = kind.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    x = torch.nn.functional.one_hot(kind, 6).float() + 0.1 * torch.randn(batch, 64, 6, generator=generator)
    asked = kind[torch.arange(batch), torch.randint(64, (batch,), generator=generator)]
    return VisualTokens.from_grid(x, (8, 8)), Question(question_map[asked][:, None]), kind == asked[:, None]


def test_a_toy_is_learned_within_a_hundred_steps():
    torch.manual_seed(11)
    hidden = torch.randn(6, 5)
    realizer = Realizer(spaces=(6, 5), rank=4)
    tokens, question, target = toy(1, 64, hidden)

    def field(seen: VisualTokens, asked: Question) -> torch.Tensor:
        return realizer.field(realizer.seen(standardised(seen), seen, asked), seen.valid)[0]

    def on_target() -> float:
        with torch.no_grad():
            return float((field(tokens, question) * target).sum(dim=1).mean())

    before, even = on_target(), float(target.double().mean())
    adam = torch.optim.Adam(realizer.parameters(), lr=0.05)
    for step in range(60):
        seen, asked, wanted = toy(100 + step, 16, hidden)
        region = torch.arange(64).expand(16, -1)
        loss = distillation(field(seen, asked), region, wanted.double(), temperature=0.2)
        adam.zero_grad()
        loss.backward()
        adam.step()
    after = on_target()
    assert after > before + 0.2, f"field mass on the target: {before:.3f} before, {after:.3f} after, {even:.3f} even"
    assert after > 2 * before, f"field mass on the target: {before:.3f} before, {after:.3f} after, {even:.3f} even"


def test_the_teacher_finds_the_region_that_matters():
    """The answer is the sum over one region's tokens taken apart: an average cannot tell."""
    region = torch.tensor([[0, 0, 1, 1, 1, 2, 2], [2, 0, 2, 1, 1, 0, 1]])
    tokens = VisualTokens(torch.randn(2, 7, 3), torch.rand(2, 7, 4))
    wanted = torch.tensor([1, 2])  # the region that matters, of each image
    seen: list[tuple[int, ...]] = []

    def loss(allocation: Allocation) -> torch.Tensor:
        matrix = allocation.matrix()
        seen.append(tuple(allocation.valid.sum(dim=1).tolist()))
        whole = (matrix == 1).any(dim=1)  # tokens that are read by themselves
        share = (whole & (region == wanted[:, None])).sum(dim=1) / (region == wanted[:, None]).sum(dim=1)
        assert ((matrix > 0).sum(dim=1) == 1).all()
        return 3 - 2 * share.double()

    values = counterfactual(loss, tokens, region, 3)
    assert values.tolist() == [[0, 2, 0], [0, 0, 2]]
    assert seen == [(3, 3), (4, 4), (5, 5), (4, 4)]
    for bad in (
        torch.tensor([[0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2, 2]]),
        torch.tensor([[0, 0, 1, 1, 1, 1, 1]] * 2),
    ):
        with pytest.raises(DataError, match="regions must be of the same sizes, over 0"):
            counterfactual(loss, tokens, bad, 3)


@few
@given(seeds, st.sampled_from([0.3, 1.0, 4.0]))
def test_distillation_is_nothing_at_the_teacher_alone(seed: int, temperature: float):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    region = torch.tensor([[0, 0, 1, 1, 1, 2, 2], [2, 0, 2, 1, 1, 0, 1]])
    target = (values / temperature).softmax(dim=1)
    count = torch.tensor([[2, 3, 2]]).double()
    split = torch.rand(2, 7, generator=generator, dtype=torch.float64) + 0.1  # how a region's share is parted is free
    total = torch.zeros(2, 3).double().scatter_add(1, region, split)
    field = split / total.gather(1, region) * target.gather(1, region)
    assert float(distillation(field, region, values, temperature)) == pytest.approx(0, abs=1e-12)
    even = torch.full((2, 7), 1 / 7, dtype=torch.float64)
    want = (target * (target / (count / 7)).log()).sum(dim=1).mean()
    got = float(distillation(even, region, values, temperature))
    assert got == pytest.approx(float(want))
    assert got > 0
