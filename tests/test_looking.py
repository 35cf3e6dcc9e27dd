"""The main job in Python, with a toy eye that sees three colours."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import regard
from regard import BudgetError, DataError, ImageError, ModelError, Question, Record, RegardError, VisualTokens
from regard.allocate import load
from regard.allocate.grid import Grid
from regard.recorded import nearest_quarter
from regard.report.pictures import heat_map, preview, relevance_map, sheet
from regard.report.table import table

COLOURS = {"red": (1.0, -0.5, -0.5), "green": (-0.5, 1.0, -0.5), "blue": (-0.5, -0.5, 1.0)}


class Toy:
    """One token for each 10 x 10 pixels; relevance is how much of the asked colour there is."""

    name = "toy"

    def __init__(self):
        self.looked = 0

    def look(self, image: Image.Image) -> VisualTokens:
        self.looked += 1
        w, h = image.width // 10, image.height // 10
        x = torch.from_numpy(np.asarray(image.resize((w, h), Image.Resampling.BOX)).astype("float32") / 255)
        x = x.reshape(1, h * w, 3)
        return VisualTokens.from_grid(x, (h, w), aligned=x - x.mean(dim=1, keepdim=True))

    def ask(self, text: str) -> Question:
        return Question(torch.tensor([[COLOURS[text.split()[-1].removeprefix("[b]")]]]), text=text)


def picture() -> Image.Image:
    """170 x 110 pixels, noisy grey; the left half reddish, a blue square at the lower right."""
    pixels = np.random.default_rng(5).integers(90, 110, (110, 170, 3))
    pixels[:, :85, 0] += 90
    pixels[70:100, 130:160] = (20, 20, 240)
    return Image.fromarray(pixels.astype(np.uint8))


def test_the_image_is_encoded_once_for_several_questions():
    eye = Toy()
    record = regard.look(picture(), ["what is red", "what is blue"], budget=9, eye=eye)
    assert eye.looked == 1
    assert record.questions == ("what is red", "what is blue")
    names = ["cdpruner", "divprune", "fovea", "grid", "pool", "random", "relevance", "top"]
    assert [look.allocator for look in record.looks] == names * 2
    assert {look.tokens_out for look in record.looks} == {9}
    assert {look.tokens_in for look in record.looks} == {187}
    assert record.grid == (1, 11, 17)
    assert Record.from_json(record.to_json()) == record


def test_top_looks_where_the_question_is_and_blind_ways_do_not_move():
    record = regard.look(picture(), ["what is red", "what is blue"], budget=9, eye=Toy())
    red, blue = ({x.allocator: x for x in record.looks if x.question == q} for q in (0, 1))
    assert red["top"].nearest_quarter == blue["top"].nearest_quarter == 1
    assert blue["top"].allocation.anchor[0].tolist() == [r * 17 + c for r in (7, 8, 9) for c in (13, 14, 15)]
    for blind in ("divprune", "grid", "pool", "random"):
        assert red[blind].steps == blue[blind].steps
    assert red["pool"].nearest_quarter == pytest.approx(0.25, abs=0.06)


def test_nearest_quarter_is_the_share_of_the_budget_on_the_best_quarter():
    tokens = VisualTokens(torch.arange(8.0).view(1, 8, 1), torch.rand(1, 8, 4))
    question = Question(torch.ones(1, 1, 1))
    spread = regard.Allocation.select(torch.tensor([[0, 3, 6, 7]]), 8)
    assert nearest_quarter(tokens, question, spread) == 0.5
    merged = regard.Allocation.merge(torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]]), 2)
    assert nearest_quarter(tokens, question, merged) == pytest.approx(0.25)


def test_keep_is_a_fraction_and_macs_fall():
    record = regard.look(picture(), "what is red", keep=0.5, allocators=["top"], eye=Toy())
    (look,) = record.looks
    assert look.budget == look.tokens_out == 94
    assert 0.5 < look.macs_after / look.macs_before < 0.7
    everything = regard.look(picture(), "what is red", budget=10_000, allocators=["top"], eye=Toy()).looks[0]
    assert everything.tokens_out == 187
    assert everything.macs_after == everything.macs_before


def test_the_seed_reaches_those_who_draw():
    def kept(seed: int):
        return regard.look(picture(), "what is red", allocators=["random"], eye=Toy(), seed=seed).looks[0]

    assert kept(1).steps == kept(1).steps
    assert kept(1).steps != kept(2).steps
    assert kept(2).fields == {"seed": 2}


def test_an_allocator_object_and_progress():
    stages = []
    record = regard.look(picture(), "what is red", allocators=[load("grid")], eye=Toy(), progress=stages.append)
    assert record.looks[0].allocator == "grid"
    assert stages == ["read", "encode", "decide: grid"]
    assert set(record.seconds) == {"read", "encode"}


def test_two_allocators_of_one_name_are_told_apart():
    both = [load("random", seed=1), load("random", seed=2), load("grid")]
    record = regard.look(picture(), "what is red", budget=9, allocators=both, eye=Toy())
    assert [look.allocator for look in record.looks] == ["random", "random-2", "grid"]
    assert regard.look(picture(), "what is red", allocators="grid", eye=Toy()).looks[0].allocator == "grid"


@dataclass(frozen=True)
class Far(Grid):
    """An allocator of nobody's catalogue, with fields that JSON does not know."""

    far: float = float("inf")
    where: torch.device = field(default_factory=lambda: torch.device("cpu"))


def test_fields_that_json_does_not_know_are_written_out():
    record = regard.look(picture(), "what is red", allocators=[Far()], eye=Toy())
    assert record.looks[0].allocator == "Far"
    assert record.looks[0].fields == {"far": "inf", "where": "device(type='cpu')"}
    assert Record.from_json(record.to_json()) == record


def look_toy(image=None, question: object = "what is red", **options):
    return regard.look(image or picture(), question, eye=Toy(), **options)  # pyright: ignore[reportArgumentType]


MISTAKES = {
    "the question is empty": (DataError, lambda: look_toy(question=" \n")),
    "the question is empty: ask": (DataError, lambda: look_toy(question=[])),
    "at least 1 token, got 0": (BudgetError, lambda: look_toy(budget=0)),
    "at least 1 token, got -1": (BudgetError, lambda: look_toy(budget=-1)),
    "over 0 and at most 1, got 1.5": (BudgetError, lambda: look_toy(keep=1.5)),
    "over 0 and at most 1, got nan": (BudgetError, lambda: look_toy(keep=float("nan"))),
    "got '0.1'": (BudgetError, lambda: look_toy(keep="0.1")),
    "the question is empty: ask in words": (DataError, lambda: look_toy(question=None)),
    "not both": (BudgetError, lambda: look_toy(keep=0.5, budget=4)),
    "no allocator is named 'best'": (ModelError, lambda: look_toy(allocators=["best"])),
    "none.jpg": (ImageError, lambda: look_toy(image="none.jpg")),
}


@pytest.mark.parametrize("says", MISTAKES)
def test_mistakes_are_one_line_that_says_what(says: str):
    kind, act = MISTAKES[says]
    with pytest.raises(kind, match=says) as raised:
        act()
    assert isinstance(raised.value, RegardError)
    assert "\n" not in str(raised.value)


def test_heat_maps_light_what_is_kept():
    record = regard.look(picture(), "what is blue", budget=9, allocators=["top"], eye=Toy())
    heat = np.asarray(heat_map(record, record.looks[0])).astype(int)
    assert heat.shape == (110, 170, 3)
    inside, outside = heat[75:95, 135:155].mean(axis=(0, 1)), heat[10:60, 10:60].mean(axis=(0, 1))
    assert inside.sum() > 1.7 * outside.sum()
    relevance = np.asarray(relevance_map(record, 0)).astype(int)
    assert relevance[75:95, 135:155].sum() > relevance[0:20, 0:20].sum()
    photo = preview(record)
    assert photo.size == (170, 110)
    assert Image.open(io.BytesIO(base64.b64decode(record.picture.preview))).format == "JPEG"


def test_the_sheet_has_a_row_a_question():
    record = regard.look(picture(), ["what is red", "what is blue"], budget=9, eye=Toy())
    one = regard.look(picture(), ["what is red"], budget=9, eye=Toy())
    assert sheet(record).height > 1.9 * sheet(one).height


def test_the_table_has_the_figures():
    from rich.console import Console

    record = regard.look(picture(), ["what is red", "what is [b]blue"], budget=9, eye=Toy())
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(record))
    text = console.export_text()
    assert text.count("187 → 9") == len(record.looks)
    assert "what is [b]blue" in text
    assert text.count("100%") == 2
    assert "Qwen2.5-7B" in text


def test_a_large_photo_gets_a_small_preview(tmp_path: Path):
    Image.new("RGB", (2100, 700), "red").save(tmp_path / "large.jpg")
    record = regard.look(tmp_path / "large.jpg", "what is red", allocators=["grid"], eye=Toy())
    assert preview(record).size == (1024, 341)
    assert (record.picture.width, record.picture.height, record.picture.name) == (2100, 700, "large.jpg")
