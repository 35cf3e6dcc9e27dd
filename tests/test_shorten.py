"""Shortened inputs give what the untouched model gives with the dropped tokens masked out of attention."""

from dataclasses import dataclass, replace

import pytest
import torch
import transformers

import oracle
import tiny_vlms as tiny
from regard.allocation import Allocation
from regard.vlm.shorten import shorten

NEAR = 1e-4  # of logits with a scale of 10
BANNED = [tiny.IMAGE, 93, tiny.START, tiny.END]


@dataclass(frozen=True)
class Merge:
    """Neighbours averaged with weights, some with a gain: a reading that is no selection."""

    def allocate(self, tokens, question, budget):
        batch, n = tokens.features.shape[:2]
        group = (torch.arange(n) * budget // n).expand(batch, n)
        weight = torch.rand(batch, n, generator=torch.Generator().manual_seed(3)) + 0.1
        gain = torch.where(torch.arange(budget) % 2 == 0, 1.0, 1.5).expand(batch, budget)
        return Allocation.merge(group, budget, weight, boxes=tokens.boxes, gain=gain)


def rows_of(pictures):
    return [row for row, count in enumerate(pictures) for _ in range(count)]


def compare(model, inputs, short, pictures, encoded=None):
    """Largest difference of logits to the oracle's, at every column that is left."""
    keep = oracle.kept_columns(inputs, short.allocations, rows_of(pictures))
    whole = oracle.logits(model, inputs, keep, oracle.positions_of(model, inputs), encoded)
    with torch.no_grad():
        got = model(**short).logits
    real = short["attention_mask"].bool()
    return float((got[real] - whole[keep]).abs().max())


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", tiny.FAMILIES)
@pytest.mark.parametrize("pictures", [[1], [1, 2, 1]], ids=str)
def test_a_subset_is_the_masked_model(models, name, kernel, pictures):
    model, inputs = models(name, kernel), tiny.inputs(name, pictures)
    budgets = [3 + i for i in range(sum(pictures))]
    short = shorten(model, inputs, "random", budget=budgets)
    assert [a.n_out for a in short.allocations] == budgets
    assert compare(model, inputs, short, pictures) < NEAR


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_padding_on_the_right_stays_on_the_right(models, name):
    model, inputs = models(name), tiny.inputs(name, [1, 2], pad_left=False)
    short = shorten(model, inputs, "random", budget=[5, 2, 3])
    assert short["attention_mask"][0, 0] == 1
    assert short["attention_mask"][0, -1] == 0 or short["attention_mask"][1, -1] == 0
    assert compare(model, inputs, short, [1, 2]) < NEAR


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_keeping_all_is_bit_identical(models, name, kernel):
    model, inputs = models(name, kernel), tiny.inputs(name, [2, 1])
    short = shorten(model, inputs, "divprune", keep=1.0)
    with torch.no_grad():
        want = model(**inputs, position_ids=short["position_ids"]).logits
        got = model(**short).logits
    assert torch.equal(got, want)
    assert torch.equal(short["input_ids"], inputs["input_ids"])
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**short, **options), model.generate(**inputs, **options))


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_generating_is_a_greedy_loop_on_the_masked_model(models, name):
    model, inputs = models(name), tiny.inputs(name, [1, 2])
    short = shorten(model, inputs, "random", budget=4)
    keep = oracle.kept_columns(inputs, short.allocations, [0, 1, 1])
    want = oracle.greedy(model, inputs, keep, oracle.positions_of(model, inputs), 8, BANNED)
    got = short.new_tokens(model.generate(**short, max_new_tokens=8, do_sample=False))
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_beams_in_a_batch_are_the_beams_of_each_prompt(models, name):
    model = models(name)
    options = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    inputs = tiny.inputs(name, [2, 1])
    short = shorten(model, inputs, "random", budget=4)
    together = short.new_tokens(model.generate(**short, **options))
    assert torch.equal(together, short.new_tokens(model.generate(**short, **options)))  # and can be asked again
    for row in range(2):
        alone = shorten(model, one_prompt(inputs, row, [2, 1]), "random", budget=4)
        want = alone.new_tokens(model.generate(**alone, **options))
        assert torch.equal(together[2 * row : 2 * row + 2], want)


def one_prompt(inputs, row, pictures):
    """The inputs of one prompt of a batch, without its padding."""
    real = inputs["attention_mask"][row].bool()
    shape = inputs["input_ids"].shape
    alone = {name: x[row : row + 1, real] for name, x in inputs.items() if x.shape == shape}
    first, last = sum(pictures[:row]), sum(pictures[: row + 1])
    for name, x in inputs.items():
        if name in alone:
            continue
        if name == "pixel_values" and "image_grid_thw" in inputs:
            x = torch.cat(x.split(inputs["image_grid_thw"].prod(dim=1).tolist())[first:last])
        elif name == "pixel_values" and len(x) != sum(pictures) and x.ndim == 4:  # InternVL's tiles, 9 tokens each
            tiles = ((inputs["input_ids"] == tiny.IMAGE).sum(dim=1) // 9).tolist()
            x = x.split(tiles)[row]
        elif name in ("pixel_values", "pixel_attention_mask") and len(x) == len(pictures) and x.ndim >= 4:
            x = x[row : row + 1] if "pixel_attention_mask" in inputs else x[first:last]
        else:
            x = x[first:last]
        alone[name] = x
    return alone


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_merging_is_the_model_with_merged_rows(models, name):
    model, inputs = models(name), tiny.inputs(name, [2, 1])
    short = shorten(model, inputs, Merge(), budget=4)
    encoded = oracle.merged(oracle.features_of(model, inputs), short.allocations)
    assert compare(model, inputs, short, [2, 1], encoded) < NEAR
    wrong = [replace(a, gain=None) for a in short.allocations]
    encoded = oracle.merged(oracle.features_of(model, inputs), wrong)
    assert compare(model, inputs, short, [2, 1], encoded) > 100 * NEAR


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_what_would_be_wrong_is_seen_to_be_wrong(models, name):
    """Renumbered positions, features in another order, and deep features in another order."""
    model, inputs = models(name), tiny.inputs(name, [1])
    compact = shorten(model, inputs, "random", budget=1, positions="compact")
    assert compare(model, inputs, compact, [1]) > 100 * NEAR
    for field in ("pooler_output", "deepstack_features"):
        short = shorten(model, inputs, "random", budget=4)
        output = short._inputs["mm_encoder_outputs"]["image"]
        if output.get(field) is None:
            continue
        if field == "pooler_output":
            output.pooler_output = reversed_rows(output.pooler_output)
        else:
            output.deepstack_features = [reversed_rows(level) for level in output.deepstack_features]
        assert compare(model, inputs, short, [1]) > 100 * NEAR


def reversed_rows(features):
    if isinstance(features, torch.Tensor):
        return features.flip(0)
    return [part.flip(0) for part in features]


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_an_image_may_be_dropped_whole(models, name):
    model, inputs = models(name), tiny.inputs(name, [2, 1])
    for budgets in ([0, 4, 4], [3, 0, 4], [3, 4, 0], [0, 0, 0]):
        short = shorten(model, inputs, "random", budget=budgets)
        assert short.tokens_out == sum(budgets)
        assert compare(model, inputs, short, [2, 1]) < NEAR
        beams = model.generate(**short, max_new_tokens=3, num_beams=2, do_sample=False)
        assert short.new_tokens(beams).shape == (2, 3)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_a_second_turn_goes_on_from_the_short_cache(models, name):
    model, inputs = models(name), tiny.inputs(name, [1, 2])
    short = shorten(model, inputs, "random", budget=4)
    first = model.generate(**short, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    more = torch.tensor([[11, 12, 13], [21, 22, 23]])
    turn = short.continued(torch.cat((first.sequences, more), dim=1))
    second = model.generate(**turn, past_key_values=first.past_key_values, max_new_tokens=4, do_sample=False)
    whole = dict(inputs)
    added = torch.cat((short.new_tokens(first), more), dim=1)
    keep = oracle.kept_columns(inputs, short.allocations, [0, 1, 1])
    positions = oracle.positions_of(model, inputs)
    steps = torch.arange(1, 8)
    whole["input_ids"] = torch.cat((inputs["input_ids"], added), dim=1)
    for kind, value in (("mm_token_type_ids", 0), ("token_type_ids", 1)):
        if kind in inputs:
            whole[kind] = torch.cat((inputs[kind], torch.full_like(added, value).to(inputs[kind].dtype)), dim=1)
    keep = torch.cat((keep, torch.ones_like(added, dtype=torch.bool)), dim=1)
    positions = torch.cat((positions, positions.amax(dim=-1, keepdim=True) + steps), dim=-1)
    want = oracle.greedy(model, whole, keep, positions, 4, BANNED)
    assert torch.equal(second[:, -4:], want)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_a_static_cache_and_a_prefill_in_chunks_change_nothing(models, name):
    model, inputs = models(name), tiny.inputs(name, [1, 2])
    short = shorten(model, inputs, "random", budget=4)
    options = {"max_new_tokens": 5, "do_sample": False}
    want = model.generate(**short, **options)
    if name != "paligemma2":  # has no static cache, shortened or not
        static = model.generate(**short, **options, cache_implementation="static", disable_compile=True)
        assert torch.equal(static, want)
    chunks_of_images = hasattr(transformers.generation.utils, "_slice_mm_encoder_output")  # from 5.23 on
    if chunks_of_images and "paligemma" not in name:  # its prefix attends both ways, which chunks cannot
        assert torch.equal(model.generate(**short, **options, prefill_chunk_size=5), want)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_half_precision(models, vlm_folder, name):
    models(name)
    model, inputs = (
        tiny.load(vlm_folder / name, dtype=torch.bfloat16, attn_implementation="eager"),
        tiny.inputs(name, [1, 2]),
    )
    whole = shorten(model, inputs, "random", keep=1.0)
    with torch.no_grad():
        want = model(**inputs, position_ids=whole["position_ids"]).logits
        assert torch.equal(model(**whole).logits, want)
    short = shorten(model, inputs, "random", budget=4)
    assert compare(model, inputs, short, [1, 2]) < 1.0  # bfloat16 has 8 bits: logits of 10 differ by tenths
    assert short["mm_encoder_outputs"]["image"].pooler_output[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_compact_positions_have_no_gaps(models, name):
    model, inputs = models(name), tiny.inputs(name, [1, 2])
    short = shorten(model, inputs, "random", budget=4, positions="compact")
    positions, mask = short["position_ids"], short["attention_mask"].bool()
    for row in range(2):
        values = positions[..., row, mask[row]]
        assert values.unique().tolist() == list(range(int(values.max()) + 1))
    with torch.no_grad():
        assert model(**short).logits.isfinite().all()
    if positions.ndim == 2:  # then it is the model given a prompt that short from the start
        fresh = {name: x for name, x in short.items() if name != "position_ids"}
        options = {"max_new_tokens": 5, "do_sample": False}
        assert torch.equal(model.generate(**short, **options), model.generate(**fresh, **options))


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_labels_are_shortened_too_and_gradients_flow(models, name):
    model, inputs = models(name), tiny.inputs(name, [1, 2])
    labels = torch.where(inputs["input_ids"] == tiny.IMAGE, -100, inputs["input_ids"])
    labels[inputs["attention_mask"] == 0] = -100
    short = shorten(model, {**inputs, "labels": labels}, "random", budget=4)
    assert (short["labels"][short["input_ids"] == tiny.IMAGE] == -100).all()
    assert (short["labels"][short["attention_mask"] == 0] == -100).all()
    loss = model(**short).loss
    loss.backward()
    gradients = [p.grad for n, p in model.named_parameters() if "vision" in n or "visual" in n]
    model.zero_grad(set_to_none=True)
    assert loss.isfinite()
    assert any(g is not None and bool((g != 0).any()) for g in gradients)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_nothing_of_the_model_or_the_inputs_changes(models, name):
    model, inputs = models(name), tiny.inputs(name, [1, 2])
    before = {key: value.clone() for key, value in inputs.items()}
    with torch.no_grad():
        model(**inputs)  # transformers puts hooks of its own on a model that it runs for the first time
    state = snapshot(model)
    shorten(model, inputs, Merge(), budget=4)  # asks for everything: question, keys, attention
    assert snapshot(model) == state
    assert inputs.keys() == before.keys()
    assert all(torch.equal(inputs[key], value) for key, value in before.items())


def snapshot(model):
    """Every module's class, own attributes and hooks, and where its weights are."""
    return {
        name: (
            type(module),
            sorted(module.__dict__),
            [len(module._forward_pre_hooks), len(module._forward_hooks)],
            [parameter.data_ptr() for parameter in module.parameters(recurse=False)],
        )
        for name, module in model.named_modules()
    }
