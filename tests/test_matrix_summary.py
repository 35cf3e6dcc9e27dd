"""Powers, accuracies, tables and pictures of the matrix are of what was measured, and of nothing else."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from regard.bench.accuracy import points
from regard.bench.cells import MECHANISMS, patches
from regard.bench.jsonl import read_lines
from regard.bench.matrix import cells
from regard.bench.scaling import Power, powers, series, table
from regard.bench.summary import figures, tables
from regard.bench.tail import TAIL
from regard.errors import DataError
from regard.report.scaling import matrix_page, multiples, pareto, scaling

ROOT = Path(__file__).parent.parent
SIDES = (224, 448, 672, 896, 1344)


def row(side, batch=1, name="self-attention", power=1.5, slow=1.0, **more):
    n = patches(side)
    own = {"kind": "cell", "mechanism": name, "resolution": side, "batch": batch, "tokens": n, "parameters": 1000}
    seconds = slow * batch * 1e-6 * n**power
    times = {"seconds": seconds, "low": 0.9 * seconds, "high": 1.2 * seconds}
    speed = {"matmul": 5e10 / slow, "copy": 1e10 / slow}
    return own | times | speed | {"macs": 1000 * n**2, "peak": 64 * n, "rounds": 5} | more


def test_powers_are_those_that_the_cells_have():
    found = powers([row(side, slow=slow) for side, slow in zip(SIDES, (1, 4, 2, 7, 1), strict=True)])
    time = found["self-attention", "time"]
    assert (time.value, time.low, time.high) == pytest.approx((1.5, 1.5, 1.5))
    assert time.last == pytest.approx(1.5)
    assert time.points == 5
    assert found["self-attention", "macs"].value == pytest.approx(2)
    assert found["self-attention", "memory"].value == pytest.approx(1)


def test_an_interval_is_that_of_scipy_and_the_last_step_that_of_the_two_largest():
    noise = np.random.default_rng(0).normal(size=5)
    given = [row(side, slow=1.0, seconds=float(np.exp(0.1 * by)) * patches(side)) for side, by in zip(SIDES, noise)]  # noqa: B905
    found = powers(given[::-1])["self-attention", "time"]
    theirs: Any = scipy.stats.linregress(
        np.log([patches(side) for side in SIDES]), np.log([one["seconds"] for one in given])
    )
    reach = scipy.stats.t.ppf(0.975, 3) * theirs.stderr
    assert (found.value, found.low, found.high) == pytest.approx(
        (theirs.slope, theirs.slope - reach, theirs.slope + reach), rel=1e-4
    )
    step = math.log(given[-1]["seconds"] / given[-2]["seconds"]) / math.log(patches(1344) / patches(896))
    assert found.last == pytest.approx(step)


def test_no_power_is_made_of_two_sizes_or_of_what_was_left_out():
    left_out = {"kind": "cell", "mechanism": "self-attention", "resolution": 896, "batch": 1, "skipped": "too much"}
    rows = [row(224), row(448), left_out, row(672, batch=8), {"kind": "torn", "text": "{"}]
    assert powers(rows) == {}
    said = table({})["rows"][0]
    assert said[:3] == ["self-attention", "O(n²)", "2"]
    assert said[3:5] == ["", ""]
    drawn = series([row(224, slow=2.0), row(448, slow=6.0), left_out, row(672, slow=4.0), row(672, batch=8)])
    assert [at for at, *_ in drawn["self-attention"]] == [196, 784, 1764]
    milliseconds = 4e-3 * 784**1.5  # at the median speed, a quarter of the fastest
    assert drawn["self-attention"][1][1:] == pytest.approx((milliseconds, 0.9 * milliseconds, 1.2 * milliseconds))


def test_the_tables_say_what_the_cells_say():
    rows = [row(side, batch) for side in (224, 448) for batch in (1, 8)] + [row(224, 64, slow=3.0)]
    rows.append({"kind": "cell", "mechanism": "linear", "resolution": 448, "batch": 8, "skipped": "out of memory"})
    made = tables(rows, {}, [])
    assert made["time"]["columns"][1:] == [
        f"{s} px, batch {b}" for s, b in ((224, 1), (448, 1), (224, 8), (448, 8), (224, 64))
    ]
    first = dict(zip(made["time"]["columns"], made["time"]["rows"][0], strict=True))
    milliseconds = 1e-3 * 196**1.5
    assert first["224 px, batch 1"] == f"{milliseconds:.3g} ({0.9 * milliseconds:.3g} to {1.2 * milliseconds:.3g})"
    assert first["448 px, batch 8"].startswith(f"{1e-3 * 784**1.5:.3g} ")
    slow = tables([row(1344)], {}, [])["time"]["rows"][0][1]
    assert slow == f"{1e-3 * 7056**1.5:.0f} ({0.9e-3 * 7056**1.5:.0f} to {1.2e-3 * 7056**1.5:.0f})"
    linear = dict(zip(made["time"]["columns"], made["time"]["rows"][1], strict=True))
    assert linear["448 px, batch 8"] == "-"
    assert linear["224 px, batch 1"] == ""
    assert made["skipped"]["rows"] == [["linear", "448", "8", "out of memory"]]
    gained = made["throughput"]["rows"][0]
    assert made["throughput"]["columns"][-1] == "batch 64 over 1"
    assert gained[-1] == "1.00"  # three times as slow when the machine was three times as slow is no loss
    share = 1000 * 196**2 / (1e-6 * 196**1.5) / 5e10
    assert made["roofline"]["rows"][0][1].startswith(f"{share:.0%}; ")
    assert [len(line) for one in made.values() for line in one["rows"]] == [
        len(one["columns"]) for one in made.values() for line in one["rows"]
    ]


def test_figures_have_the_powers_the_speeds_and_the_tail():
    times = {"cascade": {"50": 1.0, "99": 6.0}, "all": {"50": 4.0, "99": 5.0}}
    tail = {"kind": "tail", "resolution": 448, "first": 0.8, "times": times, "means": {"cascade": 2.0, "all": 4.0}}
    rows = [*(row(side) for side in SIDES), tail]
    shown = {one.name: one.value for one in figures(rows, powers(rows))}
    assert any(
        name.startswith("self-attention: power of time over visual tokens (1.50 to 1.50; survey: O(n²))")
        for name in shown
    )
    assert shown["the machine's matrix product, median over the cells"] == 50
    start = "cascade / reading all, single images at 448, 80% stop at the first of two stages: "
    assert {name.removeprefix(start): value for name, value in shown.items() if name.startswith(start)} == {
        "mean": 0.5,
        "50th percentile": 0.25,
        "99th percentile": 1.2,
    }


def test_the_committed_table_has_all_accuracies_of_the_results():
    table = json.loads((ROOT / "results" / "matrix.json").read_text())["tables"]["accuracy"]
    told = "run regard bench matrix --summary"
    assert {(row[1], row[2]) for row in table["rows"]} == {(one.what, one.task) for one in points(ROOT / "results")}, (
        told
    )


def test_accuracies_are_those_of_the_results_and_none_are_made_up(tmp_path):
    assert points(tmp_path) == []
    given = {"task": "fashion", "glimpses": 6, "glimpse": 8, "scales": 1, "seed": 3}
    rows = [{"name": "fashion, 6 glimpses, one run an image", "value": 20.5}, {"name": "an epoch of mnist", "value": 3}]
    rows += [
        {"name": "mnist, 6 glimpses, one run an image", "value": 1.0}
    ]  # of no run in the notes: its cost is unknown
    (tmp_path / "ram.json").write_text(json.dumps({"rows": rows, "notes": {"ram-0": given}}))
    for broken in ({"rows": rows, "notes": {"ram-0": "six glimpses"}}, {"rows": rows}, {"rows": 3, "notes": {}}):
        (tmp_path / "ram.json").write_text(json.dumps(broken))
        with pytest.raises(DataError, match=r"ram.json' is not as this version writes it"):
            points(tmp_path)
    (tmp_path / "ram.json").write_text(json.dumps({"rows": rows, "notes": {"ram-0": given}}))
    (found,) = points(tmp_path)
    assert (found.mechanism, found.task, found.accuracy, found.best) == ("recurrent (RAM)", "fashion", 79.5, True)
    assert found.macs == 6 * (64 * 128 + 128 * 256 + 2 * 128 + 128 * 256 + 512 * 256) + 5 * 3 * 256 + 10 * 256


def test_the_committed_accuracies_are_read_as_they_stand():
    found = {(one.task, one.what): one for one in points(ROOT / "results")}
    rows = {
        name: {row["name"]: row["value"] for row in json.loads((ROOT / "results" / f"{name}.json").read_text())["rows"]}
        for name in ("ram", "dynamic", "foveated", "cascade")
    }
    gaze = found["search", "gaze predicted"]
    assert gaze.accuracy == rows["foveated"]["search, gaze predicted: right"]
    assert gaze.macs == pytest.approx(1e6 * rows["foveated"]["search, gaze predicted: cost"])
    evit, plain = found["fashion", "evit-fashion-0"], found["fashion", "vit-fashion-0"]
    assert evit.accuracy == pytest.approx(100 - rows["dynamic"]["evit-fashion-0, error"])
    assert evit.macs / plain.macs == pytest.approx(rows["dynamic"]["evit-fashion-0, MACs / plain"])
    many = found["mnist", "RAM, 6 glimpses, 10 runs"]
    assert many.macs == 10 * found["mnist", "RAM, 6 glimpses, 1 run"].macs
    assert {"fashion", "mnist", "search"} <= {task for task, _ in found}
    for one in found.values():
        beaten = [o for o in found.values() if o.task == one.task and o.accuracy > one.accuracy and o.macs < one.macs]
        assert not (one.best and beaten)
        assert one.best or any(o.task == one.task and o.best and o.macs <= one.macs for o in found.values())


def test_pictures_are_png_and_the_page_loads_and_runs_nothing():
    curves = {one.name: series([row(side, name=one.name) for side in SIDES])[one.name] for one in MECHANISMS}
    pictures = [
        scaling(curves, "ms"),
        multiples(curves, {"linear": "n^1.00"}, "ms"),
        pareto({"a": [("x", 1e6, 80.0, True), ("y", 2e6, 70.0, False)], "b": []}),
    ]
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 4000 for picture in pictures)
    assert pareto({}).startswith(b"\x89PNG")
    one = {"columns": ["a"], "rows": [["<b>&"]]}
    page = matrix_page(
        "The <survey>", "about", {"curves": pictures[0]}, {"t": one, "none": {"columns": [], "rows": []}}
    )
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src &#x27;none&#x27;" in page
    assert "<td>&lt;b&gt;&amp;</td>" in page
    assert "<h2>none</h2>" not in page
    assert page.count("data:image/png;base64,") == 1
    assert page.isascii()


def test_the_committed_matrix_is_summed_up_as_it_stands():
    lines = read_lines(ROOT / "results" / "matrix.jsonl")
    assert lines.torn == ""
    known = {cell.id for cell in cells()} | {TAIL}
    for row in lines.rows:
        assert row["id"] in known
        assert ("skipped" in row) != ("seconds" in row or "times" in row), row["id"]
    found = powers(lines.rows)
    assert {name for name, _ in found} == {one.name for one in MECHANISMS}
    summed = json.loads((ROOT / "results" / "matrix.json").read_text())
    assert summed["rows"] == [asdict(one) | {"met": None} for one in figures(list(lines.rows), found)]
    assert summed["tables"]["scaling"] == table(found)
    assert summed["notes"]["cells"] == sum(row["kind"] == "cell" for row in lines.rows)


def test_a_power_says_its_interval():
    power = Power("linear", "time", 1.04, 0.9, 1.2, 1.1, 5)
    assert str(power) == "1.04 (0.90 to 1.20)"


def test_a_policy_has_the_cost_of_its_own_runs(tmp_path):
    name = "cluttered, 6 glimpses{}, one run an image"
    rows = [{"name": name.format(policy), "value": 10.0} for policy in ("", ", random policy")]
    sizes = {"learned": 3, "random": 1}
    notes = {
        policy: {"task": "cluttered", "glimpses": 6, "glimpse": 12, "scales": scales, "policy": policy}
        for policy, scales in sizes.items()
    }
    for several in (notes, dict(reversed(notes.items()))):
        (tmp_path / "ram.json").write_text(json.dumps({"rows": rows, "notes": several}))
        cost = {one.what: one.macs for one in points(tmp_path)}
        assert cost["RAM, 6 glimpses, 1 run"] > cost["RAM, 6 glimpses, random policy, 1 run"]
