"""Relevance as an allocator: the contract, what it refuses, what it says of itself, and a realizer on disk."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import regard
from regard import DataError, Question, Record, ShapeError, VisualTokens
from regard.allocate.relevance import Relevance
from regard.record import Realization
from regard.relevance.realizer import Realizer
from regard.relevance.tensions import States
from regard.testing import check_allocator
from relevance_toys import asking, drawn


@pytest.mark.parametrize("states", [(0.0, 0.0, 0.0), (1.0, 0.3, 0.6), ("auto", 1.0, 1.0), ("auto", "auto", "auto")])
def test_it_keeps_the_contract(states, unchecked):
    check_allocator(Relevance(*states), examples=2)


def test_what_it_cannot_use_is_an_error():
    relevance, tokens = Relevance(), drawn(1, (1, 5, 7), d=4)
    with pytest.raises(ShapeError, match="the question has 3 dimensions and the tokens' space 4"):
        relevance.allocate(tokens, asking(1, 3), 7)
    with pytest.raises(DataError, match="^Relevance needs grid"):
        relevance.allocate(VisualTokens(tokens.features, tokens.boxes), asking(1, 4), 7)
    dirty = tokens.features.clone()
    dirty[1, 3, 2] = torch.inf
    with pytest.raises(DataError, match="^Relevance: features of image 1 is not finite at token 3"):
        relevance.allocate(VisualTokens(dirty, tokens.boxes, grid=tokens.grid), None, 7)
    with pytest.raises(DataError, match="scope must be"):
        Relevance(scope=1.5)
    with pytest.raises(ShapeError, match="a record is of one image"):
        relevance.explain(tokens, None, 7)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_question_that_is_not_finite_is_an_error(bad: float):
    tokens, question = drawn(1, (1, 5, 7), d=4), asking(1, 4)
    question.features[1, 2, 3] = bad
    with pytest.raises(DataError, match="^Relevance: .*question"):
        Relevance().allocate(tokens, question, 7)


def test_it_says_why():
    tokens, question = drawn(2, (1, 5, 7), True, d=4, batch=1), asking(2, 4, batch=1)
    relevance = Relevance(tempering=0.25)
    why, found = relevance.explain(tokens, question, 9), Realizer()(tokens, question, 9, States(tempering=0.25))
    assert sum(why.mix.values()) == pytest.approx(1, abs=0.01)
    assert sum(why.field) == pytest.approx(1, abs=0.01)
    assert sum(sum(term) for term in why.terms.values()) == pytest.approx(1, abs=0.01)
    assert np.mean([d for d, real in zip(why.detail, tokens.valid[0], strict=True) if real]) == pytest.approx(
        1, abs=0.01
    )
    assert why.ways["participatory"] == pytest.approx(found.seen[0, 2].tolist(), rel=0.01)
    assert why.terms["explore"] == pytest.approx(found.balance.terms[0, 1].tolist(), rel=0.01)
    assert (why.states["tempering"], why.fixed, why.image_only) == (0.25, ("tempering",), False)
    for name in ("scope", "prioritization"):
        up, down = why.drives[name]
        assert why.states[name] == pytest.approx(up**2 / (up**2 + down**2), rel=0.03)
    assert why.transjectivity is not None
    assert 0 < why.transjectivity < 1
    alone = relevance.explain(tokens, None, 9)
    assert alone.image_only
    assert alone.transjectivity is None
    assert set(alone.ways["participatory"]) == {0.5}
    for each in (why, alone):
        assert Realization.from_dict(json.loads(json.dumps(asdict(each)))) == each


def test_masked_words_change_nothing_of_what_it_says():
    tokens, padded = drawn(2, (1, 5, 7), d=4, batch=1), asking(2, 4, 5, masked=True, batch=1)
    plain = Question(padded.features[:, :3], reference=padded.reference)
    one, other = (asdict(Relevance().explain(tokens, question, 9)) for question in (padded, plain))
    assert one == other


class Toy:
    """A token for each 10 x 10 pixels; the question is a colour."""

    name = "toy"

    def look(self, image: Image.Image) -> VisualTokens:
        size = image.width // 10, image.height // 10
        x = torch.from_numpy(np.asarray(image.resize(size, Image.Resampling.BOX)).astype("float32") / 255)
        return VisualTokens.from_grid(x.reshape(1, -1, 3), size[::-1])

    def ask(self, text: str) -> Question:
        return Question(torch.tensor([[[1.0, -0.5, -0.5]]]), text=text)


def test_a_record_keeps_what_every_budget_would_give():
    pixels = np.random.default_rng(3).integers(0, 255, (50, 70, 3)).astype(np.uint8)
    record = regard.look(Image.fromarray(pixels), "what is red", budget=11, allocators=["relevance"], eye=Toy())
    assert Record.from_json(record.to_json()) == record
    (look,) = record.looks
    why = look.realization
    assert why is not None
    group, made = torch.empty(35, dtype=torch.long), sorted(why.cuts[:10])
    for number, (low, high) in enumerate(zip((0, *made), (*made, 35), strict=True)):
        group[list(why.line[low:high])] = number
    found = {frozenset(row.nonzero().flatten().tolist()) for row in look.allocation.matrix()[0]}
    assert found == {frozenset((group == k).nonzero().flatten().tolist()) for k in range(11)}


@pytest.mark.parametrize("spaces", [None, (4, 6)])
def test_saved_and_loaded_it_decides_the_same(tmp_path: Path, spaces):
    torch.manual_seed(7)
    realizer = Realizer(spaces, rank=5)
    with torch.no_grad():
        for parameter in realizer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    realizer.save_pretrained(tmp_path)
    loaded = Realizer.from_pretrained(tmp_path, local_files_only=True)
    tokens, question = drawn(1, (1, 5, 7), d=4), asking(1, 6 if spaces else 4)
    with torch.no_grad():
        one, other = (each(tokens, question, 9) for each in (realizer, loaded))
    assert one.balance.terms.equal(other.balance.terms)
    assert one.balance.states.equal(other.balance.states)
    assert one.groups(9).equal(other.groups(9))
    with torch.no_grad():
        untrained = Realizer(spaces, rank=5)(tokens, question, 9)
    assert not one.balance.states.equal(untrained.balance.states)
