"""`regard ask --tiles` on tiny Qwen models: the image cut into tiles, each a picture of its own in the prompt."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

import regard
import tiny_processors
from regard import BudgetError, DataError, ModelError, Record, cli
from regard.relevance.budget import LADDER
from regard.relevance.realizer import plan_tiles
from regard.relevance.tensions import States
from regard.report.page import page
from regard.report.table import answers_table
from regard.vlm import catalogue, family_of
from regard.vlm.chat import chat_inputs
from regard.vlm.eye import VlmEye
from regard.vlm.opened import opened
from regard.vlm.processors import load_config, load_model, load_processor
from regard.vlm.tiled import token_pixels

QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
OTHERS = ["llava", "llava_next", "smolvlm", "idefics3", "internvl", "paligemma"]
QUESTION = "where is the cat ?"
SIDE = 8  # pixels of a token of the tiny models


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One round, and no threads that wait for each other."""
    monkeypatch.setattr("regard.vlm.ask.ROUNDS", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("tiled")
    photo(330, 250).save(place / "a.png")
    return place


@pytest.fixture(scope="module")
def saved(folder: Path):
    """The folder of a family's tiny model and of its processor."""

    def get(name: str) -> Path:
        return folder / name if (folder / name).exists() else tiny_processors.build(name, folder)

    return get


@pytest.fixture(scope="module")
def loaded(saved):
    """A model, and a processor that gives a whole image 25 tokens at most."""
    kept: dict[str, Any] = {}

    def get(name: str) -> tuple[Any, Any]:
        if name not in kept:
            kept[name] = load_model(saved(name), device="cpu")
        return kept[name], load_processor(saved(name))

    return get


@pytest.fixture
def typed(monkeypatch, capsys, tmp_path):
    """Run the command line in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run(*line: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["regard", "ask", *map(str, line)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            cli.main()
            raise SystemExit(0)
        out = capsys.readouterr()
        return int(exited.value.code or 0), out.out, out.err

    return run


def photo(width: int, height: int) -> PIL.Image.Image:
    """Quiet, with a busy part at the lower right."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 90 // width, y * 90 // height, (x + y) * 60 // (width + height)], axis=2)
    busy = rng.integers(0, 256, (height - 2 * height // 3, width - 2 * width // 3, 3))
    pixels[2 * height // 3 :, 2 * width // 3 :] = busy
    return PIL.Image.fromarray(pixels.astype("uint8"))


def any_pixels(processor: Any) -> Any:
    """The processor, taking images of any size as they are."""
    processor.image_processor.size = {"shortest_edge": SIDE**2, "longest_edge": 10**7}
    return processor


def generated(model: Any, processor: Any, images: list[PIL.Image.Image], new: int) -> tuple[str, int]:
    """What the model's own `generate` says of images as its processor takes them, and their tokens."""
    inputs = chat_inputs(opened(model), processor, images, QUESTION)
    with torch.no_grad():
        out = model.generate(**inputs, do_sample=False, max_new_tokens=new)[0, inputs["input_ids"].shape[1] :]
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
    return processor.tokenizer.decode(out, skip_special_tokens=True).strip(), visual


@pytest.mark.parametrize("name", QWEN)
def test_the_answer_is_the_models_own_to_the_tiles_as_pictures(name: str, loaded):
    model, processor = loaded(name)
    image = photo(330, 250)
    asked = regard.ask(model, processor, image, QUESTION, tiles=700, max_new_tokens=6)
    whole, tiled = asked.answers
    assert (whole.allocator, tiled.allocator) == (None, "tiles")
    assert whole.visual_tokens <= 25
    assert len(asked.tiles) > 1
    assert all(tile.tokens in LADDER for tile in asked.tiles)
    assert all(tile.crop.width * tile.crop.height == tile.tokens * SIDE**2 for tile in asked.tiles)
    text, visual = generated(model, any_pixels(load_processor(model.config.name_or_path)), crops_of(asked), 6)
    assert tiled.text == text != whole.text
    assert tiled.visual_tokens == visual == sum(tile.tokens for tile in asked.tiles) <= 700
    words = whole.prompt_tokens - whole.visual_tokens - 2  # START and END about each picture
    assert tiled.prompt_tokens == visual + words + 2 * len(asked.tiles)
    assert tiled.new_tokens == 6


def crops_of(asked: Any) -> list[PIL.Image.Image]:
    return [tile.crop for tile in asked.tiles]


@pytest.mark.parametrize("name", QWEN)
def test_the_plan_is_made_of_the_models_own_eye_and_words(name: str, loaded):
    model, processor = loaded(name)
    processor = any_pixels(processor)  # the whole image has 30 x 22 tokens
    image = photo(240, 180)
    plans = {}
    for sign in (1, -1):
        eye = VlmEye(model, processor, sign)  # pyright: ignore[reportArgumentType]
        for states in (States(), States(0.0, 0.0, 0.0)):
            plan = plan_tiles(eye.look(image), eye.ask(QUESTION), 700, aspect=240 / 180, states=states)
            options: dict[str, Any] = {"sign": sign, "states": states, "max_new_tokens": 1}
            asked = regard.ask(model, processor, image, QUESTION, tiles=700, **options)
            assert [tile.tokens for tile in asked.tiles] == plan.counts[0].tolist()
            assert torch.allclose(torch.tensor([tile.box for tile in asked.tiles]), plan.boxes[0], atol=1e-5)
            plans[sign, bool(states.fixed)] = plan.counts[0].tolist()
    turned = [plans[1, fixed] != plans[-1, fixed] for fixed in (True, False)]
    assert any(turned), "the sign changes nothing, so this would not see that it is lost"
    assert plans[1, True] != plans[1, False], "nor would this that the states are"


@pytest.mark.parametrize("name", QWEN)
def test_one_tile_of_an_image_at_its_own_size_is_the_plain_image(name: str, loaded, monkeypatch):
    model, processor = loaded(name)
    processor.image_processor.size = {"shortest_edge": 64 * SIDE**2, "longest_edge": 64 * SIDE**2}
    image = photo(8 * SIDE, 8 * SIDE)
    prompts = []
    made = chat_inputs

    def noted(*args: Any, **options: Any) -> dict[str, Any]:
        prompts.append(made(*args, **options))
        return prompts[-1]

    monkeypatch.setattr("regard.vlm.ask.chat_inputs", noted)
    monkeypatch.setattr("regard.vlm.tiled.chat_inputs", noted)
    asked = regard.ask(model, processor, image, QUESTION, tiles=99, max_new_tokens=8)
    whole, tiled = asked.answers
    plain, cut = prompts
    assert plain.keys() == cut.keys()
    assert all(torch.equal(plain[key], cut[key]) for key in plain)
    assert tiled.text == whole.text == generated(model, processor, [image], 8)[0]
    assert (tiled.visual_tokens, tiled.prompt_tokens) == (whole.visual_tokens, whole.prompt_tokens)
    assert tiled.visual_tokens == 64
    assert asked.tiles[0].box == (0, 0, 1, 1)


def test_a_wide_photo_is_cut_into_columns_and_a_high_one_into_rows(loaded):
    model, processor = loaded("qwen2_vl")
    for size, cuts in (((400, 100), (4, 1)), ((100, 400), (1, 4))):
        asked = regard.ask(model, processor, photo(*size), QUESTION, tiles=640, max_new_tokens=1)
        assert tuple(len({tile.box[side] for tile in asked.tiles}) for side in (0, 1)) == cuts


def test_to_look_to_plan_and_to_cut_is_to_decide(loaded, monkeypatch):
    model, processor = loaded("qwen2_5_vl")
    slow(monkeypatch, "regard.vlm.tiled.plan_tiles", 0.2)
    slow(monkeypatch, "regard.vlm.tiled.crops", 0.2)
    slow(monkeypatch, "regard.vlm.tiled.chat_inputs", 0.2)
    slow(monkeypatch, "regard.vlm.family.Family.encode", 0.2)
    whole, tiled = regard.ask(model, processor, photo(90, 90), QUESTION, tiles=64, max_new_tokens=2).answers
    assert whole.seconds["decide"] == 0
    assert 0.2 <= whole.seconds["vision"] < 0.4
    assert 0.8 <= tiled.seconds["decide"] < 1.2
    assert 0.2 <= tiled.seconds["vision"] < 0.4


def slow(monkeypatch, place: str, seconds: float) -> None:
    module, _, name = place.rpartition(".")
    owner: Any = sys.modules.get(module) or getattr(sys.modules[module.rpartition(".")[0]], module.rpartition(".")[2])
    plain = getattr(owner, name)

    def late(*args: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return plain(*args, **options)

    monkeypatch.setattr(owner, name, late)


def test_memory_is_counted_from_before_the_plan(loaded, monkeypatch):
    model, processor = loaded("qwen2_vl")
    made = plan_tiles

    def hungry(*args: Any, **options: Any) -> Any:
        held = torch.ones(50_000_000)
        del held
        return made(*args, **options)

    monkeypatch.setattr("regard.vlm.tiled.plan_tiles", hungry)
    whole, tiled = regard.ask(model, processor, photo(90, 90), QUESTION, tiles=64, max_new_tokens=2).answers
    if whole.memory_peak is None or whole.memory_before is None or tiled.memory_peak is None:
        pytest.skip("this system does not tell a process its peak")
    assert tiled.memory_peak - (tiled.memory_before or 0) > 190e6 > whole.memory_peak - whole.memory_before


def test_tiles_alone_have_no_look_and_still_a_record_and_a_page(loaded):
    model, processor = loaded("qwen3_vl")
    asked = regard.ask(model, processor, photo(330, 250), QUESTION, tiles=400, max_new_tokens=2)
    (record,) = asked.records
    assert record.looks == ()
    assert [answer.allocator for answer in record.answers] == [None, "tiles"]
    assert len(record.boxes) == record.answers[0].visual_tokens
    assert len(record.relevance[0]) == len(record.boxes)
    assert record.made["tiles"].startswith(f"{len(asked.tiles)} of ")
    assert Record.from_json(record.to_json()) == record
    assert '"name":"tiles"' in page(record)
    answers_table(record)


def test_allocators_answer_beside_tiles(loaded):
    model, processor = loaded("qwen2_5_vl")
    progress: list[str] = []
    options: dict[str, Any] = {"tiles": 128, "max_new_tokens": 2, "progress": progress.append}
    image = photo(90, 130)
    asked = regard.ask(model, processor, image, QUESTION, budget=5, compare=["top", "relevance"], **options)
    assert [answer.allocator for answer in asked.answers] == [None, "top", "relevance", "tiles"]
    assert [look.allocator for look in asked.records[0].looks] == ["top", "relevance"]
    assert progress[2:] == [f"answer: {name}" for name in ("all tokens", "top", "relevance", "tiles")]
    assert [a.visual_tokens for a in asked.answers[1:3]] == [5, 5]
    asked = regard.ask(model, processor, image, QUESTION, allocator="top", **options)
    assert [a.allocator for a in asked.answers] == [None, "top", "tiles"]
    assert asked.answers[1].visual_tokens == round(asked.answers[0].visual_tokens / 4)
    assert regard.ask(model, processor, image, QUESTION, max_new_tokens=1).tiles == ()


def test_what_a_program_can_get_wrong(loaded, folder: Path):
    model, processor = loaded("qwen2_vl")
    image = folder / "a.png"
    for wrong in (63, 0, -1, True, 64.0, "64"):
        with pytest.raises(BudgetError) as error:
            regard.ask(model, processor, image, QUESTION, tiles=wrong)  # pyright: ignore[reportArgumentType]
        assert "\n" not in str(error.value)
    with pytest.raises(BudgetError, match="the nearest is"):  # more than the tiles of so small a grid take
        regard.ask(model, processor, image, QUESTION, tiles=10**6)
    with pytest.raises(DataError, match="one image is cut into tiles, got 2"):
        regard.ask(model, processor, [image, image], QUESTION, tiles=128)
    for amount in ({"budget": 5}, {"keep": 0.5}):
        with pytest.raises(BudgetError, match="is for allocators"):
            regard.ask(model, processor, image, QUESTION, tiles=128, **amount)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", OTHERS)
def test_families_of_one_size_say_which_can(name: str, loaded, folder: Path):
    model, processor = loaded(name)
    with pytest.raises(ModelError, match="qwen2_5_vl, qwen2_vl, qwen3_vl") as error:
        regard.ask(model, processor, folder / "a.png", QUESTION, tiles=128)
    assert "\n" not in str(error.value)
    assert model.config.model_type in str(error.value)


def test_a_tokens_side_is_that_of_the_vision_configuration(saved):
    assert set(QWEN) | set(OTHERS) == set(catalogue())
    assert [kind for kind in QWEN if family_of(load_config(saved(kind))).any_size] == QWEN
    assert token_pixels(load_config(saved("qwen3_vl"))) == SIDE
    as_published = {kind: token_pixels(transformers.AutoConfig.for_model(kind)) for kind in QWEN}
    assert as_published == {"qwen2_vl": 28, "qwen2_5_vl": 28, "qwen3_vl": 32}


def test_a_processor_that_resizes_all_the_same_is_one_line(loaded, folder: Path, monkeypatch):
    model, processor = loaded("qwen2_vl")
    kind = type(processor.image_processor)
    plain = kind.preprocess
    monkeypatch.setattr(kind, "preprocess", lambda self, *a, **o: plain(self, *a, **{**o, "do_resize": True}))
    with pytest.raises(ModelError, match=r"tiles of 64 tokens were planned and the processor made 25: .*4096.*25600"):
        regard.ask(model, processor, folder / "a.png", QUESTION, tiles=64)
    processor.image_processor.size = {"shortest_edge": 4096, "longest_edge": 25600}  # what the line says
    assert regard.ask(model, processor, folder / "a.png", QUESTION, tiles=64, max_new_tokens=1).tiles[0].tokens == 64


def test_on_the_command_line(saved, folder: Path, typed, tmp_path: Path):
    line = [folder / "a.png", QUESTION, "--model", saved("qwen2_5_vl"), "--max-new-tokens", 3, "--device", "cpu"]
    code, out, err = typed(*line, "--tiles", 640, "--scope", 1, "--tempering", "0.5")
    assert (code, err) == (0, "")
    rows = {row.split("│")[1].strip(): row.split("│")[2:-1] for row in out.splitlines() if row.startswith("│")}
    assert list(rows) == ["all tokens", "tiles"]
    record = Record.load(tmp_path / "regard-ask" / "record.json")
    assert int(rows["tiles"][0]) == record.answers[1].visual_tokens <= 640
    assert f"tiles: {record.answers[1].text or '(nothing)'}" in out
    assert {file.name for file in (tmp_path / "regard-ask").iterdir()} == {"record.json", "report.html"}
    code, out, err = typed(*line, "--tiles", 640, "--compare", "top", "--budget", 5, "--json")
    assert (code, err) == (0, "")
    assert [answer["allocator"] for answer in json.loads(out)["answers"]] == [None, "top", "tiles"]


MISTAKES = {
    "under a tile's least": (["--tiles", "63"], 2, "a tile takes 64 to 400 tokens, got 63"),
    "nothing": (["--tiles", "0"], 2, "at least 1 token, got 0"),
    "a budget for nobody": (["--tiles", "128", "--budget", "5"], 2, "is for allocators"),
    "a state out of range": (["--tiles", "128", "--scope", "2"], 2, "--scope"),
    "a state for nobody": (["--scope", "1"], 2, "--scope is for the allocator relevance"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_loaded(what: str, folder: Path, typed, tmp_path: Path):
    options, exit_code, says = MISTAKES[what]
    code, out, err = typed(folder / "a.png", QUESTION, "--model", "no/such/model", *options)
    assert (code, out) == (exit_code, "")
    assert says in err
    assert err.startswith("regard: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "regard-ask").exists()


def test_several_images_and_other_families_are_refused_before_weights_are_read(
    saved, folder: Path, typed, tmp_path: Path
):
    image, line = folder / "a.png", [QUESTION, "--tiles", "128", "--model"]
    code, _, err = typed(image, image, *line, "no/such/model")
    assert (code, err.count("\n")) == (1, 1)
    assert "one image is cut into tiles, got 2" in err
    (tmp_path / "config.json").write_bytes((saved("llava") / "config.json").read_bytes())
    code, _, err = typed(image, *line, tmp_path)
    assert (code, err.count("\n")) == (1, 1)
    assert "llava do not follow the size of an image" in err
