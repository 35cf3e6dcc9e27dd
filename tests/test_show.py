"""What a mechanism looked at, drawn from its Record: the path, the animation, and the command that makes them."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regard.errors import DataError
from regard.mechanisms.recurrent import RecurrentAttention
from regard.record import Record
from regard.report.glimpses import CAPTION, animation, caption, path
from regard.train.checkpoint import LAST
from regard.train.loop import Recipe
from regard.train.recurrent import train
from test_train import ARGUMENTS, toy


@pytest.fixture(scope="module")
def record() -> Record:
    torch.manual_seed(1)
    model = RecurrentAttention(4, 3, glimpses=3, glimpse=8, hidden=8)
    array = np.random.default_rng(1).integers(100, 256, (40, 60, 3), dtype=np.uint8)
    return model.see(Image.fromarray(array), labels=("w", "x", "y", "z"), seed=5).record


def light(picture: Image.Image, box: tuple[float, ...]) -> float:
    """How bright the inside of a box is, 0 to 255, away from its edges."""
    w, h = picture.width, picture.height - CAPTION
    x0, y0, x1, y1 = (round(side * scale) for side, scale in zip(box, (w, h, w, h), strict=True))
    grey = np.asarray(picture.convert("L"))[y0 + 4 : y1 - 4, x0 + 4 : x1 - 4]
    return float(np.median(grey))


def test_what_was_read_is_lit_and_the_rest_dark(record):
    drawn = path(record)
    assert max(drawn.size) == 560
    for box in record.boxes:
        assert light(drawn, box) > 120
    covered = np.zeros((373, 560), dtype=bool)
    for x0, y0, x1, y1 in record.boxes:
        covered[int(y0 * 373) - 3 : int(y1 * 373) + 3, int(x0 * 560) - 3 : int(x1 * 560) + 3] = True
    outside = np.asarray(drawn.convert("L"))[:373][~covered]
    assert np.median(outside) < 80


def test_the_animation_adds_one_stage_after_the_other(record):
    film: Any = Image.open(io.BytesIO(animation(record)))
    assert film.n_frames == 4  # three glimpses, and what it made of them
    assert film.info.get("loop") == 0
    first, last = record.boxes[0], record.boxes[2]
    film.seek(0)
    assert light(film.convert("RGB"), first) > 120
    lit = [light(film.convert("RGB"), last)]
    film.seek(2)
    lit.append(light(film.convert("RGB"), last))
    assert lit[1] > 120
    overlap = first[0] < last[2] and last[0] < first[2] and first[1] < last[3] and last[1] < first[3]
    assert overlap or lit[0] < 80


def test_a_mechanism_that_narrows_loses_light(record):
    trace = replace(record.trace, narrows=True)
    film: Any = Image.open(io.BytesIO(animation(replace(record, trace=trace))))
    lit = []
    for frame in range(trace.exit + 1):
        film.seek(frame)
        lit.append(float((np.asarray(film.convert("L"))[:-CAPTION] > 90).mean()))
    assert lit[0] > lit[1] > lit[2]
    assert trace.read_at(0) == (True, True, True)
    assert trace.read_at(2) == (False, False, True)
    assert record.trace.read_at(0) == (True, False, False)


def test_the_caption_says_what_and_at_what_cost(record):
    trace = record.trace
    text = caption(trace)
    assert text.startswith(f"ram: {trace.answer} (")
    assert f"{trace.tokens} tokens" in text
    assert "of all" in text
    assert trace.answer in "wxyz"
    assert "1.29 G MACs" in caption(replace(trace, macs=1_290_000_000))
    other = replace(trace, macs_full=0)
    assert "of all" not in caption(other)


def test_a_record_without_a_trace_is_refused(record):
    with pytest.raises(DataError, match="has no trace"):
        path(replace(record, trace=None))


@pytest.mark.parametrize(
    "change",
    [
        {"stages": (0, 1)},
        {"stages": (0, 1, 7)},
        {"probabilities": (0.5, 1.5)},
        {"fixations": ((0.5, 1.2),)},
        {"labels": ("one",)},
        {"macs": -1},
    ],
)
def test_a_trace_that_does_not_fit_is_no_record(record, change):
    data = json.loads(record.to_json())
    data["trace"] |= change
    with pytest.raises(DataError, match="not a record"):
        Record.from_json(json.dumps(data))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(ARGUMENTS, toy(), Recipe(epochs=1, batch=8), folder)
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("image") / "one.png"
    Image.new("RGB", (20, 16), "red").save(place)
    return place


def test_show_writes_three_files(regard, run, image, tmp_path):
    code, out, _ = regard("show", run, image, "--out", tmp_path / "seen", "--fixation", "0.3,0.7")
    assert code == 0
    assert out.startswith("ram: ")
    assert sorted(p.name for p in (tmp_path / "seen").iterdir()) == ["glimpses.png", "path.png", "record.json"]
    trace = Record.load(tmp_path / "seen" / "record.json").trace
    assert trace is not None
    assert trace.fixations[0] == (0.3, 0.7)
    assert trace.labels == ("a", "b", "c")


def test_the_first_fixation_of_a_file_is_where_it_looks(regard, run, image, tmp_path):
    file = tmp_path / "gaze.csv"
    file.write_text("time,x,y\n0.1,0.25,0.75\n0.2,0.5,0.5\n")
    code, _, _ = regard("show", run, image, "--out", tmp_path / "seen", "--fixations", file)
    assert code == 0
    trace = Record.load(tmp_path / "seen" / "record.json").trace
    assert trace is not None
    assert trace.fixations[0] == (0.25, 0.75)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "cannot read the fixations"),
        ("a,b\n1,2\n", "must have columns x and y, it has a, b"),
        ("x,y\n0.5,1.5\n", "line 2: x and y must be numbers in [0, 1], got '1.5'"),
        ("x,y\n", "has no fixation"),
        ("", "must have columns x and y"),
        ("x,y\n0.5,\x00\n", "gaze.csv"),
    ],
)
def test_a_file_of_fixations_that_cannot_be_read_is_one_line(regard, run, image, tmp_path, text, line):
    file = tmp_path / "gaze.csv"
    if text is not None:
        file.write_text(text)
    code, _, err = regard("show", run, image, "--out", tmp_path / "seen", "--fixations", file)
    assert code == 1
    assert line in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "seen").exists()


def test_a_fixation_is_given_once(regard, run, image, tmp_path):
    code, _, err = regard("show", run, image, "--fixation", "0.5,0.5", "--fixations", tmp_path / "gaze.csv")
    assert code == 2
    assert "give one of them" in err


@pytest.mark.parametrize(
    ("more", "code", "line"),
    [
        (["--fixation", "0.3"], 2, "--fixation must be x,y"),
        (["--fixation", "1.3,0"], 2, "from 0 to 1"),
        (["--fixation", "nan,0"], 2, "from 0 to 1"),
    ],
)
def test_a_fixation_that_cannot_be(regard, run, image, tmp_path, more, code, line):
    got, _, err = regard("show", run, image, "--out", tmp_path / "seen", *more)
    assert got == code
    assert line in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "seen").exists()


def test_what_is_not_there_or_cut_short_is_one_line(regard, run, image, tmp_path):
    (tmp_path / LAST).write_bytes((run / LAST).read_bytes()[:300])
    for place, line in ((tmp_path / "none", "there is no checkpoint"), (tmp_path, "cut short")):
        code, _, err = regard("show", place, image, "--out", tmp_path / "seen")
        assert code == 1
        assert line in err
        assert len(err.strip().splitlines()) == 1
