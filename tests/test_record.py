"""The record: plain data, there and back, written whole or not at all."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import torch

from regard import Allocation, DataError, Record
from regard.files import write_whole
from regard.record import Look, Picture, Step


def record() -> Record:
    steps = (
        Step(0, Allocation.select(torch.tensor([[1, 2, 4]]), 6).to_dict()),
        Step(8, Allocation.merge(torch.tensor([[0, 0, 1]]), 2).to_dict()),
    )
    look = Look(0, "toy", {"seed": 3}, 3, 6, 2, 0.001, 0.5, 100, 50, steps)
    return Record(
        picture=Picture("a<b>.jpg", 7, 5, "", ("rotated",)),
        eye="toy",
        questions=("where is “it”?",),
        boxes=tuple((i / 6, 0.0, (i + 1) / 6, 1.0) for i in range(6)),
        relevance=((0.1,) * 6,),
        grid=(1, 1, 6),
        looks=(look,),
        language_model="tiny",
        prompt_tokens=5,
        seconds={"read": 0.1},
        made={"regard": "0"},
    )


def test_json_there_and_back(tmp_path: Path):
    one = record()
    one.save(tmp_path / "new" / "record.json")
    assert Record.load(tmp_path / "new" / "record.json") == one
    assert Record.from_json(one.to_json()) == one
    assert json.loads(one.to_json())["format"] == "regard-record-1"


def test_steps_inside_a_language_model_compose():
    look = record().looks[0]
    assert look.allocation.n_in == 6
    assert look.allocation.spent().tolist() == [[0, 0.5, 0.5, 0, 1, 0]]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "other"}', '{"format": "regard-record-1"}'])
def test_what_is_no_record_is_one_line(text: str, tmp_path: Path):
    with pytest.raises(DataError, match="not a record") as raised:
        Record.from_json(text)
    assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match="cannot read the record"):
        Record.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("looks", 0, "steps"), []),
        (("looks", 0, "question"), 7),
        (("looks", 0, "tokens_out"), -1),
        (("boxes",), "abc"),
        (("boxes", 0), [0, 0, 2, 1]),
        (("relevance",), []),
        (("looks", 0, "steps", 0, "allocation", "n_in"), 5),
    ],
)
def test_parts_that_do_not_fit_are_one_line(path: tuple, value: object):
    data = json.loads(record().to_json())
    part = data
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(DataError, match="not a record"):
        Record.from_json(json.dumps(data))
    with pytest.raises(DataError, match="not a record"):
        Record.from_json("[" * 100_000)


def test_not_a_number_is_not_written():
    with pytest.raises(ValueError, match="JSON"):
        dataclasses.replace(record(), seconds={"read": float("nan")}).to_json()


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(failure: BaseException, tmp_path: Path, monkeypatch):
    target = tmp_path / "record.json"
    write_whole(target, "old")

    def fail(_: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else DataError) as raised:
        write_whole(target, "new")
    assert target.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]
    if isinstance(failure, OSError):
        assert "No space left on device" in str(raised.value)


def test_a_written_file_has_ordinary_rights(tmp_path: Path):
    write_whole(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
