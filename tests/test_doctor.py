"""`regard.doctor.examine` and `regard doctor`: what runs, what is skipped and why, and a model left as it was."""

import json
import subprocess
import sys
from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import nn

import regard
import regard.doctor
import tiny_lms
import tiny_processors
import tiny_vlms
from regard.doctor.examine import CHECKS
from regard.doctor.subject import picture, subject
from regard.errors import ModelError
from regard.report.doctor import page
from test_doctor_checks import vlm


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models with all that belongs to them, saved."""
    place = tmp_path_factory.mktemp("doctor")
    for name in ("llava", "qwen2_5_vl", "smolvlm"):
        tiny_processors.build(name, place)
    tiny_lms.language_model("llama").save_pretrained(place / "llama")
    tiny_lms.tokenizer().save_pretrained(place / "llama")
    return place


def sick(models) -> Any:
    """Sees the future in one layer, and its image not at all."""
    model = deepcopy(models("llava"))
    model.model.language_model.layers[1].self_attn.is_causal = False
    projector = model.model.multi_modal_projector.linear_2
    with torch.no_grad():
        projector.weight.zero_()
    return model


def severities(result: regard.doctor.Examination) -> dict[str, str]:
    return {finding.check: finding.severity for finding in result.findings}


def test_health_and_sickness(models):
    inputs = tiny_vlms.inputs("llava", [1])
    told: list[str] = []
    result = regard.doctor.examine(models("llava"), inputs, progress=told.append)
    assert severities(result) == {"gates": "skipped", "queries": "skipped"}
    assert not result.failed
    assert told == list(result.checks) == list(CHECKS) == list(result.seconds)
    assert result.silent == ("masks", "positions", "heads", "frozen", "sinks", "image_ignored")
    result = regard.doctor.examine(sick(models), inputs)
    assert result.failed
    assert {"masks", "image_ignored", "frozen"} <= {f.check for f in result.findings if f.severity == "error"}
    order = [finding.severity for finding in result.findings]
    assert order == sorted(order, key=["error", "warning", "note", "skipped"].index)
    assert all(set(finding) == {"check", "severity", "evidence", "advice"} for finding in result.to_dict()["findings"])


def test_a_model_is_left_as_it_was(models):
    model, inputs = deepcopy(models("qwen2_5_vl")), tiny_vlms.inputs("qwen2_5_vl", [1])
    model(**inputs)
    model.train()
    model.model.visual.eval()
    model.model.visual.requires_grad_(False)
    before = state(model)
    rng = torch.get_rng_state()
    regard.doctor.examine(model, inputs)
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), rng)
    given = tiny_vlms.inputs("qwen2_5_vl", [1])
    assert all(torch.equal(inputs[name], value) for name, value in given.items())


def state(model: nn.Module) -> dict[str, Any]:
    values = {name: (value.requires_grad, value.grad, value._version) for name, value in model.named_parameters()}
    modules = {
        name: (module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }
    return {"values": values, "modules": modules}


def test_a_model_is_left_as_it_was_after_an_error(models, monkeypatch):
    model, inputs = deepcopy(models("llava")), tiny_vlms.inputs("llava", [1])
    model(**inputs)
    model.train()
    before = state(model)
    monkeypatch.setattr(model.model.language_model.layers[2], "forward", lambda *a, **k: 1 / 0)
    result = regard.doctor.examine(model, inputs)
    assert state(model) == before
    evidence = next(finding.evidence for finding in result.findings if finding.check == "masks")
    assert evidence == "the model cannot be run so: ZeroDivisionError: division by zero"


def test_only_and_names_that_are_none(models):
    inputs = tiny_vlms.inputs("llava", [1])
    assert regard.doctor.examine(models("llava"), inputs, only=["heads", "masks"]).checks == ("masks", "heads")
    with pytest.raises(ModelError, match="no check is named 'mask': did you mean 'masks'"):
        regard.doctor.examine(models("llava"), inputs, only=["mask"])
    with pytest.raises(ModelError, match="no check is named 'zzz': there are masks, "):
        regard.doctor.examine(models("llava"), inputs, only=["zzz"])
    with pytest.raises(ModelError, match="expected a model to examine, got str"):
        regard.doctor.examine("a model")  # pyright: ignore


def test_without_inputs_the_weights_are_checked(models):
    result = regard.doctor.examine(models("llava"))
    assert not result.failed
    skipped = {finding.check: finding.evidence for finding in result.findings}
    assert skipped["masks"] == "no inputs were given, and this check runs the model"
    assert all("only the weights were looked at" in skipped[name] for name in ("positions", "heads"))
    model = deepcopy(models("llava"))
    model.model.language_model.layers[1].self_attn.num_key_value_groups = 4
    assert severities(regard.doctor.examine(model))["heads"] == "error"
    wrong: Any = regard.doctor.examine(models("llava"), [1, 2])
    assert "must be what the processor returns, got list" in wrong.findings[0].evidence


def test_without_an_image(models):
    inputs = {k: v for k, v in tiny_vlms.inputs("llava", [1]).items() if k != "pixel_values"}
    words = {name: value[:, -6:] for name, value in inputs.items()}
    result = regard.doctor.examine(models("llava"), words)
    found = {finding.check: (finding.severity, finding.evidence) for finding in result.findings}
    assert found["image_ignored"] == ("skipped", "there is no image among the inputs")
    assert found["frozen"][0] == "note"
    assert "modules that never ran: model.vision_tower" in found["frozen"][1]
    assert {"masks", "positions", "heads", "sinks"} <= set(result.silent)


def test_kernels_by_part_of_the_model(models):
    inputs = tiny_vlms.inputs("llava", [1])
    for text, vision in (("eager", "sdpa"), ("sdpa", "eager")):
        model = deepcopy(models("llava"))
        model.set_attn_implementation({"text_config": text, "vision_config": vision})
        assert severities(regard.doctor.examine(model, inputs)) == {"gates": "skipped", "queries": "skipped"}


def test_compiled_models(models):
    inputs = tiny_vlms.inputs("llava", [1])
    compiled: Any = torch.compile(models("llava"), backend="eager")
    assert severities(regard.doctor.examine(compiled, inputs)) == {"gates": "skipped", "queries": "skipped"}
    model = deepcopy(models("llava"))
    model.model.language_model.layers[0].compile(backend="eager")
    result = regard.doctor.examine(model, inputs, only=["masks", "image_ignored", "heads"])
    evidence = {finding.check: finding.evidence for finding in result.findings}
    assert "model.language_model.layers.0 is compiled, and compiled code cannot be watched" in evidence["masks"]
    assert "image_ignored" in result.silent


class Linear8(nn.Module):
    """Weights in 8 bits, as quantisers make them: no parameter that takes a gradient."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)  # pyright: ignore


def test_quantised_models(models):
    model = deepcopy(models("llava")).requires_grad_(False)
    for layer in model.model.language_model.layers:
        for holder in (layer.self_attn, layer.mlp):
            for name, child in list(holder.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(holder, name, Linear8(child))
    result = regard.doctor.examine(model, tiny_vlms.inputs("llava", [1]))
    assert severities(result) == {"gates": "skipped", "queries": "skipped", "frozen": "skipped"}
    model.model.language_model.layers[2].self_attn.is_causal = False
    assert severities(regard.doctor.examine(model, tiny_vlms.inputs("llava", [1]), only=["masks"]))["masks"] == "error"


class Hidden(nn.Module):
    """An attention whose softmax nobody sees."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            attention.get_submodule(name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        )

    def forward(self, hidden_states: torch.Tensor, **more: Any) -> tuple[torch.Tensor, None]:
        q, k, v = (m(hidden_states) for m in (self.q_proj, self.k_proj, self.v_proj))
        q = q[..., : k.shape[-1]]
        weights = (q @ k.mT / 4).clamp(-20, 20).exp().tril()
        seen = weights / weights.sum(dim=-1, keepdim=True) @ v
        return self.o_proj(torch.cat((seen, seen), dim=-1)), None


def test_attention_that_cannot_be_reached(models):
    model = deepcopy(models("llava"))
    for layer in model.model.language_model.layers:
        layer.self_attn = Hidden(layer.self_attn)
    result = regard.doctor.examine(model, tiny_vlms.inputs("llava", [1]), only=["heads", "sinks", "image_ignored"])
    evidence = {finding.check: finding.evidence for finding in result.findings}
    assert "model.language_model.layers.0.self_attn, model.language_model.layers.1" in evidence["heads"]
    assert "nothing that model.language_model.layers.0.self_attn" in evidence["sinks"]
    assert result.silent == ("image_ignored",)


def test_a_model_that_is_none_of_ours():
    result = regard.doctor.examine(nn.Linear(3, 3), {"input_ids": torch.ones(1, 3, dtype=torch.long)})
    assert {finding.severity for finding in result.findings} == {"skipped"}
    assert "Linear is no model of Hugging Face and no regard.VLM" in {finding.evidence for finding in result.findings}


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "smolvlm"])
def test_the_command_on_a_folder(regard, folders, tmp_path, name):
    code, out, err = regard("doctor", folders / name, "--out", "seen")
    assert (code, err) == (0, "")
    assert "Nothing found by masks, positions, heads, frozen, sinks, image_ignored." in out
    written = (tmp_path / "seen" / "report.html").read_text()
    assert "nothing found" in written
    assert f"<h1>{name}: what the doctor found</h1>" in written
    kept = json.loads((tmp_path / "seen" / "findings.json").read_text())
    assert kept["silent"] == ["masks", "positions", "heads", "frozen", "sinks", "image_ignored"]


def test_json_is_all_that_is_printed(regard, folders, tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    asked = ("--image", "red.png", "--question", "what colour has it ?")
    code, out, err = regard("doctor", folders / "llava", "--json", "--only", "masks,gates", *asked)
    assert (code, err) == (0, "")
    assert [(f["check"], f["severity"]) for f in json.loads(out)["findings"]] == [("gates", "skipped")]
    assert "what colour has it ?" in (tmp_path / "regard-doctor" / "report.html").read_text()
    assert regard("doctor", folders / "llava", "--quiet", "--only", "gates")[:2] == (0, "")


def test_errors_are_exit_1(regard, models, folders, tmp_path):
    place = tmp_path / "sick"
    model = deepcopy(models("llava"))
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.zero_()
        model.model.multi_modal_projector.linear_2.bias.zero_()
    model.save_pretrained(place)
    for file in (folders / "llava").iterdir():
        if not file.name.endswith(".safetensors") and file.name != "config.json":
            (place / file.name).write_bytes(file.read_bytes())
    code, out, err = regard("doctor", "sick", "--json")
    assert (code, err) == (1, "")
    found = {finding["check"]: finding["severity"] for finding in json.loads(out)["findings"]}
    assert found["image_ignored"] == "error"
    code, out, err = regard("doctor", "sick", "--only", "image_ignored")
    assert code == 1
    assert "error" in out
    assert "1 error" in (tmp_path / "regard-doctor" / "report.html").read_text()


def test_a_language_model(regard, folders):
    code, out, _ = regard("doctor", folders / "llama", "--json")
    found = {finding["check"]: finding["evidence"] for finding in json.loads(out)["findings"]}
    assert code == 0
    assert set(found) == {"gates", "queries", "image_ignored"}
    assert found["image_ignored"] == "there is no image among the inputs"


def test_a_model_of_parts(regard, tmp_path, monkeypatch):
    model, _ = vlm("pool", "late", gate=0.0)
    model.described_eye = {"kind": "given", "name": "toy", "width": 11, "asked": 5}
    model.save_pretrained(tmp_path / "mine")
    code, _, err = regard("doctor", "mine")
    assert code == 1
    assert "the eye of this model is 'toy', which has no name to load it by" in err
    load = model.from_pretrained
    monkeypatch.setattr(type(model), "from_pretrained", lambda name, **more: load(name, eye=tiny_lms.ToyEye(), **more))
    code, out, _ = regard("doctor", "mine", "--json")
    found = {finding["check"]: finding["severity"] for finding in json.loads(out)["findings"]}
    assert code == 1
    assert (found["gates"], found["image_ignored"]) == ("error", "error")


def test_a_folder_without_a_processor(regard, models, tmp_path):
    models("llava").save_pretrained(tmp_path / "bare")
    code, out, _ = regard("doctor", "bare", "--json")
    found = {finding["check"]: finding for finding in json.loads(out)["findings"]}
    assert code == 0
    assert found["masks"]["severity"] == "skipped"
    assert "there are no inputs, as the processor in " in found["masks"]["evidence"]
    assert "only the weights were looked at" in found["heads"]["evidence"]
    assert found["heads"]["advice"] == "give a prompt with an image, or a folder with a processor"
    assert all("huggingface.co" not in one["evidence"] for one in found.values())


def test_usage_that_cannot_work(regard, folders, tmp_path):
    code, _, err = regard("doctor", folders / "llava", "--only", "head")
    assert (code, err) == (2, "regard: no check is named 'head': did you mean 'heads'?\n")
    code, _, err = regard("doctor", folders / "llava", "--question", " ")
    assert (code, err.count("\n")) == (2, 1)
    (tmp_path / "nothing").mkdir()
    code, _, err = regard("doctor", "nothing")
    assert code == 1
    assert err.startswith("regard: the folder 'nothing' has no config.json: it holds no model")
    (tmp_path / "file").write_text("x")
    assert "is a file: give the folder" in regard("doctor", "file")[2]
    code, _, err = regard("doctor", folders / "llava", "--image", "none.png")
    assert code == 1
    assert "none.png" in err
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config.save_pretrained(tmp_path / "whisper")
    text = (tmp_path / "whisper" / "config.json").read_text().replace('"bert"', '"vit"')
    (tmp_path / "whisper" / "config.json").write_text(text)
    code, _, err = regard("doctor", "whisper")
    assert code == 1
    assert "a model of type 'vit' cannot be examined" in err


def test_the_pocket_model_is_there_or_said_to_be_missing(regard):
    code, out, err = regard("doctor", "--json", "--only", "image_ignored,masks,heads")
    if code == 1 and not out:
        assert "pocket" in err
        assert err.count("\n") == 1
    else:
        assert not [f for f in json.loads(out)["findings"] if f["severity"] == "error"]


def test_a_picture_is_drawn_the_same_each_time(folders):
    assert picture().tobytes() == picture().tobytes()
    found = subject(folders / "llava")
    assert found.inputs["pixel_values"].float().std() > 0.1


def test_the_page_shows_text_as_text():
    finding = {"check": "a<b", "severity": "error", "evidence": "<script>alert(1)</script>", "advice": "“é” & {{x}}"}
    made = page("m<odel>", [finding], ["heads"], ["1 s"], "is <it> so?", "AAAA")
    assert "<script" not in made
    assert "&lt;script&gt;" in made
    assert "&#8220;&#233;&#8221; &amp; {{x}}" in made
    assert made.isascii() or "—" not in made
    assert "default-src 'none'" in made or "default-src &#x27;none&#x27;" in made
    assert "{{title}}" not in made


def test_help_stays_light():
    code = "import sys; sys.argv = ['regard', 'doctor', '--help']\nfrom regard.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MODEL" in out.stdout
    assert not {"torch", "transformers"} & set(out.stdout.split())
