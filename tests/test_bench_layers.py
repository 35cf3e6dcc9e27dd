"""What the benchmark of the attention layers compares is the same thing, and what it reports is what it measured."""

import time

import pytest
import torch
from torch import nn

from regard.attention.scaled import MultiHeadAttention
from regard.bench.layers import Pair, growth, measured, pairs


@pytest.mark.slow
@pytest.mark.parametrize("make", pairs(), ids=lambda make: make.__name__)
def test_both_of_a_pair_give_the_same(make):
    pair = make()
    with torch.no_grad():
        theirs, ours = pair.reference(pair.x), pair.ours(pair.x)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def sleeping(seconds: float, floats: int):
    def run(x):
        time.sleep(seconds)
        return (x * torch.ones(floats)).sum()[None]

    return run


def test_ratios_are_ours_over_the_reference():
    x, none = torch.ones(1), (nn.Identity(), nn.Identity())
    rows = measured(Pair("half", sleeping(0.06, 200_000), sleeping(0.03, 100_000), x, none), 5)
    assert [row.unit for row in rows] == ["ratio"] * 4
    assert all(row.target == "<= 1.05" for row in rows)
    for row in rows:
        assert 0.3 < row.value < 0.8, row
    assert rows[0].name.startswith("half, forward (")
    assert "peak memory" in rows[2].name
    sparse = measured(Pair("Longformer", sleeping(0.001, 10), sleeping(0.001, 10), x, none), 3)
    assert all(row.target == "<= 0.7" for row in sparse)


def test_growth_reports_an_exponent_and_a_ratio_for_each(monkeypatch):
    def timed(layer: nn.Module, x: torch.Tensor) -> float:
        """As long as a dense layer's square, or a power of 1.2, whatever else the machine does."""
        with torch.no_grad():
            assert layer(x).shape == x.shape
        return x.shape[1] ** 2 / 4096 if type(layer) is MultiHeadAttention else 0.5 * x.shape[1] ** 1.2

    monkeypatch.setattr("regard.bench.layers._median", timed)
    rows = growth((512, 1024, 4096))
    assert [row.unit for row in rows] == ["exponent", "ratio"] * 4
    for exponent, ratio in zip(rows[::2], rows[1::2], strict=True):
        assert exponent.value == pytest.approx(1.2)
        assert ratio.value == pytest.approx(0.5 * 4096**0.2)
