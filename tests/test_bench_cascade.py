"""`regard bench cascade` on small runs: what it reads, compares and refuses."""

import json

import pytest
import torch

from regard.bench import cascade as bench
from regard.bench.tasks.held import held_task, search
from regard.errors import DataError
from regard.mechanisms.cascade import Cascade
from regard.train.cascade import sizes, train
from regard.train.loop import Recipe
from test_cascade import ARGUMENTS, task


@pytest.fixture
def runs(tmp_path, monkeypatch):
    data = task()
    monkeypatch.setattr(bench, "held_task", lambda *_: data)
    monkeypatch.setattr(bench, "pixels_of_test", lambda name, count: data.test[:count])
    monkeypatch.setattr(bench, "TIMED", {"grades": 1})
    monkeypatch.chdir(tmp_path)
    for name, stages in (("whole", 1), ("two", 2)):
        arguments = ARGUMENTS | {"stages": stages, "keep": [6][: stages - 1]}
        train(arguments, data, Recipe(2, batch=16, rate=5e-3), tmp_path / "runs" / name)
        (tmp_path / "runs" / name / "metrics.json").write_text('{"seconds": 1.0}')
    return tmp_path


def test_a_cascade_is_compared_with_reading_all(runs, capsys):
    bench.main(runs / "runs", rounds=1)
    written = json.loads((runs / "results" / "cascade.json").read_text())
    rows = {row["name"]: row["value"] for row in written["rows"]}
    full, name = rows["grades: all at the finest resolution, accuracy"], "grades, 2 stages (two)"
    assert rows[f"{name}: accuracy lost to reading all"] == pytest.approx(full - rows[f"{name}: accuracy"])
    assert rows[f"{name}: images that stop at stage 0"] + rows[f"{name}: images that stop at stage 1"] == 100
    model = Cascade(**ARGUMENTS)
    stop = rows[f"{name}: images that stop at stage 0"] / 100
    macs = (stop * model.costs[0] + (1 - stop) * model.costs[1]) / model.full_macs(16, 16)
    assert rows[f"{name}: multiply-accumulates / reading all"] == pytest.approx(macs)
    assert rows[f"{name}: time / reading all, batches of 64"] > 0
    assert written["tables"]["two: mean cost and accuracy"]["rows"]


def test_without_runs_it_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match="regard train cascade"):
        bench.main(tmp_path)


def test_search_is_read_once(tmp_path, monkeypatch):
    from regard.bench.tasks import held
    from regard.bench.tasks import search as module

    calls = []

    class Made:
        def search(self, count: int, side: int, seed: int, split: str, first: int) -> module.Batch:
            calls.append((split, first, count))
            images = torch.full((count, 3, 64, 64), first % 256, dtype=torch.uint8)
            return module.Batch(images, torch.arange(count) % 10, torch.zeros(count, 4))

    monkeypatch.setattr(module, "search_task", lambda told=None: Made())
    monkeypatch.setattr(held, "SEARCH", {"train": 100, "held": 50, "test": 50})
    model = Cascade(10, 3, 64, 16, 2, width=16, depth=2, heads=2)
    data = search(model.read, "tiny", tmp_path)
    assert calls == [("train", 0, 50), ("train", 50, 50), ("train", 100, 50), ("test", 0, 50)]
    again = search(model.read, "tiny", tmp_path)
    assert len(calls) == 4
    images, labels = again.batch(torch.tensor([0, 60]), torch.Generator())
    assert images.shape == (2, sum(model.patches), 768)
    expected = model.read(torch.full((1, 3, 64, 64), 50, dtype=torch.uint8))
    torch.testing.assert_close(images[1:].float(), expected, atol=1e-3, rtol=1e-3)
    assert labels.tolist() == [0, 0 + 60 % 50 % 10]
    assert len(data.held) == 50


def test_an_unknown_task_is_named(tmp_path):
    with pytest.raises(DataError, match="unknown task"):
        held_task("mnist", {}, tmp_path)


def test_a_cut_file_of_features_is_named(tmp_path):
    from regard.bench.tasks.held import _loaded

    path = tmp_path / "embedded-512-2-train-00000.safetensors"
    path.write_bytes(b"\x10\0\0")
    with pytest.raises(DataError, match="train-00000.*remove it"):
        _loaded(path)


@pytest.mark.slow
@torch.no_grad()
def test_the_frozen_stem_reads_a_part_as_it_reads_the_whole():
    """Nearly: a cell sees 175 pixels, of which a margin of one patch shows the middle."""
    model = Cascade(**{**sizes("search", 2, "3"), "side": 256}).eval()
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (2, 3, 16, 16), generator=generator).float()
    images = torch.nn.functional.interpolate(coarse, size=256, mode="bicubic").clamp(0, 255).to(torch.uint8)
    fine = model.read(images)[:, 16:].unflatten(1, (4, 4, 2, 2))
    whole = model.stem(images / 255).unflatten(1, (4, 2, 4, 2)).transpose(2, 3)
    near = torch.cosine_similarity(fine, whole, dim=-1).mean()
    model.stem.margin = 0
    without = model.read(images)[:, 16:].unflatten(1, (4, 4, 2, 2))
    assert torch.cosine_similarity(without, whole, dim=-1).mean() < near - 0.1
    assert near > 0.85
