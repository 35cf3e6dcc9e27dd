"""The loop: resumed after any end it gives the same losses; what cannot go on says so and loses nothing."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from regard.errors import DataError, ModelError
from regard.files import locked
from regard.mechanisms.recurrent import RecurrentAttention
from regard.train.checkpoint import LAST, Checkpoint, complete, looker
from regard.train.data import Data, evaluate
from regard.train.loop import Recipe, fit, settings
from regard.train.recurrent import train

ARGUMENTS: dict[str, Any] = {"classes": 3, "glimpses": 2, "glimpse": 3, "hidden": 8}


def toy(slow: float = 0.0) -> Data:
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (40, 1, 7, 9), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (40,), generator=generator)

    def batch(index, generator):
        time.sleep(slow)
        noisy = torch.randint(0, 9, (len(index), 1, 7, 9), generator=generator, dtype=torch.uint8)
        return images[index] // 2 + noisy, labels[index]

    return Data("toy", 40, batch, images, labels, ("a", "b", "c"))


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in Checkpoint.load(folder / LAST).history]


def test_a_run_that_was_killed_goes_on_with_the_same_losses(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    recipe = Recipe(epochs=6, seed=3, batch=8)
    train(ARGUMENTS, toy(), recipe, whole)
    line = (
        "import sys; from pathlib import Path; from test_train import *;"
        "train(ARGUMENTS, toy(0.03), Recipe(epochs=6, seed=3, batch=8), Path(sys.argv[1]))"
    )
    for epochs in (2, 4):  # killed twice, in the middle of an epoch
        process = subprocess.Popen([sys.executable, "-c", line, str(cut)], cwd=Path(__file__).parent)
        started = time.monotonic()
        while not (cut / LAST).exists() or len(losses(cut)) < epochs:
            assert time.monotonic() - started < 60
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert len(losses(cut)) < 6
    last = train(ARGUMENTS, toy(), recipe, cut)
    assert losses(cut) == losses(whole)
    first = Checkpoint.load(whole / LAST).tensors
    for name, value in Checkpoint.load(cut / LAST).tensors.items():
        assert torch.equal(value, first[name]), name
    assert evaluate(last, toy()) == evaluate(train(ARGUMENTS, toy(), recipe, whole), toy())


def test_one_run_at_a_time_is_at_work_in_a_folder(tmp_path):
    with (
        locked(tmp_path / "lock"),
        pytest.raises(DataError, match=rf"another run \(process {os.getpid()}\) is at work"),
    ):
        train(ARGUMENTS, toy(), Recipe(epochs=1, batch=8), tmp_path)
    assert not (tmp_path / LAST).exists()
    train(ARGUMENTS, toy(), Recipe(epochs=1, batch=8), tmp_path)


def test_what_a_killed_process_left_is_removed(tmp_path):
    """mkstemp's names, of this run's files alone."""
    left, other = tmp_path / f".{LAST}.a1b2c3d4", tmp_path / ".notes.a1b2c3d4"
    for file in (left, other):
        file.write_bytes(b"half")
    train(ARGUMENTS, toy(), Recipe(epochs=1, batch=8), tmp_path)
    assert not left.exists()
    assert other.exists()


def test_a_run_is_looked_with_again(tmp_path):
    trained = train(ARGUMENTS, toy(), Recipe(epochs=1, batch=8), tmp_path)
    for path in (tmp_path, tmp_path / LAST):
        again, labels = looker(path)
        assert labels == ("a", "b", "c")
        assert torch.equal(again.look(toy().test).logits, trained.look(toy().test).logits)
    replace(Checkpoint.load(tmp_path / LAST), kind="other").save(tmp_path / "x")
    with pytest.raises(ModelError, match="'other', which this version"):
        looker(tmp_path / "x")


def test_a_run_holds_every_argument_and_a_later_default_does_not_change_it(tmp_path, monkeypatch):
    recipe = Recipe(epochs=1, batch=8)
    trained = train(ARGUMENTS, toy(), recipe, tmp_path)
    held = Checkpoint.load(tmp_path / LAST).arguments
    assert held == {**ARGUMENTS, "channels": 1, "scales": 1, "std": 0.1, "core": "rectifier", "policy": "learned"}
    defaults: Any = RecurrentAttention.__init__.__defaults__
    changed = tuple({"rectifier": "lstm", "learned": "random"}.get(value, value) for value in defaults)
    monkeypatch.setattr(RecurrentAttention.__init__, "__defaults__", changed)
    again, _ = looker(tmp_path)
    assert torch.equal(again.look(toy().test).logits, trained.look(toy().test).logits)
    with pytest.raises(DataError, match=r"core rectifier \(asked for lstm\), policy learned \(asked for random\)"):
        train(ARGUMENTS, toy(), recipe, tmp_path)


def test_a_run_with_fewer_arguments_goes_on(tmp_path):
    recipe = Recipe(epochs=2, batch=8)
    train(ARGUMENTS, toy(), recipe, tmp_path)
    whole = Checkpoint.load(tmp_path / LAST)
    replace(whole, arguments=ARGUMENTS).save(tmp_path / LAST)
    looker(tmp_path)
    train({**ARGUMENTS, "std": 0.1}, toy(), recipe, tmp_path)
    with pytest.raises(DataError, match=r"std 0.1 \(asked for 0.2\)"):
        train({**ARGUMENTS, "std": 0.2}, toy(), recipe, tmp_path)
    replace(whole, arguments={**ARGUMENTS, "unheard": 1}).save(tmp_path / LAST)
    with pytest.raises(DataError, match="holds a run with"):
        train(ARGUMENTS, toy(), recipe, tmp_path)


def test_arguments_are_as_json_has_them():
    from regard.mechanisms.dynamicvit import DynamicViT
    from regard.mechanisms.gaze_vit import GazeViT

    assert complete(GazeViT, {"grids": (2, 3, 3)})["strides"] == [1, 2, 6]
    sizes = {"image_size": 8, "patch_size": 2, "dim": 16, "depth": 4, "heads": 2, "hidden": 16}
    whole = complete(DynamicViT, {"vision": sizes})
    assert whole["keep"] == 0.7
    assert whole["mean"] == [0.5]
    assert whole["vision"] == {**whole["vision"], **sizes}
    assert whole["vision"]["positions"] == "learned"
    with pytest.raises(TypeError):
        complete(GazeViT, {"unheard": 1})


def test_a_run_begins_with_the_weights_of_another(tmp_path):
    recipe = Recipe(epochs=1, seed=1, batch=8, rate=1e-9)
    first = train(ARGUMENTS, toy(), Recipe(epochs=1, batch=8), tmp_path / "first")
    other = {**ARGUMENTS, "std": 0.05}
    on, anew = (
        train(other, toy(), recipe, tmp_path / name, start=start)
        for name, start in (("on", tmp_path / "first"), ("anew", None))
    )
    there = first.state_dict()
    assert all(torch.allclose(value, there[name], atol=1e-5) for name, value in on.state_dict().items())
    assert not all(torch.allclose(value, there[name], atol=1e-2) for name, value in anew.state_dict().items())
    assert Checkpoint.load(tmp_path / "on").settings["start"] == Checkpoint.load(tmp_path / "first").digest
    with pytest.raises(DataError, match="holds a run with start"):
        train(other, toy(), recipe, tmp_path / "on", start=tmp_path / "anew")
    replace(Checkpoint.load(tmp_path / "first"), kind="gaze").save(tmp_path / "gaze")
    with pytest.raises(ModelError, match="holds gaze: give the folder of a run of regard train ram"):
        train(other, toy(), recipe, tmp_path / "x", start=tmp_path / "gaze")
    with pytest.raises(ModelError, match="does not fit"):
        train({**ARGUMENTS, "hidden": 9}, toy(), recipe, tmp_path / "x", start=tmp_path / "first")


def test_another_seed_is_another_run(tmp_path):
    for seed in (0, 1):
        train(ARGUMENTS, toy(), Recipe(epochs=1, seed=seed, batch=8), tmp_path / str(seed))
    assert losses(tmp_path / "0") != losses(tmp_path / "1")


def test_a_finished_run_is_not_trained_again(tmp_path):
    recipe = Recipe(epochs=1, batch=8)
    train(ARGUMENTS, toy(), recipe, tmp_path)
    before = (tmp_path / LAST).stat().st_mtime_ns
    (tmp_path / "history.csv").unlink()  # as after an end between the two files
    train(ARGUMENTS, toy(), recipe, tmp_path)
    assert (tmp_path / LAST).stat().st_mtime_ns == before
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"recipe": Recipe(epochs=1, batch=8, rate=0.5)}, r"another run|rate 0.001 \(asked for 0.5\)"),
        ({"arguments": {**ARGUMENTS, "glimpses": 3}}, r"glimpses 2 \(asked for 3\)"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path, change, line):
    given = {"arguments": ARGUMENTS, "data": toy(), "recipe": Recipe(epochs=1, batch=8)}
    train(**given, folder=tmp_path)
    with pytest.raises(DataError, match=line):
        train(**{**given, **change}, folder=tmp_path)


def fitted(folder, step, epochs=3):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    recipe = Recipe(epochs=epochs, batch=5)
    return fit(
        model, lambda i, g, d: step(model, i, g, d), 10, recipe, folder, Checkpoint("x", {}, settings(recipe), [])
    )


def plain(model, index, generator, done):
    out = model(torch.randn(len(index), 3, generator=generator))
    return out.square().mean(), torch.tensor(1)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last(tmp_path):
    def step(model, index, generator, done):
        loss, right = plain(model, index, generator, done)
        return (loss * float("nan") if done >= 1 / 3 + 0.1 else loss), right

    with pytest.raises(ModelError, match=r"loss is nan at step 2 of epoch 2: .*last.safetensors' is of epoch 1"):
        fitted(tmp_path, step)
    assert len(losses(tmp_path)) == 1
    values = Checkpoint.load(tmp_path / LAST).tensors
    assert all(bool(value.isfinite().all()) for value in values.values())


def test_weights_that_broke_in_the_last_step_are_not_kept(tmp_path):
    def step(model, index, generator, done):
        loss, right = plain(model, index, generator, done)
        return (loss + (model.weight * 0).sqrt().sum() if 0.4 < done < 0.6 else loss), right  # 0, of no finite gradient

    with pytest.raises(ModelError, match=r"weights are not finite at the end of epoch 2: .* is of epoch 1"):
        fitted(tmp_path, step)
    assert len(losses(tmp_path)) == 1


def test_nan_at_once_says_that_nothing_is_there(tmp_path):
    with pytest.raises(ModelError, match="step 1 of epoch 1: nothing was written yet"):
        fitted(tmp_path, lambda m, i, g, d: (m.weight.sum() * float("inf"), torch.tensor(0)))
    assert not (tmp_path / LAST).exists()


def test_a_full_disk_keeps_the_last(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    def step(model, index, generator, done):
        if done > 0.4:
            monkeypatch.setattr("os.fsync", full)
        return plain(model, index, generator, done)

    with pytest.raises(DataError, match="No space left"):
        fitted(tmp_path, step)
    monkeypatch.undo()
    assert len(losses(tmp_path)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.csv", LAST, "lock"]


def test_a_cut_or_foreign_checkpoint_is_named(tmp_path):
    train(ARGUMENTS, toy(), Recipe(epochs=1, batch=8), tmp_path)
    whole = (tmp_path / LAST).read_bytes()
    for size in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        (tmp_path / LAST).write_bytes(whole[:size])
        with pytest.raises(DataError, match="cannot be read, it may be cut short"):
            Checkpoint.load(tmp_path / LAST)
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(DataError, match="is not a checkpoint"):
        Checkpoint.load(tmp_path / "other")
    with pytest.raises(DataError, match="there is no checkpoint"):
        Checkpoint.load(tmp_path / "none")


def test_weights_of_another_configuration_do_not_fit(tmp_path):
    train(ARGUMENTS, toy(), Recipe(epochs=1, batch=8), tmp_path)
    with pytest.raises(ModelError, match="does not fit"):
        Checkpoint.load(tmp_path / LAST).restore(RecurrentAttention(**{**ARGUMENTS, "hidden": 16}))


def test_the_rate_warms_up_and_falls_to_0():
    recipe = Recipe(epochs=10, rate=2.0, warmup=1)
    assert recipe.rate_at(0) == 0
    assert recipe.rate_at(0.05) == pytest.approx(1)
    assert recipe.rate_at(0.1) == 2
    assert recipe.rate_at(0.55) == pytest.approx(1)
    assert recipe.rate_at(1) == pytest.approx(0)
    for wrong in ({"epochs": 0}, {"epochs": 1, "batch": 0}, {"epochs": 1, "rate": float("nan")}):
        with pytest.raises(DataError):
            Recipe(**wrong)


def test_history_is_a_table(tmp_path):
    fitted(tmp_path, plain)
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert rows[0] == "epoch,loss,accuracy,seconds"
    assert len(rows) == 4
