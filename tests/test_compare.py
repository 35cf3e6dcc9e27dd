"""What changed between two runs over the same items, and whether it is more than chance."""

import json
from typing import Any

import numpy as np
import pytest
import scipy.stats

from regard import DataError
from regard.bench.compare import compare
from regard.intervals import interval, slope, student


def write(path, rows, end="\n"):
    path.write_text("\n".join(json.dumps(row) for row in rows) + end)
    return path


def two(tmp_path, count=41):
    rng = np.random.default_rng(5)
    a = [{"id": f"q{i}", "right": bool(rng.random() < 0.5), "seconds": float(rng.random())} for i in range(count)]
    b = [row | {"right": bool(rng.random() < 0.8), "seconds": row["seconds"] - 0.1 * float(rng.random())} for row in a]
    return write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", b), a, b


def test_means_and_intervals_are_of_the_pairs(tmp_path):
    path_a, path_b, a, b = two(tmp_path)
    write(tmp_path / "b.jsonl", [*reversed(b), {"id": "new", "right": True, "seconds": 9.0}])
    found = compare(path_a, path_b, resamples=20_000)
    assert (found.only_a, found.only_b, found.same, found.notes) == (0, 1, (), ())
    assert [one.name for one in found.metrics] == ["right", "seconds"]
    for one in found.metrics:
        values = np.array([[float(row[one.name]) for row in rows] for rows in (a, b)])
        differences = values[1] - values[0]
        assert (one.pairs, one.unpaired) == (41, 0)
        assert one.a == pytest.approx(values[0].mean())
        assert one.b == pytest.approx(values[1].mean())
        assert one.difference == pytest.approx(differences.mean())
        theirs = scipy.stats.bootstrap(
            (differences,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
        ).confidence_interval
        near = {"right": 1.01 / 41, "seconds": 0.02 * differences.std()}[one.name]  # answers come in steps of 1 / 41
        assert [one.low, one.high] == pytest.approx(list(theirs), abs=near)
        low, high = [one.low, one.high]
        assert low is not None
        assert high is not None
        assert low < one.difference < high


def test_the_interval_is_the_same_drawn_in_parts_and_covers_as_it_says(monkeypatch):
    values = np.random.default_rng(0).normal(size=13)
    whole = interval(values, 3, 997)
    monkeypatch.setattr("regard.intervals._AT_ONCE", 13 * 7)
    assert interval(values, 3, 997) == whole
    assert interval(values, 4, 997) != whole
    drawn = np.random.default_rng(1).exponential(size=(400, 60)) - 1
    held = [low <= 0 <= high for low, high in (interval(each, 0, 500) for each in drawn)]
    assert 0.88 <= np.mean(held) <= 0.98


def test_an_interval_over_groups_draws_them_whole():
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 6, 31)
    groups = np.repeat(rng.permutation(31), sizes)
    values = rng.normal(size=31)[groups] + 0.1 * rng.normal(size=len(groups))
    low, high = interval(values, 3, 4000, groups)
    means = []
    for _ in range(4000):
        drawn = np.concatenate([values[groups == group] for group in rng.integers(0, 31, 31)])
        means.append(drawn.mean())
    assert [low, high] == pytest.approx(list(np.quantile(means, (0.025, 0.975))), abs=0.05)
    alone = interval(values, 3, 4000)
    assert high - low > 1.5 * (alone[1] - alone[0])
    order = rng.permutation(len(values))
    assert interval(values[order], 3, 997, groups[order]) == pytest.approx(interval(values, 3, 997, groups))
    assert interval(values, 3, 997, np.arange(len(values))) == pytest.approx(interval(values, 3, 997))
    assert interval(np.zeros(5), 0, 100, np.array([1, 1, 2, 2, 2])) == (0, 0)


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 40])
def test_quantiles_of_t_are_those_of_scipy(freedom):
    assert student(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-4)
    assert student(freedom, 0.9) == pytest.approx(scipy.stats.t.ppf(0.9, freedom), rel=1e-4)


def test_a_slope_and_its_interval_are_those_of_scipy():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=7), rng.normal(size=7)
    theirs: Any = scipy.stats.linregress(x, y)
    reach = scipy.stats.t.ppf(0.975, 5) * theirs.stderr
    assert slope(x, y) == pytest.approx((theirs.slope, theirs.slope - reach, theirs.slope + reach), rel=1e-4)


def test_a_missing_value_is_counted_and_what_is_equal_is_said_apart(tmp_path):
    a = write(tmp_path / "a", [{"id": 1, "x": 1, "n": 5, "y": None}, {"id": 2, "x": 2, "n": 6, "y": 4}])
    b = write(tmp_path / "b", [{"id": 2, "x": None, "n": 6, "y": 3}, {"id": 1, "x": 3, "n": 5, "y": 2, "name": "z"}])
    found = compare(a, b)
    assert {one.name: (one.difference, one.low, one.pairs, one.unpaired) for one in found.metrics} == {
        "x": (2.0, None, 1, 1),
        "y": (-1.0, None, 1, 1),
    }
    assert found.same == ("n",)
    assert [one.name for one in compare(a, b, ["n"]).metrics] == ["n"]


def test_a_last_line_that_was_cut_off_is_said_and_left_out(tmp_path):
    path_a, path_b, *_ = two(tmp_path, 7)
    whole = path_b.read_text()
    path_b.write_text(whole[:-9])
    found = compare(path_a, path_b)
    assert (found.only_a, found.metrics[0].pairs) == (1, 6)
    assert "b.jsonl: the last line was cut off and is left out: {" in found.notes[0]
    assert path_b.read_text() == whole[:-9]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"id": 1, "x": 1}\n{"id": 2, "x":\n{"id": 3}\n', r"line 2 is not JSON: .*one object a line"),
        ('{"id": 1, "x": 1}\n{"id": 2, "x":\n', r"line 2 is not JSON"),
        ("[1]\n", r"line 1 is list, not an object"),
        ('{"id": 1, "x": NaN}\n', r"line 1: NaN is no number"),
        ('{"id": 1, "x": 1e400}\n', r"line 1: 1e400 is no number"),
        ('{"id": 1, "x": ' + 400 * "9" + "}\n", r"line 1: 99999999999999999999 is no number"),
        ('{"id": 1, "x": -' + 5000 * "9" + "}\n", r"line 1: -9999999999999999999 is no number"),
        ('\n{"x": 1}\n', r"line 2 has no id: expected \"id\" .*, got the keys x"),
        ('{"id": true, "x": 1}\n', r"line 1 has no id"),
        ('{"id": 1}\n{"id": 2}\n{"id": 1}\n', r"has 1 ids more than once, such as 1"),
        ('{"id": "else", "x": 1}\n', r"share no id, such as 1 there and 'else' here"),
        ('{"id": 1, "y": 1}\n', r"has a number in both: lines hold \"id\""),
        ('{"schema": 2, "id": 1, "x": 1}\n', r"line 1 is of schema 2, this version reads schema 1"),
        ("", r"holds no whole line"),
        ('{"id": 1', r"holds no whole line"),
    ],
)
def test_bad_lines_are_one_clear_error(tmp_path, text, says):
    good, bad = write(tmp_path / "a", [{"id": 1, "x": 1, "schema": 1}]), tmp_path / "b"
    bad.write_text(text)
    with pytest.raises(DataError, match=says):
        compare(good, bad)


def test_a_metric_must_be_there_and_numbers(tmp_path):
    a = write(tmp_path / "a", [{"id": 1, "x": 1, "name": "m"}])
    with pytest.raises(DataError, match="no pair has the metric 'z' in both files: there are x"):
        compare(a, a, ["z"])
    with pytest.raises(DataError, match="'name' must be numbers or true/false, got 'm' of 1"):
        compare(a, a, ["name"])
    with pytest.raises(DataError, match="cannot read .*No such file"):
        compare(a, tmp_path / "none")


def test_the_command_prints_a_table_or_json(regard, tmp_path):
    a, b, *_ = two(tmp_path)
    code, out, err = regard("bench", "compare", a, b, "--metric", "right", "--json", "--seed", 7, "--resamples", 1000)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [one["name"] for one in found["metrics"]] == ["right"]
    assert (found["seed"], found["resamples"]) == (7, 1000)
    assert (found["metrics"][0]["low"], found["metrics"][0]["high"]) == (
        compare(a, b, ["right"], 1000, 7).metrics[0].low,
        compare(a, b, ["right"], 1000, 7).metrics[0].high,
    )
    b.write_text(b.read_text()[:-5])
    code, out, err = regard("bench", "compare", a, b)
    assert code == 0
    assert "seconds" in out
    assert " to " in out
    assert "1 items unpaired" in out
    assert err.startswith("regard: ")
    assert "cut off" in err
    for line in (("--resamples", 3), ("--resamples", 10**12), ("--metric", " , "), ("--seed", -1)):
        code, _, err = regard("bench", "compare", a, b, *line)
        assert code == 2
        assert err.count("\n") == 1
    code, _, err = regard("bench", "compare", a, tmp_path / "none.jsonl")
    assert code == 1
    assert err.startswith("regard: cannot read ")
    assert err.count("\n") == 1


def test_comparing_does_not_import_torch():
    import subprocess
    import sys

    code = "import sys, regard.bench.compare; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
