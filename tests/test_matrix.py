"""The matrix counts what it measures, can be stopped anywhere, and says what it left out."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from regard import DataError
from regard.bench import matrix
from regard.bench.cells import MECHANISMS, Work, made, patches, pixels
from regard.bench.compare import compare
from regard.bench.matrix import Cell, Limits, cells, run
from regard.bench.results import provenance
from regard.bench.tail import TAIL, measured_tail, stopping
from regard.errors import ModelError

NAMES = [one.name for one in MECHANISMS]
LITTLE = Limits(spend=0.01)
GAZE, RAM = (Cell(name, 224, 1) for name in ("gaze tokens", "recurrent (RAM)"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [224, 448])
def test_the_macs_are_those_that_torch_counts(name, side):
    work, images = made(name, side), pixels(side, 2)
    with torch.no_grad():
        work.run(images)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            out = work.run(images)
    assert counter.get_total_flops() / 2 / 2 == pytest.approx(work.macs, rel=0.01)
    assert len(out) == 2
    assert out.isfinite().all()


def test_tokens_are_those_that_go_on():
    tokens = {name: made(name, 448).tokens for name in NAMES}
    n = patches(448)
    assert n == 28 * 28
    assert {name for name in NAMES if tokens[name] == n} == {
        "self-attention",
        "windowed (Swin)",
        "linear",
        "cross-attention",
        "peripheral (PerViT)",
        "A-ViT, nothing halts",
    }
    few = {"Q-Former": 32, "resampler": 64, "gaze tokens": 20, "recurrent (RAM)": 18, "relevance": 128}
    assert few.items() <= tokens.items()
    assert tokens["DynamicViT"] == int(n * 0.7**3)
    assert tokens["cascade, first exit"] == n // 4


def test_the_cells_are_every_mechanism_at_every_size():
    every = cells()
    assert len({cell.id for cell in every}) == len(every) == 16 * 16
    assert {(cell.side, cell.batch) for cell in every} == {
        *((side, batch) for side in (224, 448, 672, 896, 1344) for batch in (1, 8, 32)),
        (224, 64),
    }
    assert [cell.mechanism for cell in cells(True, ["GAZE", "ram"])[:2]] == ["gaze tokens", "recurrent (RAM)"]
    assert len(cells(True)) == 4 * 16
    with pytest.raises(ModelError, match="no mechanism has nobody in its name: there are self-attention"):
        cells(only=["nobody"])


def without_tail(monkeypatch):
    monkeypatch.setattr(matrix, "measured_tail", lambda device, spend: {"kind": "tail"})


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    without_tail(monkeypatch)
    path, told = tmp_path / "m.jsonl", []

    def stop(line):
        told.append(line)
        if "RAM" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(path, "cpu", [GAZE, RAM], LITTLE, stop)
    before = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["id"] for row in before] == [GAZE.id]
    assert told == [f"{GAZE.id}, 1 of 3", f"{RAM.id}, 2 of 3"]
    told.clear()
    rows = run(path, "cpu", [GAZE, RAM], LITTLE, told.append)
    assert told == [f"{RAM.id}, 1 of 2", f"{TAIL}, 2 of 2"]
    assert [row["id"] for row in rows] == [GAZE.id, RAM.id, TAIL]
    assert rows[0] == before[0]
    assert all(json.loads(line)["schema"] == 1 for line in path.read_text().splitlines())
    assert run(path, "cpu", [GAZE, RAM], LITTLE, told.append) == [{"schema": 1} | row for row in rows]
    assert len(told) == 2
    assert {"seconds", "peak", "macs"} <= set(compare(path, path).same)  # its lines are those of any run


def test_half_a_last_line_is_kept_said_and_its_cell_measured_again(tmp_path, monkeypatch):
    without_tail(monkeypatch)
    path, warned = tmp_path / "m.jsonl", []
    run(path, "cpu", [GAZE, RAM], LITTLE)
    first, second, _ = path.read_text().splitlines()
    path.write_text(f"{first}\n{second[:50]}")
    rows = run(path, "cpu", [GAZE, RAM], LITTLE, warned=warned.append)
    assert len(warned) == 1
    assert "the last line was cut off" in warned[0]
    by = {row["id"]: row for row in rows}
    assert by["torn/1"]["text"] == second[:50]
    assert by[RAM.id]["seconds"] > 0
    again = run(path, "cpu", [GAZE, RAM], LITTLE, warned=warned.append)
    assert [row["id"] for row in again] == [row["id"] for row in rows]
    assert len(warned) == 1


def test_results_of_another_kind_are_refused(tmp_path, monkeypatch):
    without_tail(monkeypatch)
    path = tmp_path / "m.jsonl"
    run(path, "cpu", [GAZE], LITTLE)
    good = json.loads(path.read_text().splitlines()[0])
    for change, says in (
        ({"machine": "another"}, "line 1 is of machine 'another', here .*choose another --out"),
        ({"device": "cuda"}, "line 1 is of device 'cuda', here 'cpu'"),
        ({"schema": 7}, "line 1 is of schema 7, this version reads schema 1"),
        ({"id": None}, "line 1 has no id"),
    ):
        row = {key: value for key, value in (good | change).items() if value is not None}
        path.write_text(json.dumps(row) + "\n")
        before = path.read_text()
        with pytest.raises(DataError, match=says):
            run(path, "cpu", [GAZE], LITTLE)
        assert path.read_text() == before


def test_what_takes_too_much_is_left_out_with_the_reason_until_the_limits_change(tmp_path, monkeypatch):
    without_tail(monkeypatch)
    path, told = tmp_path / "m.jsonl", []
    peripheral = Cell("peripheral (PerViT)", 896, 1)
    tight = replace(LITTLE, gmacs=0.01, gib=1.0)
    gaze, large = run(path, "cpu", [GAZE, peripheral], tight)[:2]
    assert (
        gaze["skipped"]
        == f"takes {made(GAZE.mechanism, 224).macs / 1e9:.3g} G multiply-accumulates, the limit is 0.01 G"
    )
    assert gaze["macs"] > 0
    assert "seconds" not in gaze
    assert large["skipped"] == "holds 1.9 GiB at least, the limit is 1"
    run(path, "cpu", [GAZE, peripheral], tight, told.append)
    assert told == []
    again = run(path, "cpu", [GAZE, peripheral], replace(LITTLE, gib=1.0), told.append)
    assert "seconds" in next(row for row in again if row["id"] == GAZE.id)
    assert "skipped" not in next(row for row in again if row["id"] == GAZE.id)


def works(monkeypatch, run):
    """In place of every mechanism."""
    monkeypatch.setattr(matrix, "made", lambda *size: Work(torch.nn.Linear(2, 2), run, 10**6, 3))


def test_out_of_memory_is_a_reason_and_any_other_failure_an_error(tmp_path, monkeypatch):
    without_tail(monkeypatch)
    works(monkeypatch, lambda x: torch.empty(2**60))
    assert run(tmp_path / "a", "cpu", [GAZE], LITTLE)[0]["skipped"] == "out of memory"
    works(monkeypatch, lambda x: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        run(tmp_path / "b", "cpu", [GAZE], LITTLE)


def test_rounds_alternate_and_figures_are_of_the_timed_ones(tmp_path, monkeypatch):
    without_tail(monkeypatch)
    calls, lasts = [], {"it": iter([9.0, 0.2, 0.1, 0.4, 0.3, 0.5]), "multiply": 0.01, "copy": 0.02}

    def seconds(work, device):
        work()
        name = calls[-1]
        return lasts[name] if name != "it" else next(lasts["it"])

    class Probes:
        macs, bytes = 1000, 500

        @classmethod
        def on(cls, device):
            return cls()

        def multiply(self):
            calls.append("multiply")

        def copy(self):
            calls.append("copy")

    def it(x):
        calls.append("it")
        return torch.zeros(2**18)

    works(monkeypatch, it)
    monkeypatch.setattr(matrix, "seconds", seconds)
    monkeypatch.setattr(matrix, "Probes", Probes)
    row = run(tmp_path / "m", "cpu", [GAZE], LITTLE)[0]
    one = ["it", "multiply", "copy"]
    assert calls == ["it", "it", *one, *one[::-1], *one, *one[::-1], *one]
    assert row["rounds"] == 5
    assert (row["low"], row["seconds"], row["high"]) == (0.2, 0.3, 0.4)
    assert (row["matmul"], row["copy"]) == (100_000, 25_000)
    assert row["peak"] == 2**20
    assert row["parameters"] == 6


def test_rounds_are_as_many_as_the_time_allows():
    limits = Limits(spend=2.0)
    assert [limits.rounds(once) for once in (0.001, 0.25, 100.0)] == [15, 8, 5]


def test_the_tail_of_the_cascade_is_of_images_that_stop_as_often_as_the_trained_one_does(tmp_path, monkeypatch):
    assert stopping(tmp_path) is None
    monkeypatch.setattr("regard.bench.tail.RESULTS", tmp_path)
    row = measured_tail("cpu", 0.2)
    assert row["skipped"] == "no results/cascade.json says how many images stop at stage 0"
    named = [{"name": f"fashion, 2 stages (a): images that stop at stage {stage}", "value": 75.0} for stage in (1, 0)]
    (tmp_path / "cascade.json").write_text(json.dumps({"rows": named}))
    taken = []

    def seconds(work, device):
        taken.append(int(work().exits[0]))
        return (1.0, 4.0)[taken[-1]]

    monkeypatch.setattr("regard.bench.tail.seconds", seconds)
    row = measured_tail("cpu", 0.2)
    assert (row["images"], row["first"]) == (20, 0.75)
    assert sum(taken) == 5  # of 20 images five go on, and the network of one stage has no second
    assert row["means"] == {"cascade": 1.75, "all": 1.0}
    assert row["times"]["cascade"] == {"50": 1.0, "90": 4.0, "95": 4.0, "99": 4.0}


def test_the_command_measures_shows_and_refuses(regard, tmp_path):
    code, out, err = regard("bench", "matrix", "--quick", "--only", "gaze,RAM", "--quiet")
    assert code == 0, err
    assert "gaze tokens: power of time over visual tokens" in out
    assert json.loads(out.splitlines()[-1])["notes"]["cells"] == 8
    assert not (tmp_path / "results").exists()
    for line, status, says in (
        (["--threads", 0], 2, "--threads, --gmacs and --gib must be above 0"),
        (["--only", "nobody"], 1, "no mechanism has nobody in its name"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], 1, "torch sees no GPU here")]),
    ):
        code, _, err = regard("bench", "matrix", *line)
        assert code == status
        assert says in err
        assert err.count("\n") == 1


def test_a_run_into_another_file_draws_beside_it(regard, tmp_path, monkeypatch):
    without_tail(monkeypatch)
    monkeypatch.setattr(matrix, "cells", lambda quick=False, only=(): [GAZE, RAM])
    code, _, err = regard("bench", "matrix", "--out", "deep/mine.jsonl", "-q")
    assert (code, err) == (0, "")
    assert sorted(file.name for file in (tmp_path / "deep" / "mine").iterdir()) == [
        "multiples.png",
        "pareto.png",
        "report.html",
        "scaling.png",
    ]
    assert not (tmp_path / "results").exists()
    assert provenance()["machine"] in (tmp_path / "deep" / "mine" / "report.html").read_text()
    (tmp_path / "deep" / "mine.jsonl").write_text('{"schema": 3}\n')
    code, _, err = regard("bench", "matrix", "--out", "deep/mine.jsonl", "-q")
    assert code == 1
    assert err.startswith("regard: 'deep/mine.jsonl', line 1 is of schema 3")
    assert err.count("\n") == 1
