"""Accuracy and cost of the mechanisms that were trained, as the files of results/ have them, and none but these."""

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regard.bench.advise.classified import READS_ALL
from regard.errors import DataError
from regard.mechanisms.cascade import Cascade
from regard.mechanisms.looker import Looker
from regard.mechanisms.recurrent import COPIES, RecurrentAttention
from regard.mechanisms.vit import StaticViT


@dataclass(frozen=True)
class Point:
    """mechanism: its name. what: the trained run. accuracy: in percent, on the task's test images. macs:
    multiply-accumulates of an image, on average. source: the file that says so. best: whether no other of the task is
    as good for as little.
    """

    mechanism: str
    what: str
    task: str
    accuracy: float
    macs: float
    source: str
    best: bool = False


def points(results: Path) -> list[Point]:
    """Of every file that there is, task by task, the cheapest first."""
    found = []
    for name, read in _READERS.items():
        file = results / f"{name}.json"
        if file.exists():
            try:
                data = json.loads(file.read_text())
                rows = {row["name"]: row["value"] for row in data["rows"]}
                found += [replace(point, source=f"results/{name}.json") for point in read(data, rows)]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                why = f"measure it again ({error})"
                raise DataError(f"{str(file)!r} is not as this version writes it: {why}") from error
    front = [replace(one, best=not any(_beats(other, one) for other in found)) for one in found]
    return sorted(front, key=lambda one: (one.task, one.macs))


def _beats(other: Point, one: Point) -> bool:
    as_good = other.task == one.task and other.accuracy >= one.accuracy and other.macs <= one.macs
    return as_good and (other.accuracy, other.macs) != (one.accuracy, one.macs)


def _ram(data: dict[str, Any], rows: dict[str, float]) -> Iterator[Point]:
    """Errors of the mean of several runs over an image, which cost as many, and of one."""
    for name, error in rows.items():
        about = re.match(r"([\w-]+), (\d+) glimpses(, random policy)?(?:, mean of \d+ seeds)?, (mean|one)", name)
        if about is None:
            continue
        task, glimpses, random, kind = about[1], int(about[2]), about[3] or "", about[4]
        asked = (task, glimpses, "random" if random else "learned")
        runs = data["notes"].values()
        notes = [one for one in runs if (one["task"], one.get("glimpses"), one.get("policy", "learned")) == asked]
        if notes:
            macs = _made(RecurrentAttention, notes[-1]).macs * (COPIES if kind == "mean" else 1)
            what = f"RAM, {glimpses} glimpses{random}, {f'{COPIES} runs' if kind == 'mean' else '1 run'}"
            yield Point("recurrent (RAM)", what, task, 100 - error, macs, "")


def _dynamic(data: dict[str, Any], rows: dict[str, float]) -> Iterator[Point]:
    """Vision transformers that read fewer patches, and the plain ones, whose share is 1."""
    names = {"vit": "self-attention", "dynamicvit": "DynamicViT", "evit": "EViT", "avit": "A-ViT"}
    for run, about in data["notes"].items():
        kind, share = run.partition("-")[0], rows.get(f"{run}, MACs / plain")
        if f"{run}, error" in rows and kind in names and (share is not None or kind == "vit"):
            side = about["vision"]["image_size"]
            macs = _made(StaticViT, about).full_macs(side, side) * (1 if share is None else share)
            yield Point(names[kind], run, about["task"], 100 - rows[f"{run}, error"], macs, "")


def _foveated(data: dict[str, Any], rows: dict[str, float]) -> Iterator[Point]:
    """Rows that say what is right, each beside one that says the cost."""
    kinds = {"gaze": "gaze tokens", "foveater-all": READS_ALL, "foveater": "FoveaTer"}
    kinds |= {"all tokens": "self-attention", "plain": "self-attention", "peripheral": "peripheral (PerViT)"}
    for name, right in rows.items():
        about = re.match(r"(\w+), (.+): right(?:, mean of \d+ seeds)?$", name)
        cost = None if about is None else rows.get(f"{about[1]}, {about[2]}: cost")
        if about is not None and cost is not None:
            kind = next((kinds[start] for start in kinds if about[2].startswith(start)), about[2])
            yield Point(kind, about[2], about[1], right, cost * 1e6, "")


def _cascade(data: dict[str, Any], rows: dict[str, float]) -> Iterator[Point]:
    """Cascades, whose costs are shares of what reading all takes."""
    for task in {about["task"] for about in data["notes"].values()}:
        whole = [about for about in data["notes"].values() if about["task"] == task and about["stages"] == 1]
        full = rows.get(f"{task}: all at the finest resolution, accuracy")
        if not whole or full is None:
            continue
        macs = _made(Cascade, whole[0]).costs[-1]
        yield Point("self-attention", "all at the finest resolution", task, full, macs, "")
        for name, accuracy in rows.items():
            about = re.match(rf"({re.escape(task)}, \d+ stages \((.+)\)): accuracy$", name)
            share = None if about is None else rows.get(f"{about[1]}: multiply-accumulates / reading all")
            if about is not None and share is not None:
                yield Point("cascade", about[2], task, accuracy, share * macs, "")


def _mechanisms(data: dict[str, Any], rows: dict[str, float]) -> Iterator[Point]:
    """The bridges of the pocket model, by its table."""
    table = data.get("tables", {}).get("mechanisms", {"columns": [], "rows": []})
    for values in table["rows"]:
        row = dict(zip(table["columns"], values, strict=True))
        right = next(text for name, text in row.items() if name.startswith("right"))
        what = f"{row['mechanism']}, {row['tokens']} tokens"
        name = "Q-Former" if row["mechanism"] == "qformer" else row["mechanism"]  # as the matrix calls it
        yield Point(name, what, "questions on scenes", float(right.split()[0]), float(row["M MACs"]) * 1e6, "")


def _made(kind: type[Looker], about: dict[str, Any]) -> Any:
    """A mechanism of the arguments that a run's notes hold, for its costs."""
    known = inspect.signature(kind.__init__).parameters
    return kind(**{name: value for name, value in about.items() if name in known})


_READERS = {"ram": _ram, "dynamic": _dynamic, "foveated": _foveated, "cascade": _cascade, "mechanisms": _mechanisms}
