"""Attention other than the language model's own: vision encoders, Q-Formers, text that reads images aside."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import regard
import tiny_vlms
from regard.attention import cross
from regard.errors import DataError, ModelError
from regard.eyes.encoder import encoded_with_maps
from regard.vlm.family import cells
from regard.vlm.opened import opened
from rows_oracle import eager_weights, furthest
from test_vlm_compose import built, prompts, ragged
from tiny_lms import language_model
from tiny_lms import tokens as toy_tokens
from tiny_vlms import FAMILIES

NEAR = 1e-5


def filled(model: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.normal_(std=0.3)
    return model.eval()


def blip2(kernel: str) -> Any:
    seen = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
    former = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Blip2Config(
        vision_config={**seen, "image_size": 28, "patch_size": 4},
        qformer_config={**former, "encoder_hidden_size": 24, "vocab_size": 50},
        text_config={**text, "vocab_size": 101, "word_embed_proj_dim": 32, "max_position_embeddings": 128},
        num_query_tokens=5,
        image_token_index=99,
    )
    return filled(transformers.Blip2ForConditionalGeneration._from_config(config, attn_implementation=kernel))


def mllama() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_global_layers": 2}
    seen = {**sizes, "attention_heads": 2, "image_size": 28, "patch_size": 7, "vision_output_dim": 48}
    text = {**tiny_vlms.text("mllama_text_model"), "cross_attention_layers": [1, 3]}
    config = transformers.MllamaConfig(
        vision_config={
            **seen,
            "intermediate_layers_indices": [0, 1],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "max_num_tiles": 2,
        },
        text_config={**text, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        image_token_index=99,
    )
    return filled(transformers.MllamaForConditionalGeneration._from_config(config, attn_implementation="sdpa"))


def mllama_inputs() -> dict[str, Tensor]:
    ids = torch.tensor([[1, 99, 4, 5, 6], [1, 99, 7, 8, 9]])
    one = torch.ones(2, 1, dtype=torch.long)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(2, 1, 2, 3, 28, 28, generator=torch.Generator().manual_seed(5)),
        "aspect_ratio_ids": one,
        "aspect_ratio_mask": one[..., None].expand(2, 1, 2),
        "cross_attention_mask": one[:, None, :, None].expand(2, 5, 1, 2),
    }


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_vision_encoder_is_read_as_by_the_encoder_room(models, name):
    """Which makes the queries and keys of one layer again: another way to the same means."""
    model, inputs = models(name), tiny_vlms.inputs(name, [1, 2])
    vlm = opened(model)
    with regard.capture(model, part="vision") as seen:
        model(**inputs)
    layer = next(
        n for n, path in seen.names.items() if vlm.model.get_submodule(path) is vlm.family.attention_layer(vlm.base)
    )
    _, maps = encoded_with_maps(
        lambda: vlm.family.encode(vlm.base, inputs),
        lambda: vlm.family.attention_layer(vlm.base),
        False,
        {"scores:attention"},
    )
    wanted = maps["scores:attention"]().squeeze(-1)
    found = seen.received(layer)
    assert torch.allclose(found.reshape(wanted.shape), wanted, atol=NEAR)
    placed = vlm.family.arrange(vlm.base, inputs, wanted[..., None])[:, 0]
    assert torch.allclose(torch.cat(seen.tokens(inputs, layers=layer)), placed, atol=NEAR)


@torch.no_grad()
def test_an_encoder_has_more_columns_than_the_prompt(models):
    model, inputs = models("qwen2_5_vl"), tiny_vlms.inputs("qwen2_5_vl", [1])
    with regard.capture(model, part="vision", queries="all") as whole:
        model(**inputs)
    count = whole.weights(0).shape[-1]
    assert count > inputs["input_ids"].shape[1]
    with regard.capture(model, part="vision", queries=[count - 1]) as seen:
        model(**inputs)
    assert torch.allclose(seen.weights(0), whole.weights(0)[:, :, -1:], atol=NEAR)


@torch.no_grad()
def test_windows_of_an_encoder_see_nothing_of_each_other(models):
    """Qwen2.5-VL calls its kernel once a window: a row is whole, and 0 outside its own."""
    model, inputs = models("qwen2_5_vl"), tiny_vlms.inputs("qwen2_5_vl", [1, 1])
    with regard.capture(model, part="vision", queries="all") as seen:
        model(**inputs)
    for layer, windows in [(2, True), (1, False)]:
        rows = seen.weights(layer)[0, 0]
        assert torch.allclose(rows.sum(dim=-1), torch.ones(len(rows)), atol=NEAR)
        block = (rows > 0).float()
        assert torch.equal(block, block.T)
        assert bool((block.sum(dim=1).max() <= 16) == windows)


@torch.no_grad()
def test_a_q_former_shows_where_its_queries_look():
    model, eager = blip2("sdpa"), blip2("eager")
    ids = torch.tensor([[99] * 5 + [4, 5, 6], [99] * 5 + [7, 8, 9]])
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(5))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    plain = model(**inputs).logits
    with (
        regard.capture(model, part="qformer") as former,
        regard.capture(model, part="qformer-self") as own,
        regard.capture(model, part="vision", queries="all") as vision,
        regard.capture(model, queries="all") as language,
    ):
        assert torch.equal(model(**inputs).logits, plain)
    for seen, shape in [
        (former, (2, 2, 5, 50)),
        (own, (2, 2, 5, 5)),
        (vision, (2, 2, 50, 50)),
        (language, (2, 4, 8, 8)),
    ]:
        names = seen.names
        whole = eager_weights(eager, list(names.values()), lambda: eager(**inputs))
        assert seen.weights(seen.layers[0]).shape == shape
        assert furthest(seen, {layer: whole[name] for layer, name in names.items()}) < NEAR
    boxes = torch.cat((torch.tensor([[0, 0, 0, 0.0]]), cells(7, 7)))  # the class token is nowhere
    maps = former.maps([(14, 14)] * 2, boxes=[boxes, boxes])
    assert torch.allclose(maps[0].sum(), former.received()[0, 1:].sum(), atol=NEAR)


@torch.no_grad()
def test_mllama_text_reads_images_aside_with_a_kernel_of_its_own():
    """The two parts of the model under two kernels: cross-attention is equal to the eager text model's."""
    model, inputs = mllama(), mllama_inputs()
    plain = model(**inputs).logits
    with regard.capture(model, part="cross", queries="all") as aside, regard.capture(model, queries="all") as text:
        assert torch.equal(model(**inputs).logits, plain)
    assert (aside.layers, text.layers) == ((1, 3), (0, 2))
    model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    whole = dict(enumerate(model(**inputs, output_attentions=True).attentions))
    assert aside.weights(1).shape == (2, 4, 5, 34)
    assert furthest(aside, whole) < NEAR
    assert furthest(text, whole) < NEAR
    with regard.capture(model, part="cross", queries="all") as eager, regard.capture(model, part="vision") as vision:
        model(**inputs)
    assert furthest(eager, whole) < NEAR
    assert len(vision.layers) == 4
    model.generation_config.eos_token_id = None
    with regard.capture(model, part="cross") as answered:
        model.generate(**inputs, max_new_tokens=3)
    assert answered.calls == 3
    assert answered.weights(3, -1).shape == (2, 4, 1, 34)


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["early", "late", "late, all images", "deep", "hybrid"])
def test_a_vlm_of_ours_is_unchanged_and_knows_its_question(fusion):
    vlm, made, seen = built(language_model("llama"), fusion), prompts(), ragged()
    plain = vlm(made, seen).logits
    said = vlm.generate(made, seen, max_new_tokens=3)
    with regard.capture(vlm, queries="question") as question:
        assert torch.equal(vlm(made, seen).logits, plain)
    assert (question.columns() >= 0).sum(dim=1).tolist() == [2, 6, 1, 1]
    with regard.capture(vlm) as answer:
        assert torch.equal(vlm.generate(made, seen, max_new_tokens=3), said)
    assert answer.calls == 3
    if not fusion.startswith("late"):
        images = question.tokens()
        assert [len(values) for values in images] == [6] * 6
        assert float(torch.stack(images[:3]).sum()) < 1
        assert all(float(values.sum()) > 0.01 for values in images)


@torch.no_grad()
def test_late_fusion_shows_what_text_reads_of_each_image():
    vlm: Any = built(language_model("llama"), "late, all images")
    made, seen = prompts(), ragged()
    inputs = []
    handle = vlm.fusion.blocks[0].register_forward_pre_hook(lambda m, args: inputs.append(args))
    with regard.capture(vlm, part="cross", layers=0, queries="all") as aside:
        vlm(made, seen)
    handle.remove()
    block: Any = vlm.fusion.blocks[0]
    assert isinstance(block, cross.GatedCrossAttentionBlock)
    assert furthest(aside, {0: block.weights(*inputs[0])}) < NEAR
    with regard.capture(vlm, part="cross") as last:
        vlm(made, seen)
    totals = [float(values.sum()) for values in last.tokens()]
    rows = last.received()
    assert torch.allclose(torch.tensor([sum(totals[:3]), totals[3], sum(totals[4:])]), rows[[0, 2, 3]].sum(dim=1))
    with regard.capture(vlm) as text:
        vlm(made, seen)
    with pytest.raises(DataError, match="capture part='cross'"):
        text.tokens()


@torch.no_grad()
def test_our_own_q_former_and_resampler_are_read():
    vlm: Any = built(language_model("llama"), "hybrid")
    former = vlm.bridge.former
    seen = toy_tokens(2, 2, 3)
    states = vlm.bridge.read(seen.features, seen.boxes)
    with regard.capture(vlm, part="qformer") as looked, regard.capture(vlm, part="qformer-self") as own:
        vlm.bridge(seen, None)
    first = former.weights(former.queries.expand(2, -1, -1), states)
    assert torch.allclose(looked.weights(0), first, atol=NEAR)
    assert own.weights(0).shape == (2, 2, 5, 5)
    vlm = built(language_model("llama"), "late, all images")
    with regard.capture(vlm, part="bridge") as read:
        vlm.bridge(seen, None)
    assert read.weights(read.layers[0]).sum(dim=-1).allclose(torch.ones(()), atol=NEAR)


def test_parts_that_are_not_there_are_refused(models):
    for part, said in [("nose", "language, vision, cross"), ("cross", "it has language, vision")]:
        with pytest.raises(ModelError, match=said), regard.capture(models("llava"), part=part):
            pass
    with (
        pytest.raises(DataError, match="reads no text"),
        regard.capture(models("llava"), part="vision", queries="last"),
    ):
        pass
    with pytest.raises(DataError, match="no query 50"), regard.capture(models("llava"), part="vision", queries=[50]):
        models("llava")(**tiny_vlms.inputs("llava", [1]))
