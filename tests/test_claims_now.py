"""What is computed for the claims, against values worked out here by other ways."""

import math
import re

import pytest
import torch

from regard.attention.scaled import MultiHeadAttention
from regard.attention.window import WindowAttention
from regard.bench.claims import claims
from regard.bench.claims.now import NOWS
from regard.bench.claims.now._shared import counted, exponent, pairs, products, reach


def value(name: str) -> float:
    return NOWS[name]()[0]


def test_all_are_used_and_all_that_are_used_are_there():
    used = {where.removeprefix("now:") for claim in claims() for where in claim.figures.values() if where[:4] == "now:"}
    assert used == set(NOWS)


@pytest.mark.parametrize("name", NOWS)
def test_each_is_a_number_and_the_same_again(name: str):
    before = torch.get_rng_state()
    first = value(name)
    NOWS[name].cache_clear()  # pyright: ignore[reportAttributeAccessIssue]
    assert value(name) == pytest.approx(first, rel=1e-6)
    assert math.isfinite(first)
    assert torch.equal(torch.get_rng_state(), before)


def test_exponents_of_known_growth():
    assert exponent((10, 1000), lambda n: 3 * n**1.5) == pytest.approx(1.5)
    a, b = torch.randn(5, 7), torch.randn(7, 11)
    assert products(lambda: a @ b) == 5 * 7 * 11


def test_products_of_a_whole_layer_are_those_of_the_formula():
    n, dim = 24, 32
    assert counted(MultiHeadAttention(dim, 2), n) == 4 * n * dim * dim + 2 * n * n * dim


@pytest.mark.parametrize("batch", [1])
def test_pairs_and_reach_of_windows(batch: int):
    layer = WindowAttention(32, 2, 7)
    assert pairs(layer, 196, (14, 14)) == 196 * 49
    assert reach(layer, 14, (14, 14)) == 0.25
    shifted = WindowAttention(32, 2, 7, shift=3)
    assert pairs(shifted, 196, (14, 14)) < 196 * 49  # at the edge what came together is kept apart


def test_the_survey_against_its_sources():
    assert value("tokens of 224 pixels, patch 16, with the class token") == 14 * 14 + 1
    assert value("tokens of 1344 pixels, patch 14") == 96 * 96
    assert value("Q-Former: image tokens of 224 pixels, patch 14, for each query") == pytest.approx(257 / 32)
    assert value("Flamingo-80B's 10.2 G trainable parameters / the Q-Former's") == pytest.approx(54, abs=1)
    assert value("gated block: gates") == 2
    assert value("ConvNeXt block: products of two activations") == 0
    gated = 4096 * 4096 * 4 + 2 * 4096 * 16384
    layer = 4096 * 4096 * 4 + 3 * 4096 * 11008
    assert value("gated block / layer of a language model of 7B: parameters") == pytest.approx(gated / layer, rel=1e-3)


def test_vit_b_is_quadratic_only_when_it_is_long():
    def macs(n: int) -> float:  # of a block: 12 n d^2 of linear layers, 2 n^2 d of scores
        return 12 * n * 768**2 + 2 * n**2 * 768

    n = 197
    assert value("ViT-B block: share of scores at 196 tokens") == pytest.approx(2 * 196**2 * 768 / macs(196), rel=1e-3)
    short = math.log(macs(4 * n) / macs(n)) / math.log(4)
    assert value("ViT-B/16: exponent of MACs in tokens, 224 to 448 pixels") == pytest.approx(short, abs=0.02)
    assert value("ViT-B/16: exponent of MACs in tokens, 1344 to 2688 pixels") > 1.7


def test_names_say_their_sizes():
    for name in NOWS:
        for side in re.findall(r"tokens of (\d+) pixels, patch (\d+)$", name):
            assert value(name) == (int(side[0]) // int(side[1])) ** 2
