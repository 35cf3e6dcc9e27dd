"""Training a bridge between a frozen eye and a frozen language model: resumed exactly, guarded, and answering."""

import json
from collections.abc import Callable
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

from regard.tokens import Question, VisualTokens
from regard.train.bridge import train
from regard.train.rows import Source
from regard.train.saving import BEST, LAST, load
from regard.train.settings import Curriculum, Rates, Recipe
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


def language_model(**more: Any) -> Any:
    torch.manual_seed(7)
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
    recipe = replace(SMALL, epochs=10, every=30, rates=Rates(bridge=3e-2))
    vlm = toy_vlm()
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
    assert written["learned"] == {"bridge": sum(value.numel() for value in trained.bridge.parameters())}


class CutError(Exception):
    pass


def cut_at(step: int) -> Callable[[str, int, int], None]:
    def tell(stage: str, done: int, total: int) -> None:
        if total and done == step:
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
