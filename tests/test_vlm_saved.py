"""A vision-language model in a folder: what comes back is what was saved, bit for bit, and nothing is lost."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from PIL import Image

import regard
import tiny_towers
from regard.errors import DataError, ModelError, RegardError
from regard.train.bridge import begun
from regard.train.guards import freeze_all_but, parts_of
from regard.vlm import saved
from regard.vlm.bridges import load
from regard.vlm.compose import VLM
from regard.vlm.fusion.late import Late
from regard.vlm.interleaved import IMAGE, interleaved
from regard.vlm.parts import plain
from tiny_lms import ToyEye, ToyTower, language_model, tokenizer, tokens

TEXTS, COUNTS = [f"{IMAGE} what is {IMAGE} two ?", "a dog ?"], [2, 0]
WAYS = {
    "all early": ("all", "early", {}, {}),
    "tome early": ("tome", "early", {"hidden": 9}, {}),
    "qformer hybrid": ("qformer", "hybrid", {"queries": 5, "heads": 2, "inner": 14}, {}),
    "resampler late": ("resampler", "late", {"latents": 5, "heads": 2}, {"where": [0, 2], "hidden": 17, "heads": 3}),
    "cascade deep": ("cascade", "deep", {"hidden": 9}, {"shared": False}),
    "recurrent late": ("recurrent", "late", {"glimpses": 3}, {"every_image": True}),
}


@torch.no_grad()
def built(mechanism: str, fusion: str, bridge: dict, fusing: dict, lm: Any = None, eye: Any = None) -> VLM:
    torch.manual_seed(4)
    vlm = VLM(
        eye or ToyEye(),
        mechanism,
        lm or language_model("llama"),
        tokenizer(),
        fusion,
        bridge_arguments=bridge,
        fusion_arguments=fusing,
    ).eval()
    for value in [*vlm.fusion.parameters(), *vlm.bridge.parameters()]:
        value.add_(torch.randn_like(value) * 0.3)
    return vlm


def said(vlm: VLM) -> torch.Tensor:
    """Logits, with everything frozen and where torch puts it: its kernels round otherwise where a weight may learn, or
    where it was read from a file and does not begin at a multiple of 64 bytes.
    """
    learns = [value for value in vlm.parameters() if value.requires_grad]
    for value in vlm.parameters():
        value.requires_grad_(False)
        value.data = value.data.clone()
    out = vlm(interleaved(vlm.tokenizer, TEXTS, COUNTS), tokens(2), None, 4).logits
    for value in learns:
        value.requires_grad_(True)
    return out


@pytest.fixture
def named(tmp_path_factory) -> str:
    """A language model with a name: that of its folder."""
    folder = tmp_path_factory.mktemp("lm")
    language_model("qwen2").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("way", WAYS)
def test_what_comes_back_is_what_was_saved(way, tmp_path, named):
    vlm = built(*WAYS[way], lm=saved.named_language_model(named, torch.device("cpu")))
    vlm.save_pretrained(tmp_path / "m")
    files = {path.name for path in (tmp_path / "m").iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer", "README.md"}
    again = regard.VLM.from_pretrained(tmp_path / "m", eye=ToyEye())
    assert torch.equal(said(again), said(vlm))
    assert not again.training
    assert again.described == vlm.described
    assert again.tokenizer("what is")["input_ids"] == vlm.tokenizer("what is")["input_ids"]
    photo = Image.new("RGB", (24, 16), (200, 30, 30))
    if vlm.mechanism != "tome":  # the toy eye gives no keys
        assert again.answer([photo], ["what is"], 3) == vlm.answer([photo], ["what is"], 3)
    again.save_pretrained(tmp_path / "m2")
    assert (tmp_path / "m2" / "config.json").read_text() == (tmp_path / "m" / "config.json").read_text()
    assert torch.equal(said(VLM.from_pretrained(tmp_path / "m2", eye=ToyEye())), said(vlm))


def test_all_arguments_are_written(tmp_path, named):
    vlm = built("qformer", "late", {"queries": 5}, {}, lm=saved.named_language_model(named, torch.device("cpu")))
    vlm.save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    arguments = {"queries": 5, "depth": 2, "heads": 4, "inner": None, "start": "random"}
    assert config["mechanism"] == {"name": "qformer", "arguments": arguments}
    late = {"where": "every 1", "heads": None, "hidden": None, "every_image": False}
    assert config["fusion"] == {"name": "late", "arguments": late}
    assert config["eye"] == {"kind": "given", "name": "toy", "width": 11, "asked": 5}
    assert config["language_model"]["name_or_path"] == named
    assert (config["format"], config["version"], config["adapter"]) == ("regard-vlm", 1, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_comes_back(dtype, tmp_path, named):
    lm = saved.named_language_model(named, torch.device("cpu"), dtype)
    vlm = built("all", "deep", {}, {}, lm=lm)
    vlm.save_pretrained(tmp_path / "m")
    again = VLM.from_pretrained(tmp_path / "m", eye=ToyEye())
    assert said(again).dtype == dtype
    assert torch.equal(said(again), said(vlm))


def test_a_language_model_without_a_name_is_saved(tmp_path):
    vlm = built("all", "late", {}, {})
    for step in ("one", "two", "three"):
        vlm.save_pretrained(tmp_path / step)
        assert (tmp_path / step / "language_model" / "model.safetensors").exists()
        again = VLM.from_pretrained(tmp_path / step, eye=ToyEye())
        assert torch.equal(said(again), said(vlm))
        shutil.rmtree(tmp_path / step)  # what is saved next needs nothing of it
        vlm = again


@pytest.mark.parametrize("how", ["trained, then frozen", "to be trained"])
def test_a_language_model_that_learned_is_saved(how, tmp_path, named):
    vlm = built("all", "early", {}, {}, lm=saved.named_language_model(named, torch.device("cpu")))
    before = said(vlm)
    vlm.language_model.requires_grad_(True)
    if how != "to be trained":
        made = interleaved(tokenizer(), TEXTS, COUNTS, ["yes", "no"])
        loss = vlm(made, tokens(2)).loss
        assert loss is not None
        loss.backward()
        torch.optim.SGD(vlm.language_model.parameters(), lr=0.1).step()
        vlm.language_model.requires_grad_(False)
        assert not torch.equal(said(vlm), before)
    vlm.save_pretrained(tmp_path / "m")
    assert (tmp_path / "m" / "language_model").exists()
    assert torch.equal(said(VLM.from_pretrained(tmp_path / "m", eye=ToyEye())), said(vlm))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
@pytest.mark.parametrize("fusion", ["early", "deep"])
@pytest.mark.parametrize("has_name", [True, False])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_adapter_is_saved(fusion, has_name, when, tmp_path, named):
    import peft

    lm: Any = saved.named_language_model(named, torch.device("cpu")) if has_name else language_model("qwen2")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    lm = peft.get_peft_model(lm, lora) if when == "before" else lm
    vlm = built("all", fusion, {}, {}, lm=lm)
    if when == "after":
        vlm.language_model = peft.get_peft_model(lm, lora)
    vlm.eval()
    before = said(vlm)
    with torch.no_grad():
        for name, value in vlm.language_model.named_parameters():
            if ".lora_" in name:
                value.normal_()
    assert not torch.allclose(said(vlm), before)
    vlm.save_pretrained(tmp_path / "m")
    assert (tmp_path / "m" / "language_model_adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / "m" / "language_model").exists() == (not has_name)
    again = VLM.from_pretrained(tmp_path / "m", eye=ToyEye())
    assert torch.equal(said(again), said(vlm))
    again.save_pretrained(tmp_path / "m2")
    shutil.rmtree(tmp_path / "m")
    assert torch.equal(said(VLM.from_pretrained(tmp_path / "m2", eye=ToyEye())), said(vlm))


def test_the_embedded_eye_comes_back(tmp_path):
    eye = regard.VLM("embedded", "pool", language_model("llama"), tokenizer(), eye_arguments={"longest": 64})
    eye.save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["eye"] == {"kind": "embedded", "longest": 64, "pyramid": True}
    again = VLM.from_pretrained(tmp_path / "m")
    assert again.eye == eye.eye
    photo = Image.effect_noise((128, 96), 80).convert("RGB")
    assert again.answer([photo], ["what is"], 3, max_new_tokens=3) == eye.answer(
        [photo], ["what is"], 3, max_new_tokens=3
    )


def test_a_trained_eye_is_saved(tmp_path):
    eye: Any = ToyTower()
    vlm = built("all", "early", {}, {}, eye=eye)
    photo, texts = Image.effect_noise((24, 16), 80).convert("RGB"), ["what is"]

    def looked(some: VLM) -> torch.Tensor:
        made, parts, _ = some.prepared([[photo]], texts)
        return some(made, parts).logits

    vlm.save_pretrained(tmp_path / "m")
    for step in ("m", "m2"):
        other: Any = ToyTower().requires_grad_(False)  # as one that is loaded by its name
        assert not torch.equal(other.map.weight, eye.map.weight)
        again = VLM.from_pretrained(tmp_path / step, eye=other)
        assert torch.equal(other.map.weight, eye.map.weight)
        assert torch.equal(looked(again), looked(vlm))
        again.save_pretrained(tmp_path / "m2")
    with pytest.raises(ModelError, match="the eye of this model was trained: give one that is a module"):
        VLM.from_pretrained(tmp_path / "m", eye=ToyEye())
    eye.requires_grad_(False)
    vlm.save_pretrained(tmp_path / "frozen")
    other = ToyTower()
    VLM.from_pretrained(tmp_path / "frozen", eye=other)
    assert not torch.equal(other.map.weight, eye.map.weight)


def test_a_trained_eye_stays_saved_when_it_is_frozen_later(tmp_path):
    eye: Any = ToyTower()
    vlm = built("all", "early", {}, {}, eye=eye)
    vlm.save_pretrained(tmp_path / "m")
    other: Any = ToyTower()
    again = VLM.from_pretrained(tmp_path / "m", eye=other)
    freeze_all_but(parts_of(again), ("bridge",))
    again.save_pretrained(tmp_path / "m2")
    last: Any = ToyTower()
    VLM.from_pretrained(tmp_path / "m2", eye=last)
    assert torch.equal(last.map.weight, eye.map.weight)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
def test_adapters_that_come_back_can_learn_on(tmp_path, named):
    import peft

    lm: Any = saved.named_language_model(named, torch.device("cpu"))
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    vlm = built("all", "early", {}, {}, lm=peft.get_peft_model(lm, lora))
    vlm.save_pretrained(tmp_path / "m")
    again = VLM.from_pretrained(tmp_path / "m", eye=ToyEye())
    for learn in (("bridge", "language_model"), ("bridge",), ("bridge", "language_model")):
        learned = freeze_all_but(parts_of(again), learn)
        assert learned.keys() == set(learn)
    assert all(".lora_" in name for name in learned["language_model"])
    again.save_pretrained(tmp_path / "m2")
    assert not (tmp_path / "m2" / "language_model").exists(), "its own weights are the named model's"


@torch.no_grad()
def test_an_eye_by_its_name_is_found_again_with_its_arguments(tmp_path, monkeypatch):
    tiny_towers.build("siglip", tmp_path).rename(tmp_path / "eye")
    lm = language_model("llama")
    lm.save_pretrained(tmp_path / "words")
    tokenizer().save_pretrained(tmp_path / "words")
    monkeypatch.chdir(tmp_path)
    given = {"tiles": (1, 2), "dtype": torch.float32, "device": "cpu"}
    vlm = VLM("eye", "pool", "words", eye_arguments=given).eval()
    vlm.save_pretrained("m")
    again = VLM.from_pretrained("m")
    assert again.described_eye == vlm.described_eye
    assert again.described_eye["tiles"] == [1, 2]
    image = Image.effect_noise((56, 28), 60).convert("RGB")
    assert torch.equal(again.eye.look(image).features, vlm.eye.look(image).features)
    assert again.eye.look(image).features.shape[1] == 3 * 49
    with pytest.raises(ModelError, match="the eye: layer cannot be saved with the model, got <object"):
        plain("the eye", {"layer": object()})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # where relative names are of nothing
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match="'words' cannot be loaded: .*names what is elsewhere now, give eye or language_model"
    ):
        VLM.from_pretrained("../m")
    VLM.from_pretrained("../m", eye="../eye", language_model="../words")


def test_queries_that_learned_do_not_begin_again(tmp_path):
    vlm: Any = built("qformer", "early", {"start": "vision", "queries": 4}, {})
    vlm.save_pretrained(tmp_path / "new")
    feed: Any = SimpleNamespace(tokens=lambda key: tokens(1, 9), rows=SimpleNamespace(uses=["a"]))
    begun(vlm, feed)
    with torch.no_grad():
        vlm.bridge.former.queries.add_(1)  # as training does
    learned = vlm.bridge.former.queries.clone()
    vlm.save_pretrained(tmp_path / "m")
    for name, kept in (("m", True), ("new", False)):
        again: Any = VLM.from_pretrained(tmp_path / name, eye=ToyEye())
        before = again.bridge.former.queries.clone()
        assert torch.equal(before, learned) == kept
        begun(again, feed)
        assert torch.equal(again.bridge.former.queries, before) == kept


def test_parts_that_were_given_are_given_again(tmp_path):
    torch.manual_seed(0)
    lm = language_model("llama")
    vlm = VLM(ToyEye(), load("all", 11, 24), lm, tokenizer(), Late(lm, "every 2")).eval()
    vlm.save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["mechanism"] is None
    given: dict[str, Any] = {"eye": ToyEye(), "mechanism": load("all", 11, 24), "fusion": Late(lm, "every 2")}
    for missing in given:
        rest = {name: part for name, part in given.items() if name != missing}
        with pytest.raises(ModelError, match=f"the {missing} of this model .*: give {missing}"):
            VLM.from_pretrained(tmp_path / "m", **rest)
    assert torch.equal(said(VLM.from_pretrained(tmp_path / "m", **given)), said(vlm))
    wrong = {**given, "mechanism": load("all", 11, 24, hidden=7)}
    with pytest.raises(DataError, match="of shape .* expected .*: it is of other parts"):
        VLM.from_pretrained(tmp_path / "m", **wrong)
    with pytest.raises(DataError, match="lacks fusion.blocks.2|unknown"):
        VLM.from_pretrained(tmp_path / "m", **{**given, "fusion": Late(lm)})


def test_a_language_model_may_be_given_again(tmp_path, named):
    vlm = built("all", "late", {}, {}, lm=saved.named_language_model(named, torch.device("cpu")))
    vlm.save_pretrained(tmp_path / "m")
    moved = tmp_path / "moved"
    shutil.move(named, moved)
    with pytest.raises(ModelError, match="cannot be loaded") as raised:
        VLM.from_pretrained(tmp_path / "m", eye=ToyEye())
    assert "\n" not in str(raised.value)
    for given in (str(moved), vlm.language_model):
        assert torch.equal(said(VLM.from_pretrained(tmp_path / "m", eye=ToyEye(), language_model=given)), said(vlm))


def test_a_card_says_what_it_is(tmp_path, named):
    lm: Any = saved.named_language_model(named, torch.device("cpu"))
    lm.config.name_or_path = "some/model"
    vlm = built("qformer", "hybrid", {"queries": 5}, {}, lm=lm)
    vlm.save_pretrained(tmp_path / "m")
    text = (tmp_path / "m" / "README.md").read_text()
    head = huggingface_hub.ModelCard(text).data.to_dict()
    assert head == {
        "library_name": "regard",
        "pipeline_tag": "image-text-to-text",
        "base_model": ["some/model"],
        "tags": ["regard", "vision-language-model", "qformer", "hybrid"],
    }
    assert "regard.VLM.from_pretrained" in text
    assert f"the bridge ({sum(p.numel() for p in vlm.bridge.parameters()):,} parameters)" in text
    assert "eye=your_eye" in text
    assert "hybrid" in text


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "m"
    built("all", "late", {}, {}).save_pretrained(folder)
    return folder


def broken(folder: Path, how: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    match how:
        case "no config":
            config.unlink()
        case "half a config":
            config.write_text(config.read_text()[:90])
        case "a list":
            config.write_text("[]")
        case "another model":
            config.write_text('{"model_type": "llama"}')
        case "another version":
            config.write_text(config.read_text().replace('"version": 1', '"version": 2'))
        case "no eye":
            config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "eye"}))
        case "no weights":
            weights.unlink()
        case "half the weights":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "no weights at all":
            weights.write_bytes(b"")
        case "no tokenizer":
            shutil.rmtree(folder / "tokenizer")
        case "no language model":
            shutil.rmtree(folder / "language_model")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no config", "no config.json"),
        ("half a config", "is damaged"),
        ("a list", "another model than those of regard.VLM"),
        ("another model", "another model than those of regard.VLM"),
        ("another version", "is of version 2, this regard reads 1"),
        ("no eye", "is damaged: KeyError"),
        ("no weights", "model.safetensors' is missing"),
        ("half the weights", "model.safetensors' is damaged"),
        ("no weights at all", "model.safetensors' is damaged"),
        ("no tokenizer", "the tokenizer .* cannot be loaded"),
        ("no language model", "the language model .* cannot be loaded"),
    ],
)
def test_a_folder_that_is_damaged_is_one_line(how, message, good, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(good, folder)
    VLM.from_pretrained(folder, eye=ToyEye())
    broken(folder, how)
    with pytest.raises(RegardError, match=message) as raised:
        VLM.from_pretrained(folder, eye=ToyEye())
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ModelError, match="no model folder") as raised:
        VLM.from_pretrained(tmp_path / "nowhere", eye=ToyEye())
    assert "\n" not in str(raised.value)


def test_a_crash_loses_nothing(good, tmp_path, monkeypatch):
    folder = tmp_path / "m"
    shutil.copytree(good, folder)
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = built("resampler", "early", {"latents": 5}, {})
    for step in ("save_file", "card", "_flush"):
        with monkeypatch.context() as patch:
            patch.setattr(saved, step, lambda *given, **named: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                other.save_pretrained(folder)
        after = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert after == before
        assert [path.name for path in tmp_path.iterdir()] == ["m"]
    with monkeypatch.context() as patch:
        rename = Path.rename
        patch.setattr(
            Path, "rename", lambda path, to: rename(path, to) if not path.name.endswith(".new") else no_space()
        )
        with pytest.raises(DataError, match="No space left") as raised:
            other.save_pretrained(folder)
    assert "\n" not in str(raised.value)
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    other.save_pretrained(folder)
    assert torch.equal(said(VLM.from_pretrained(folder, eye=ToyEye())), said(other))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def no_space() -> None:
    raise OSError(28, "No space left on device")


def test_nothing_of_others_is_removed(good, tmp_path):
    vlm = built("all", "early", {}, {})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    shutil.copytree(good, tmp_path / "both")
    (tmp_path / "both" / "log.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    for name, message in (
        ("mine", "holds 'thesis.txt', which saving would remove"),
        ("both", "holds 'log.txt', which saving would remove"),
        ("file", "is a file: choose a folder"),
        ("llama", "holds another model"),
    ):
        with pytest.raises(DataError, match=message):
            vlm.save_pretrained(tmp_path / name)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    vlm.save_pretrained(tmp_path / "empty")
    vlm.save_pretrained(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c" / "config.json").exists()


def test_push_to_hub(tmp_path, monkeypatch):
    calls: list[tuple] = []

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls.append(("token", token))

        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> str:
            calls.append(("create", repo_id, private, exist_ok))
            return f"https://hub/{repo_id}"

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
            shutil.copytree(folder_path, tmp_path / "hub")
            calls.append(("upload", repo_id))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    vlm = built("all", "early", {}, {})
    assert vlm.push_to_hub("me/mine", private=True, token="t") == "https://hub/me/mine"
    assert calls == [("token", "t"), ("create", "me/mine", True, True), ("upload", "me/mine")]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **given: str(tmp_path / "hub"))
    assert torch.equal(said(VLM.from_pretrained("me/mine", eye=ToyEye())), said(vlm))
