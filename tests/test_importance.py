"""Importance where the answer is known: one patch decides, another is only looked at."""

from typing import Any

import pytest
import torch

import planted
import regard
import tiny_vlms
from planted import ANSWER, ASKS, NEUTRAL, OTHER
from regard.doctor import compare, curves, importance
from regard.errors import DataError, ModelError
from test_vlm_compose import built
from tiny_lms import language_model

RED, GREEN = 17, 40
TRUE = ("gradient", "ablation")
MISLED = ("raw", "mean", "rollout")


@pytest.fixture(scope="module", params=[False, True], ids=["one layer", "through a word"])
def model(request) -> Any:
    return planted.model(request.param)


@pytest.fixture(scope="module")
def direct() -> Any:
    return planted.model()


@torch.no_grad()
def test_the_model_is_as_planted(model):
    """It answers by red; without it, or asked for nothing, it does not know; it looks at green whatever is asked."""
    likely = [
        float(model(**planted.inputs(*given)).logits[0, -1].softmax(dim=0)[ANSWER])
        for given in [(ASKS, RED, GREEN), (NEUTRAL, RED, GREEN), (ASKS, GREEN, GREEN)]
    ]
    assert likely[0] > 0.99
    assert max(likely[1:]) < 0.05


@pytest.mark.parametrize("red", [17, 0, 48])
@pytest.mark.parametrize("method", TRUE)
def test_what_follows_the_answer_finds_the_patch_that_decides(model, method, red):
    found = importance(model, planted.inputs(red=red), method)
    assert found.target.tolist() == [ANSWER]
    (values,) = found.tokens
    best, second = values.topk(2).values.tolist()
    assert int(values.argmax()) == red
    assert second < 0.01 * best


@pytest.mark.parametrize("method", MISLED)
def test_attention_alone_takes_the_sink_for_it(model, method):
    (values,) = importance(model, planted.inputs(), method).tokens
    assert int(values.argmax()) == GREEN


def test_a_head_and_a_layer_can_be_named(direct):
    (values,) = importance(direct, planted.inputs(), "raw", layers=2, heads=2).tokens
    assert int(values.argmax()) == RED
    assert values.sum() == pytest.approx(1, abs=1e-3)
    (values,) = importance(direct, planted.inputs(), "mean", layers=[-1], heads=[2, 3]).tokens
    assert int(values.argmax()) == RED


def test_a_neutral_question_takes_the_sink_away(direct):
    (values,) = importance(direct, planted.inputs(), "relative", neutral=planted.inputs(NEUTRAL)).tokens
    assert int(values.argmax()) == RED
    assert values[GREEN] == pytest.approx(1, abs=0.1)
    assert float(values.topk(2).values[0]) > 5


def test_a_region_is_hidden_whole(direct):
    found = importance(direct, planted.inputs(), "ablation", regions=3)
    (values,) = found.tokens
    alone = importance(direct, planted.inputs(), "ablation").tokens[0]
    y, x = torch.arange(49) // 7, torch.arange(49) % 7
    cell = ((y + 0.5) * 3 / 7).long() * 3 + ((x + 0.5) * 3 / 7).long()
    for number in range(9):
        inside = values[cell == number]
        assert bool((inside == inside[0]).all())
    assert set(values.topk(int((cell == cell[RED]).sum())).indices.tolist()) == set(
        (cell == cell[RED]).nonzero()[:, 0].tolist()
    )
    assert float(values[RED]) == pytest.approx(float(alone[RED]), rel=0.1)


def test_a_target_is_for_each_prompt(direct):
    with pytest.raises(DataError, match="target must be one token id, or one for each of 1 prompts, got 2"):
        importance(direct, planted.inputs(), "ablation", target=[5, 6])


def test_the_target_is_what_is_explained(direct):
    (values,) = importance(direct, planted.inputs(), "ablation", target=OTHER).tokens
    assert float(values[RED]) < -1  # without red, another word is more likely
    (values,) = importance(direct, planted.inputs(), "gradient", target=OTHER).tokens
    assert float(values.max()) < 0.1 * float(importance(direct, planted.inputs()).tokens[0].max())


def test_curves_say_which_method_to_believe(model):
    methods: dict[str, dict] = {name: {} for name in (*MISLED, *TRUE)}
    found = compare(model, planted.inputs(), methods, target=ANSWER, steps=49)
    by = {one.method: one for one in found}
    assert {found[0].method, found[1].method} == set(TRUE)
    for name in TRUE:
        assert by[name].deleted < 0.03
        assert by[name].inserted > 0.97
    for name in MISLED:
        assert by[name].deleted > by["gradient"].deleted + 0.005
        assert by[name].inserted < by["gradient"].inserted - 0.005
    assert by["raw"].deleted > 0.05


@torch.no_grad()
def test_curves_begin_and_end_where_they_must(direct):
    made = importance(direct, planted.inputs(), "gradient")
    found = curves(direct, planted.inputs(), made, steps=7)
    assert found.deletion.shape == found.insertion.shape == (1, 8)
    whole = direct(**planted.inputs()).logits[0, -1].softmax(dim=0)[ANSWER]
    assert float(found.deletion[0, 0]) == pytest.approx(float(whole), abs=1e-5)
    assert torch.allclose(found.deletion[:, 0], found.insertion[:, -1])
    assert torch.allclose(found.deletion[:, -1], found.insertion[:, 0])
    assert torch.equal(found.shares, torch.linspace(0, 1, 8).double())


@pytest.mark.parametrize("method", TRUE)
def test_shortened_inputs_are_read_through_their_allocation(direct, method):
    """Every token that red was merged into counts, and the share of each patch in it is its own."""
    short = regard.shorten(direct, planted.inputs(), "pool", budget=16)
    found = importance(direct, short, method, target=ANSWER)
    (values,) = found.tokens
    assert values.shape == (49,)
    (allocation,) = short.allocations
    reads = allocation.matrix()[0]
    token = int(reads[:, RED].argmax())
    assert set(values.topk(int((reads[token] > 0).sum())).indices.tolist()) == set(
        reads[token].nonzero()[:, 0].tolist()
    )
    y, x = RED // 7, RED % 7
    (pixels,) = found.maps([(70, 70)])
    inside = pixels[10 * y - 10 : 10 * y + 20, 10 * x - 10 : 10 * x + 20].clamp(min=0).sum()
    assert float(inside / pixels.clamp(min=0).sum()) > 0.8


def test_the_model_is_left_as_it_was(direct):
    inputs = planted.inputs()
    direct(**inputs)  # transformers leaves hooks of its own
    before = {name: value.clone() for name, value in inputs.items()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in direct.modules()]
    for method in ("gradient", "rollout", "ablation"):
        importance(direct, inputs, method, regions=2 if method == "ablation" else None)
    assert all(torch.equal(inputs[name], value) for name, value in before.items())
    assert all(value.grad is None for value in direct.parameters())
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in direct.modules()]


def test_frozen_models_have_gradients_too(direct):
    want = importance(direct, planted.inputs()).tokens[0]
    direct.requires_grad_(False)
    try:
        assert torch.allclose(importance(direct, planted.inputs()).tokens[0], want)
    finally:
        direct.requires_grad_(True)


def test_what_makes_no_sense_is_refused(direct):
    inputs = planted.inputs()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"method": "guess"}, "raw, mean, rollout"),
        ({"method": "gradient", "layers": 1}, "layers is of raw, mean, relative, not of 'gradient'"),
        ({"method": "relative"}, "needs neutral"),
        ({"method": "relative", "neutral": tiny_vlms.inputs("llava", [2])}, "the same images"),
        ({"method": "ablation", "regions": 0}, "regions must be"),
        ({"method": "gradient", "target": 101}, "token ids from 0 to 100"),
        ({"method": "gradient", "target": 0.5}, "token ids from 0 to 100"),
    ]
    for given, said in cases:
        with pytest.raises(DataError, match=said):
            importance(direct, inputs, **given)
    made = importance(direct, inputs, "mean")
    with pytest.raises(DataError, match="steps must be"):
        curves(direct, inputs, made, steps=0)
    with pytest.raises(ModelError, match="give its own inputs"):
        curves(direct, tiny_vlms.inputs("llava", [1]), made)
    with pytest.raises(DataError, match="1 images and 2 sizes"):
        made.maps([(7, 7)] * 2)
    with pytest.raises(ModelError, match="of Hugging Face, got VLM"):
        importance(built(language_model("llama"), "early"), inputs)
    direct.train()
    try:
        with pytest.raises(ModelError, match=r"model.eval\(\)"):
            importance(direct, inputs)
    finally:
        direct.eval()
