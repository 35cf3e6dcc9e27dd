"""Planted sinks are found with their dimensions, and moving their attention does what the paper's rule says."""

from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_outputs import BaseModelOutputWithPooling

import tiny_vlms
from regard.doctor import sinks
from regard.doctor.case import Case
from regard.doctor.redistribution import redistribute, redistributed, within
from regard.doctor.sinks import Sinks, attention_share, massive, phi, threshold
from regard.errors import DataError

ROW, PLACE, TEXT = 17, 5, 11  # of the image's token, and the dimensions


def planted(models, strong: float, kernel: str = "sdpa") -> Any:
    """A model whose keys answer to a massive activation, and whose words ask for it."""
    model = deepcopy(models("llava", kernel))
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 6] = 2
        for layer in model.model.language_model.layers:
            for head in range(4):
                layer.self_attn.q_proj.weight[8 * head + 3] = 0
                layer.self_attn.q_proj.weight[8 * head + 3, 6] = strong
            for head in range(2):
                layer.self_attn.k_proj.weight[8 * head + 3] = 0
                layer.self_attn.k_proj.weight[8 * head + 3, [PLACE, TEXT]] = 1
    return model


def shown(value: float, seed: int = 1) -> tuple[dict[str, Any], int]:
    """A prompt whose image has one token with a large value; its column."""
    inputs: dict[str, Any] = tiny_vlms.inputs("llava", [1], seed=seed)
    features = torch.randn(49, 32, generator=torch.Generator().manual_seed(2))
    features[ROW, PLACE] = value
    del inputs["pixel_values"]
    listed: Any = [features]
    output = BaseModelOutputWithPooling(pooler_output=listed)
    first = int((inputs["input_ids"] == tiny_vlms.IMAGE).nonzero()[0, 1])
    return {**inputs, "mm_encoder_outputs": {"image": output}}, first + ROW


def test_a_sink_of_the_image(models):
    inputs, column = shown(3000)
    model = planted(models, 30)
    several = sinks.check(Case(model, inputs))
    assert [(finding.check, finding.severity) for finding in several] == [("sinks", "warning")]
    evidence = several[0].evidence
    assert f"column {column} of the image is a sink" in evidence
    assert "massive activations (up to 3,00" in evidence
    assert f"in dimensions {PLACE}:" in evidence
    share = attention_share(Case(model, inputs))
    assert share[column] > 0.2
    assert (
        f"{float(share[column] / share[Case(models('llava'), inputs).image[0]].sum()):.0%} of the attention" in evidence
    )
    inputs, _ = shown(30)
    assert sinks.check(Case(planted(models, 0.1), inputs)) == []


def test_a_sink_of_the_text_is_normal(models):
    model = planted(models, 4)
    inputs = tiny_vlms.inputs("llava", [1])
    word = int(inputs["input_ids"][0, 0])
    with torch.no_grad():
        model.get_input_embeddings().weight[word, TEXT] = 2000
    several = sinks.check(Case(model, inputs))
    assert [finding.severity for finding in several] == ["note"]
    assert "column 0 of the text is a sink" in several[0].evidence
    assert f"in dimensions {TEXT};" in several[0].evidence


def test_a_sink_by_attention_alone(models):
    model, inputs = planted(models, 4), tiny_vlms.inputs("llava", [1])
    word = int(inputs["input_ids"][0, 0])
    with torch.no_grad():
        model.get_input_embeddings().weight[word] = 0
        model.get_input_embeddings().weight[word, TEXT] = 50
    several = sinks.check(Case(model, inputs))
    assert [finding.severity for finding in several] == ["note"]
    assert "massive" not in several[0].evidence
    assert "of all attention" in several[0].evidence


def test_massive_is_as_published():
    x = torch.full((7, 11), 0.05)
    x[2, 3], x[4, 5], x[6, 1] = 101, -99, 60
    assert massive(x).tolist() == [3]
    assert massive(x * 20).tolist() == [1, 3, 5]  # above 100 and 1000 times the median
    x[:, 7:] = 1
    assert massive(x * 20).tolist() == [1, 3, 5]
    x[:, 4:] = 2.5
    assert massive(x * 20).tolist() == []
    values = torch.randn(5, 900, generator=torch.Generator().manual_seed(1))
    values[3, 8] = 400
    by_hand = [max(abs(float(row[d])) / float((row**2).mean() ** 0.5) for d in (8, 20)) for row in values]
    assert torch.allclose(phi(values, [8, 20]), torch.tensor(by_hand))
    assert (phi(values, [8, 20]) >= threshold(900)).tolist() == [False, False, False, True, False]
    assert threshold(4096) == 20


def test_attention_that_cannot_be_reached_is_said(models):
    model = planted(models, 4)
    inputs, column = shown(3000)
    for layer in model.model.language_model.layers:
        attend = layer.self_attn.forward
        layer.self_attn.config = deepcopy(layer.self_attn.config)
        layer.self_attn.config._attn_implementation_internal = "flash_attention_2"
        layer.self_attn.forward = as_sdpa(attend, layer.self_attn)
    several = sinks.check(Case(model, inputs))
    assert [finding.severity for finding in several] == ["skipped", "warning"]
    assert "'flash_attention_2' of model.language_model.layers.0.self_attn does not show" in several[0].evidence
    assert f"column {column} of the image is a sink" in several[1].evidence


def as_sdpa(attend: Any, module: Any) -> Any:
    """Run as always, whatever kernel the configuration names."""

    def run(*args: Any, **kwargs: Any) -> Any:
        named, module.config._attn_implementation_internal = module.config._attn_implementation_internal, "sdpa"
        try:
            return attend(*args, **kwargs)
        finally:
            module.config._attn_implementation_internal = named

    return run


def by_loops(weights: Tensor, sinks: Tensor, visual: Tensor, moved: float, share: float, least: float) -> Tensor:
    """The paper's rule, number by number."""
    after = weights.clone()
    for b, h, r in torch.cartesian_prod(*(torch.arange(n) for n in weights.shape[:3])).tolist():
        row = weights[b, h, r].tolist()
        image = [k for k in range(len(row)) if visual[b, k]]
        good = [k for k in image if not sinks[b, k]]
        seen, useful = sum(row[k] for k in image), sum(row[k] for k in good)
        if seen < least or useful < share * seen or useful == 0:
            continue
        taken = sum(moved * row[k] for k in range(len(row)) if sinks[b, k])
        for k in range(len(row)):
            if sinks[b, k]:
                after[b, h, r, k] = (1 - moved) * row[k]
            elif visual[b, k]:
                after[b, h, r, k] = row[k] + taken * row[k] / useful
    return after


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_rows_are_moved_by_the_rule_and_keep_their_sums(seed, moved, share, least):
    generator = torch.Generator().manual_seed(seed)
    weights = (3 * torch.randn(2, 3, 5, 11, generator=generator, dtype=torch.float64)).softmax(dim=-1)
    sinks, visual = torch.rand(2, 2, 11, generator=generator) < torch.tensor([0.3, 0.6])[:, None, None]
    after = redistribute(weights, sinks, visual, moved, share, least)
    assert torch.allclose(after.sum(dim=-1), weights.sum(dim=-1))
    assert torch.allclose(after, by_loops(weights, sinks, visual, moved, share, least))
    assert bool((after >= 0).all())


def test_a_fraction_that_is_none():
    rows = torch.ones(1, 1, 1, 3) / 3
    with pytest.raises(DataError, match="from 0 to 1, got 1.5"):
        redistribute(rows, torch.ones(1, 3).bool(), torch.ones(1, 3).bool(), 1.5)


def oracle(sinks: Tensor, visual: Tensor, how: tuple) -> Any:
    """An attention of its own, as transformers lets one be registered."""

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **more: Any) -> Any:
        key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
        count, keys = query.shape[2], key.shape[2]
        seen = torch.ones(count, keys, dtype=torch.bool).tril(keys - count)
        weights = (query @ key.mT * more["scaling"]).masked_fill(~seen, -torch.inf).softmax(dim=-1)
        if module.layer_idx == 2:  # the third of four, the last but one
            pad = keys - len(sinks)
            s, v = (torch.nn.functional.pad(x, (0, pad))[None] for x in (sinks, visual))
            words = [q for q in range(count) if not v[0, keys - count + q]]
            weights[:, :, words] = by_loops(weights[:, :, words], s, v, *how)
        return (weights @ value).transpose(1, 2), None

    return attend


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_model_attends_as_if_it_were_its_own(models, kernel):
    inputs = tiny_vlms.inputs("llava", [1])
    model, how = models("llava", kernel), (0.6, 0.5, 0.1)
    case = Case(model, inputs)
    columns = (0, 20, 30)
    known = torch.zeros(58, dtype=torch.bool)
    known[list(columns)] = True
    plain = model(**inputs).logits
    AttentionInterface.register("oracle", oracle(known, case.image[0], how))
    AttentionMaskInterface.register("oracle", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    other = deepcopy(model)
    other.set_attn_implementation({"text_config": "oracle"})
    greedy: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}
    with within(case, Sinks((), (0.0, 0), columns, None), *how) as done:
        logits, said = model(**inputs).logits, model.generate(**inputs, **greedy)
    assert (logits - other(**inputs).logits).abs().max() < 1e-4
    assert (logits - plain).abs().max() > 0.01
    assert torch.equal(said, other.generate(**inputs, **greedy))
    assert sum(done.after) < sum(done.before)
    assert torch.equal(model(**inputs).logits, plain)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_cache_that_forgets_moves_what_it_would_not_have_forgotten(kernel):
    """Windows of 30 in a prompt of 58: while it answers, the cache's first column is another each time."""
    parts = tiny_vlms.parts("llava")
    window = {"model_type": "mistral", "sliding_window": 30, "use_sliding_window": True}
    config = transformers.LlavaConfig(**{**parts, "text_config": {**parts["text_config"], **window}})
    torch.manual_seed(0)
    kind: Any = transformers.LlavaForConditionalGeneration
    made = kind._from_config(config, attn_implementation=kernel).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    made.generation_config.suppress_tokens = [tiny_vlms.IMAGE]
    inputs, columns = tiny_vlms.inputs("llava", [1]), (0, 20, 30, 45)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "output_logits": True}
    answers = []
    for cached in (True, False):
        with within(Case(made, inputs), Sinks((), (0.0, 0), columns, None), 0.9, 0.1, 0.01) as done:
            whole = made.generate(**inputs, **options, use_cache=cached, return_dict_in_generate=True)
        answers.append(torch.stack(whole.logits))
        assert sum(done.after) < sum(done.before)
    plain = made.generate(**inputs, **options, return_dict_in_generate=True)
    assert (answers[0] - torch.stack(plain.logits)).abs().max() > 0.01
    torch.testing.assert_close(*answers, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_nothing_moved_changes_nothing(models):
    inputs, model = tiny_vlms.inputs("llava", [1]), models("llava")
    plain = model(**inputs).logits
    with within(Case(model, inputs), Sinks((), (0.0, 0), (0, 20), None), 0.0, 0.0, 0.0):
        assert torch.allclose(model(**inputs).logits, plain, atol=1e-5)


def test_nothing_is_left_on_the_model_after_an_error(models):
    inputs, _ = shown(3000)
    model = planted(models, 4)
    model(**inputs)  # transformers may hook its own
    before = hooks(model)
    with pytest.raises(KeyError), redistributed(model, inputs):
        assert hooks(model) > before
        raise KeyError
    assert hooks(model) == before


def hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_what_has_no_sink_cannot_be_moved(models):
    with pytest.raises(DataError, match="no sink"), redistributed(models("llava"), tiny_vlms.inputs("llava", [1])):
        pass
    two = tiny_vlms.inputs("llava", [1, 1])
    with pytest.raises(DataError, match="one prompt at a time, got 2"), redistributed(models("llava"), two):
        pass
