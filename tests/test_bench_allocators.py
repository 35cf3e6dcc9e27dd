"""What the comparison of allocators measures, on tokens where the figures are known."""

import numpy as np
import pytest
import torch

from regard import VisualTokens
from regard.allocation import Allocation
from regard.bench.ablations import half_coverage, saliency_quadtree, top_of_field, two_levels
from regard.bench.allocators import measures
from regard.intervals import interval
from regard.relevance.realizer import Realizer


def tokens() -> VisualTokens:
    return VisualTokens.from_grid(torch.randn(1, 35, 7, generator=torch.Generator().manual_seed(1)), (5, 7))


def test_all_tokens_rebuild_everything_and_one_rebuilds_nothing():
    seen, cover = tokens(), torch.zeros(2, 35)
    cover[0, 3] = cover[1, 20:22] = 1
    assert measures(Allocation.identity(1, 35), seen, cover) == pytest.approx([1, 1, 1, 1])
    whole = Allocation.merge(torch.zeros(1, 35, dtype=torch.long), 1)
    assert measures(whole, seen, cover) == pytest.approx([1 / 35, 0, 0, 0], abs=1e-5)


def test_a_target_that_is_kept_counts_and_the_worst_is_named():
    seen, cover = tokens(), torch.zeros(2, 35)
    cover[0, 3] = cover[1, 34] = 1
    on, target, least, _ = measures(Allocation.select(torch.tensor([[3, 10]]), 35), seen, cover)
    assert on == pytest.approx(0.5)
    assert least == pytest.approx(2 * target - 1, abs=1e-5)


def test_the_interval_is_of_the_mean():
    low, high = interval(np.random.default_rng(0).normal(1, 1, 400))
    assert 0.85 < low < 1 < high < 1.15


@pytest.mark.parametrize("decide", [top_of_field, half_coverage, saliency_quadtree, two_levels])
@pytest.mark.parametrize("budget", [1, 4, 13])
def test_what_it_is_compared_with_meets_the_budget(decide, budget: int):
    with torch.no_grad():
        allocation = decide(Realizer().measure(tokens(), None), budget)
    assert allocation.anchor.shape == (1, budget)
    assert bool(allocation.valid.all())
