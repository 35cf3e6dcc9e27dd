"""A results file: what made each figure, and what stays when more is measured."""

import json

import pytest

from regard.bench.results import Row, added, publish

MADE = {"date": "2026-01-02", "commit": "abc"}


def read(folder):
    return json.loads((folder / "results" / "mine.json").read_text())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = {"a": {"columns": ["x"], "rows": [["1"]]}}
    publish("mine", "c", [Row("one", 1, "s"), Row("two", 2, "s", "<= 3")], MADE, notes={"r": 1}, tables=table)
    return tmp_path


def test_a_file_is_written_anew(folder):
    publish("mine", "c", [Row("one", 5, "s")], MADE | {"commit": "def"})
    assert [row["name"] for row in read(folder)["rows"]] == ["one"]
    assert read(folder)["notes"] == {}


def test_what_was_measured_before_stays_with_what_made_it(folder):
    publish("mine", "c", [Row("one", 5, "s"), Row("three", 3, "s")], {"date": "d", "commit": "def"}, add=True)
    found = read(folder)
    assert found["commit"] == "def"
    assert [row["name"] for row in found["rows"]] == ["one", "three", "two"]
    assert found["rows"][0]["value"] == 5
    assert "made" not in found["rows"][0]
    assert found["rows"][2] | {"made": 0} == {
        "name": "two", "value": 2, "unit": "s", "target": "<= 3", "met": True, "made": 0
    }  # fmt: skip
    assert found["rows"][2]["made"] == MADE
    assert found["notes"] == {"r": 1}
    assert set(found["tables"]) == {"a"}


def test_a_row_keeps_what_made_it_when_more_is_added_again(folder):
    for commit in ("def", "ghi"):
        publish("mine", "c", [Row(commit, 3, "s")], {"date": "d", "commit": commit}, add=True)
    by = {row["name"]: row.get("made", {}).get("commit") for row in read(folder)["rows"]}
    assert by == {"ghi": None, "def": "def", "one": "abc", "two": "abc"}


def test_a_note_is_replaced_by_the_newer():
    old = {"rows": [], "notes": {"r": 1, "s": 2}, **MADE}
    assert added({"rows": [], "notes": {"r": 3}}, old)["notes"] == {"r": 3, "s": 2}


def test_nothing_to_add_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    publish("mine", "c", [Row("one", 1, "s")], MADE, add=True)
    assert len(read(tmp_path)["rows"]) == 1
