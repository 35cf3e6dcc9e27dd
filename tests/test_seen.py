"""Scenes kept as an eye saw them: with fewer numbers, and the same products, norms and decisions."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from regard.bench.tasks import encoded, seen
from regard.bench.tasks.asked import PAIRS, Asked
from regard.bench.tasks.asked.layout import Thing
from regard.bench.tasks.asked.questions import Pair
from regard.bench.tasks.encoded import Encoded
from regard.bench.tasks.seen import Sight, Sights
from regard.errors import DataError
from regard.eyes.grounding import Grounding
from regard.eyes.pocket import PocketEye
from regard.relevance.realizer import Realizer
from regard.tokens import Question, VisualTokens


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 8))
def test_compact_tokens_have_the_same_products_and_norms(seed: int, tokens: int, questions: int):
    generator = torch.Generator().manual_seed(seed)
    aligned, asks, reference = (torch.randn(n, 53, generator=generator) for n in (tokens, questions, 11))
    basis = torch.linalg.qr(reference.double().T)[0]
    small, asked = encoded.compacted(aligned, asks, basis, 8)
    others = torch.nn.functional.pad((reference.double() @ basis).float(), (0, 9))
    assert small.shape == (tokens, 20)
    torch.testing.assert_close(small @ asked.T, aligned @ asks.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(small @ others.T, aligned @ reference.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(small.norm(dim=1), aligned.norm(dim=1), atol=1e-4, rtol=1e-4)


def test_questions_among_the_references_take_no_room():
    reference = torch.randn(5, 17, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(reference.double().T)[0]
    aligned = torch.randn(7, 17)
    small, asked = encoded.compacted(aligned, reference[:2], basis, 8)
    torch.testing.assert_close(small @ asked.T, aligned @ reference[:2].T, atol=1e-5, rtol=1e-5)


class Toy:
    """An eye that sees the mean colour of 32 x 32 pixels, and hears how long a question is."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.grounding = Grounding(3, 5, dim=7, hidden=11).requires_grad_(False).eval()
        self.mix, self.other = torch.randn(3, 30), torch.randn(5, 30)
        self.reference, self.realizer = torch.randn(6, 5), Realizer()

    def see(self, image: Image.Image) -> VisualTokens:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        cells = torch.nn.functional.avg_pool2d(pixels, 32)
        flat = cells.flatten(2).transpose(1, 2)
        return VisualTokens.from_grid(flat, cells.shape[2:], aligned=flat @ self.mix)

    def hear(self, text: str) -> Tensor:
        return torch.randn(5, generator=torch.Generator().manual_seed(len(text)))

    def classes_of(self, heard: Tensor) -> Tensor:
        return heard @ self.other

    def look(self, image: Image.Image) -> VisualTokens:
        """What the two spaces are together."""
        tokens = self.see(image)
        found = self.grounding.tokens(tokens.features, tokens.boxes)
        return replace(tokens, aligned=torch.cat((tokens.aligned, found), dim=2))  # pyright: ignore

    def ask(self, text: str) -> Question:
        return Question(self.meant(self.hear(text)[None])[None], reference=self.meant(self.reference))

    def meant(self, heard: Tensor) -> Tensor:
        return torch.cat((self.classes_of(heard), self.grounding.questions(heard)), dim=1)


def scene(split: str, index: int, pairs: tuple[int, int] = PAIRS) -> Asked:
    rng = np.random.default_rng([index, len(split)])
    side = (192, 224)[index % 2]
    image = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    thing = Thing("cutout", "fox", "x", "", "", (32, 64, 80, 128), np.ones((64, 48), bool))
    made = (Pair("where", "where is the fox?", "top left", (thing,)), Pair("exists", "is there a fox?", "yes", ()))
    return Asked(image, (thing,), made, "photo")


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr(encoded, "asked", scene)
    monkeypatch.setattr(encoded, "CHUNK", 4)
    return lambda: seen.seen(Toy(), "train", range(8), tmp_path)


def test_what_was_kept_is_what_the_eye_sees(made):
    sights, eye = made(), Toy()
    batch = sights.batch([(3, 0), (1, 1)])
    assert batch.answers == ["top left", "yes"]
    assert batch.tokens.grid == (1, 7, 7)
    tokens, question = eye.look(scene("train", 3).image), eye.ask("where is the fox?")
    torch.testing.assert_close(batch.tokens.features[:1], tokens.features, atol=1e-3, rtol=1e-3)
    expected = tokens.relevance(question)
    torch.testing.assert_close(batch.tokens.relevance(batch.question)[:1], expected, atol=2e-2, rtol=1e-2)
    assert batch.covered[0].nonzero()[:, 0].tolist() == [15, 16, 22, 23]
    assert batch.covered[0, 16] == 0.5
    assert not batch.covered[1].any()
    assert torch.equal(batch.answered, batch.covered)


def test_what_a_thing_is_found_by_is_not_what_the_answer_is_about(tmp_path, monkeypatch):
    """The kite is beside the fox, which is asked for."""

    def beside(split: str, index: int, pairs: tuple[int, int] = PAIRS) -> Asked:
        whole = scene(split, index)
        kite = Thing("cutout", "kite", "x", "", "", (128, 0, 192, 32), np.ones((32, 64), bool))
        things = (*whole.things, kite)
        return whole._replace(things=things, pairs=(Pair("next", "what is left of the kite?", "fox", things),))

    monkeypatch.setattr(encoded, "asked", beside)
    monkeypatch.setattr(encoded, "CHUNK", 2)
    batch = seen.seen(Toy(), "train", range(2), tmp_path).batch([(0, 0)])
    assert batch.covered[0].nonzero()[:, 0].tolist() == [4, 5, 13, 14, 19, 20]
    assert batch.answered[0].nonzero()[:, 0].tolist() == [13, 14, 19, 20]


def test_scenes_far_behind_are_in_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(encoded, "asked", scene)
    monkeypatch.setattr(encoded, "CHUNK", 2)
    far = seen.seen(Toy(), "train", range(1004, 1007), tmp_path)
    assert len(far.scenes) == 3
    tokens = Toy().see(scene("train", 1006).image)
    torch.testing.assert_close(far.scenes[2].features.float(), tokens.features[0], atol=1e-3, rtol=1e-3)
    assert not (tmp_path / "train-00000.json").exists()


def test_the_references_are_in_the_space_of_the_tokens(made):
    sights, eye = made(), Toy()
    tokens = eye.look(scene("train", 2).image)
    assert tokens.aligned is not None
    wanted = tokens.aligned[0] @ eye.meant(eye.reference).T
    torch.testing.assert_close(sights.scenes[2].aligned.float() @ sights.reference.T, wanted, atol=2e-2, rtol=1e-2)


def test_scenes_to_train_with_are_asked_more(tmp_path, monkeypatch):
    wanted: list[tuple[int, int]] = []

    def noted(split: str, index: int, pairs: tuple[int, int] = PAIRS) -> Asked:
        wanted.append(pairs)
        return scene(split, index)

    monkeypatch.setattr(encoded, "asked", noted)
    monkeypatch.setattr(encoded, "CHUNK", 1)
    for split in ("train", "val"):
        whole = seen.seen(Toy(), split, range(1), tmp_path)
        assert whole.texts("exists") == [("is there a fox?", "yes")]
    assert wanted == [encoded.MANY, PAIRS]


def test_scenes_are_encoded_once_and_sorted_by_their_grids(made, tmp_path, monkeypatch):
    sights = made()
    assert [len(side) for side in sights.sides()] == [8, 8]
    assert {sights.scenes[scene].side for scene, _ in sights.sides()[0]} == {6}

    def never(*given: object) -> Tensor:
        raise AssertionError("encoded twice")

    monkeypatch.setattr(encoded, "asked", never)
    again = made()
    assert torch.equal(again.scenes[5].features, sights.scenes[5].features)
    (tmp_path / "train-00004.safetensors").write_bytes(b"cut")
    with pytest.raises(DataError, match="train-00004.safetensors.*remove it"):
        made()
    texts = tmp_path / "train-00000.json"
    texts.write_text(json.dumps(json.loads(texts.read_text())[:1]) + "[")
    with pytest.raises(DataError, match="train-00000.safetensors.*remove it"):
        made()


def test_things_are_named_by_what_is_asked_and_answered():
    covered, answered = torch.ones(3, 4), torch.zeros(3, 4)
    answered[0, 1], answered[1, 2], answered[2, 3] = 0.9, 0.5, 0.3
    asks, answers = (
        ["where is the fox?", "what is next to the kite?", "where is the drum?"],
        ["top left", "cup", "center"],
    )
    features = torch.arange(4.0)[:, None].expand(4, 2).half()
    scene = Sight(
        2, features, features, torch.zeros(3, 2), covered, answered, ["where", "what", "where"], asks, answers
    )
    things = Sights((scene,), torch.zeros(1, 2)).things()
    assert things.said == ["fox top left", "cup"], "the drum fills too little; a kite is beside what is meant"
    assert things.features[:, 0].tolist() == [1, 2]
    assert things.boxes.tolist() == [[0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1]]


def test_scenes_have_one_digest_however_many_threads_there_are():
    eye, draw, threads = PocketEye(), torch.Generator().manual_seed(0), torch.get_num_threads()
    kept = []
    for count in range(1, 40):  # questions
        shapes = (64, 512), (64, 5), (count, 5), (count, 384)
        features, classes, questions, heard = (torch.randn(*shape, generator=draw) for shape in shapes)
        shown = torch.zeros(count, 64)
        kept.append(Encoded(8, features.half(), classes, questions, heard, shown, shown, [], [], []))
    found = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            exact = deepcopy(eye.grounding).double()
            scenes = tuple(seen._grounded(exact, one) for one in kept)
            found.append(Sights(scenes, seen._reference(eye, exact, 2)).digest())
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
