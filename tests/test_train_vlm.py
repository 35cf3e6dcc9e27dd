"""Training a bridge between a frozen eye and a frozen language model: resumed exactly, guarded, and answering."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from regard.errors import DataError, ModelError
from regard.tokens import Question, VisualTokens
from regard.train.bridge import train
from regard.train.guards import Flow, freeze_all_but, parts_of
from regard.train.rows import Source
from regard.train.saving import BEST, LAST, load
from regard.train.settings import Curriculum, Rates, Recipe, fitting, settled
from regard.vlm.compose import VLM

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
WORDS = ["[unk]", "[end]", *COLOURS, *"what colour is it a dark picture of Describe the image . ? and then".split()]


@dataclass(frozen=True)
class ToyEye:
    """The mean colour of each cell of 8 x 8 pixels; a question is its number of words."""

    asked: int = 0
    name: str = "toy"
    width: int = 3
    told: Callable[[], None] | None = None

    def look(self, image: Image.Image) -> VisualTokens:
        if self.told is not None:
            self.told()
        h, w = max(1, image.height // 8), max(1, image.width // 8)
        cells = torch.from_numpy(np.asarray(image.resize((w, h)), dtype=np.float32) / 128 - 1)
        features = cells.view(1, h * w, 3)
        aligned = features.repeat(1, 1, 3)[..., : self.asked] if self.asked else None
        return VisualTokens.from_grid(features, (h, w), aligned=aligned)

    def ask(self, text: str) -> Question:
        return Question(torch.full((1, 1, self.asked), float(len(text.split()))), text=text)


def tokenizer(end: bool = True) -> Any:
    inner = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[unk]"))
    inner.pre_tokenizer = Whitespace()
    ends = {"eos_token": "[end]"} if end else {}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[unk]", **ends)


def language_model(positions: bool = False, **more: Any) -> Any:
    """positions: learned ones, 32 of them."""
    torch.manual_seed(7)
    if positions:
        small: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "eos_token_id": 1}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=len(WORDS), **small)).eval()
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.4,
    }
    config = transformers.LlamaConfig(vocab_size=len(WORDS), num_key_value_heads=2, eos_token_id=1, **{**sizes, **more})
    return transformers.LlamaForCausalLM(config).eval()


def toy_vlm(mechanism: str = "all", fusion: str = "early", eye: Any = None, **more: Any) -> VLM:
    model = language_model()
    torch.manual_seed(3)
    return VLM(eye or ToyEye(), mechanism, model, tokenizer(), fusion, **more)


def pictures(folder: Path, count: int = 24, name: str = "rows.jsonl") -> Source:
    """Pictures of one colour, in two sizes, and what colour each is."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(5)
    lines = []
    for number in range(count):
        colour = list(COLOURS)[number % 3]
        size = ((24, 16), (32, 24))[number % 2]
        noisy = np.array(COLOURS[colour]) + generator.integers(-30, 30, (size[1], size[0], 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        more = {} if number % 4 else {"type": "dark"}
        answer = colour if number % 5 else f"a dark picture of {colour}"
        lines.append({"image": f"{number}.png", "question": "what colour is it ?", "answer": answer, **more})
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Source((str(folder / name),))


SMALL = Recipe(epochs=3, batch=4, every=3, log=1, rates=Rates(bridge=1e-2, fusion=1e-2))


def rows_of(folder: Path) -> list[dict[str, float]]:
    """History without what a clock decides."""
    saved, _ = load(folder / LAST)
    return [{k: v for k, v in row.items() if "second" not in k} for row in saved.history]


def test_a_bridge_learns_and_answers(tmp_path):
    rows, held = pictures(tmp_path / "data", 48), pictures(tmp_path / "held", 9)
    recipe = replace(SMALL, epochs=12, every=30)
    vlm = toy_vlm(bridge_arguments={"hidden": 64})
    before = {name: value.clone() for name, value in vlm.language_model.named_parameters()}
    trained, metrics = train(vlm, rows, tmp_path / "run", recipe, held=held, cache=tmp_path / "cache")
    assert metrics["held_loss"] < 1.5
    assert all(torch.equal(value, before[name]) for name, value in trained.language_model.named_parameters())
    again = VLM.from_pretrained(tmp_path / "run" / "model", eye=ToyEye())
    images = [Image.new("RGB", (24, 16), COLOURS[name]) for name in COLOURS]
    said = again.answer(images, ["what colour is it ?"] * 3, max_new_tokens=6)
    assert said == list(COLOURS)
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written == metrics
    assert written["types"] == {"dark": 12}
    assert written["learned"] == {"bridge": sum(value.numel() for value in trained.bridge.parameters())}


class CutError(Exception):
    pass


def cut_at(step: int, of: int = 0) -> Callable[[str, int, int], None]:
    """of: steps of the run that is cut, any by default."""

    def tell(stage: str, done: int, total: int) -> None:
        if total and done == step and of in (0, total):
            raise CutError

    return tell


def test_a_run_that_was_cut_goes_on_with_the_same_losses(tmp_path):
    rows, held = pictures(tmp_path / "data", 22), pictures(tmp_path / "held", 6)
    curriculum = Curriculum(budgets=(1, 6), short_first=True, fusion_warmup=0.3)
    recipe = replace(SMALL, epochs=3, accumulate=2, curriculum=curriculum)
    given = {"recipe": recipe, "held": held, "cache": tmp_path / "cache"}

    def vlm() -> VLM:
        return toy_vlm("resampler", "late", bridge_arguments={"latents": 5, "heads": 2})

    whole, _ = train(vlm(), rows, tmp_path / "whole", **given)
    for step in (5, 8):
        with pytest.raises(CutError):
            train(vlm(), rows, tmp_path / "cut", **given, tell=cut_at(step))
    torch.manual_seed(99)
    cut, metrics = train(vlm(), rows, tmp_path / "cut", **given)
    assert len(rows_of(tmp_path / "whole")) == metrics["steps"] == 9
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    for name in (LAST, BEST):
        first, second = (load(tmp_path / run / name)[1] for run in ("whole", "cut"))
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert torch.equal(cut.bridge.state_dict()["out.weight"], whole.bridge.state_dict()["out.weight"])
    row = rows_of(tmp_path / "cut")[-1]
    assert {"gate 0", "gate 1", "gradient_bridge", "gradient_fusion", "budget", "held_loss"} <= row.keys()
    assert row["gate 0"] > 0
    assert len({row["budget"] for row in rows_of(tmp_path / "cut")}) > 1
    lines = (tmp_path / "cut" / "history.csv").read_text().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("step,epoch,loss,gradient_bridge,gradient_fusion,gate 0")
    before = (tmp_path / "cut" / LAST).stat().st_mtime_ns
    train(vlm(), rows, tmp_path / "cut", **given)
    assert (tmp_path / "cut" / LAST).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("mechanism", "fusion", "arguments"),
    [
        ("relevance", "early", {}),
        ("cascade", "deep", {}),
        ("recurrent", "late", {}),
        ("qformer", "hybrid", {"queries": 4, "heads": 2}),
        ("resampler", "deep", {"latents": 4, "heads": 2}),
    ],
)
def test_any_bridge_and_fusion_are_trained(tmp_path, mechanism, fusion, arguments):
    vlm = toy_vlm(mechanism, fusion, ToyEye(asked=4), bridge_arguments=arguments)
    recipe = replace(SMALL, budget=4, epochs=1)
    before = {name: value.clone() for name, value in vlm.named_parameters()}
    _, metrics = train(vlm, pictures(tmp_path / "data", 12), tmp_path / "run", recipe, cache=tmp_path / "cache")
    assert metrics["learned"].keys() == {"bridge", *(["fusion"] if fusion in ("late", "deep") else [])}
    changed = {name.split(".")[0] for name, value in vlm.named_parameters() if not torch.equal(value, before[name])}
    assert changed == metrics["learned"].keys()
    assert metrics["frozen_unchanged"]
    assert metrics["held_loss"] is None


def test_a_step_of_small_batches_is_one_of_a_large(tmp_path):
    rows, cache = pictures(tmp_path / "data", 8), tmp_path / "cache"
    found = []
    for name, batch, accumulate in (("one", 8, 1), ("two", 4, 2)):
        recipe = replace(SMALL, batch=batch, accumulate=accumulate)
        train(toy_vlm(), rows, tmp_path / name, recipe, cache=cache)
        found.append([row["loss"] for row in rows_of(tmp_path / name)])
    assert len(found[0]) == 3
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_rows_of_several_images_are_learned(tmp_path):
    pictures(tmp_path, 4)
    lines = [
        {"images": ["0.png", "1.png"], "question": "<image> and then <image> ?", "answer": "red and green"},
        {"images": ["2.png", "3.png"], "question": "what ?", "answer": "blue"},
        {"image": "0.png", "answer": "red"},
    ]
    (tmp_path / "several.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for fusion in ("early", "late"):
        source = Source((str(tmp_path / "several.jsonl"),))
        trained = train(toy_vlm(fusion=fusion), source, tmp_path / fusion, SMALL, cache=tmp_path / "cache")
        assert trained.metrics["rows"] == 3


def test_frozen_weights_that_change_are_told(tmp_path):
    vlm = toy_vlm()

    def tell(stage: str, done: int, total: int) -> None:
        if done == 2:
            vlm.language_model.lm_head.weight.data[0, 0] += 1e-6  # pyright: ignore

    with pytest.raises(ModelError, match="weights that are frozen have changed"):
        train(vlm, pictures(tmp_path), tmp_path / "run", SMALL, cache=tmp_path / "cache", tell=tell)


def test_gradients_that_do_not_flow_are_told(tmp_path, monkeypatch):
    vlm = toy_vlm()
    monkeypatch.setattr(vlm.language_model, "forward", torch.no_grad()(vlm.language_model.forward))
    with pytest.raises(ModelError, match="no gradient reaches the bridge"):
        train(vlm, pictures(tmp_path), tmp_path / "run", SMALL, cache=tmp_path / "cache")
    monkeypatch.undo()
    flow = Flow(parts_of(vlm))
    flow.check({"bridge": 1.0, "fusion": 0.0})
    flow.check({"bridge": 0.0, "fusion": 0.0})
    with pytest.raises(ModelError, match="no gradient has reached the fusion in 3 steps"):
        flow.check({"bridge": 0.0, "fusion": 0.0})
    flow.check({"bridge": 0.0, "fusion": 0.0})
    freeze_all_but(parts_of(vlm), ("bridge",))
    weight = vlm.language_model.get_parameter("lm_head.weight")
    weight.grad = torch.zeros_like(weight)
    with pytest.raises(ModelError, match="language_model is frozen and has a gradient"):
        Flow(parts_of(vlm)).check({"bridge": 1.0})


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last(tmp_path):
    vlm = toy_vlm()

    def tell(stage: str, done: int, total: int) -> None:
        if done == 5:
            next(vlm.bridge.parameters()).data.fill_(torch.nan)

    with pytest.raises(ModelError, match=r"the loss is nan at step 6: .*last.safetensors' is of step 3; try lower"):
        train(vlm, pictures(tmp_path), tmp_path / "run", SMALL, cache=tmp_path / "cache", tell=tell)
    saved, tensors = load(tmp_path / "run" / LAST)
    assert saved.step == 3
    assert all(bool(value.isfinite().all()) for value in tensors.values())


def test_one_run_a_folder(tmp_path):
    rows, cache = pictures(tmp_path / "data", 4), tmp_path / "cache"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_text("999999999")  # of a process that is dead
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True)"
    code += "; time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run" / "lock")], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(DataError, match="another run .process 999999999. is at work in"):
        train(toy_vlm(), rows, tmp_path / "run", SMALL, cache=cache)
    other.kill()
    other.wait()
    other.stdout.close()
    train(toy_vlm(), rows, tmp_path / "run", SMALL, cache=cache)
    assert (tmp_path / "run" / "lock").read_text() == str(os.getpid())


def test_another_run_or_a_cut_checkpoint_is_refused(tmp_path):
    rows, given = pictures(tmp_path / "data", 8), {"cache": tmp_path / "cache"}
    train(toy_vlm(), rows, tmp_path / "run", SMALL, **given)
    other = replace(SMALL, rates=Rates(bridge=0.5), seed=4)
    said = (
        r"holds a run with recipe.seed 0 \(asked for 4\), recipe.rates.bridge 0.01 \(asked for 0.5\).*: choose another"
    )
    with pytest.raises(DataError, match=said):
        train(toy_vlm(), rows, tmp_path / "run", other, **given)
    with pytest.raises(DataError, match=r"learned.bridge \d+ \(asked for \d+\)"):
        train(toy_vlm(bridge_arguments={"hidden": 9}), rows, tmp_path / "run", SMALL, **given)
    with pytest.raises(DataError, match=r"count 8 \(asked for 7\)"):
        train(toy_vlm(), pictures(tmp_path / "fewer", 7), tmp_path / "run", SMALL, **given)
    changed = toy_vlm()
    changed.language_model.lm_head.weight.data[0] += 1  # pyright: ignore
    with pytest.raises(DataError, match="frozen .* .asked for"):
        train(changed, rows, tmp_path / "run", SMALL, **given)
    whole = (tmp_path / "run" / LAST).read_bytes()
    for size in (0, 9, len(whole) // 2, len(whole) - 1):
        (tmp_path / "run" / LAST).write_bytes(whole[:size])
        with pytest.raises(DataError, match="run/last.safetensors' cannot be read, it may be cut short"):
            train(toy_vlm(), rows, tmp_path / "run", SMALL, **given)
    with pytest.raises(DataError, match="there is no checkpoint"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize("fusion", ["early", "late", "deep"])
def test_narrow_models_learn_in_mixed_precision(tmp_path, fusion):
    rows, given = pictures(tmp_path / "data", 8), {"cache": tmp_path / "cache"}

    def vlm() -> VLM:
        return VLM(ToyEye(), "all", language_model().to(torch.bfloat16), tokenizer(), fusion)

    with pytest.raises(ModelError, match="the language model is in bfloat16: train it with mixed_precision='bf16'"):
        train(vlm(), rows, tmp_path / "run", SMALL, **given)
    trained, _ = train(vlm(), rows, tmp_path / "run", replace(SMALL, mixed_precision="bf16"), **given)
    assert {value.dtype for value in trained.bridge.parameters()} == {torch.float32}
    assert {value.dtype for value in trained.language_model.parameters()} == {torch.bfloat16}
    image = Image.new("RGB", (24, 16), COLOURS["red"])
    (said,) = trained.answer([image], ["what colour is it ?"], max_new_tokens=3)
    again = VLM.from_pretrained(tmp_path / "run" / "model", eye=ToyEye())
    assert again.answer([image], ["what colour is it ?"], max_new_tokens=3) == [said]


@pytest.mark.parametrize(
    ("there", "asked", "said"),
    [
        ({"mechanism": "pool"}, {"mechanism": "random"}, "parts.mechanism.name pool .asked for random."),
        ({"mechanism": "resampler", "bridge_arguments": {"heads": 2}}, {"mechanism": "resampler"}, "arguments.heads 2"),
        ({"fusion": "late", "fusion_arguments": {"where": [0]}}, {"fusion": "late", "fusion_arguments": {"where": [1]}},
         "parts.fusion.arguments.where"),
        ({"fusion": "deep"}, {"fusion": "deep", "fusion_arguments": {"shared": False}}, "arguments.shared True"),
    ],
)  # fmt: skip
def test_a_run_of_other_parts_of_the_same_size_is_refused(tmp_path, there, asked, said):
    rows, given = pictures(tmp_path / "data", 8), {"recipe": replace(SMALL, epochs=1), "cache": tmp_path / "cache"}
    train(toy_vlm(**there), rows, tmp_path / "run", **given)
    with pytest.raises(DataError, match=said):
        train(toy_vlm(**asked), rows, tmp_path / "run", **given)


def test_there_are_about_ten_checkpoints(tmp_path):
    recipe = replace(SMALL, epochs=12, batch=2, every=None, log=1000)
    _, metrics = train(toy_vlm(), pictures(tmp_path / "data", 4), tmp_path / "run", recipe, cache=tmp_path / "cache")
    assert [row["step"] for row in rows_of(tmp_path / "run")] == list(range(3, metrics["steps"] + 1, 3))
    assert metrics["steps"] == 24


def test_a_tokenizer_needs_no_padding(tmp_path):
    assert tokenizer().pad_token_id is None
    vlm = VLM(ToyEye(), "all", language_model(), tokenizer(end=False))
    rows = pictures(tmp_path / "data", 5)
    trained, metrics = train(vlm, rows, tmp_path / "run", SMALL, cache=tmp_path / "cache")
    assert metrics["loss"] > 0
    assert trained.answer([Image.new("RGB", (24, 16))], ["what ?"], max_new_tokens=2, pad_token_id=0)


def test_a_tracker_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match="the tracker 'nothing' is not installed, or not known: .* trackio"):
        train(toy_vlm(), pictures(tmp_path), tmp_path / "run", replace(SMALL, log_with="nothing"))


def test_rates_rise_fall_and_wait():
    recipe = Recipe(warmup=0.1, rates=Rates(bridge=2.0, fusion=4.0, language_model=1.0))
    assert recipe.rate("bridge", 0.05) == pytest.approx(1)
    assert recipe.rate("bridge", 0.1) == 2
    assert recipe.rate("bridge", 0.55) == pytest.approx(1)
    assert recipe.rate("bridge", 1) == pytest.approx(0)
    waits = replace(recipe, curriculum=Curriculum(fusion_warmup=0.4, bridge_first=0.5))
    assert waits.rate("fusion", 0.2) == pytest.approx(recipe.rate("fusion", 0.2) / 2)
    assert waits.rate("fusion", 0.5) == recipe.rate("fusion", 0.5)
    assert waits.rate("language_model", 0.5) == 0
    assert waits.rate("language_model", 0.6) == recipe.rate("language_model", 0.6) > 0


def test_settings_are_named_when_they_are_wrong():
    made = settled(Recipe, {"epochs": 2, "rates": {"bridge": 1}, "curriculum": {"budgets": [1, 4]}, "budget": None})
    assert made == Recipe(epochs=2, rates=Rates(bridge=1.0), curriculum=Curriculum(budgets=(1, 4)))
    assert fitting(str | Sequence[int], [0, 2], "where") == (0, 2)
    assert fitting(str | Sequence[int], "late", "where") == "late"
    with pytest.raises(DataError, match=r"where\[0\] must be a whole number, got 'x'"):
        fitting(str | Sequence[int], ["x"], "where")
    base = Recipe(epochs=7, rates=Rates(bridge=3.0))
    assert settled(Recipe, {"rates": {"eye": 2.0}}, base=base) == replace(base, rates=Rates(eye=2.0, bridge=3.0))
    for values, said in [
        ({"epoch": 2}, "there is no setting recipe.epoch: did you mean epochs?"),
        ({"rates": {"zzz": 2}}, "there is no setting recipe.rates.zzz: known are eye, bridge, fusion"),
        ({"epochs": "2"}, "recipe.epochs must be a whole number, got '2'"),
        ({"epochs": True}, "recipe.epochs must be a whole number, got True"),
        ({"rates": 3}, "recipe.rates must be a table of settings, got 3"),
        ({"warmup": "x"}, "recipe.warmup must be a number, got 'x'"),
        ({"mixed_precision": "fp16"}, "recipe.mixed_precision must be 'no' or 'bf16', got 'fp16'"),
        ({"curriculum": {"budgets": [1]}}, "recipe.curriculum.budgets must be a list of 2, got"),
        ({"curriculum": {"budgets": [4, 1]}}, "budgets must be two numbers"),
        ({"curriculum": {"short_first": 1}}, "recipe.curriculum.short_first must be true or false, got 1"),
        ({"curriculum": {"bridge_first": 2}}, "curriculum.bridge_first must be from 0 to 1"),
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"rates": {"bridge": -1}}, "rates.bridge must be a number of 0 or more"),
        ({"warmup": 1}, "warmup must be from 0 to less than 1"),
        ({"seed": -1}, "the seed must be a whole number from 0"),
        ({"clip": float("nan")}, "clip must be a number of 0 or more"),
    ]:
        with pytest.raises(DataError) as raised:
            settled(Recipe, values, "recipe.")
        assert said in str(raised.value)


def test_a_full_disk_keeps_the_last(tmp_path, monkeypatch):
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def tell(stage: str, done: int, total: int) -> None:
        if done == 4:
            monkeypatch.setattr("regard.train.saving.save_file", full)

    rows, given = pictures(tmp_path / "data", 8), {"cache": tmp_path / "cache"}
    with pytest.raises(DataError, match="cannot write .*last.safetensors': .*No space left on device"):
        train(toy_vlm(), rows, tmp_path / "run", replace(SMALL, every=2), **given, tell=tell)
    monkeypatch.undo()
    assert load(tmp_path / "run" / LAST)[0].step == 2
    assert {path.name for path in (tmp_path / "run").iterdir()} == {LAST, "history.csv", "lock"}
    train(toy_vlm(), rows, tmp_path / "run", replace(SMALL, every=2), **given)


class Deafer(ToyEye):
    """Hears five words."""

    def ask(self, text: str) -> Question:
        if len(text.split()) > 5:
            raise DataError(f"the question has {len(text.split())} words")
        return super().ask(text)


def more(source: Source, *rows: dict[str, str]) -> Source:
    """With these rows at the end, of the first picture."""
    with Path(source.files[0]).open("a") as file:
        file.writelines(json.dumps({"image": "0.png", **row}) + "\n" for row in rows)
    return source


def test_rows_that_cannot_be_learned_from_are_counted(tmp_path):
    long = {"question": "and then what colour is it ?", "answer": "red"}
    rows = more(
        pictures(tmp_path / "data", 4), long, {"image": "X" * 9000, "answer": "red"}, {"image": "\0", "answer": "red"}
    )
    held = more(pictures(tmp_path / "held", 4), {"image": "gone.png", "answer": "red"})
    given = {"recipe": replace(SMALL, epochs=1), "held": held, "cache": tmp_path / "cache"}
    _, metrics = train(toy_vlm("relevance", eye=Deafer(asked=3)), rows, tmp_path / "run", **given)
    deaf = "the eye cannot hear its question"
    assert (metrics["rows"], metrics["skipped"]) == (4, {"the image is missing": 2, deaf: 1})
    assert metrics["held_skipped"] == {"the image is missing": 1}
    _, metrics = train(toy_vlm("pool", eye=Deafer(asked=3)), rows, tmp_path / "hears none", **given)
    assert metrics["rows"] == 5

    bare = {"question": "", "answer": "red"}
    blind = more(pictures(tmp_path / "blind", 4), {"question": "what is <image>", "answer": "red"}, bare)
    _, metrics = train(toy_vlm(fusion="late"), blind, tmp_path / "late", **given)
    assert metrics["skipped"] == {"it ends with an image, which no word sees": 2}
    _, metrics = train(toy_vlm(), blind, tmp_path / "early", **given)
    assert metrics["skipped"] == {}

    small = language_model(positions=True)
    wordy = more(pictures(tmp_path / "wordy", 4), {"answer": "red " * 40})
    _, metrics = train(VLM(ToyEye(), "all", small, tokenizer()), wordy, tmp_path / "short", **given)
    assert metrics["skipped"] == {"its text is longer than the language model's 32 positions": 1}

    silent = more(pictures(tmp_path / "silent", 4), {"answer": ""})
    vlm = VLM(ToyEye(), "all", language_model(), tokenizer(end=False))
    _, metrics = train(vlm, silent, tmp_path / "no end", **given)
    assert metrics["skipped"] == {"its answer has no token": 1}
    only = more(pictures(tmp_path / "none", 0), long)
    Image.new("RGB", (24, 16)).save(tmp_path / "none" / "0.png")
    with pytest.raises(DataError, match="no row can be used: of the first, the eye cannot hear its question"):
        train(toy_vlm("relevance", eye=Deafer(asked=3)), only, tmp_path / "x", **given)


def test_an_eye_on_another_device_is_refused():
    class Away(torch.nn.Linear):
        name, width, asked = "away", 3, 0

    with pytest.raises(ModelError, match="the eye is on meta and the language model on cpu: move both to one device"):
        VLM(Away(1, 1, device="meta"), "all", language_model(), tokenizer())  # pyright: ignore
