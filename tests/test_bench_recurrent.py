"""What `regard bench ram` says of runs: errors of each image's own draws, seeds of one configuration together."""

import json

import pytest
import torch

from regard.bench import recurrent as bench
from regard.errors import DataError
from regard.mechanisms.recurrent import retina
from regard.train.checkpoint import LAST, Checkpoint
from regard.train.loop import Recipe
from regard.train.recurrent import train
from test_train import ARGUMENTS, toy


@pytest.fixture
def published(monkeypatch):
    """What it would write, on the toy task and without measuring costs."""
    found = {}
    monkeypatch.setattr(bench, "data", lambda name: toy())
    monkeypatch.setattr(bench, "costs", list)
    monkeypatch.setattr(bench, "publish", lambda name, line, rows, *_, **__: found.update({r.name: r for r in rows}))
    return found


def run(folder, **change):
    arguments = {**ARGUMENTS, **change.pop("arguments", {})}
    train(arguments, toy(), Recipe(**{"epochs": 1, "batch": 8, **change}), folder)
    (folder / "metrics.json").write_text(json.dumps({"seconds": 1}))


def test_seeds_are_averaged_and_other_configurations_are_not(published, tmp_path):
    run(tmp_path / "a", seed=0)
    run(tmp_path / "b", seed=1)
    run(tmp_path / "c", seed=2, arguments={"std": 0.5})
    bench.main(tmp_path)
    assert sorted(published) == [
        "toy, 2 glimpses, mean of 10 runs an image",
        "toy, 2 glimpses, mean of 2 seeds, mean of 10 runs an image",
        "toy, 2 glimpses, mean of 2 seeds, one run an image",
        "toy, 2 glimpses, one run an image",
    ]
    errors = [bench.errors(Checkpoint.load(tmp_path / name / LAST))[0] for name in "ab"]
    assert published["toy, 2 glimpses, mean of 2 seeds, mean of 10 runs an image"].value == pytest.approx(
        sum(errors) / 2
    )


def test_every_image_has_draws_of_its_own(published, tmp_path, monkeypatch):
    run(tmp_path / "a")
    drawn = []
    forward = bench.RecurrentAttention.forward
    monkeypatch.setattr(
        bench.RecurrentAttention, "forward", lambda self, x, n: (drawn.append(n), forward(self, x, n))[1]
    )
    bench.errors(Checkpoint.load(tmp_path / "a" / LAST))
    draws = torch.stack(drawn).flatten(0, 1)
    assert len(draws) == bench.COPIES * 40
    assert len(draws.flatten(1).unique(dim=0)) == len(draws)


def test_no_runs_say_what_to_run(published, tmp_path):
    with pytest.raises(DataError, match="regard train ram"):
        bench.main(tmp_path)


def test_the_loop_is_the_retina():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (9, 2, 31, 31), generator=generator, dtype=torch.uint8)
    at = torch.rand(9, 2, generator=generator) * 2 - 1
    torch.testing.assert_close(bench.looped(images, at, 6, 3), retina(images, at, 6, 3))
