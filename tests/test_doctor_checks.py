"""Each check finds the fault that is planted for it, says nothing of a model without one, and names what it saw."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
import transformers
from transformers.integrations import sdpa_attention
from transformers.models.llama import modeling_llama

import regard
import tiny_lms
import tiny_vlms
from regard.doctor.answers import longer
from regard.doctor.case import Case
from regard.doctor.examine import CHECKS
from regard.doctor.finding import Finding
from regard.doctor.image_ignored import divergence
from regard.doctor.learned_queries import distinct, effective_rank
from regard.doctor.positions import drawn_out, mrope
from regard.vlm.fusion.late import Late
from regard.vlm.interleaved import interleaved
from test_capture_parts import mllama, mllama_inputs
from tiny_vlms import FAMILIES

RUNNING = ("masks", "positions", "heads", "frozen", "sinks", "image_ignored")
FUSIONS = ("early", "late", "deep")
QUESTION = "what is this near the red cat ? yes"


def found(check: str, model: Any, inputs: Any = None) -> list[Finding]:
    return import_module(f"regard.doctor.{CHECKS[check]}").check(Case(model, inputs))


def one(check: str, model: Any, inputs: Any = None, severity: str = "error") -> str:
    """The evidence of what is to be the only finding."""
    several = found(check, model, inputs)
    assert [(finding.check, finding.severity) for finding in several] == [(check, severity)], several
    assert several[0].advice
    return several[0].evidence


def llava(models) -> tuple[Any, dict[str, Any]]:
    return deepcopy(models("llava")), tiny_vlms.inputs("llava", [1])


def vlm(mechanism: str = "all", fusion: Any = "early", gate: float = 0.5, **arguments: Any) -> tuple[Any, tuple]:
    """Of parts, with the prompt `word word <image> question`."""
    model = tiny_lms.language_model("llama", seed=3).requires_grad_(True)
    if isinstance(fusion, type):
        fusion = fusion(model)
    torch.manual_seed(4)
    made = regard.VLM(
        tiny_lms.ToyEye(), mechanism, model, tiny_lms.tokenizer(), fusion, bridge_arguments=arguments
    ).eval()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.endswith("_gate"):
                value.fill_(gate)
            elif name.startswith(("fusion", "bridge")) and value.ndim > 1 and "queries" not in name:
                value.normal_(0, 0.3)
    prompts = interleaved(made.tokenizer, [f"a red <image> {QUESTION}"], [1])
    return made, (prompts, [tiny_lms.tokens(1)], tiny_lms.question(1) if made._asks else None)


@pytest.mark.parametrize("check", RUNNING)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_are_in_health(models, name, check):
    assert found(check, models(name), tiny_vlms.inputs(name, [1])) == []


@pytest.mark.parametrize("check", ["masks", "positions", "image_ignored"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "smolvlm", "paligemma"])
def test_a_batch_of_several_images_is_in_health(models, name, check):
    assert found(check, models(name), tiny_vlms.inputs(name, [1, 2])) == []


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("check", RUNNING)
def test_models_of_parts_are_in_health(check, fusion):
    assert found(check, *vlm("pool", fusion)) == []


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "opt", "bloom"])
def test_language_models_are_in_health(name):
    model = tiny_lms.language_model(name).requires_grad_(True)
    ids = torch.randint(4, 29, (2, 19), generator=torch.Generator().manual_seed(1))
    for check in ("masks", "positions", "heads", "frozen", "sinks"):
        assert found(check, model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}) == []


def test_a_mask_that_is_lost(models):
    model, inputs = llava(models)
    for layer in model.model.language_model.layers:
        layer.self_attn.is_causal = False
    assert "sees the future" in one("masks", model, inputs)


def test_one_layer_that_sees_ahead_is_enough(models):
    model, inputs = llava(models)
    model.model.language_model.layers[2].self_attn.is_causal = False
    assert "sees the future" in one("masks", model, inputs)


def hides(column: int) -> Callable:
    def hook(module: Any, args: tuple, kwargs: dict) -> tuple:
        count = kwargs["hidden_states"].shape[1]
        seen = torch.ones(count, count, dtype=torch.bool).tril()
        seen[column + 1 :, column] = False
        return args, {**kwargs, "attention_mask": seen[None, None]}

    return hook


def test_a_token_that_is_hidden(models):
    model, inputs = llava(models)
    for layer in model.model.language_model.layers:
        layer.self_attn.register_forward_pre_hook(hides(17), with_kwargs=True)
    evidence = found("masks", model, inputs)[0].evidence
    assert "does not see 1 of the real tokens before it, columns 17 to 17" in evidence


def test_padding_that_leaks(models):
    model, inputs = llava(models)

    def drop(module: Any, args: tuple, kwargs: dict) -> tuple:
        return args, {**kwargs, "attention_mask": None}

    model.model.language_model.register_forward_pre_hook(drop, with_kwargs=True)
    assert "5 columns of padding" in one("masks", model, inputs)


def test_rows_of_a_batch_that_leak(models):
    model, inputs = llava(models)
    layer = model.model.language_model.layers[1]
    layer.mlp.register_forward_hook(lambda module, args, out: out + 0.5 * out.mean(dim=0, keepdim=True))
    assert "gives other values than alone" in one("masks", model, inputs)


def test_the_trap_of_packed_sequences(models):
    inputs = tiny_vlms.inputs("llava", [1])
    short = dict(regard.shorten(models("llava"), inputs, "grid", budget=9))
    given = {name: value for name, value in short.items() if name != "attention_mask"} | {"use_cache": False}
    several = found("masks", models("llava"), given)
    assert [finding.severity for finding in several] == ["error"]
    assert "a gap there, and no attention_mask" in several[0].evidence
    assert "pass attention_mask" in several[0].advice
    whole = found("masks", models("llava"), short)
    assert [finding.severity for finding in whole] == ["skipped"]
    assert "shortened" in whole[0].evidence


def test_masks_that_cannot_be_meant(models):
    model, inputs = models("llava"), tiny_vlms.inputs("llava", [1])
    mask = inputs["attention_mask"]
    assert "hides all" in one("masks", model, {**inputs, "attention_mask": 1 - mask})
    hole = mask.clone()
    hole[0, 20:23] = 0
    assert found("masks", model, {**inputs, "attention_mask": hole})[0].severity == "warning"
    padded = {**tiny_vlms.inputs("llava", [1, 2]), "attention_mask": None}
    assert "1 of 2 prompts" in one("masks", model, {k: v for k, v in padded.items() if v is not None})


class Early(Late):
    """Every word sees the image."""

    def within(self, language_model: Any, prompt: Any, memory: Any, shown: Any) -> Any:
        return super().within(language_model, replace(prompt, seen=torch.ones_like(prompt.seen)), memory, shown)


def test_words_that_see_an_image_before_it_comes():
    assert "words before the first image change" in one("masks", *vlm("pool", Early))


def test_positions_that_turn_queries_alone(models, monkeypatch):
    turn = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *more, **m: (turn(q, k, *more, **m)[0], k))
    assert "not relative" in one("positions", *llava(models))


def test_positions_that_reach_nothing(models):
    model, inputs = llava(models)
    still = (lambda module, args, out: (torch.ones_like(out[0]), torch.zeros_like(out[1])),)
    model.model.language_model.rotary_emb.register_forward_hook(*still)
    several = [finding.evidence for finding in found("positions", model, inputs)]
    assert len(several) == 2
    assert "order of the words is lost" in several[0]
    assert "order of the tokens of the image is lost" in several[1]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_the_rows_of_m_rope(models, name):
    model, inputs = models(name), tiny_vlms.inputs(name, [1, 2])
    mask, image = inputs["attention_mask"].bool(), inputs["input_ids"] == tiny_vlms.IMAGE
    wanted = mrope(mask, image, inputs["image_grid_thw"], 2)
    about = {key: inputs[key] for key in ("image_grid_thw", "attention_mask", "mm_token_type_ids")}
    theirs = model.base_model.get_rope_index(inputs["input_ids"], **about)[0]
    assert torch.equal(wanted[:, mask], theirs[:, mask])
    assert found("positions", model, {**inputs, "position_ids": theirs}) == []
    for rows in ([0, 2, 1], [0, 0, 0]):
        evidence = found("positions", model, {**inputs, "position_ids": theirs[rows]})[0].evidence
        assert "do not fit image_grid_thw" in evidence


def test_the_words_of_a_prompt_go_on(models):
    model, inputs = models("llava"), tiny_vlms.inputs("llava", [1])
    places = torch.arange(inputs["input_ids"].shape[1])[None]
    assert found("positions", model, {**inputs, "position_ids": places}) == []
    places = places.clone()
    places[0, -2] = 3
    assert "is not after that of the word before" in one("positions", model, {**inputs, "position_ids": places})


def test_positions_after_shortening(models):
    model, inputs = models("llava"), tiny_vlms.inputs("llava", [1])
    assert found("positions", model, regard.shorten(model, inputs, "grid", budget=9)) == []
    closed = regard.shorten(model, inputs, "grid", budget=9, positions="compact")
    assert "40 visual tokens were dropped" in one("positions", model, closed, "warning")


@pytest.mark.parametrize(("mode", "severity"), [("nearest", "error"), ("bicubic", "warning"), ("bilinear", "warning")])
@pytest.mark.parametrize("name", ["llava", "llava_siglip", "internvl"])
def test_tables_of_positions_that_were_drawn_out(models, name, mode, severity):
    model = deepcopy(models(name))
    tables = {name: value for name, value in model.named_parameters() if "position_embedding" in name}
    table = next(iter(tables.values()))
    rows = table.data.reshape(-1, table.shape[-1])
    side = int(len(rows) ** 0.5)
    small = torch.randn(1, rows.shape[1], side // 2, side // 2, generator=torch.Generator().manual_seed(1))
    line = {} if mode == "nearest" else {"align_corners": False}
    large = torch.nn.functional.interpolate(small, (side, side), mode=mode, **line)
    rows[len(rows) - side * side :] = large.flatten(2)[0].T
    evidence = one("positions", model, severity=severity)
    assert ("are the same" if mode == "nearest" else f"a table of {side // 2} x {side // 2}") in evidence


def test_a_table_that_was_trained_is_not_drawn_out():
    small = torch.randn(1, 24, 5, 5, generator=torch.Generator().manual_seed(1))
    large = torch.nn.functional.interpolate(small, (9, 9), mode="bicubic").flatten(2)[0].T
    assert drawn_out(large) == 5
    assert drawn_out(large + 0.1 * torch.randn(large.shape)) is None


def test_a_scale_that_is_of_the_width(models):
    for kernel in ("sdpa", "eager"):
        model = deepcopy(models("llava", kernel))
        for layer in model.model.language_model.layers:
            layer.self_attn.scaling = 32**-0.5
        evidence = one("heads", model, tiny_vlms.inputs("llava", [1]))
        assert "scales by 0.1768, and heads of 8 by 0.3536" in evidence


def test_a_scale_that_yarn_stretches(models):
    """DeepSeek-V3's: (0.1 ln 40 + 1)^2 of the usual."""
    model = deepcopy(models("llava"))
    config = model.config.text_config
    for layer in model.model.language_model.layers:
        layer.self_attn.scaling = 8**-0.5 * 1.3688879454113936**2
    assert "scales by 0.6625, and heads of 8 by 0.3536" in one("heads", model, tiny_vlms.inputs("llava", [1]))
    config.rope_parameters = {**config.rope_parameters, "mscale_all_dim": 1.0, "factor": 40}
    assert not found("heads", model, tiny_vlms.inputs("llava", [1]))


def test_query_heads_that_are_paired_in_turn(models, monkeypatch):
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda x, times: x.repeat(1, times, 1, 1))
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", lambda *args: False)
    assert "heads 0 to 1 do not share one key head" in one("heads", models("llava"), tiny_vlms.inputs("llava", [1]))


def test_sizes_that_do_not_fit(models):
    model = deepcopy(models("llava"))
    model.model.language_model.layers[1].self_attn.num_key_value_groups = 4
    assert "lets 4 of its 4 heads share each of 2" in one("heads", model)
    model.model.language_model.layers[1].self_attn.num_key_value_groups = 2
    model.model.language_model.layers[1].self_attn.head_dim = 6
    assert "4 heads and 2 key heads of 6" in one("heads", model)


def test_heads_that_are_dead_and_heads_that_are_the_same(models):
    model, inputs = llava(models)
    attention = model.model.language_model.layers[2].self_attn
    with torch.no_grad():
        attention.o_proj.weight[:, 8:16] = 0
    assert "1 of 22 heads add nothing: model.language_model.layers.2.self_attn head 1" in one(
        "heads", model, inputs, "warning"
    )
    with torch.no_grad():
        attention.o_proj.weight[:, 8:16] = attention.o_proj.weight[:, 16:24]
        attention.q_proj.weight[24:32] = attention.q_proj.weight[16:24]
    assert "layers.2.self_attn heads 2 and 3" in one("heads", model, inputs, "warning")


@pytest.mark.parametrize("check", ["gates", "frozen"])
def test_gates_that_are_open(check):
    assert found(check, *vlm("pool", "late")) == []


def test_gates_that_are_shut_and_gates_that_are_saturated():
    assert "6 of 6 gates are shut" in one("gates", *vlm("pool", "late", gate=0.0))
    model, inputs = vlm("pool", "late")
    with torch.no_grad():
        model.fusion.blocks[1].feed_gate.fill_(0)
    assert "1 of 6 gates are shut" in one("gates", model, inputs, "warning")
    assert "6 of 6 gates are saturated" in one("gates", *vlm("pool", "late", gate=-4.0), severity="warning")


def test_gates_that_no_gradient_reaches():
    model, inputs = vlm("pool", "late")
    with torch.no_grad():
        model.fusion.blocks[2].attention.out.weight.zero_()
    evidence = one("gates", model, inputs)
    assert "no gradient reaches 1 of 6 gates: fusion.blocks.2.attention_gate" in evidence


def test_the_gates_of_mllama():
    words = {**tiny_vlms.text("mllama_text_model"), "cross_attention_layers": [1], "num_hidden_layers": 2}
    seen = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_global_layers": 1}
    seen |= {"attention_heads": 2, "vision_output_dim": 32, "image_size": 28, "patch_size": 14}
    seen |= {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]}
    config = transformers.MllamaConfig(text_config=words, vision_config=seen)
    model = transformers.MllamaForConditionalGeneration(config)
    gates = {name: value for name, value in model.named_parameters() if "cross_attn_" in name and "gate" in name}
    with torch.no_grad():
        for value in gates.values():
            value.zero_()
    assert "2 of 2 gates are shut" in one("gates", model)
    with torch.no_grad():
        for value in gates.values():
            value.fill_(0.3)
    assert found("gates", model) == []


def test_a_part_that_no_gradient_reaches(models):
    model, inputs = llava(models)
    tower = model.model.vision_tower
    tower.register_forward_hook(
        lambda module, args, out: type(out)(
            last_hidden_state=out.last_hidden_state.detach(),
            hidden_states=tuple(x if x is None else x.detach() for x in out.hidden_states),
        )
    )
    evidence = one("frozen", model, inputs)
    assert "parameters of vision_tower" in evidence
    tower.requires_grad_(False)
    assert found("frozen", model, inputs) == []


def test_a_layer_that_no_gradient_reaches(models):
    model, inputs = llava(models)
    layer = model.model.language_model.layers[3]
    layer.mlp.up_proj.register_forward_hook(lambda module, args, out: out.detach())
    evidence = one("frozen", model, inputs, "warning")
    assert evidence.endswith("parameters of language_model: model.language_model.layers.3.mlp.up_proj.weight")
    assert all(value.grad is None for value in model.parameters())


@pytest.mark.parametrize(("mechanism", "name"), [("qformer", "former.queries"), ("resampler", "latents")])
def test_queries_that_collapsed(mechanism, name):
    sizes = {"queries": 8} if mechanism == "qformer" else {"latents": 8}
    model, inputs = vlm(mechanism, **sizes, heads=2)
    queries = next(value for key, value in model.bridge.named_parameters() if key.endswith(name.split(".")[-1]))
    with torch.no_grad():
        queries.normal_(generator=torch.Generator().manual_seed(1))
    assert found("queries", model, inputs) == []
    kept = queries.detach().clone()
    with torch.no_grad():
        queries[:] = queries[:1] * torch.linspace(1, 2, 8)[:, None]
    assert "are 1 and not 8" in one("queries", model, inputs)
    with torch.no_grad():
        queries[:] = kept
        queries[3:] = queries[2]
    assert "are 3 and not 8" in one("queries", model, inputs, "warning")
    with torch.no_grad():
        queries.zero_()
    assert "are 1 and not 8" in one("queries", model)


def test_queries_that_read_the_same():
    model, inputs = vlm("qformer", queries=8, heads=2)
    with torch.no_grad():
        model.bridge.former.queries.normal_(generator=torch.Generator().manual_seed(1))
    model.bridge.former.register_forward_hook(lambda module, args, out: out[:, :1].expand_as(out))
    assert "read of the image are 1 and not 8" in one("queries", model, inputs)


def test_how_many_directions_there_are():
    rows = torch.eye(5)[[0, 1, 1, 2, 0, 4]]
    assert distinct(rows) == 4
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.ones(7, 3)) == pytest.approx(1, abs=1e-3)


def test_an_image_that_is_ignored(models):
    model, inputs = llava(models)
    model.model.multi_modal_projector.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    assert "it moves by 0 bits with noise" in one("image_ignored", model, inputs)
    assert "0 bits" in one("image_ignored", *vlm("pool", "late", gate=0.0))


def test_an_image_that_hardly_matters():
    model, inputs = vlm("pool", "early")
    model.bridge.register_forward_hook(lambda module, args, out: out._replace(features=1 + 0.02 * out.features))
    assert "hardly follows" in one("image_ignored", model, inputs, "warning")


def test_bits_are_those_of_jensen_and_shannon():
    one, other = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(1)).double()
    mean = (one.softmax(-1) + other.softmax(-1)).div(2).log()
    each = [torch.nn.functional.kl_div(mean, x.softmax(-1), reduction="none").sum(-1) for x in (one, other)]
    assert torch.allclose(divergence(one, other), sum(each) / 2 / torch.tensor(2.0).log())
    apart = torch.tensor([[90.0, -90.0], [-90.0, 90.0]])
    assert float(divergence(*apart)) == pytest.approx(1)
    assert float(divergence(one, one).max()) == 0


@pytest.mark.parametrize("count", [2, 4])
def test_question_and_budget_may_be_left_out(count):
    model, inputs = vlm()
    given = (*inputs[:2], None, None)[:count]
    assert regard.doctor.examine(model, given, only=["masks", "image_ignored"]).silent == ("masks", "image_ignored")


@torch.no_grad()
def test_an_answer_of_mllama_sees_what_its_prompt_sees():
    model, inputs = mllama(), mllama_inputs()
    model.generation_config.eos_token_id = None
    asked = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    made = model.generate(**inputs, **asked)
    given = longer(model, inputs, made.sequences[:, 5:7])
    assert given["cross_attention_mask"].shape == (2, 7, 1, 2)
    torch.testing.assert_close(model(**given).logits[:, -1], made.logits[2], atol=1e-4, rtol=1e-4)
    assert "image_ignored" not in {
        f.check for f in regard.doctor.examine(model, inputs).findings if f.severity == "skipped"
    }
