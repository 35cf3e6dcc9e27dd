"""What regard bench dynamic makes of runs, and that the commands give the recipes what they say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from regard.bench import dynamic
from regard.errors import DataError
from regard.train.data import Data
from regard.train.dynamic import train, train_backbone
from regard.train.loop import Recipe

SIZES: dict[str, Any] = {
    "vision": {"image_size": 28, "channels": 1, "patch_size": 7, "dim": 16, "depth": 4, "heads": 2, "hidden": 16},
    "classes": 10,
}
ERRORS = {"plain": 10.0, "longer": 9.0, "pruned": 9.4, "fused": 9.6}


def task(name: str = "fashion", told: object = None) -> Data:
    images, labels = torch.zeros(80, 1, 28, 28, dtype=torch.uint8), torch.arange(80) % 10
    return Data(name, 80, lambda index, generator: (images[index], labels[index]), images, labels, tuple("abcdefghij"))


@pytest.fixture
def runs(tmp_path) -> Path:
    recipe = Recipe(1, batch=40)
    train_backbone(SIZES, task(), recipe, tmp_path / "plain")
    train("vit", tmp_path / "plain", {}, task(), recipe, tmp_path / "longer")
    train("dynamicvit", tmp_path / "plain", {"keep": 0.5}, task(), recipe, tmp_path / "pruned")
    train("evit", tmp_path / "plain", {"keep": 0.5}, task(), recipe, tmp_path / "fused")
    for name, error in ERRORS.items():
        metrics = {"test_error": error, "macs": 50.0 if name == "pruned" else 100.0}
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
    return tmp_path


def test_errors_are_over_the_plain_one_that_was_trained_as_long(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic, "data", task)
    monkeypatch.setattr(dynamic, "sized", lambda rounds: [])
    monkeypatch.chdir(tmp_path)
    dynamic.main(runs, 1)
    written = json.loads((tmp_path / "results" / "dynamic.json").read_text())
    rows = {row["name"]: row for row in written["rows"]}
    assert rows["pruned, error over the plain one's"]["value"] == pytest.approx(0.4)
    assert rows["pruned, error over the plain one's"]["met"]
    assert rows["fused, error over the plain one's"]["value"] == pytest.approx(0.6)
    assert not rows["fused, error over the plain one's"]["met"]
    assert rows["pruned, MACs / plain"]["value"] == 0.5
    assert rows["longer, error"]["value"] == 9.0
    assert "longer, MACs / plain" not in rows
    for size in ("1", "64"):
        assert rows[f"fused, time / plain, batch {size}"]["value"] > 0
    assert written["notes"]["pruned"]["keep"] == 0.5


def test_runs_without_any_are_named(tmp_path):
    with pytest.raises(DataError, match="holds no plain run with another made of it"):
        dynamic.main(tmp_path)


def test_time_is_set_against_macs(monkeypatch):
    from regard.attention.vision import VisionTransformer
    from regard.mechanisms.dynamic import wrap

    vision = VisionTransformer(28, 7, 16, 4, 2, 16, channels=1)
    models: Any = {"a": wrap(vision, "vit").eval(), "b": wrap(vision, "evit", keep=0.5).eval()}
    monkeypatch.setattr(dynamic, "medians", lambda work, rounds: {"a": 2.0, "b": 1.0})
    images = torch.rand(3, 1, 28, 28)
    rows = dynamic.timed(models, "a", {"3": [images]}, 1)
    share = int(models["b"].look(images[:1]).macs) / models["a"].full_macs(28, 28)
    assert [row.value for row in rows] == pytest.approx([0.5, 0.5 / share])


def test_the_commands_give_the_recipes_what_they_say(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from regard.cli import _train_vit, app

    noted: list[Any] = []
    monkeypatch.setattr(_train_vit, "_run", lambda task, folder, quiet, learn: learn("data", "tell"))
    monkeypatch.setattr("regard.train.dynamic.train", lambda *given: noted.append(given))
    monkeypatch.setattr("regard.train.dynamic.train_backbone", lambda *given: noted.append(given))
    out, base = str(tmp_path / "out"), str(tmp_path / "base")
    for line in (
        "vit --dim 32 --depth 4 --epochs 3 --seed 2",
        f"vit --backbone {base}",
        f"dynamicvit --backbone {base} --keep 0.6 --ratio 3 --distill 1",
        f"evit --backbone {base} --rate 0.1",
        f"avit --backbone {base} --gate 4 --centre 2 --ponder 0.5 --prior 0.25 --depth 0.5",
    ):
        result = CliRunner().invoke(app, ["train", *line.split(), "--out", out])
        assert result.exit_code == 0, result.output
    plain, again, pruned, fused, halted = noted
    assert plain[0]["vision"] == {
        "image_size": 28, "channels": 1, "patch_size": 4, "dim": 32, "depth": 4, "heads": 2, "hidden": 128,
    }  # fmt: skip
    assert (plain[2].epochs, plain[2].seed) == (3, 2)
    assert [given[0] for given in (again, pruned, fused, halted)] == ["vit", "dynamicvit", "evit", "avit"]
    assert all(given[1] == Path(base) for given in (again, pruned, fused, halted))
    assert (pruned[2], pruned[-2]) == ({"keep": 0.6}, (3.0, 1.0))
    assert fused[4].rate == 0.1
    assert (halted[2], *halted[-2:]) == ({"gate": 4.0, "centre": 2.0}, (0.5, 0.25), 0.5)
