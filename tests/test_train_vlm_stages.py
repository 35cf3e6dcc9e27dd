"""BLIP-2's first stage from its formulas, the stage after it, and training all or by LoRA."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from regard.attention.qformer import qformer_mask
from regard.errors import DataError, ModelError
from regard.images import load_image
from regard.tokens import Question, VisualTokens
from regard.train import full, two_stage
from regard.train.alignment import Aligner, contrast, hard, similarity
from regard.train.saving import LAST, load
from regard.train.settings import Curriculum, Rates, Recipe
from regard.vlm.bridges.qformer import QueryBridge
from regard.vlm.compose import VLM
from test_train_vlm import (
    COLOURS,
    SMALL,
    CutError,
    ToyEye,
    cut_at,
    language_model,
    pictures,
    rows_of,
    tokenizer,
    toy_vlm,
)

QUERIES: dict[str, Any] = {"queries": 5, "heads": 2, "depth": 3, "inner": 12}


def aligner() -> Aligner:
    torch.manual_seed(2)
    made = Aligner(QueryBridge(3, 16, **QUERIES), 21, longest=6, space=7)
    with torch.no_grad():
        for value in made.former.parameters():
            if value.ndim > 1:
                value.normal_(std=0.3)
    return made


def pairs(batch: int = 4, n: int = 6) -> tuple[VisualTokens, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = VisualTokens.from_grid(torch.randn(batch, n, 3, generator=generator), (2, 3))
    ids, valid = aligner().encoded(tokenizer(), ["red it", "what colour is it", "blue", "a dark picture"][:batch])
    return tokens, ids, valid


def smoothed(logits: torch.Tensor, right: int, share: float = 0.1) -> float:
    """Cross-entropy with smoothed labels, written out."""
    values = logits.tolist()
    total = math.log(sum(math.exp(value) for value in values))
    wanted = [share / len(values) + (1 - share) * (place == right) for place in range(len(values))]
    return -sum(want * (value - total) for want, value in zip(wanted, values, strict=True))


@torch.no_grad()
def test_itc_is_the_formula():
    made, (tokens, ids, valid) = aligner(), pairs()
    states = made.read(tokens.features, tokens.boxes).detach()
    images, texts = made.images(states, None).detach(), made.texts(ids, valid).detach()
    near = [[max(float(q @ t) for q in image) / 0.07 for t in texts] for image in images]
    want = sum(
        smoothed(torch.tensor(near[i]), i) + smoothed(torch.tensor([row[i] for row in near]), i) for i in range(4)
    )
    got = contrast(images, texts, lambda value: value, 0, made.temperature)
    assert float(got.detach()) == pytest.approx(want / 8, rel=1e-4)
    assert float(made.temperature.detach()) == pytest.approx(0.07)
    assert torch.allclose(similarity(images, texts) / 0.07, torch.tensor(near), atol=1e-4)
    assert not torch.allclose(torch.einsum("bqs,cs->bcq", images, texts).mean(dim=2) / 0.07, torch.tensor(near))
    assert images.norm(dim=-1).allclose(torch.ones(4, 5))


@torch.no_grad()
def test_itc_is_among_all_processes():
    made, (tokens, ids, valid) = aligner(), pairs()
    states = made.read(tokens.features, tokens.boxes)
    images, texts = made.images(states, None), made.texts(ids, valid)
    whole = contrast(images, texts, lambda value: value, 0, made.temperature)
    parts = []
    for place in (0, 2):
        one = slice(place, place + 2)
        gathered = lambda value: images if value.ndim == 3 else texts  # noqa: E731
        parts.append(contrast(images[one], texts[one], gathered, place, made.temperature))
    assert torch.allclose(torch.stack(parts).mean(), whole, rtol=1e-5)


def test_hard_negatives_follow_similarity_and_are_never_the_own():
    near = torch.tensor([[9.0, 1.0, 0.0], [2.0, 50.0, 2.0], [0.0, 3.0, 0.0]])
    torch.manual_seed(0)
    drawn = torch.stack([hard(near) for _ in range(3000)])
    assert not (drawn == torch.arange(3)).any()
    for row in range(3):
        others = [column for column in range(3) if column != row]
        weights = torch.tensor([math.exp(near[row, column]) for column in others])
        share = torch.tensor([float((drawn[:, row] == column).float().mean()) for column in others])
        assert torch.allclose(share, weights / weights.sum(), atol=0.04)


@torch.no_grad()
def test_itm_and_itg_are_the_formulas():
    made, (tokens, ids, valid) = aligner(), pairs()
    states = made.read(tokens.features, tokens.boxes)
    torch.manual_seed(5)
    losses = made(tokens, ids, valid)
    torch.manual_seed(5)
    near = similarity(made.images(states, None), made.texts(ids, valid)) / made.temperature
    hard_text, hard_image = hard(near), hard(near.T)
    rows = [(i, i, 1) for i in range(4)] + [(int(hard_image[i]), i, 0) for i in range(4)]
    rows += [(i, int(hard_text[i]), 0) for i in range(4)]
    total = 0.0
    for image, text, label in rows:
        embedded = made.former.embed(ids[text : text + 1])
        seen = F.pad(valid[text : text + 1], (5, 0), value=True)
        out = made.former(None, states[image : image + 1], embedded, seen)[0, :5]
        logits = sum(made.match(query) for query in out) / 5
        total -= float(F.log_softmax(torch.as_tensor(logits), dim=0)[label])
    assert float(losses.itm) == pytest.approx(total / 12, rel=1e-4)
    words = []
    for i in range(4):
        length = int(valid[i].sum())
        row = ids[i : i + 1, :length].clone()
        row[0, 0] = made.marks[1]
        for place in range(length - 1):  # one word after another, from what is before it alone
            rule = torch.ones(5 + place + 1, 5 + place + 1, dtype=torch.bool)
            rule[:5, 5:] = False
            rule[5:, 5:] = torch.ones(place + 1, place + 1).tril().bool()
            out = made.former(None, states[i : i + 1], made.former.embed(row[:, : place + 1]), rule[None])[0, -1]
            logits = made.head(out) @ made.former.words.weight.T + made.bias  # pyright: ignore
            words.append(smoothed(logits, int(ids[i, place + 1])))
    assert float(losses.itg) == pytest.approx(sum(words) / len(words), rel=1e-4)


@torch.no_grad()
def test_each_mask_lets_through_what_it_should():
    made, (tokens, ids, valid) = aligner(), pairs()
    states = made.read(tokens.features, tokens.boxes)
    other_ids, other_states = ids.clone(), states.roll(1, dims=0)
    other_ids[:, 2] = 3
    images, texts = made.images(states, None), made.texts(ids, valid)
    joint = made.former(None, states, made.former.embed(ids), qformer_mask("unimodal", 5, valid))
    assert torch.allclose(F.normalize(made.image(joint[:, :5]), dim=-1), images, atol=1e-5)
    assert torch.allclose(F.normalize(made.text(joint[:, 5]), dim=-1), texts, atol=1e-5)
    assert not torch.allclose(made.texts(other_ids, valid), texts)
    matched = made.matches(states, None, ids, valid)
    assert not torch.allclose(made.matches(states, None, other_ids, valid), matched)
    assert not torch.allclose(made.matches(other_states, None, ids, valid), matched)
    written = made.writes(states, None, ids, valid)
    changed = made.writes(states, None, other_ids, valid)
    assert torch.equal(changed[:, :2], written[:, :2])
    assert not torch.allclose(changed[:, 2], written[:, 2])
    assert not torch.allclose(made.writes(other_states, None, ids, valid)[:, 0], written[:, 0])
    longer, more = F.pad(ids, (0, 2)), F.pad(valid, (0, 2))
    assert torch.allclose(made.matches(states, None, longer, more), matched, atol=1e-5)
    assert torch.allclose(made.texts(longer, more), texts, atol=1e-5)
    short = torch.cat((torch.full((4, 2), 9.0), torch.zeros(4, 4)), dim=1) > 1
    hidden = made.matches(states, short, ids, valid)
    assert torch.allclose(made.matches(states.where(short[..., None], torch.tensor(7.0)), short, ids, valid), hidden)


def test_both_stages_go_on_after_a_cut(tmp_path):
    rows, held = pictures(tmp_path / "data", 20), pictures(tmp_path / "held", 6)
    recipe = replace(SMALL, epochs=1)
    first = replace(SMALL, epochs=2, accumulate=2, rates=Rates(bridge=3e-3))

    def go(name: str, tell=lambda *told: None, seed: int = 3):
        model = language_model()
        torch.manual_seed(seed)  # of what no checkpoint is needed to know
        vlm = VLM(ToyEye(), "qformer", model, tokenizer(), "late", bridge_arguments={**QUERIES, "start": "vision"})
        given = {"first": first, "held": held, "cache": tmp_path / "cache", "tell": tell}
        return two_stage.train(vlm, rows, tmp_path / name, recipe, **given)

    whole = go("whole")
    with pytest.raises(CutError):
        go("cut", cut_at(4))
    with pytest.raises(CutError):
        go("cut", cut_at(4, of=5))  # in the second stage
    assert (tmp_path / "cut" / "stage2" / LAST).exists()
    cut = go("cut", seed=99)
    for stage in ("stage1", "stage2"):
        assert rows_of(tmp_path / "cut" / stage) == rows_of(tmp_path / "whole" / stage)
    history = rows_of(tmp_path / "whole" / "stage1")
    assert {"itc", "itm", "itg", "temperature", "gradient_bridge", "held_loss"} <= history[-1].keys()
    assert history[-1]["loss"] < history[0]["loss"]
    assert cut.first["held_loss"] == whole.first["held_loss"]
    aligned = load(tmp_path / "whole" / "stage1" / LAST)[1]
    started = load(tmp_path / "whole" / "stage2" / LAST)[1]
    name = "bridge.former.blocks.0.cross.kv.weight"
    assert (aligned[f"weights.{name}"] - started[f"weights.{name}"]).abs().max() < 0.1
    assert VLM.from_pretrained(tmp_path / "cut" / "stage2" / "model", eye=ToyEye()).answer(
        [Image.new("RGB", (24, 16))], ["what colour is it ?"], max_new_tokens=2
    )


def test_the_second_stage_begins_with_the_first_ones_queries(tmp_path):
    rows = pictures(tmp_path / "data", 8)
    vlm = toy_vlm("qformer", bridge_arguments=QUERIES)
    before = vlm.bridge.state_dict()["former.queries"].clone()
    two_stage.align(vlm, rows, tmp_path / "run", replace(SMALL, epochs=1), cache=tmp_path / "cache")
    held = load(tmp_path / "run" / LAST)[1]
    now = vlm.bridge.state_dict()
    assert torch.equal(now["former.queries"], held["weights.bridge.former.queries"])
    assert torch.equal(now["read.map.weight"], held["weights.bridge.read.map.weight"])
    assert not torch.equal(now["former.queries"], before)


def test_what_the_first_stage_cannot_take(tmp_path):
    rows, cache = pictures(tmp_path / "data", 8), tmp_path / "cache"
    with pytest.raises(ModelError, match="two stages train a Q-Former, got the mechanism 'resampler'"):
        two_stage.train(toy_vlm("resampler", bridge_arguments={"heads": 2}), rows, tmp_path / "x", cache=cache)
    vlm = toy_vlm("qformer", bridge_arguments=QUERIES)
    with pytest.raises(DataError, match="batches of 2 or more, got 1"):
        two_stage.align(vlm, rows, tmp_path / "y", replace(SMALL, batch=1), cache=cache)
    with pytest.raises(DataError, match="give curricula to the second"):
        recipe = replace(SMALL, curriculum=Curriculum(budgets=(1, 2)))
        two_stage.align(vlm, rows, tmp_path / "z", recipe, cache=cache)


class LearningEye(nn.Module):
    """Patches of 8 x 8 pixels by a linear map; looks with its own weights."""

    name, width, asked = "learning", 6, 0

    def __init__(self) -> None:
        super().__init__()
        self.map, self.looks = nn.Linear(192, 6), 0

    def prepare(self, images) -> dict[str, torch.Tensor]:
        arrays = [np.asarray(image.resize((24, 16)), dtype=np.float32) / 128 - 1 for image in images]
        return {"pixels": torch.from_numpy(np.stack(arrays))}

    def forward(self, pixels: torch.Tensor) -> VisualTokens:
        cells = pixels.view(-1, 2, 8, 3, 8, 3).transpose(2, 3).reshape(-1, 6, 192)
        return VisualTokens.from_grid(self.map(cells), (2, 3))

    @torch.no_grad()
    def look(self, image) -> VisualTokens:
        self.looks += 1
        return self(**self.prepare([image]))

    def ask(self, text: str) -> Question:
        raise ModelError("deaf")


RATES = Rates(eye=1e-3, bridge=1e-2, fusion=1e-2, language_model=1e-3)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of peft
@pytest.mark.parametrize("lora", [None, full.Lora(rank=2, dropout=0.1)])
@pytest.mark.parametrize("eye", [False, True])
def test_all_learn_and_go_on_after_a_cut(tmp_path, lora, eye):
    rows, held = pictures(tmp_path / "data", 14), pictures(tmp_path / "held", 5)
    recipe = replace(SMALL, epochs=2, rates=RATES, curriculum=Curriculum(bridge_first=0.3))

    def go(name: str, tell=lambda *told: None):
        torch.manual_seed(1)
        vlm = toy_vlm(eye=LearningEye())
        before = {key: value.clone() for key, value in vlm.named_parameters()}
        given = {"lora": lora, "eye": eye, "held": held, "cache": tmp_path / "cache", "tell": tell}
        return before, full.train(vlm, rows, tmp_path / name, recipe, **given)

    before, (vlm, metrics) = go("whole")
    with pytest.raises(CutError):
        go("cut", cut_at(5))
    go("cut")
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert metrics["learned"].keys() == {"bridge", "language_model", *(["eye"] if eye else [])}
    assert (metrics["learned"]["language_model"] > 2000) == (lora is None)
    assert torch.equal(before["eye.map.weight"], vlm.eye.map.weight) != eye  # pyright: ignore
    history = rows_of(tmp_path / "whole")
    assert all(row["gradient_language_model"] > 0 for row in history[2:])
    again = VLM.from_pretrained(tmp_path / "whole" / "model", eye=LearningEye() if eye else vlm.eye)  # pyright: ignore
    images = [Image.new("RGB", (24, 16), colour) for colour in COLOURS.values()]
    asked = ["what colour is it ?"] * 3
    assert again.answer(images, asked, max_new_tokens=4) == vlm.answer(images, asked, max_new_tokens=4)


def test_an_eye_that_learns_meets_no_broken_image(tmp_path, monkeypatch):
    rows = pictures(tmp_path / "data", 6)
    torn = tmp_path / "data" / "3.png"
    torn.write_bytes(torn.read_bytes()[:60])
    given = {"recipe": replace(SMALL, epochs=1, rates=RATES), "eye": True, "cache": tmp_path / "cache"}
    queries = {"latents": 4, "heads": 2, "start": "vision"}
    vlm: Any = toy_vlm("resampler", eye=LearningEye(), bridge_arguments=queries)
    _, metrics = full.train(vlm, rows, tmp_path / "run", **given)
    assert metrics["skipped"] == {"the image is broken": 1}
    assert vlm.bridge.began
    looked: list[str] = []
    monkeypatch.setattr("regard.train.decoded.load_image", lambda path: looked.append(path) or load_image(path))
    full.train(toy_vlm(eye=LearningEye()), rows, tmp_path / "again", **given)
    assert [Path(path).name for path in looked] == ["3.png"], "what could be read is not read again"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of peft
def test_other_adapters_than_there_are_refused(tmp_path):
    rows, given = pictures(tmp_path / "data", 4), {"recipe": replace(SMALL, epochs=1), "cache": tmp_path / "cache"}
    full.train(toy_vlm(), rows, tmp_path / "two", lora=full.Lora(rank=2), **given)
    again = VLM.from_pretrained(tmp_path / "two" / "model", eye=ToyEye())
    with pytest.raises(ModelError, match="has adapters already, of rank 2, alpha 32, dropout 0.05, not of rank 8"):
        full.train(again, rows, tmp_path / "eight", lora=full.Lora(rank=8), **given)
    full.train(again, rows, tmp_path / "on", lora=full.Lora(rank=2), **given)


def test_the_language_model_waits_for_the_bridge(tmp_path):
    rows = pictures(tmp_path / "data", 8)
    recipe = replace(SMALL, epochs=1, rates=RATES, curriculum=Curriculum(bridge_first=1.0))
    vlm = toy_vlm()
    before = {key: value.clone() for key, value in vlm.language_model.state_dict().items()}
    full.train(vlm, rows, tmp_path / "run", recipe, cache=tmp_path / "cache")
    assert all(torch.equal(value, before[key]) for key, value in vlm.language_model.state_dict().items())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_what_cannot_be_trained_whole(tmp_path):
    rows, cache = pictures(tmp_path / "data", 4), tmp_path / "cache"
    with pytest.raises(ModelError, match="the eye 'toy' cannot learn"):
        full.train(toy_vlm(), rows, tmp_path / "x", SMALL, eye=True, cache=cache)
    with pytest.raises(ModelError, match="deep fusion has a copy of every linear map"):
        full.train(toy_vlm(fusion="deep"), rows, tmp_path / "x", SMALL, lora=full.Lora(), cache=cache)
    with pytest.raises(ModelError, match="LoRA does not fit the language model: Target modules"):
        full.train(toy_vlm(), rows, tmp_path / "x", SMALL, lora=full.Lora(targets=("nothing",)), cache=cache)


def test_rates_of_the_paradigms():
    assert full.LORA_RECIPE.rates.language_model == 2e-4
    assert two_stage.FIRST_RECIPE.rates.bridge == 1e-4
    assert isinstance(full.RECIPE, Recipe)
