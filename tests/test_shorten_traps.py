"""What has gone wrong elsewhere with shortened prompts, each tried here."""

from copy import copy

import pytest
import torch

import oracle
import tiny_vlms as tiny
from regard.vlm.shorten import shorten


def reference(model, inputs, short, rows):
    keep = oracle.kept_columns(inputs, short.allocations, rows)
    return oracle.logits(model, inputs, keep, oracle.positions_of(model, inputs))[keep]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_gaps_without_a_mask_look_like_packed_sequences(models, name):
    """transformers takes each gap for the start of another sequence where it has no mask and no cache."""
    model, inputs = models(name), tiny.inputs(name, [1])
    short = shorten(model, inputs, "random", budget=3)
    want = reference(model, inputs, short, [0])
    without = {key: value for key, value in short.items() if key != "attention_mask"}
    with torch.no_grad():
        right = model(**short, use_cache=False).logits[0]
        wrong = model(**without, use_cache=False).logits[0]
    assert torch.allclose(right, want, atol=1e-4)
    if name == "llava":
        assert (wrong - want).abs().max() > 0.1
    else:  # its first row of positions has no gaps
        assert torch.allclose(wrong, want, atol=1e-4)
        rows = without["position_ids"].clone()
        rows[0] = rows[1]
        with torch.no_grad():
            wrong = model(**{**without, "position_ids": rows}, use_cache=False).logits[0]
        assert (wrong - want).abs().max() > 0.01


@pytest.mark.parametrize("name", ["internvl", "paligemma"])
def test_a_tensor_of_one_image_a_row_would_give_beams_the_wrong_image(models, name):
    """So features in one tensor have a row for each token, (K, 1, D)."""
    model, inputs = models(name), tiny.inputs(name, [1, 1])
    short = shorten(model, inputs, "random", budget=9)
    options = {"max_new_tokens": 9, "num_beams": 2, "do_sample": False}
    want = model.generate(**short, **options)
    output = copy(short["mm_encoder_outputs"]["image"])
    assert output.pooler_output.shape[:2] == (18, 1)
    output.pooler_output = output.pooler_output.transpose(0, 1)  # (1, K, D)
    wrong = model.generate(**{**short, "mm_encoder_outputs": {"image": output}}, **options)
    assert not torch.equal(wrong, want)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_what_the_model_remembers_of_another_prompt_does_not_matter(models, name):
    model, inputs = models(name), tiny.inputs(name, [1, 2])
    options = {"max_new_tokens": 4, "do_sample": False}
    want = model.generate(**shorten(model, inputs, "random", budget=4), **options)
    model.generate(**tiny.inputs(name, [3], seed=5), **options)  # leaves its rope_deltas behind
    assert torch.equal(model.generate(**shorten(model, inputs, "random", budget=4), **options), want)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_positions_are_counted_on_the_whole_prompt(models, name):
    """Counted on what is left they would be others."""
    model, inputs = models(name), tiny.inputs(name, [2])
    short = shorten(model, inputs, "random", budget=[1, 1])
    whole = oracle.positions_of(model, inputs)
    keep = oracle.kept_columns(inputs, short.allocations, [0, 0])
    assert torch.equal(short["position_ids"][1:, 0], whole[:, 0, keep[0]])
    assert torch.equal(short["position_ids"][0, 0], torch.arange(int(keep.sum())))


def test_the_whole_prompts_own_positions_may_be_given(models):
    model, inputs = models("llava"), tiny.inputs("llava", [1, 2])
    shifted = {**inputs, "position_ids": oracle.positions_of(model, inputs) + 3}
    short = shorten(model, shifted, "random", budget=4)
    plain = shorten(model, inputs, "random", budget=4)
    real = short["attention_mask"].bool()
    assert torch.equal(short["position_ids"][real], plain["position_ids"][real] + 3)


def test_what_stands_between_tiles_is_no_question(models):
    """A prompt's own words are what is around its images, not the marks of tiles within them."""
    model, inputs = models("idefics3"), tiny.inputs("idefics3", [1])
    ids = inputs["input_ids"][0]
    image = (ids == tiny.IMAGE).nonzero().squeeze(1)
    outside = torch.cat((ids[: image[0]], ids[image[-1] + 1 :]))
    table = torch.nn.functional.normalize(model.get_input_embeddings().weight.detach(), dim=1)
    words = table[[i for i in outside.tolist() if i not in (0, 1, 2)]].mean(dim=0)
    short = shorten(model, inputs, "top", budget=4)
    cosine = torch.nn.functional.normalize(short.tokens[0].features[0], dim=1) @ words
    assert short.allocations[0].anchor[0].tolist() == cosine.topk(4).indices.sort().values.tolist()


def test_a_later_turn_on_either_side_of_padding(models):
    model = models("qwen2_5_vl")
    for pad_left in (True, False):
        inputs = tiny.inputs("qwen2_5_vl", [1, 2], pad_left=pad_left)
        short = shorten(model, inputs, "random", budget=4)
        width = short["input_ids"].shape[1]
        sequences = torch.cat((short["input_ids"], torch.full((2, 3), 7)), dim=1)
        ended = torch.tensor([[1, 0, 1], [1, 1, 1]])  # the first prompt's answer ended early
        turn = short.continued(sequences, ended)
        assert torch.equal(turn["attention_mask"][:, width:], ended)
        for row in range(2):
            top = int(short["position_ids"][1:, row].max())
            assert turn["position_ids"][0, row, width:].tolist() == [
                int(short["attention_mask"][row].sum()) - 1 + step for step in ended[row].cumsum(0).tolist()
            ]
            assert turn["position_ids"][1:, row, width:].amax(dim=1).tolist() != [0, 0, 0]
            assert int(turn["position_ids"][1:, row].max()) == top + int(ended[row].sum())


def test_nothing_of_the_encoder_is_held_where_gradients_flow(models):
    model, inputs = models("llava"), tiny.inputs("llava", [1])
    short = shorten(model, inputs, "divprune", budget=4)
    assert short["mm_encoder_outputs"]["image"].pooler_output[0].requires_grad
    assert not short.tokens[0].features.requires_grad


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_an_image_does_not_depend_on_its_neighbours(models, name):
    """CDPruner's own code scales relevance over the whole batch."""
    model, inputs = models(name), tiny.inputs(name, [1, 2])
    for allocator in ("divprune", "cdpruner", "fastervlm", "visionzip", "vispruner", "prumerge", "holov", "tome"):
        together = shorten(model, inputs, allocator, budget=3)
        again = shorten(model, inputs, allocator, budget=[3, 2, 3])
        assert torch.equal(together.allocations[0].anchor, again.allocations[0].anchor)
        assert torch.equal(together.allocations[2].anchor, again.allocations[2].anchor)


@pytest.mark.parametrize("allocator", ["cdpruner", "fastervlm", "visionzip", "vispruner", "prumerge", "holov", "tome"])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_every_selector_is_fed_by_every_family(models, name, allocator):
    model, inputs = models(name), tiny.inputs(name, [1, 2])
    short = shorten(model, inputs, allocator, budget=4)
    assert [a.n_out for a in short.allocations] == [4, 4, 4]
    generated = short.new_tokens(model.generate(**short, max_new_tokens=2, do_sample=False))
    assert generated.shape == (2, 2)
    encoded = oracle.merged(oracle.features_of(model, inputs), short.allocations)
    keep = oracle.kept_columns(inputs, short.allocations, [0, 1, 1])
    want = oracle.logits(model, inputs, keep, oracle.positions_of(model, inputs), encoded)[keep]
    with torch.no_grad():
        got = model(**short).logits[short["attention_mask"].bool()]
    assert torch.allclose(got, want, atol=1e-4)
