"""When a cascade stops: thresholds for a mean cost, and the cheapest that keep an accuracy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from regard.errors import DataError
from regard.mechanisms import exits


def confidences(count: int = 4000, stages: int = 3) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(3)
    hard = rng.random((count, 1))
    sure = np.clip(1 - hard * rng.random((count, stages)) * 0.8, 0, 1)
    right = rng.random((count, stages)) < np.clip(sure + np.arange(stages) * 0.05, 0, 1)
    return torch.from_numpy(sure), torch.from_numpy(right)


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_the_mean_cost_is_the_target(stages):
    sure, _ = confidences(stages=stages)
    costs = [10 * (k + 1) ** 2 for k in range(stages)]
    before, late = None, torch.zeros(stages)
    for target in np.linspace(costs[0], costs[-1], 9):
        thresholds = exits.for_cost(sure, costs, target)
        assert abs(exits.mean_cost(sure, thresholds, costs) - target) <= 0.01 * target
        assert bool(((thresholds >= 0) & (thresholds <= 1)).all())
        counts = torch.bincount(exits.exits(sure, thresholds), minlength=stages).float()
        reached = counts.flip(0).cumsum(0).flip(0)
        assert before is None or bool((reached >= late - 1).all())
        before, late = thresholds, reached
    with pytest.raises(DataError, match="cannot be"):
        exits.for_cost(sure, costs, costs[-1] + 1)


def test_thresholds_stop_the_surest():
    sure, _ = confidences(1000, 3)
    thresholds = exits.for_shares(sure, [0.2, 0.3, 0.5])
    stopped = exits.exits(sure, thresholds)
    assert torch.bincount(stopped).tolist() == [200, 300, 500]
    assert sure[stopped == 0, 0].min() >= sure[stopped > 0, 0].max()
    assert sure[stopped == 1, 1].min() >= sure[stopped == 2, 1].max()
    assert exits.geometric(0.0, 4) == [0.25] * 4


@pytest.mark.parametrize("stages", [2, 3])
def test_the_cheapest_that_are_as_good(stages):
    sure, right = confidences(600, stages)
    costs = [1.0, 3.0, 9.0][:stages]
    least = float(right[:, -1].double().mean()) - 0.02
    thresholds = exits.for_accuracy(sure, right, costs, least)

    def accuracy(at: Tensor) -> float:
        return float(right.gather(1, exits.exits(sure, at)[:, None]).double().mean())

    assert accuracy(thresholds) >= least
    cost = exits.mean_cost(sure, thresholds, costs)
    for _ in range(100):
        tried = torch.rand(stages - 1, dtype=torch.float64)
        if accuracy(tried) >= least:
            assert cost <= exits.mean_cost(sure, tried, costs) * 1.02
    assert exits.mean_cost(sure, exits.for_accuracy(sure, right, costs), costs) >= cost
    with pytest.raises(DataError, match="no thresholds"):
        exits.for_accuracy(sure, right, costs, 1.01)


def test_confidences_near_one_do_not_tie():
    logits = torch.tensor([[25.0, 0.0], [26.0, 0.0]])
    assert logits.softmax(dim=1).amax(dim=1).unique().numel() == 1
    assert exits.confidence(logits).unique().numel() == 2


def test_a_threshold_of_one_is_no_exit_even_where_confidences_are_one():
    sure = exits.confidence(torch.tensor([[[80.0, 0.0], [0.0, 90.0]], [[1.0, 0.0], [0.0, 90.0]]]))
    assert sure[:, 0].tolist() == [1.0, pytest.approx(0.731, abs=1e-3)]
    assert exits.exits(sure, sure.new_ones(1)).tolist() == [1, 1]
    assert exits.exits(sure, sure.new_tensor([0.99])).tolist() == [0, 1]


@pytest.mark.parametrize("stages", [2, 3])
def test_thresholds_that_are_solved_stop_what_is_saturated(stages):
    sure, costs = torch.ones(20, stages, dtype=torch.float64), [1.0, 2.0, 3.0][:stages]
    for thresholds in (
        exits.for_cost(sure, costs, 1.0),
        exits.for_accuracy(sure, torch.ones_like(sure, dtype=torch.bool), costs),
    ):
        assert exits.mean_cost(sure, thresholds, costs) == 1
    wrong = torch.ones_like(sure, dtype=torch.bool)
    wrong[:, :-1] = False  # the early exits are sure, and wrong
    assert exits.mean_cost(sure, exits.for_accuracy(sure, wrong, costs), costs) == stages


def test_confidences_of_another_shape_are_refused():
    with pytest.raises(DataError, match="confidences must"):
        exits.for_cost(torch.rand(4, 3, dtype=torch.float64), [1.0, 2.0], 1.5)
    sure, right = confidences(10, 2)
    with pytest.raises(DataError, match="right must"):
        exits.for_accuracy(sure, right[:5], [1.0, 2.0])
