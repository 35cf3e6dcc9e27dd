"""The exact solver, against brute force and its guarantees."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import BudgetError, DataError, ShapeError
from regard.relevance.budget import LADDER, majorant, solve

few = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
LADDERS = st.sampled_from([(64, 100, 144, 196, 256, 324, 400), (1, 4, 16), (1, 2, 3, 4, 5), (3,), (2, 3, 7, 8, 20)])


def problem(seed: int, regions: int, rungs: int, kind: str = "any", batch: int = 1):
    """Weights and values of each rung: "concave" strictly, "any" risen by drawn steps, "ties" by whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(batch, regions, generator=generator, dtype=torch.float64) + 0.1
    steps = torch.rand(batch, regions, rungs - 1, generator=generator, dtype=torch.float64)
    if kind == "ties":
        steps, weights = (steps * 3).floor(), (weights * 3).ceil()
    start = torch.zeros(batch, regions, 1, dtype=torch.float64)
    return weights, torch.cat([start, steps.cumsum(dim=2)], dim=2)


def concave(ladder: tuple[int, ...], power: float) -> torch.Tensor:
    return torch.tensor(ladder, dtype=torch.float64) ** power


def worth(weights, values, ladder, counts) -> float:
    return sum(
        float(w) * float(v[ladder.index(int(n))]) for w, v, n in zip(weights[0], values[0], counts[0], strict=True)
    )


def hull(ladder: tuple[int, ...], values: np.ndarray) -> list[int]:
    """The rungs on the concave majorant, by gift wrapping."""
    corners = [0]
    while corners[-1] < len(ladder) - 1:
        here = corners[-1]
        slopes = {j: (values[j] - values[here]) / (ladder[j] - ladder[here]) for j in range(here + 1, len(ladder))}
        best = max(slopes.values())
        corners.append(min(j for j, slope in slopes.items() if slope >= best - 1e-12 * abs(best)))
    return corners


@few
@given(seeds, LADDERS, st.sampled_from(["any", "ties"]))
def test_the_majorant_is_the_convex_hull(seed: int, ladder: tuple[int, ...], kind: str):
    _, values = problem(seed, 3, len(ladder), kind, batch=2)
    slopes, first = majorant(values, torch.tensor(ladder))
    for image, region in itertools.product(range(2), range(3)):
        height = values[image, region].numpy()
        for begin, end in itertools.pairwise(hull(ladder, height)):
            want = (height[end] - height[begin]) / (ladder[end] - ladder[begin])
            assert slopes[begin:end, image, region].tolist() == pytest.approx([want] * (end - begin))
            assert first[begin:end, image, region].tolist() == [begin] * (end - begin)
    assert (slopes.diff(dim=0) <= 0).all()


@few
@given(
    seeds,
    st.integers(1, 5),
    st.sampled_from([(1, 4, 16), (1, 2, 3, 4, 5), (2, 3, 7, 8, 20), (64, 100, 144)]),
    st.data(),
)
def test_it_is_the_best_of_all_that_spend_as_much(seed: int, regions: int, ladder: tuple[int, ...], data):
    kind = data.draw(st.sampled_from(["any", "ties"]))
    weights, values = problem(seed, regions, len(ladder), kind)
    budget = data.draw(st.integers(regions * ladder[0], regions * ladder[-1]))
    counts = solve(weights, values, torch.tensor(ladder), budget)
    spent = int(counts.sum())
    assert spent <= budget
    best = max(
        worth(weights, values, ladder, [choice])
        for choice in itertools.product(ladder, repeat=regions)
        if sum(choice) <= spent
    )
    assert worth(weights, values, ladder, counts) == pytest.approx(best, rel=1e-12)


@few
@given(seeds, LADDERS, st.sampled_from(["any", "ties"]), st.data())
def test_what_is_left_is_less_than_the_next_increment(seed: int, ladder: tuple[int, ...], kind: str, data):
    weights, values = problem(seed, 5, len(ladder), kind)
    budget = data.draw(st.integers(5 * ladder[0], 5 * ladder[-1]))
    counts = solve(weights, values, torch.tensor(ladder), budget)
    assert set(counts.flatten().tolist()) <= set(ladder)
    left, steps = budget - int(counts.sum()), []
    for region in range(5):
        rung, corners = ladder.index(int(counts[0, region])), hull(ladder, values[0, region].numpy())
        assert rung in corners  # an increment is taken whole
        if rung < len(ladder) - 1:
            after = corners[corners.index(rung) + 1]
            slope = weights[0, region] * (values[0, region, after] - values[0, region, rung])
            steps.append((float(slope) / (ladder[after] - ladder[rung]), ladder[after] - ladder[rung]))
    assert left >= 0
    if steps:  # the steepest of them did not fit
        steepest = max(slope for slope, _ in steps)
        assert any(left < cost for slope, cost in steps if slope >= steepest - 1e-9)


@few
@given(seeds, LADDERS, st.sampled_from(["any", "ties"]))
def test_every_budget_holds_what_a_smaller_one_did(seed: int, ladder: tuple[int, ...], kind: str):
    weights, values = problem(seed, 3, len(ladder), kind)
    before = None
    for budget in range(3 * ladder[0], 3 * ladder[-1] + 1, max(1, ladder[-1] // 37)):
        counts = solve(weights, values, torch.tensor(ladder), budget)
        assert before is None or (counts >= before).all()
        before = counts
    assert solve(weights, values, torch.tensor(ladder), 3 * ladder[0]).unique().tolist() == [ladder[0]]
    assert solve(weights, values, torch.tensor(ladder), 3 * ladder[-1]).unique().tolist() == [ladder[-1]]


@few
@given(seeds, LADDERS, st.sampled_from(["any", "ties"]), st.floats(1, 5), st.data())
def test_more_weight_never_takes_tokens(seed: int, ladder: tuple[int, ...], kind: str, more: float, data):
    weights, values = problem(seed, 5, len(ladder), kind)
    budget = data.draw(st.integers(5 * ladder[0], 5 * ladder[-1]))
    region = data.draw(st.integers(0, 4))
    heavier = weights.clone()
    heavier[0, region] *= more
    one, other = (solve(w, values, torch.tensor(ladder), budget) for w in (weights, heavier))
    assert other[0, region] >= one[0, region]


@few
@given(st.integers(2, 7), st.floats(0.1, 0.9), LADDERS, st.data())
def test_equal_regions_differ_by_at_most_one_step(regions: int, power: float, ladder: tuple[int, ...], data):
    values = concave(ladder, power).expand(1, regions, -1)
    budget = data.draw(st.integers(regions * ladder[0], regions * ladder[-1]))
    counts = solve(torch.full((1, regions), 0.3).double(), values, torch.tensor(ladder), budget)
    rungs = [ladder.index(n) for n in counts[0].tolist()]
    assert max(rungs) - min(rungs) <= 1
    assert rungs == sorted(rungs, reverse=True)  # the index orders ties


@few
@given(seeds, LADDERS, st.sampled_from(["any", "ties"]), st.data())
def test_regions_in_another_order_get_the_same_with_their_key(seed: int, ladder: tuple[int, ...], kind: str, data):
    weights, values = problem(seed, 7, len(ladder), kind, batch=2)
    weights[1], values[1] = weights[1, :1], values[1, :1]  # all of them tie
    budget = data.draw(st.integers(7 * ladder[0], 7 * ladder[-1]))
    generator = torch.Generator().manual_seed(seed)
    key, order = (torch.randperm(7, generator=generator).expand(2, -1) for _ in range(2))
    steps = torch.tensor(ladder)
    one = solve(weights, values, steps, budget, key)
    other = solve(weights[:, order[0]], values[:, order[0]], steps, budget, key[:, order[0]])
    assert other.equal(one[:, order[0]])
    by_key = one[1, key[1].argsort()].tolist()
    assert by_key == sorted(by_key, reverse=True)
    natural = solve(weights, values, steps, budget)
    assert natural.equal(solve(weights, values, steps, budget, torch.arange(7).expand(2, -1) * 3))


@few
@given(seeds, LADDERS)
def test_an_image_alone_gets_what_it_gets_in_a_batch(seed: int, ladder: tuple[int, ...]):
    weights, values = problem(seed, 11, len(ladder), batch=5)
    budget = round(11 * (ladder[0] + ladder[-1]) / 2)
    counts = solve(weights, values, torch.tensor(ladder), budget)
    assert counts.equal(solve(weights, values, torch.tensor(ladder), budget))
    for image in range(5):
        one = torch.tensor([image])
        assert counts[one].equal(solve(weights[one], values[one], torch.tensor(ladder), budget))


def test_values_that_are_not_concave_are_bought_whole():
    values = torch.tensor([[[0.0, 0.0, 3.0], [0.0, 1.4, 2.0]]])
    ladder, weights = torch.tensor([1, 2, 3]), torch.ones(1, 2)
    found = [solve(weights, values, ladder, budget).tolist() for budget in range(2, 7)]
    assert found == [[[1, 1]], [[1, 1]], [[3, 1]], [[3, 2]], [[3, 3]]]


def test_what_ties_goes_a_rung_at_a_time():
    values = torch.tensor([1.0, 2.0, 3.0]).expand(1, 3, 3)
    found = [solve(torch.ones(1, 3), values, torch.tensor([1, 2, 3]), budget)[0].tolist() for budget in range(3, 10)]
    assert found == [[1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2], [3, 2, 2], [3, 3, 2], [3, 3, 3]]


def test_what_weighs_nothing_comes_last():
    values = concave(LADDER, 0.5).expand(1, 3, -1)
    weights = torch.tensor([[0.0, 1.0, 1.0]]).double()
    assert solve(weights, values, torch.tensor(LADDER), 864).tolist() == [[64, 400, 400]]
    assert solve(weights, values, torch.tensor(LADDER), 900).tolist() == [[100, 400, 400]]


def test_what_would_lose_is_not_bought():
    values = torch.tensor([[[0.0, 2.0, 1.0], [0.0, -1.0, -0.5]]])
    assert solve(torch.ones(1, 2), values, torch.tensor([1, 2, 3]), 6).tolist() == [[2, 1]]


def test_what_no_budget_can_be_is_told_with_the_nearest(unchecked):
    weights, values = torch.ones(1, 3), torch.rand(1, 3, 7)
    said = "^3 regions of 64 to 400 tokens take a budget from 192 to 1200, got {}: the nearest is {}$"
    for budget, nearest in ((191, 192), (1, 192), (1201, 1200), (5000, 1200)):
        with pytest.raises(BudgetError, match=said.format(budget, nearest)):
            solve(weights, values, torch.tensor(LADDER), budget)
    bad: Any
    for bad in (0, -3, 200.0, True, None):
        with pytest.raises(BudgetError, match="the budget must be"):
            solve(weights, values, torch.tensor(LADDER), bad)


def test_what_does_not_fit_is_an_error(unchecked):
    weights, values, ladder = torch.ones(2, 3), torch.rand(2, 3, 5), torch.tensor([1, 2, 3, 4, 5])
    for w, v, rungs, key in (
        (weights[0], values, ladder, None),
        (weights, values[0], ladder, None),
        (weights[:, :2], values, ladder, None),
        (weights[:, :0], values[:, :0], ladder, None),
        (weights, values, ladder[:4], None),
        (weights, values[..., :0], ladder[:0], None),
        (weights, values, ladder.double(), None),
        (weights, values, ladder, torch.arange(3)),
        (weights, values, ladder, weights),
    ):
        with pytest.raises(ShapeError):
            solve(w, v, rungs, 9, key)
    for rungs in ([1, 2, 2, 4, 5], [5, 4, 3, 2, 1], [0, 1, 2, 3, 4], [-1, 2, 3, 4, 5]):
        with pytest.raises(DataError, match="the ladder must rise from 1 or more"):
            solve(weights, values, torch.tensor(rungs), 9)
    for bad in (math.nan, math.inf, -0.1):
        with pytest.raises(DataError, match="weights must be finite and >= 0"):
            solve(weights.index_fill(1, torch.tensor([1]), bad), values, ladder, 9)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(DataError, match="and values finite"):
            solve(weights, values.index_fill(2, torch.tensor([4]), bad), ladder, 9)
