"""A photo as tiles of the sizes that were planned, in Python and from the command line."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import regard
from regard import DataError, Question, ShapeError, TilePlan, VisualTokens, cli
from regard.eyes.crops import crops


def photo(width: int = 220, height: int = 140) -> Image.Image:
    """Each pixel's red is its column, its green its row."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))


def test_a_crop_is_its_part_of_the_photo_at_its_size():
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 0.5], [0.25, 0.5, 0.75, 1.0]]])
    made = crops(photo(), TilePlan(boxes, torch.tensor([[64, 0, 144]])), 14)
    assert [(tile.tokens, tile.crop.size) for tile in made] == [(64, (112, 112)), (144, (168, 168))]
    for tile, (x0, y0, x1, y1) in zip(made, ((0, 0, 110, 140), (55, 70, 165, 140)), strict=True):
        assert tile.box == pytest.approx((x0 / 220, y0 / 140, x1 / 220, y1 / 140), abs=1e-6)
        red, green, _ = np.asarray(tile.crop).mean(axis=(0, 1))
        assert (red, green) == pytest.approx(((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2), abs=1)
    with pytest.raises(ShapeError, match="a square number of tokens, got 65"):
        crops(photo(), TilePlan(boxes, torch.tensor([[64, 65, 0]])), 14)
    with pytest.raises(ShapeError, match="a plan of one image"):
        crops(photo(), TilePlan(boxes.expand(2, -1, -1), torch.full((2, 3), 64)), 14)


class Toy:
    """A token for each 10 x 10 pixels; the question is a colour."""

    name = "toy"

    def look(self, image: Image.Image) -> VisualTokens:
        size = image.width // 10, image.height // 10
        x = torch.from_numpy(np.asarray(image.resize(size, Image.Resampling.BOX)).astype("float32") / 255)
        return VisualTokens.from_grid(x.reshape(1, -1, 3), size[::-1])

    def ask(self, text: str) -> Question:
        return Question(torch.eye(3)[None, ["red", "green", "blue"].index(text)][None], text=text)


def test_tiles_of_a_photo():
    made = regard.tiles(photo(), "red", 1000, eye=Toy(), token_pixels=10)
    assert len(made) == 6  # 2 x 3: the photo is 1.57 times as wide as high
    assert 1000 - 76 < sum(tile.tokens for tile in made) <= 1000
    for tile in made:
        assert tile.crop.size == (math.isqrt(tile.tokens) * 10,) * 2
    corners = [(round(tile.box[0] * 3, 4), round(tile.box[1] * 2, 4)) for tile in made]
    assert corners == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    right = sum(tile.tokens for tile in made if tile.box[0] > 0.5)
    assert right > sum(tile.tokens for tile in made if tile.box[2] < 0.5)
    assert len(regard.tiles(photo(), None, 700, eye=Toy(), layout=(2, 2))) == 4
    for empty in ("", "  \n"):
        with pytest.raises(DataError, match="the question is empty"):
            regard.tiles(photo(), empty, 1000, eye=Toy())


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    photo().save(tmp_path / "photo.png")

    def run(*line: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["regard", "tiles", *map(str, line)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
            raise SystemExit(0)
        out = capsys.readouterr()
        return int(exited.value.code or 0), out.out, out.err

    return run


def test_the_command_writes_crops_and_a_manifest(command, tmp_path: Path):
    code, out, err = command("photo.png", "a dog", "--budget", 700, "--layout", "2x3", "--out", "cut", "--scope", 0.5)
    assert (code, err) == (0, "")
    assert "6 tiles" in out
    manifest = json.loads((tmp_path / "cut" / "manifest.json").read_text())
    assert (manifest["question"], manifest["budget"]) == ("a dog", 700)
    assert manifest["tokens"] == sum(tile["tokens"] for tile in manifest["tiles"]) <= 700
    for tile in manifest["tiles"]:
        side = math.isqrt(tile["tokens"]) * 28
        assert tile["pixels"] == [side, side]
        with Image.open(tmp_path / "cut" / tile["file"]) as crop:
            assert crop.size == (side, side)
    names = {tile["file"] for tile in manifest["tiles"]}
    assert {file.name for file in (tmp_path / "cut").iterdir()} == {"manifest.json", *names}


def test_the_command_says_what_is_wrong(command, tmp_path: Path):
    for line, said in (
        (("--budget", 63), "the nearest is 64"),
        (("--budget", 5000, "--layout", "2x2"), "from 256 to 1600, got 5000: the nearest is 1600"),
        (("--budget", 700, "--layout", "2"), "--layout must be ROWSxCOLUMNS"),
        (("--budget", 700, "--scope", "2"), "scope must be 'auto' or a number from 0 to 1"),
        (("--budget", 700, "--token-pixels", 0), "--token-pixels must be at least 1"),
    ):
        code, _, err = command("photo.png", "a dog", *line)
        assert code != 0
        assert said in " ".join(err.split())
    assert [file.name for file in tmp_path.iterdir()] == ["photo.png"]
