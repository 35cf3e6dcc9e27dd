"""The recipes of the vision transformers: from a backbone, the same again after an interruption."""

from pathlib import Path
from typing import Any

import pytest
import torch

from regard.errors import DataError, ModelError
from regard.mechanisms import avit
from regard.mechanisms.dynamic import KINDS
from regard.train.checkpoint import LAST, Checkpoint, looker
from regard.train.data import Data, evaluate, jittered
from regard.train.dynamic import train, train_backbone
from regard.train.loop import Recipe

SIZES: dict[str, Any] = {
    "vision": {"image_size": 8, "channels": 1, "patch_size": 2, "dim": 16, "depth": 4, "heads": 2, "hidden": 16},
    "classes": 2,
}


def task(count: int = 128) -> Data:
    """Is there a bright spot?"""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    labels = torch.randint(2, (count,), generator=generator)
    rows, columns = torch.randint(8, (2, count), generator=generator)
    images[torch.arange(count), 0, rows, columns] = (200 * labels).byte()

    def batch(index, generator):
        noise = torch.randint(50, (len(index), 1, 8, 8), generator=generator, dtype=torch.uint8)
        return images[index] + noise, labels[index]

    return Data("spots", count, batch, images, labels, ("none", "one"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    train_backbone(SIZES, task(), Recipe(20, batch=16, rate=3e-3), folder)
    return folder


def test_patches_are_to_halt_about_the_depth_that_is_asked_for(backbone, tmp_path, monkeypatch):
    asked, prior = [], avit.prior

    def noted(blocks: int, centre: float):
        asked.append(centre / blocks)
        return prior(blocks, centre)

    monkeypatch.setattr(avit, "prior", noted)
    run = Recipe(1, batch=16)
    train("avit", backbone, {}, task(), run, tmp_path / "0")
    train("avit", backbone, {}, task(), run, tmp_path / "1", depth=0.25)
    assert sorted({round(share, 3) for share in asked}) == [0.25, 0.667]
    kept = [Checkpoint.load(tmp_path / name / LAST).settings.get("depth") for name in "01"]
    assert kept == [None, 0.25]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_run_starts_from_the_backbone_and_goes_on_as_it_would_have(kind: Any, backbone, tmp_path, monkeypatch):
    given: Any = {"avit": {"gate": 4.0, "centre": 2.0}}.get(kind, {})

    def run(folder: str) -> Any:
        return train(kind, backbone, given, task(), Recipe(3, batch=16, rate=1e-3), tmp_path / folder)

    whole = run("whole")
    saved = Checkpoint.save
    with monkeypatch.context() as patch:

        def stop(self, path):
            saved(self, path)
            if self.epoch == 2:
                raise KeyboardInterrupt

        patch.setattr(Checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run("cut")
    run("cut")
    one, other = (Checkpoint.load(tmp_path / name / LAST) for name in ("whole", "cut"))
    assert [row["loss"] for row in one.history] == [row["loss"] for row in other.history]
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    found, labels = looker(tmp_path / "cut")
    assert labels == ("none", "one")
    assert found.name == kind
    figures = evaluate(found, task())
    assert figures == evaluate(whole, task())
    assert figures["test_error"] <= 15
    full = whole.full_macs(8, 8)
    assert figures["macs"] == full if kind == "vit" else figures["macs"] < full


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_first_weights_are_the_backbones(kind: Any, backbone, tmp_path, monkeypatch):
    kept: list[Any] = []
    monkeypatch.setattr("regard.train.dynamic.fit", lambda model, *rest: kept.append(model))
    train(kind, backbone, {}, task(), Recipe(1), tmp_path)
    teacher, _ = looker(backbone)
    for name, value in teacher.state_dict().items():
        assert torch.equal(kept[0].state_dict()[name], value)


def test_another_backbone_is_another_run(backbone, tmp_path):
    train_backbone(SIZES, task(), Recipe(1, batch=16, seed=5), tmp_path / "other")
    recipe = Recipe(1, batch=16)
    train("evit", backbone, {}, task(), recipe, tmp_path / "run")
    with pytest.raises(DataError, match="holds a run with backbone"):
        train("evit", tmp_path / "other", {}, task(), recipe, tmp_path / "run")
    with pytest.raises(DataError, match=r"keep 0.7 \(asked for 0.5\)"):
        train("evit", backbone, {"keep": 0.5}, task(), recipe, tmp_path / "run")
    with pytest.raises(ModelError, match="holds evit: give the folder of a run of regard train vit"):
        train("avit", tmp_path / "run", {}, task(), recipe, tmp_path / "next")
    with pytest.raises(DataError, match="there is no checkpoint"):
        train("avit", tmp_path / "nothing", {}, task(), recipe, tmp_path / "next")


def test_jittered_moves_and_mirrors():
    images = torch.zeros(400, 2, 9, 7, dtype=torch.uint8)
    images[:, 0, 4, 2] = 9
    images[:, 1, 3, 3] = 5
    moved = jittered(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert moved.dtype == torch.uint8
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    straight = {(4 + dy, 2 + dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    mirrored = {(4 + dy, 4 + dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    assert places == straight | mirrored
    first, second = moved[:, 0].nonzero(), moved[:, 1].nonzero()
    assert bool((first[:, 1] - second[:, 1] == 1).all())  # both channels move together
    assert set((first[:, 2] - second[:, 2]).tolist()) == {-1, 1}
    assert torch.equal(moved, jittered(images, torch.Generator().manual_seed(0)))
