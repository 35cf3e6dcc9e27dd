"""The pocket model's figures over several seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from regard.bench import seeds
from regard.bench.mechanisms import BLIND, Asking, asking
from regard.bench.tasks.asked.wording import KINDS
from regard.errors import DataError
from regard.train.checkpoint import LAST, Checkpoint
from regard.vlm.pocket import MECHANISMS, Pocket
from test_pocket import WORDS, sights


def saying(seed: int) -> Asking:
    """Answers to 400 questions about 100 scenes."""
    draw = np.random.default_rng(seed)
    kinds = np.array([KINDS[place % len(KINDS)] for place in range(400)])
    right = {cell: draw.random(400) < 0.3 for cell in seeds.CELLS}
    return Asking(kinds, np.arange(400) // 4, right)


def test_the_mean_of_seeds_is_of_their_rates():
    each = [saying(seed) for seed in range(3)]
    mean = seeds.averaged(each)
    for cell in seeds.CELLS:
        for kinds in (KINDS, KINDS[:2]):
            assert mean.rate(*cell, kinds) == pytest.approx(np.mean([found.rate(*cell, kinds) for found in each]))
    low, high = mean.interval(mean.right["relevance", 32])
    assert (
        low
        < mean.rate("relevance", 32)
        < high
        < low + max(np.diff(found.interval(found.right["relevance", 32]))[0] for found in each)
    )


def test_the_tables_have_a_column_for_each_seed():
    each = [saying(seed) for seed in (5, 6)]
    made = seeds.tables(each, [0, 7])
    assert made["right"]["columns"][3:] == ["seed 0", "seed 7"]
    place = made["kinds"]["columns"].index("count")
    assert [row[place] for row in made["kinds"]["rows"]] == [
        f"{found.rate('relevance', 32, ('count',)):.1f}" for found in each
    ]
    (row,) = [row for row in made["right"]["rows"] if row[:2] == ["relevance", "32"]]
    assert row[3:] == [f"{found.rate('relevance', 32):.1f}" for found in each]
    (row,) = [row for row in made["reached"]["rows"] if row[0].endswith("tokens, count")]
    for value, found in zip(row[1:], each, strict=True):
        best = max(found.rate(name, 32, ("count",)) for name in BLIND)
        assert value == f"{found.rate('relevance', 32, ('count',)) - best:+.1f}"
    assert made["reached"]["rows"][-1][0] == "all tokens less relevance, 32 tokens, all questions"


def test_what_was_said_is_kept_and_asked_once(tmp_path: Path, monkeypatch):
    torch.manual_seed(0)
    model, data = Pocket(WORDS).requires_grad_(False).eval(), sights(4)
    cells = (("pool", 16), ("all", None))
    first = seeds.answers(model, data, tmp_path, cells[:1])
    whole = seeds.answers(model, data, tmp_path, cells)
    plain = asking(model, data, ("pool", "all"), (16,))
    for cell in cells:
        assert np.array_equal(whole.right[cell], plain.right[cell])
    assert np.array_equal(first.kinds, plain.kinds)
    asked = []

    def counted(model, sights, mechanisms, *given):
        asked.extend(mechanisms)
        return asking(model, sights, mechanisms, *given)

    monkeypatch.setattr(seeds, "asking", counted)
    seeds.answers(model, data, tmp_path, cells)
    assert asked == []
    seeds.answers(model, sights(3), tmp_path, cells[:1])  # other scenes
    torch.manual_seed(1)
    seeds.answers(Pocket(WORDS).requires_grad_(False).eval(), data, tmp_path, cells[:1])
    assert asked == ["pool", "pool"]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-40], lambda whole: b"", lambda whole: b"answers", lambda whole: _torn(whole)]
)
def test_damaged_answers_are_told(tmp_path: Path, damage):
    torch.manual_seed(0)
    model, data, cells = Pocket(WORDS).requires_grad_(False).eval(), sights(2), (("pool", 16),)
    seeds.answers(model, data, tmp_path, cells)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match="does not hold answers.*: delete it, and they are asked for again"):
        seeds.answers(model, data, tmp_path, cells)


def _torn(whole: bytes) -> bytes:
    place = len(whole) // 3
    return whole[:place] + b"torn" + whole[place + 4 :]


def test_runs_differ_in_nothing_but_the_seed(tmp_path: Path, monkeypatch):
    settings = {"epochs": 2, "seed": 0, "rate": 0.1}
    (tmp_path / "about.json").write_text(json.dumps({"words": ["fox"], "settings": settings}))
    monkeypatch.setattr(seeds, "FOLDER", tmp_path)

    def run(done: int = 2, kind: str = "pocket", words: tuple[str, ...] = ("fox",), **other: float) -> Path:
        file = tmp_path / f"{done}{kind}{words[0]}{other}"
        file.mkdir(exist_ok=True)
        history = [{"epoch": n + 1.0} for n in range(done)]
        Checkpoint(kind, {"words": list(words)}, settings | other, history).save(file / LAST)
        return file

    found, (one, two) = seeds.states_of([run(seed=3), run(seed=4)])
    assert (found, one.settings["seed"], two.settings["seed"]) == ([0, 3, 4], 3, 4)
    assert seeds.states_of([run(seed=3, scenes=1.0)])[0] == [0, 3]
    for other, name in (
        (run(seed=3, rate=0.2), "rate"),
        (run(seed=3, more=1), "more"),
        (run(seed=3, kind="vit"), "kind"),
        (run(seed=3, words=("owl",)), "words"),
        (run(1, seed=3), "epochs: 1 are done"),
    ):
        with pytest.raises(DataError, match=f"differs in {name}"):
            seeds.states_of([other])
    for again in ([run()], [run(seed=3), run(seed=3)]):
        with pytest.raises(DataError, match="as another has"):
            seeds.states_of(again)


def test_losses_are_those_of_the_epochs_that_took_them():
    one, two = ({f"validation {name}": value + n for n, name in enumerate(MECHANISMS)} for value in (0.25, 0.125))
    history = [{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0, **one}]
    states = [Checkpoint("pocket", {}, {"seed": seed}, history[: seed + 1]) for seed in (0, 1)]
    states.append(Checkpoint("pocket", {}, {"seed": 4}, [{"epoch": 1, "loss": 1.0, **two}]))
    table = seeds.losses(states)
    assert table["columns"][1:] == ["seed 1, epoch 2", "seed 4, epoch 1"]
    assert table["rows"][0] == ["all", "0.250", "0.125"]
    assert table["rows"][-1] == [MECHANISMS[-1], "10.250", "10.125"]
