"""The published selectors, each against its rule in plain loops."""

import numpy as np
import pytest
import torch

from regard import DataError, Question, VisualTokens
from regard.allocate import load
from regard.allocate._similar import every_pair
from regard.bench.selectors import looped_divprune
from selector_rules import SELECTORS, case

SIZES = [(59, 5, 13), (61, 7, 23), (97, 11, 31), (43, 3, 1), (67, 13, 2), (41, 17, 29)]


def compare(name: str, n: int, d: int, k: int, **changed: float) -> None:
    """Row by row, every image; a masked token is not there at all for the reference."""
    tokens, question = case(n, d)
    reference, _ = SELECTORS[name]
    allocation = load(name).allocate(tokens, question, k)
    matrix = allocation.matrix().double()
    matrix = matrix if allocation.gain is None else matrix * allocation.gain[..., None]
    for image, real in enumerate(tokens.valid):
        fields = {"features": tokens.features, "keys": tokens.keys, "attention": tokens.scores["attention"]}
        fields |= {"relevance": tokens.relevance(question)}
        rows = np.array(
            reference({f: v[image, real].numpy() for f, v in fields.items() if v is not None}, k, **changed)
        )
        distance = np.abs(rows[:, None] - matrix[image][:, real].numpy()).max(axis=2)
        assert rows.shape[0] == k
        assert (distance.min(axis=1) < 1e-6).all()
        assert len(set(distance.argmin(axis=1))) == k


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize(("n", "d", "k"), SIZES)
def test_selector_decides_as_its_rule(name: str, n: int, d: int, k: int):
    compare(name, n, d, min(k, d) if name == "cdpruner" else k)  # beyond the rank every determinant is 0


@pytest.mark.parametrize("name", SELECTORS)
def test_the_comparison_can_fail(name: str):
    with pytest.raises(AssertionError):
        compare(name, 97, 11, 11 if name == "cdpruner" else 31, **SELECTORS[name][1])


@pytest.mark.parametrize("name", SELECTORS)
def test_half_precision_decides_in_full(name: str):
    tokens, question = case(61, 7)
    assert tokens.keys is not None
    half = [v.half() for v in (tokens.features, tokens.keys, tokens.scores["attention"], question.features[:, :1])]
    one, two = (
        load(name).allocate(VisualTokens(x, tokens.boxes, keys=key, scores={"attention": a}), Question(q), 17)
        for x, key, a, q in (half, [v.float() for v in half])
    )
    assert one.anchor.equal(two.anchor)
    assert one.matrix().equal(two.matrix())


@pytest.mark.parametrize("name", SELECTORS)
def test_equal_tokens_do_not_depend_on_the_batch(name: str):
    """A flat sky at a size where rounding could part the same cosines."""
    generator = torch.Generator().manual_seed(5)
    x, keys, attention = (torch.randn(3, 401, c, generator=generator) for c in (67, 31, 1))
    for values in (x, keys, attention):
        values[:, 150:] = values[:, 150:151]
    tokens = VisualTokens.from_grid(x, (401, 1), keys=keys, scores={"attention": attention.squeeze(2)})
    question = Question(x[:, 150:151])
    whole = load(name).allocate(tokens, question, 83)
    for image in range(3):
        one = torch.tensor([image])
        alone = load(name).allocate(tokens.images(one), question.images(one), 83)
        assert alone.anchor[0].equal(whole.anchor[image])
        assert alone.matrix()[0].equal(whole.matrix()[image])


@pytest.mark.parametrize(("budget", "contextual"), [(192, 30), (128, 20), (64, 10), (160, 25), (3, 0), (1, 0)])
def test_visionzip_splits_the_budget_as_published(budget: int, contextual: int):
    tokens = VisualTokens.from_grid(
        torch.randn(1, 576, 3), (24, 24), keys=torch.randn(1, 576, 5), scores={"attention": torch.rand(1, 576)}
    )
    allocation = load("visionzip").allocate(tokens, None, budget)
    assert allocation.n_out == budget
    assert ((allocation.matrix()[0] > 0).sum(dim=1) > 1).sum() == contextual


def test_visionzip_target_that_nobody_joins_stays_as_it_is():
    keys = torch.tensor([[[1.0, 0], [1, 0.1], [1, 0.2], [0, 1], [1, 0.3], [1, 0.2]]])
    tokens = VisualTokens(
        torch.randn(1, 6, 3), torch.rand(1, 6, 4), keys=keys, scores={"attention": torch.tensor([[0.9, 0, 0, 0, 0, 0]])}
    )
    allocation = load("visionzip", dominant=1 / 3).allocate(tokens, None, 3)  # targets 1 and 3, all others like 1
    assert allocation.gain is not None
    order = allocation.anchor[0].tolist()
    assert allocation.gain[0, order.index(0)] == 1
    assert allocation.gain[0, order.index(3)] == 1
    assert sorted(allocation.gain[0].tolist()) == [1, 1, 2]


def test_prumerge_extra_token_is_one_of_the_budget():
    tokens, _ = case(59, 5)
    attention = tokens.scores["attention"].masked_fill(~tokens.valid, -1)
    for budget in (1, 2, 7):
        allocation = load("prumerge").allocate(tokens, None, budget)
        assert allocation.valid.sum(dim=1).tolist() == [budget] * 3
        most = attention.argsort(dim=1, descending=True, stable=True)[:, :budget]
        assert allocation.anchor.equal(most.sort(dim=1).values)  # the extra stands at the most attended dropped one


def test_prumerge_without_attention_keeps_tokens_as_they_are():
    x = torch.randn(1, 41, 3)
    nothing = VisualTokens(
        x, torch.rand(1, 41, 4), keys=torch.randn(1, 41, 5), scores={"attention": torch.zeros(1, 41)}
    )
    out = load("prumerge").allocate(nothing, None, 5).apply(x)
    assert out[0, :4].equal(x[0, :4])
    assert out[0, 4].abs().max() < 1e-30


@pytest.mark.parametrize("n", [64, 61, 11])
def test_holov_gives_on_what_a_crop_cannot_take(n: int):
    attention = torch.full((1, n), 1e-4)
    attention[0, :4] = 1.0  # nearly all of it in the first crop
    tokens = VisualTokens(torch.randn(1, n, 5), torch.rand(1, n, 4), scores={"attention": attention})
    allocation = load("holov").allocate(tokens, None, 9)
    assert allocation.anchor.shape == (1, 9)
    assert allocation.anchor[0, :4].tolist() == [0, 1, 2, 3]


def test_holov_is_blind_to_the_features():
    """Its authors' scaling takes the variety out again: a crop's mean score is 1.09 times its mean attention."""
    tokens, _ = case(97, 11)
    other = VisualTokens(torch.randn_like(tokens.features), tokens.boxes, tokens.mask, scores=tokens.scores)
    one, two = (load("holov").allocate(t, None, 31).anchor for t in (tokens, other))
    assert one.equal(two)


@pytest.mark.parametrize("n", [83, 84])
@pytest.mark.parametrize("k", [2, 3, 7])
def test_vispruner_keeps_the_budget_where_few_are_left(n: int, k: int):
    tokens = VisualTokens(torch.randn(2, n, 5), torch.rand(2, n, 4), scores={"attention": torch.rand(2, n)})
    assert load("vispruner").allocate(tokens, None, k).anchor.shape == (2, k)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("visionzip", {"dominant": 1.5}),
        ("vispruner", {"ratio": -0.1}),
        ("vispruner", {"drop": 0}),
        ("cdpruner", {"theta": 1.0}),
        ("prumerge", {"neighbours": -1}),
        ("holov", {"crops": 0}),
    ],
)
def test_a_parameter_out_of_range_is_named(name: str, fields: dict):
    with pytest.raises(DataError, match=next(iter(fields))):
        load(name, **fields)


@pytest.mark.parametrize("n", [1023, 1031, 2053])
def test_each_pair_is_computed_once(n):
    """Many tokens are multiplied in blocks, of which one half is copied to the other."""
    x = torch.nn.functional.normalize(torch.randn(2, n, 7, generator=torch.Generator().manual_seed(n)), dim=2)
    whole = every_pair(x)
    assert torch.allclose(whole, x @ x.transpose(1, 2), atol=1e-6)
    assert torch.equal(whole, whole.transpose(1, 2))


def test_divprune_of_many_tokens_is_its_rule():
    tokens = VisualTokens.from_grid(torch.randn(1, 1147, 11, generator=torch.Generator().manual_seed(0)), (31, 37))
    kept = load("divprune").allocate(tokens, None, 41).anchor[0].tolist()
    assert kept == sorted(looped_divprune(tokens.features[0], 41))
