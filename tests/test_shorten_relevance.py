"""`relevance`, whose regions are averages that depend on the question, held to the same oracle as what selects."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import oracle
import regard
import tiny_processors
import tiny_vlms as tiny
from regard import DataError, Record
from regard.allocate.relevance import Relevance
from regard.allocation import Allocation
from regard.relevance.tensions import States
from regard.tokens import Question, VisualTokens
from regard.vlm.eye import VlmEye
from regard.vlm.processors import load_model, load_processor
from regard.vlm.shorten import shorten

NEAR = 1e-4  # of logits with a scale of 10
TILED = ["llava_next", "smolvlm", "idefics3", "internvl"]
ONE_GRID = [name for name in tiny.FAMILIES if name != "llava_next"]  # those that cut do not cut what is small


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Every picture so small that no family cuts it into tiles."""
    for name in ("smolvlm", "idefics3", "internvl"):
        maker = tiny.MAKERS[name]
        monkeypatch.setitem(tiny.MAKERS, name, lambda number, generator, maker=maker: maker(1, generator))


def compare(model: Any, inputs: dict, short: Any, rows: list[int], encoded: dict | None = None) -> float:
    """Largest difference of logits to the oracle's, at every column that is left."""
    keep = oracle.kept_columns(inputs, short.allocations, rows)
    whole = oracle.logits(model, inputs, keep, oracle.positions_of(model, inputs), encoded)
    with torch.no_grad():
        got = model(**short).logits
    return float((got[short["attention_mask"].bool()] - whole[keep]).abs().max())


def owners(allocation: Allocation) -> list[int]:
    """The region that each token is in."""
    return allocation.matrix()[0].argmax(dim=0).tolist()


def of_token(short: Any, place: int, image: int = 0) -> Question:
    """A question in whose only word is one of the image's own tokens."""
    features = short.tokens[image].features[0]
    unit = F.normalize(features.float(), dim=-1)
    return Question(unit[place][None, None], reference=unit)


@pytest.mark.parametrize(("kernel", "pad_left"), [("sdpa", True), ("sdpa", False), ("eager", True)])
@pytest.mark.parametrize("name", ONE_GRID)
def test_it_is_the_model_with_merged_rows(models, name, kernel, pad_left):
    model, inputs = models(name, kernel), tiny.inputs(name, [2, 1], pad_left=pad_left)
    short = shorten(model, inputs, "relevance", budget=[3, 5, 4])
    assert [a.n_out for a in short.allocations] == [3, 5, 4]
    assert all(image.grid is not None for image in short.tokens)
    assert all(max(map(owners(a).count, range(a.n_out))) > 1 for a in short.allocations), "nothing was merged"
    encoded = oracle.merged(oracle.features_of(model, inputs), short.allocations)
    assert compare(model, inputs, short, [0, 0, 1], encoded) < NEAR
    assert compare(model, inputs, short, [0, 0, 1]) > 100 * NEAR, "features as they were would do as well"


def test_deep_features_are_merged_too(models):
    model, inputs = models("qwen3_vl"), tiny.inputs("qwen3_vl", [1])
    short = shorten(model, inputs, "relevance", budget=3)
    encoded = oracle.merged(oracle.features_of(model, inputs), short.allocations)
    encoded["image"].deepstack_features = oracle.features_of(model, inputs)["image"].deepstack_features
    assert compare(model, inputs, short, [0], encoded) > 100 * NEAR


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ONE_GRID)
def test_keeping_all_is_bit_identical(models, name, kernel):
    model, inputs = models(name, kernel), tiny.inputs(name, [2, 1])
    short = shorten(model, inputs, "relevance", keep=1.0)
    with torch.no_grad():
        want = model(**inputs, position_ids=short["position_ids"]).logits
        assert torch.equal(model(**short).logits, want)
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**short, **options), model.generate(**inputs, **options))


@pytest.mark.parametrize("name", TILED)
def test_tiles_without_a_grid_are_refused_in_one_line(models, name, monkeypatch):
    monkeypatch.undo()  # pictures of all sizes again
    model, inputs = models(name), tiny.inputs(name, [1])
    with pytest.raises(DataError, match="grid") as error:
        shorten(model, inputs, "relevance", budget=4)
    assert "\n" not in str(error.value)
    assert "relevance" in str(error.value).lower()


@pytest.mark.parametrize("name", ONE_GRID)
def test_it_depends_on_the_question_and_on_its_sign(models, name):
    """Tokens asked for in turn: each is in a smaller region than where it is what relevance points away from."""
    model, inputs = models(name), tiny.inputs(name, [1])
    whole = shorten(model, inputs, "random", keep=1.0)
    focus, n = Relevance(scope=0.0, tempering=0.0, prioritization=0.0), whole.tokens_in
    towards: list[list[int]] = []
    away: list[list[int]] = []
    size = {1: 0, -1: 0}
    for place in range(0, n, max(1, n // 8)):
        for sign, made in ((1, towards), (-1, away)):
            options: dict[str, Any] = {"budget": 2 * n // 3, "question": of_token(whole, place), "sign": sign}
            made.append(owners(shorten(model, inputs, focus, **options).allocations[0]))
            size[sign] += made[-1].count(made[-1][place])
    assert len(set(map(tuple, towards))) >= 3
    assert sum(a != b for a, b in zip(towards, away, strict=True)) > len(towards) / 2
    assert size[1] < size[-1]


@pytest.mark.parametrize("name", ONE_GRID)
def test_each_prompt_has_its_own_question_and_no_neighbour_matters(models, name):
    model, inputs = models(name), tiny.inputs(name, [1, 2])
    whole = shorten(model, inputs, "random", keep=1.0)
    focus, sizes = Relevance(scope=0.0, tempering=0.0, prioritization=0.0), [2 * a.n_in // 3 for a in whole.allocations]
    one, other = of_token(whole, 0), of_token(whole, -1)
    made = []
    for first, second in ((one, other), (other, one)):
        both = Question(torch.cat((first.features, second.features)), reference=one.reference)
        together = shorten(model, inputs, focus, budget=sizes, question=both)
        again = shorten(model, inputs, focus, budget=[sizes[0], 1, sizes[2]], question=both)
        for number, asked in ((0, first), (2, second)):
            asked = replace(asked, reference=one.reference)
            alone = focus.allocate(whole_image(whole, number), asked, sizes[number]).matrix()
            assert torch.equal(together.allocations[number].matrix(), alone)
            assert torch.equal(again.allocations[number].matrix(), alone)
            made.append(alone)
    alike = [torch.equal(made[0], made[2]), torch.equal(made[1], made[3])]
    assert not all(alike), "the questions are too much alike for this to see them mixed up"


def whole_image(short: Any, number: int) -> VisualTokens:
    """An image's tokens as an allocator that compares gets them."""
    tokens = short.tokens[number]
    return replace(tokens, aligned=F.normalize(tokens.features.float(), dim=-1))


@pytest.mark.parametrize("name", ONE_GRID)
def test_the_record_says_why(models, name):
    """Its line, cut at the budget, gives the regions that the model was given."""
    model, inputs = models(name), tiny.inputs(name, [1, 2])
    short = shorten(model, inputs, "relevance", budget=4)
    for record, allocation in zip(short.records(), short.allocations, strict=True):
        assert Record.from_json(record.to_json()) == record
        (look,) = record.looks
        why = look.realization
        assert why is not None
        assert not why.image_only
        cuts = sorted(why.cuts[:3])
        regions = [why.line[a:b] for a, b in zip([0, *cuts], [*cuts, len(why.line)], strict=True)]
        made = owners(allocation)
        assert {frozenset(region) for region in regions} == {
            frozenset(i for i, owner in enumerate(made) if owner == k) for k in range(4)
        }


@pytest.mark.parametrize("name", ONE_GRID)
def test_a_prompt_without_text_has_a_relevance_of_the_images_own(models, name):
    model, inputs = models(name), tiny.inputs(name, [1])
    ids = inputs["input_ids"]
    image = (ids[0] == tiny.IMAGE).nonzero().squeeze(1)
    around = slice(max(0, int(image[0]) - 4), int(image[-1]) + 2)  # with the marks that families put there
    bare = {**inputs, "input_ids": torch.ones_like(ids)}
    bare["input_ids"][0, around] = ids[0, around]
    special = {*ids[0, around].tolist()} - {tiny.IMAGE}
    short = shorten(model, bare, "relevance", budget=4, processor=SimpleNamespace(all_special_ids=special))
    look = short.record.looks[0]
    assert look.realization is not None
    assert look.realization.image_only
    assert set(look.realization.ways["participatory"]) == {0.5}
    want = Relevance().allocate(short.tokens[0], None, 4)
    assert torch.equal(short.allocations[0].matrix(), want.matrix())
    encoded = oracle.merged(oracle.features_of(model, bare), short.allocations)
    assert compare(model, bare, short, [0], encoded) < NEAR
    asked = shorten(model, bare, "relevance", budget=4, question=of_token(short, 0)).record.looks[0]
    assert asked.realization is not None
    assert not asked.realization.image_only


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_a_models_own_eye_looks_with_it(name, tmp_path: Path):
    path = tiny_processors.build(name, tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype="uint8")
    looks = {}
    for sign in (1, -1):
        eye = VlmEye(load_model(path, device="cpu"), load_processor(path), sign)  # pyright: ignore[reportArgumentType]
        questions = ["cat", "red", "coffee", "a cup"]
        options: dict[str, Any] = {"allocators": ["relevance"], "states": States(0.0, 0.0, 0.0), "eye": eye}
        record = regard.look(Image.fromarray(pixels), questions, budget=15, **options)
        assert [(look.allocator, look.tokens_out) for look in record.looks] == [("relevance", 15)] * 4
        assert all(look.realization is not None and not look.realization.image_only for look in record.looks)
        looks[sign] = [owners(look.allocation) for look in record.looks]
    assert len(set(map(tuple, looks[1]))) > 1
    assert looks[1] != looks[-1]
