"""What wraps a model, compiles, spreads or quantises it does not get in the way of shortening."""

import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import oracle
import tiny_vlms as tiny
from regard.vlm.opened import opened
from regard.vlm.shorten import shorten


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks for it
def test_lora_compiled_and_spread_models(models):
    import peft

    model, inputs = deepcopy(models("qwen2_5_vl")), tiny.inputs("qwen2_5_vl", [1, 2])
    want = shorten(model, inputs, "divprune", budget=4)
    with torch.no_grad():
        plain = model(**want).logits
    compiled = deepcopy(model)
    compiled.model.language_model = torch.compile(compiled.model.language_model, dynamic=True, backend="aot_eager")
    short = shorten(compiled, inputs, "divprune", budget=4)
    with torch.no_grad():
        assert torch.allclose(compiled(**short).logits, plain, atol=1e-4)
    whole: Any = torch.compile(deepcopy(model), backend="eager")
    assert torch.equal(shorten(whole, inputs, "divprune", budget=4)["input_ids"], want["input_ids"])
    torch.manual_seed(0)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
    ).eval()
    short = shorten(adapted, inputs, "divprune", budget=4)
    keep = oracle.kept_columns(inputs, short.allocations, [0, 1, 1])
    base = adapted.get_base_model()
    expected = oracle.logits(base, inputs, keep, oracle.positions_of(base, inputs))
    with torch.no_grad():
        got = adapted(**short).logits
        generated = adapted.generate(**short, max_new_tokens=3, do_sample=False)
    near = 1e-4 * max(1.0, float(expected[keep].std()) / 10)  # the adapters make logits larger
    assert (got[short["attention_mask"].bool()] - expected[keep]).abs().max() < near
    assert short.new_tokens(generated).shape == (2, 3)
    assert not torch.allclose(got, plain, atol=0.1)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_int8_weights(models, vlm_folder, name):
    from torchao.quantization import Int8WeightOnlyConfig

    models(name)
    settings = transformers.TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["lm_head"])
    model = tiny.load(vlm_folder / name, quantization_config=settings, dtype=torch.float32)
    assert "Int8" in type(model.model.language_model.layers[0].mlp.up_proj.weight).__name__
    inputs = tiny.inputs(name, [1, 2])
    short = shorten(model, inputs, "random", budget=4)
    keep = oracle.kept_columns(inputs, short.allocations, [0, 1, 1])
    want = oracle.logits(model, inputs, keep, oracle.positions_of(model, inputs))
    with torch.no_grad():
        got = model(**short).logits
    assert (got[short["attention_mask"].bool()] - want[keep]).abs().max() < 1e-4


@pytest.mark.parametrize("away", ["model.text_model", "model.vision_model"])
def test_a_device_map(models, vlm_folder, tmp_path, away):
    models("smolvlm")
    parts = ("model.vision_model", "model.connector", "model.text_model", "lm_head")
    places = {part: "disk" if part == away else "cpu" for part in parts}
    model = tiny.load(vlm_folder / "smolvlm", device_map=places, offload_folder=tmp_path)
    assert model.hf_device_map == places
    assert next(model.get_submodule(away).parameters()).device.type == "meta"
    assert opened(model).device.type == "cpu"  # where inputs go, also where the first weights are not in memory
    inputs = tiny.inputs("smolvlm", [1, 2])
    for name in ("top", "visionzip"):
        short = shorten(model, inputs, name, budget=4)
        with torch.no_grad():
            want = models("smolvlm")(**shorten(models("smolvlm"), inputs, name, budget=4)).logits
            assert torch.equal(model(**short).logits, want)


COMPILED = """
import sys
import torch
import tiny_vlms as tiny
from regard.errors import ModelError
from regard import shorten

model, inputs = tiny.load(sys.argv[1]), tiny.inputs("llava", [1])
model.model.vision_tower = torch.compile(model.model.vision_tower, backend="eager")
assert shorten(model, inputs, "random", budget=4)
with torch.no_grad():
    model(**inputs)  # compiled without a hook
try:
    shorten(model, inputs, "fastervlm", budget=4)
except ModelError as error:
    print(error)
"""


def test_a_compiled_encoder_is_said_to_be_one(models, vlm_folder):
    """In a process of its own: what others had compiled decides whether it is compiled again, with the hook."""
    models("llava")
    line = [sys.executable, "-c", COMPILED, str(vlm_folder / "llava")]
    done = subprocess.run(line, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert "compile only the language model" in done.stdout


def test_the_encoder_is_let_go_after_an_error(models, monkeypatch):
    model, inputs = models("llava"), tiny.inputs("llava", [1])

    class Attentive:
        needs = ("scores:attention",)

        def allocate(self, tokens, question, budget):
            raise RuntimeError("broken")

    with torch.no_grad():
        model(**inputs)  # transformers puts hooks of its own on a model that it runs for the first time
    before = hooks(model)
    with pytest.raises(RuntimeError, match="broken"):
        shorten(model, inputs, Attentive(), budget=4)
    broken = {**inputs, "pixel_values": inputs["pixel_values"][:, :2]}  # two channels: the encoder itself fails
    with pytest.raises((RuntimeError, ValueError)):
        shorten(model, broken, Attentive(), budget=4)
    assert hooks(model) == before


def hooks(model):
    return [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
