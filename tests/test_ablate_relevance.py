"""Ways, tensions and mechanisms taken out, on scenes and on rows, and the command `regard ablate`."""

import io
import json
import math
from typing import Any

import pytest
import torch
from PIL import Image

import regard
import tiny_lms
import tiny_processors
from regard.allocate.relevance import Relevance
from regard.bench.ablate import NEUTRAL, Scenes, Shortening, mechanisms, of_relevance, relevance_of, through
from regard.bench.ablations import without
from regard.bench.mechanisms import BLIND
from regard.doctor.ablate import measure
from regard.doctor.answers import OfModel, Row, Task, longer
from regard.errors import ModelError
from regard.record import STATES, WAYS
from regard.relevance.realizer import Realizer
from regard.report.ablation import heads_map
from regard.train.pocket import taught
from regard.vlm.pocket import Pocket
from test_doctor_checks import vlm as made_vlm
from test_pocket import WORDS, sights


@pytest.fixture(scope="module")
def pocket() -> Pocket:
    torch.manual_seed(0)
    return Pocket(WORDS).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_processors.build("llava", tmp_path_factory.mktemp("ablate"))


def test_parts_of_relevance_are_left_out_of_the_realizer_that_is_there():
    trained = Realizer()
    with torch.no_grad():
        trained.field.gain.add_(0.25)
    found = of_relevance(True, True, Relevance(scope=0.2, realizer=trained))
    assert list(found) == [*(f"without {way}" for way in WAYS), *(f"{state} held at 0.5" for state in STATES)]
    for number, way in enumerate(WAYS):
        gain = found[f"without {way}"].realizer.field.gain
        assert float(gain[number].detach()) < -1e3
        assert gain[[n for n in range(3) if n != number]].tolist() == [0.25, 0.25]
        assert found[f"without {way}"].scope == 0.2
    assert trained.field.gain.tolist() == [0.25] * 3
    for state in STATES:
        held = found[f"{state} held at {NEUTRAL}"]
        others = {name: getattr(held, name) for name in STATES if name != state}
        assert getattr(held, state) == 0.5
        assert others == {name: 0.2 if name == "scope" else "auto" for name in others}
        assert held.realizer is trained
    assert of_relevance(False, False, Relevance()) == {}
    assert list(of_relevance(True, False, Relevance())) == [f"without {way}" for way in WAYS]
    assert float(without("perspectival").field.gain.detach()[WAYS.index("perspectival")]) < -1e3


def test_scenes_are_asked_once_each_and_as_they_are_taught(pocket):
    given, vlm = sights(), pocket.vlm("relevance").eval()
    task = list(Scenes(vlm, given, 16))
    images = [image for one in task for image in one.images]
    assert sorted(images) == sorted(f"scene {scene}" for scene in range(6) for _ in range(2))
    said = torch.cat([one.said().bits for one in task])
    batch = given.batch([place for side in given.sides() for place in side])
    loss, right = taught(vlm, batch, 16)
    words = sum(len(answer.split()) + 1 for answer in batch.answers)
    assert float(said.sum()) == pytest.approx(-float(loss) * words / math.log(2), rel=1e-4)
    assert torch.cat([one.said().right for one in task]).tolist() == right.tolist()


def test_another_mechanism_takes_the_place_of_relevance(pocket):
    given, vlm = sights(), pocket.vlm("relevance").eval()
    task = Scenes(vlm, given, 16)
    ways = mechanisms(pocket, ["blind", "qformer", "pool"])
    assert list(ways) == [f"{name} in its place" for name in (*BLIND, "qformer")]
    (asked,) = task
    batch = given.batch([place for side in given.sides() for place in side])
    for name in ("pool", "qformer"):
        loss, _ = taught(pocket.vlm(name).eval(), batch, 16)
        bits = ways[f"{name} in its place"](asked).bits
        words = sum(len(answer.split()) + 1 for answer in batch.answers)
        assert float(bits.sum()) == pytest.approx(-float(loss) * words / math.log(2), rel=1e-4)
    with pytest.raises(ModelError, match="no mechanism 'magic'"):
        mechanisms(pocket, ["magic"])


def test_ways_of_a_model_of_parts(pocket):
    vlm = pocket.vlm("relevance").eval()
    whole = relevance_of(vlm)
    parts = of_relevance(True, True, whole)
    found = measure(Scenes(vlm, sights(), 16), lambda asked: asked.said(), through(vlm, {**parts, "same": whole}))
    effects = {effect.part: effect for effect in found.effects}
    assert effects["same"].bits == effects["same"].bits_low == effects["same"].bits_high == 0
    assert any(effect.bits for effect in found.effects)
    assert vlm.bridge.allocator is whole
    with pytest.raises(ModelError, match="ways and tensions are of relevance, and this model's mechanism is 'pool'"):
        through(made_vlm("pool")[0], {})


def test_ways_of_a_hugging_face_model_are_of_images_encoded_once(folder, monkeypatch):
    from regard.vlm.processors import load_model, load_processor

    model: Any = load_model(folder, device="cpu")
    generator = torch.Generator().manual_seed(3)
    pictures = [
        Image.fromarray(torch.randint(0, 255, (28, 28, 3), generator=generator).byte().numpy()) for _ in range(3)
    ]
    rows = [{"image": picture, "question": "where is the cat ?", "answer": "red"} for picture in pictures]
    calls: list[int] = []
    plain = model.model.get_image_features
    monkeypatch.setattr(model.model, "get_image_features", lambda *a, **k: (calls.append(1), plain(*a, **k))[1])
    processor = load_processor(folder)
    task = Task(model, rows, processor, settled=False)
    allocators = {**of_relevance(True, True, Relevance()), "same": Relevance()}
    short = Shortening(Relevance(), allocators, 9)
    found = measure(task, short.whole, short.ways)
    assert len(calls) == 3
    effects = {effect.part: effect for effect in found.effects}
    assert effects["same"].bits == 0
    assert effects["without participatory"].bits != 0
    for part, allocator in (("", Relevance()), ("without participatory", allocators["without participatory"])):
        bits = []
        for asked in task:
            assert isinstance(asked, OfModel)
            prompt = {**asked.inputs, "input_ids": asked.inputs["input_ids"][:, :-2]}
            prompt["attention_mask"] = prompt["attention_mask"][:, :-2]
            inputs = longer(model, prompt, asked.labels)
            made = regard.shorten(
                model, inputs, allocator, budget=9, question="where is the cat ?", processor=processor
            )
            logits = model(**made).logits[0, -3:-1].double().log_softmax(dim=-1)
            bits.append(
                float(logits.gather(1, asked.labels.T).sum().detach()) / torch.tensor(2.0).double().log().item()
            )
        wanted = sum(bits) / 3 - (found.bits if part else 0)
        assert (effects[part].bits if part else found.bits) == pytest.approx(wanted, abs=1e-4)


def test_the_command_on_rows(regard, folder, tmp_path):
    for name in ("red", "blue"):
        Image.new("RGB", (40, 30), name).save(tmp_path / f"{name}.png")
    rows = [
        {"image": f"{name}.png", "question": "what colour has it ?", "answer": name} for name in ("red", "blue", "none")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = regard("ablate", folder, "--rows", "rows.jsonl", "--each", "head", "--out", "found")
    assert (code, err) == (0, "")
    assert "head 3.1" in out
    assert "2 rows about 2 images" in out
    assert "Skipped 1: " in out
    assert "none.png" in out
    written = json.loads((tmp_path / "found" / "ablation.json").read_text())
    assert len(written["effects"]) == 16
    with Image.open(tmp_path / "found" / "heads.png") as picture:
        assert picture.width > 100
    code, out, err = regard("ablate", folder, "--rows", "rows.jsonl", "--layers", "1,-1", "--json", "--count", 1)
    found = json.loads(out)
    assert (code, err, found["rows"]) == (0, "", 1)
    assert {effect["part"] for effect in found["effects"]} == {"layer 1", "layer 3", "all of these together"}
    code, out, err = regard("ablate", folder, "--rows", "rows.jsonl", "--ways", "--tensions", "--budget", 9, "--json")
    assert (code, err) == (0, "")
    assert len(json.loads(out)["effects"]) == 6
    assert regard("ablate", folder, "--rows", "rows.jsonl", "--heads", "0.1", "--by", "mean", "-q")[:2] == (0, "")
    out = regard("ablate", folder, "--rows", "rows.jsonl", "--layers", "1", "--count", 1)[1]
    assert "Of one image no interval can be told" in out
    code, _, err = regard("ablate", folder, "--rows", "rows.jsonl", "--budget", 9)
    assert code == 2
    assert "--budget is of relevance" in err


def test_the_command_on_scenes(regard, pocket, monkeypatch):
    monkeypatch.setattr("regard.vlm.pocket.pocket", lambda: pocket)
    monkeypatch.setattr("regard.bench.tasks.seen.seen", lambda eye, split, some, folder, told: sights(len(some)))
    code, out, err = regard("ablate", "--count", 4, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["images"], found["rows"]) == (4, 8)
    assert {effect["part"] for effect in found["effects"]} == {f"layer {number}" for number in range(6)}
    code, out, err = regard("ablate", "pocket", "--ways", "--mechanism", "blind", "--count", 3)
    assert (code, err) == (0, "")
    assert "pool in its place" in out
    assert "without participatory" in out
    code, out, err = regard("ablate", "--mechanism", "magic", "--count", 3)
    assert (code, out) == (1, "")
    assert "no mechanism 'magic'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("MODEL",), "nothing to measure on: give --rows FILE.jsonl"),
        (("MODEL", "--rows", "r.jsonl", "--mechanism", "pool"), "--mechanism is for the pocket model"),
        (("--ways", "--each", "head"), "measured apart from attention"),
        (("--ways", "--by", "mean"), "measured apart from attention"),
        (("--each", "head", "--layers", "3"), "--each is all of them"),
        (("--layers", "a"), "--layers must be whole numbers such as 3,5, got 'a'"),
        (("--heads", "3"), "--heads must be LAYER.HEAD such as 3.0,3.5, got '3'"),
        (("--count", "0"), "must be at least 1, got 0 and None"),
        (("--budget", "0"), "must be at least 1, got 50 and 0"),
    ],
)
def test_usage_that_cannot_work(regard, folder, line, words):
    code, out, err = regard("ablate", *(folder if word == "MODEL" else word for word in line))
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_what_a_user_can_mend_is_one_line(regard, folder, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "question": "is it ?"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    for file, words in [
        ("none.jsonl", "there is no file 'none.jsonl' with rows"),
        ("rows.jsonl", "rows.jsonl, line 1 must have an answer in words"),
        ("empty.jsonl", "there are no rows to measure on"),
    ]:
        code, out, err = regard("ablate", folder, "--rows", file)
        assert (code, out) == (1, "")
        assert words in err
        assert err.count("\n") == 1
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "question": "is it ?", "answer": "red"}\n')
    for more, words in [(("--layers", "7"), "has layers 0 to 3"), (("--heads", "0.7"), "has heads 0 to 3")]:
        code, _, err = regard("ablate", folder, "--rows", "rows.jsonl", *more)
        assert code == 1
        assert words in err
    tiny_lms.language_model("llama").save_pretrained(tmp_path / "words")
    code, _, err = regard("ablate", "words", "--rows", "rows.jsonl")
    assert code == 1
    assert "a model of type 'llama' sees no image: give a vision-language model" in err


def test_the_picture_is_red_where_answers_get_less_likely():
    picture = Image.open(io.BytesIO(heads_map({(0, 0): -2.0, (0, 1): 0.0, (1, 0): 2.0}, "zero"))).convert("RGB")
    colours: set[Any] = {colour for _, colour in picture.getcolors(1 << 20) or ()}
    assert any(r > 100 and g < 20 and b < 60 for r, g, b in colours)
    assert any(b > 80 and r < 20 for r, _, b in colours)


def test_rows_keep_their_images_apart():
    red = Image.new("RGB", (8, 8))
    keys = [Row(image, "?", "!").key for image in ("a", "b", b"a", b"b", red, ["a", "b"])]
    assert len(set(keys)) == len(keys)
    assert Row(red, "x", "y").key == Row(red, "z", "y").key
