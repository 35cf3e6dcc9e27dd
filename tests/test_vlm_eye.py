"""A real model's own encoder and words as an eye: to look with, to calibrate, and in the example."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from PIL import Image

import regard
import tiny_processors
from regard import cli
from regard.allocate import catalogue
from regard.bench.calibrate import calibrate, named_photos
from regard.vlm.eye import VlmEye
from regard.vlm.processors import load_model, load_processor

FAMILIES = "llava llava_next qwen2_vl qwen2_5_vl qwen3_vl smolvlm idefics3 internvl paligemma".split()
COLOURS = {"cat": (250, 40, 40), "coffee": (40, 250, 40), "cup": (40, 40, 250), "red": (250, 250, 250)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("eyes")
    (place / "photos").mkdir()
    for name, rgb in COLOURS.items():
        Image.new("RGB", (90, 70), rgb).save(place / "photos" / f"{name}.png")
    return place


@pytest.fixture(scope="module")
def eye(folder):
    def get(name: str, sign: Literal[1, -1] = 1) -> VlmEye:
        path = folder / name if (folder / name).exists() else tiny_processors.build(name, folder)
        return VlmEye(load_model(path), load_processor(path), sign)

    return get


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's own processor
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_looks_with_every_allocator(eye, folder, name):
    looker = eye(name)
    photo = regard.load_image(folder / "photos" / "cat.png")
    tokens = looker.look(photo)
    assert tokens.aligned is not None
    assert torch.allclose(tokens.aligned.norm(dim=2), torch.ones(1))
    record = regard.look(photo, ["where is the cat ?", "a cup of coffee"], budget=4, eye=looker)
    fed = set(catalogue()) if tokens.grid else set(catalogue()) - {"fovea", "grid", "pool", "relevance"}
    assert {look.allocator for look in record.looks} == fed
    assert {look.tokens_out for look in record.looks} == {min(4, tokens.features.shape[1])}
    assert record.eye.startswith(name)
    away = eye(name, sign=-1)
    near = tokens.relevance(looker.ask("a cup of coffee"))
    assert torch.allclose(away.look(photo).relevance(away.ask("a cup of coffee")), -near, atol=1e-6)


def test_a_model_can_be_calibrated(eye, folder):
    pool = named_photos(folder / "photos")
    towards, away = calibrate(eye("qwen2_5_vl"), pool, 12), calibrate(eye("qwen2_5_vl", sign=-1), pool, 12)
    assert towards.above == pytest.approx(1 - away.above)
    assert towards.names == 4


def typed(monkeypatch, capsys, *line: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["regard", *map(str, line)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exited:
        cli.main()
        raise SystemExit(0)
    out = capsys.readouterr()
    return int(exited.value.code or 0), out.out, out.err


def test_calibrate_from_the_command_line(eye, folder, monkeypatch, capsys):
    eye("smolvlm")
    line = ["calibrate", "--model", folder / "smolvlm", "--photos", folder / "photos", "--tasks", 8]
    code, out, _ = typed(monkeypatch, capsys, *line)
    assert code == 0
    assert "8 mosaics of 4 names" in out
    assert "relevance" in out
    code, out, _ = typed(monkeypatch, capsys, *line, "--json", "--quiet")
    found = json.loads(out)
    assert code == 0
    assert found["sign"] in (-1, 0, 1)
    assert found["interval"][0] <= found["above"] <= found["interval"][1]


def test_calibrate_says_what_is_wrong_in_one_line(folder, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (9, 9)).save(tmp_path / "dog.png")
    for photos, what in ((tmp_path / "none", "no folder"), (tmp_path, "4 different things")):
        code, _, err = typed(monkeypatch, capsys, "calibrate", "--photos", photos)
        assert code == 1
        assert err.startswith("regard: ")
        assert what in err
        assert err.count("\n") == 1
    line = ["calibrate", "--photos", folder / "photos", "--model", tmp_path / "nowhere"]
    code, _, err = typed(monkeypatch, capsys, *line)
    assert code == 1
    assert err.count("\n") == 1


def test_the_example_runs(eye, folder, tmp_path, monkeypatch, capsys):
    """examples/real_vlm.py with a tiny model in the place of those that it names."""
    eye("qwen2_5_vl")
    examples = Path(__file__).parent.parent / "examples"
    monkeypatch.syspath_prepend(str(examples))
    spec = importlib.util.spec_from_file_location("real_vlm", examples / "real_vlm.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert "NOT RUN BY US YET" in (example.__doc__ or "")
    monkeypatch.setattr(example, "KEPT", [0.5])
    monkeypatch.setattr(example, "ALLOCATORS", ["divprune", "visionzip"])
    monkeypatch.setattr("regard.vlm.ask.ROUNDS", 1)
    out = tmp_path / "out"
    line = ["real_vlm", "--model", str(folder / "qwen2_5_vl"), "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    example.main()
    printed = capsys.readouterr().out
    assert "100 %" in printed
    assert "visionzip" in printed
    assert sorted(path.name for path in (out / "qwen2_5_vl").iterdir()) == ["report-50%.html"]
