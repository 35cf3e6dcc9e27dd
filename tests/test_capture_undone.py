"""Nothing is left on a model, whatever happens; what cannot be looked into is refused in one line."""

import threading
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

import regard
import tiny_vlms
from regard.errors import DataError, ModelError
from test_capture import language_model, prompt
from test_vlm_compose import built, prompts, ragged
from tiny_lms import language_model as toy_model


def state(model: nn.Module) -> list[Any]:
    """All that a module holds, by name and identity."""
    found: list[Any] = []
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        always = (module._forward_hooks_always_called, module._forward_pre_hooks_with_kwargs)
        own = {key: id(value) for key, value in vars(module).items() if not key.startswith("_")}
        found.append((name, [len(part) for part in (*hooks, *always)], own))
    return found


def no_mode_is_left() -> bool:
    return torch.overrides._get_current_function_mode_stack() == []


@pytest.mark.parametrize("part", ["language", "vision"])
def test_nothing_is_left_after_a_block(models, part):
    model, inputs = models("llava"), tiny_vlms.inputs("llava", [1])
    model(**inputs)  # transformers leaves hooks of its own
    before, config = state(model), model.config.to_dict()
    with regard.capture(model, part=part):
        assert state(model) != before
        model(**inputs)
        model.generate(**inputs, max_new_tokens=2)
    assert state(model) == before
    assert model.config.to_dict() == config
    assert no_mode_is_left()


def test_nothing_is_left_after_an_exception_inside_a_layer(models):
    model, inputs = models("llava"), tiny_vlms.inputs("llava", [1])
    before = state(model)
    layer = model.model.language_model.layers[2].self_attn.o_proj

    def fail(*_: Any) -> None:
        raise KeyError("of a layer")

    with pytest.raises(KeyError, match="of a layer"), regard.capture(model, queries=[0, 10**6]) as seen:
        handle = layer.register_forward_pre_hook(fail)
        try:
            model(**inputs)
        finally:
            handle.remove()
    assert state(model) == before
    assert no_mode_is_left()
    assert seen.weights(1).shape[1] == 4
    with regard.capture(model) as again:
        model(**inputs)
    assert again.calls == 1


def test_nothing_is_left_where_the_end_of_a_layer_is_never_told(models):
    """Of a layer that was compiled by parts, some hooks may not run."""
    model, inputs = models("llava"), tiny_vlms.inputs("llava", [1])
    hooks = model.model.language_model.layers[1].self_attn._forward_hooks
    with regard.capture(model, layers=[1]):
        there = dict(hooks)
        hooks.clear()
        model(**inputs)
        hooks.update(there)
        assert not no_mode_is_left()
    assert no_mode_is_left()


def test_nothing_is_left_after_an_exception_in_the_block_or_at_its_door(models):
    model = models("llava")
    before = state(model)
    with pytest.raises(ZeroDivisionError), regard.capture(model):
        raise ZeroDivisionError
    faults: tuple[dict[str, Any], ...] = (
        {"layers": 4},
        {"queries": "x"},
        {"part": "x"},
        {"heads": [0.5]},
        {"layers": []},
    )
    for wrong in faults:
        with pytest.raises(ValueError, match=r"."), regard.capture(model, **wrong):
            pass
    assert state(model) == before


def test_nothing_is_left_on_a_vlm_of_ours():
    vlm, made, seen = built(toy_model("llama"), "hybrid"), prompts(), ragged()
    before = state(vlm)
    with regard.capture(vlm) as captured:
        vlm(made, seen)
    assert captured.calls == 1
    assert state(vlm) == before


@torch.no_grad()
def test_a_block_in_a_block_sees_the_same(models):
    model, inputs = models("qwen2_vl"), tiny_vlms.inputs("qwen2_vl", [1])
    plain = model(**inputs).logits
    with regard.capture(model) as outer:
        with regard.capture(model, layers=[0, 2], heads="mean") as inner, regard.capture(model, part="vision") as eye:
            assert torch.equal(model(**inputs).logits, plain)
        model(**inputs)
    assert (outer.calls, inner.calls, eye.calls) == (2, 1, 1)
    assert torch.equal(outer.weights(2, 0).mean(dim=1, keepdim=True), inner.weights(2))
    assert torch.equal(outer.weights(2, 0), outer.weights(2, 1))


@torch.no_grad()
def test_two_threads_see_their_own():
    model = language_model("llama", "sdpa")
    several = [prompt(rows, length, 2) for rows, length in [(1, 11), (2, 17)]]
    plain = [model(**inputs).logits for inputs in several]
    ready, found = threading.Barrier(2), {}

    def read(number: int) -> None:
        with torch.no_grad(), regard.capture(model, queries="all") as seen:
            ready.wait()
            same = [torch.equal(model(**several[number]).logits, plain[number]) for _ in range(8)]
            ready.wait()
        found[number] = (all(same), seen)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (rows, length) in enumerate([(1, 9), (2, 17)]):
        same, seen = found[number]
        assert same
        assert seen.calls == 8
        assert seen.columns().shape == (rows, length)
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_what_another_thread_runs_is_not_seen():
    model = language_model("llama", "sdpa")
    with regard.capture(model) as seen:
        thread = threading.Thread(target=lambda: model(**prompt()))
        thread.start()
        thread.join()
    with pytest.raises(DataError, match="in the thread that opened it"):
        seen.weights(0)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks for it
def test_adapters_are_read():
    model, inputs = language_model("llama", "sdpa"), prompt()
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.eval()
    plain = adapted(**inputs).logits
    with regard.capture(adapted) as seen:
        assert torch.equal(adapted(**inputs).logits, plain)
    with adapted.disable_adapter(), regard.capture(adapted) as without:
        adapted(**inputs)
    assert not torch.equal(seen.weights(0), without.weights(0))


@torch.no_grad()
def test_int8_weights_are_read(models, vlm_folder):
    from torchao.quantization import Int8WeightOnlyConfig

    whole, inputs = models("llava"), tiny_vlms.inputs("llava", [1])
    settings = transformers.TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["lm_head"])
    model = tiny_vlms.load(vlm_folder / "llava", quantization_config=settings, dtype=torch.float32)
    plain = model(**inputs).logits
    with regard.capture(model) as eight, regard.capture(whole) as full:
        assert torch.equal(model(**inputs).logits, plain)
        whole(**inputs)
    assert 1e-6 < float((eight.weights(0) - full.weights(0)).abs().max()) < 0.2


def test_compiled_models_are_refused():
    model = language_model("llama", "sdpa")
    with (
        pytest.raises(ModelError, match="OptimizedModule is compiled"),
        regard.capture(
            torch.compile(model, backend="eager")  # pyright: ignore
        ),
    ):
        pass
    model.model.layers[1].compile(backend="eager")
    with pytest.raises(ModelError, match=r"its model.layers.1 is compiled"), regard.capture(model):
        pass


@torch.no_grad()
def test_one_whole_graph_is_refused(compiler):
    model = language_model("llama", "sdpa")
    with pytest.raises(Exception, match="being compiled"), regard.capture(model):
        torch.compile(model.model.layers[0].self_attn, backend="eager", fullgraph=True)(torch.zeros(1, 3, 32))
    assert no_mode_is_left()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # of the compiler, that it leaves the model to torch
def test_a_model_compiled_inside_the_block_runs_uncompiled_there(compiler):
    model, inputs = language_model("llama", "sdpa"), prompt()
    with regard.capture(model, layers=[3]) as wanted:
        plain = model(**inputs).logits
    with regard.capture(model, layers=[3]) as seen:
        assert torch.allclose(torch.compile(model, backend="eager")(**inputs).logits, plain, atol=1e-5)
    assert torch.allclose(seen.weights(3), wanted.weights(3), atol=1e-5)
    assert no_mode_is_left()


def test_kernels_that_show_nothing_are_refused():
    model = language_model("llama", "sdpa")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="'flash_attention_2' of model.layers.0.self_attn"), regard.capture(model):
        pass
    model.config._attn_implementation = "sdpa"
    with pytest.raises(ModelError, match="has no attention of the part 'language'"), regard.capture(nn.Linear(2, 2)):
        pass
    with pytest.raises(ModelError, match="expected a model"), regard.capture("llama"):  # pyright: ignore
        pass


class Silent(nn.Module):
    """Attention of another kind, under the names of projections."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return self.q_proj(hidden_states) * self.k_proj(hidden_states).mean(dim=1, keepdim=True), None


def test_a_layer_that_runs_no_softmax_is_named_and_the_others_are_read():
    model = language_model("llama", "sdpa")
    model.model.layers[1].self_attn = Silent(32)
    with regard.capture(model) as seen:
        model(**prompt())
    assert seen.weights(0).shape == (2, 4, 1, 23)
    with pytest.raises(ModelError, match=r"layer 1 \(model.layers.1.self_attn, a Silent\) ran no attention"):
        seen.weights(1)


def test_layers_and_heads_out_of_range_are_refused():
    model = language_model("llama", "sdpa")
    for wrong in (4, -5, [0, 7]):
        with pytest.raises(ModelError, match="'language' has layers 0 to 3"), regard.capture(model, layers=wrong):
            pass
    with (
        pytest.raises(ModelError, match="no head 4: model.layers.0.self_attn has"),
        regard.capture(model, heads=[0, 4]),
    ):
        model(**prompt())
    with regard.capture(model, layers=1) as seen:
        model(**prompt())
    with pytest.raises(ModelError, match="there is no layer 0"):
        seen.weights(0)
    with pytest.raises(DataError, match="there is no call 1: 1 were seen"):
        seen.weights(1, 1)


def test_pruning_inside_and_checkpointing_are_refused(models):
    model, inputs = models("llava"), tiny_vlms.inputs("llava", [1])
    with pytest.raises(ModelError, match="pruned inside"), regard.capture(model), regard.inside(model, "fastv"):
        model(**inputs)
    own = language_model("llama", "sdpa")
    own.activation_checkpointing_enable()
    own.train()
    with pytest.raises(ModelError, match="gradient checkpointing"), regard.capture(own):
        pass
