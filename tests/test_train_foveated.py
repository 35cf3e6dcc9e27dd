"""Gaze, FoveaTer and PerViT learn from a toy search task; what was interrupted goes on; the bench's rows."""

from pathlib import Path
from typing import Any

import pytest
import torch

from regard.bench import foveated as bench
from regard.errors import DataError, ModelError
from regard.mechanisms.foveated import FoveaTer
from regard.mechanisms.gaze_vit import GazeViT, centre_of
from regard.train.checkpoint import LAST, Checkpoint
from regard.train.data import Data
from regard.train.foveated import (
    LOOKS,
    _Kept,
    at_cell,
    drawn,
    mirrored,
    overlapping,
    train_foveater,
    train_gaze,
    train_pervit,
)
from regard.train.loop import Recipe

SIDE, COUNT = 64, 96
GAZE: dict[str, Any] = {
    "classes": 2,
    "channels": 1,
    "dim": 16,
    "depth": 1,
    "heads": 2,
    "strides": [1, 2],
    "grids": [2, 3],
    "token": 4,
}
GAZE |= {"view": 16}
FOVEA: dict[str, Any] = {"classes": 2, "channels": 1, "dim": 16, "depth": 1, "heads": 2, "levels": 2, "glimpses": 2}


def toy(boxes: bool = True, side: int = SIDE) -> Data:
    """A bright or a dark square of 8 pixels on grey noise."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(0, side - 8, (COUNT, 2), generator=generator)
    images = torch.randint(100, 156, (COUNT, 1, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.randint(2, (COUNT,), generator=generator)
    for place, (x, y) in enumerate(corner.tolist()):
        images[place, :, y : y + 8, x : x + 8] = 255 * int(labels[place])
    places = torch.cat((corner, corner + 8), dim=1) / side
    known: dict[str, Any] = {"boxes": places.__getitem__, "test_boxes": places} if boxes else {}
    return Data(
        "toy", COUNT, lambda index, _: (images[index], labels[index]), images, labels, ("dark", "bright"), **known
    )


def test_a_gaze_learns_and_goes_on(tmp_path):
    data, recipe = toy(), Recipe(8, 0, 16, 1e-2)
    whole = train_gaze(GAZE, data, recipe, tmp_path / "whole")
    figures = bench.tested(whole, data, at_boxes=True)
    assert figures["right"] > 95

    class StopError(Exception):
        pass

    def tell(epoch: int, done: int, loss: float, accuracy: float) -> None:
        if epoch == 3:
            raise StopError

    with pytest.raises(StopError):
        train_gaze(GAZE, data, recipe, tmp_path / "cut", tell)
    train_gaze(GAZE, data, recipe, tmp_path / "cut")
    losses = [[row["loss"] for row in Checkpoint.load(tmp_path / run / LAST).history] for run in ("whole", "cut")]
    assert losses[0] == losses[1]


def test_the_twin_begins_with_the_gazes_vit(tmp_path):
    data, recipe = toy(), Recipe(1, 0, 16, 1e-3)
    first = train_gaze(GAZE, data, recipe, tmp_path / "gaze")
    begun: list[float] = []

    def tell(epoch: int, done: int, loss: float, accuracy: float) -> None:
        begun.append(loss)

    twin = {**GAZE, "reading": "all"}
    second = train_gaze(twin, data, Recipe(1, 0, 16, 1e-9), tmp_path / "all", tell, tmp_path / "gaze")
    assert begun
    torch.testing.assert_close(second.embed.weight, first.embed.weight, rtol=0, atol=1e-5)
    with pytest.raises(ModelError, match=r"has no embed.weight of shape \(32, 16\)"):
        train_gaze({**twin, "dim": 32}, data, recipe, tmp_path / "wide", start=tmp_path / "gaze")
    with pytest.raises(DataError, match="does not know"):
        train_gaze(GAZE, toy(boxes=False), recipe, tmp_path / "none")


def test_what_is_kept_is_what_would_be_read():
    data = toy()
    model = GazeViT(**GAZE)
    kept = _Kept(model, data, seed=3)
    index = torch.arange(5)
    centres = centre_of(kept.boxes[:5])
    assert kept.patches.shape[:2] == (COUNT, LOOKS)
    gazed, views, boxes, labels = kept.drawn(index, torch.Generator().manual_seed(1))
    assert torch.equal(labels, data.test_labels[:5])
    torch.testing.assert_close(gazed.patches, (gazed.patches * 255).round() / 255)
    assert views.shape == (5, 1, 16, 16)
    # the thing is in the middle of each of its looks: the finest tokens are lighter or darker than the noise
    fine = kept.patches[:5, :, :4].float().mean(dim=(2, 3, 4, 5))
    assert torch.equal(fine > 128, data.test_labels[:5, None].bool().expand(-1, LOOKS))
    torch.testing.assert_close(centre_of(boxes).abs()[:, 1], centres.abs()[:, 1])


@pytest.mark.parametrize("kind", ["square", "polar", "all"])
def test_foveater_learns(tmp_path, kind):
    data = toy()
    model = train_foveater({**FOVEA, "regions": kind}, data, Recipe(12, 0, 16, 1e-2), tmp_path)
    assert isinstance(model, FoveaTer)
    assert bench.tested(model, data, at_boxes=kind != "all")["right"] > 80
    history = Checkpoint.load(tmp_path / LAST).history
    assert history[-1]["loss"] < history[0]["loss"]


def test_foveater_learns_without_boxes(tmp_path):
    train_foveater(FOVEA, toy(boxes=False), Recipe(1, 0, 32), tmp_path)
    assert Checkpoint.load(tmp_path / LAST).epoch == 1


def test_pervit_learns(tmp_path):
    arguments = {"classes": 2, "side": 16, "patch": 4, "dim": 16, "depth": 2, "heads": 2}
    model = train_pervit(arguments, toy(side=16), Recipe(10, 0, 16, 1e-2), tmp_path)
    assert bench.tested(model, toy(side=16), False)["right"] > 90


def test_a_mirrored_image_has_a_mirrored_box():
    images, boxes = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.tensor([[0.0, 0.25, 0.5, 0.75]]).repeat(40, 1)
    images[:, :, 2:6, 0:4] = 1
    turned, places = mirrored(images, boxes, torch.Generator().manual_seed(0))
    assert 5 < int((turned != images).flatten(1).any(dim=1).sum()) < 35
    for image, (x0, y0, x1, y1) in zip(turned, (places * 8).long().tolist(), strict=True):
        assert int(image[0, y0:y1, x0:x1].sum()) == int(image.sum()) == 16


def test_attention_is_drawn_to_what_overlaps():
    tokens = torch.tensor([[[0, 0, 0.5, 1], [0.5, 0, 1, 1]]])
    target = overlapping(tokens, torch.tensor([[0.6, 0.1, 0.7, 0.2]]))
    assert target.tolist() == [[0, 1]]
    assert float(drawn(torch.tensor([[0.1, 0.9]]), target)) < float(drawn(torch.tensor([[0.9, 0.1]]), target))
    places = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.1, -0.9]])
    assert at_cell(places, (3, 4)).tolist() == [0, 11, 2]


def test_the_rows_of_the_bench(tmp_path, monkeypatch):
    data = toy()
    models = {
        "gaze": GazeViT(**GAZE),
        "gaze-all": GazeViT(**GAZE, reading="all"),
        "foveater": FoveaTer(**FOVEA),
        "foveater-all": FoveaTer(**FOVEA, regions="all"),
    }
    assert models["foveater"].threshold == 0.9
    rows = bench._search({name: model.eval() for name, model in models.items()}, data)
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert models["foveater"].threshold == 0.9
    share = next(row for row in rows if row.name == "search, gaze given: tokens of all tokens")
    assert share.value <= 12 / 256
    assert {row.target for row in rows} == {"", "<= 3", "<= 2", "<= 0.1"}


def test_every_run_of_the_bench_can_be_made():
    for run in bench.RUNS.values():
        made = {"train_gaze": GazeViT, "train_foveater": FoveaTer}.get(run.learn.__name__)
        if made is not None:
            made(**run.arguments)
        assert run.start is None or run.start in bench.RUNS


def test_the_command_trains_what_the_bench_tests(tmp_path, monkeypatch):
    """The defaults of `regard train` are the runs of the bench, so that one goes on with the other's."""
    from typer.testing import CliRunner

    from regard.cli import _train_foveated as commands
    from regard.cli import app

    asked: dict[str, Any] = {}

    def note(task: str, folder: Path, quiet: bool, learn: Any) -> None:
        def caught(arguments: Any, data: Any, recipe: Recipe, *others: Any) -> None:
            asked[folder.name] = (task, arguments, recipe)

        for name in ("train_gaze", "train_foveater", "train_pervit"):
            monkeypatch.setattr(f"regard.train.foveated.{name}", caught)
        learn(None, None)

    monkeypatch.setattr(commands, "_run", note)
    lines = {
        "gaze": "gaze",
        "foveater": "foveater",
        "foveater-polar": "foveater --regions polar",
        "pervit-peripheral-0": "pervit",
        "pervit-plain-2": "pervit --attention plain --seed 2",
        "gaze-all": "gaze --reading all --epochs 3 --batch 32 --rate 0.0005 --start gaze",
        "foveater-all": "foveater --regions all --epochs 6 --batch 32",
    }
    for name, line in lines.items():
        for attempt in range(2):  # the first one replaces what the second imports
            result = CliRunner().invoke(app, ["train", *line.split(), "--out", str(tmp_path / name)])
            assert attempt == 0 or result.exit_code == 0, result.output
        run = bench.RUNS[name]
        assert asked[name] == (run.task, run.arguments, run.recipe)
