"""Rows to learn from: images, what is asked, and the answer, from JSONL and Parquet files, each read once.

A row has `image` (a path beside the file, the bytes of a picture, or a list of those; `images` will do), `answer`,
and may have `question` (or `prompt`) and `type`. Files are streamed. What remains of a row, its images by their hashes,
goes into an index beside the cache of what the eye saw, so that rows are then read by their places.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from regard.errors import DataError
from regard.files import write_whole
from regard.vlm.interleaved import IMAGE

FORMAT = "regard-rows-1"
ASKED = "Describe the image."


@dataclass(frozen=True)
class Source:
    """files: JSONL or Parquet. ask: the question of rows that have none. longest: characters of a row's question and
    answer at most.
    """

    files: tuple[str, ...]
    ask: str = ASKED
    longest: int = 8000


class Row(NamedTuple):
    """images: (hash, path) of each. asked: whether the question is the row's own."""

    images: list[tuple[str, str]]
    question: str
    answer: str
    kind: str
    asked: bool


class Raw(NamedTuple):
    """A row as its file has it. where: file and number, for errors. beside: what its images' paths are relative to."""

    values: dict[str, Any]
    where: str
    beside: Path


def raw_rows(file: str | os.PathLike) -> Iterator[Raw]:
    """The rows of one file, streamed. Raises DataError where it is missing, no such file, or a line is no JSON."""
    path = Path(file)
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r} with rows: give a JSONL or a Parquet file")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    if path.suffix not in (".jsonl", ".json"):
        raise DataError(f"rows come from .jsonl and .parquet files, got {str(path)!r}")
    with path.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _raw(line, f"{path}, line {number}", path.parent)
        except UnicodeDecodeError as error:
            raise DataError(f"{str(path)!r} is no UTF-8 text: {error}") from error


def _raw(line: str, where: str, folder: Path) -> Raw:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is no JSON, it may be cut short: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{where} must be an object with image and answer, got {type(values).__name__}")
    return Raw(values, where, folder)


def _parquet_rows(path: Path) -> Iterator[Raw]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError("Parquet needs pyarrow: pip install 'regard[train]', or give JSONL") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for part in file.iter_batches(batch_size=64):
                for values in part.to_pylist():
                    number += 1
                    yield Raw(values, f"{path}, row {number}", path.parent)
    except pyarrow.ArrowException as error:
        raise DataError(f"{str(path)!r} cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def written(values: dict[str, Any], where: str, source: Source) -> tuple[str, str, str, bool]:
    """question, answer, type, and whether the question is the row's own. Raises DataError for a row that has no answer,
    or where markers and images differ in number.
    """
    answer, own = values.get("answer"), values.get("question", values.get("prompt"))
    if not isinstance(answer, str) or not isinstance(own, str | None):
        has = ", ".join(values)
        raise DataError(f"{where} must have an answer in words, and a question if any: it has {has}")
    question = source.ask if own is None else own
    images, marks = len(given_images(values, where)), question.count(IMAGE)
    if marks not in (0, images):
        raise DataError(f"{where} has {marks} {IMAGE} and {images} images: each image needs one, or leave all out")
    return question, answer, str(values.get("type") or ""), own is not None


def given_images(values: dict[str, Any], where: str) -> list[str | bytes | None]:
    """The images of a row: paths or bytes, None for what is neither. Raises DataError where there is no such column."""
    found = values.get("images", values.get("image"))
    if found is None and not {"image", "images"} & values.keys():
        raise DataError(f"{where} must have an image, a path or bytes, or images: it has {', '.join(values)}")
    several = found if isinstance(found, list) else [found]
    if not several:
        raise DataError(f"{where} has no image: give it one")
    return [_image(one) for one in several]


def _image(value: Any) -> str | bytes | None:
    if isinstance(value, dict):  # as `datasets` writes them
        value = value.get("bytes") or value.get("path")
    return value if isinstance(value, str | bytes) and value else None


class Rows:
    """An index that is read by places: `rows[i]`. keys: hashes of all images that rows use, with their paths. uses: the
    hashes of each row's images; kinds: the type of each; skipped: how many rows were left out, and why.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        starts, lengths, self.skipped = [], [], Counter[str]()
        self.keys: dict[str, str] = {}
        self.uses: list[tuple[str, ...]] = []
        self.kinds: list[str] = []
        place, total = 0, hashlib.sha256()
        with path.open("rb") as lines:
            place += len(next(lines))
            for line in lines:
                row = json.loads(line)
                if "why" in row:
                    self.skipped[row["why"]] += 1
                else:
                    starts.append(place)
                    lengths.append(len(row["answer"]))
                    self.keys |= {key: file for key, file, *_ in row["images"]}
                    self.uses.append(tuple(key for key, *_ in row["images"]))
                    self.kinds.append(row["type"])
                    total.update(json.dumps([self.uses[-1], row["question"], row["answer"]]).encode())
                place += len(line)
        self.starts, self.lengths = np.array(starts, dtype=np.int64), np.array(lengths, dtype=np.int64)
        self.digest = total.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, place: int) -> Row:
        with self.path.open("rb") as file:
            return _row_at(file, self.starts[place])

    def all(self) -> Iterator[Row]:
        """Each row, in order."""
        with self.path.open("rb") as file:
            for start in self.starts:
                yield _row_at(file, start)

    def drop(self, keys: dict[str, str]) -> None:
        """Leave rows out whose images are broken. keys: of those images, and why."""
        some = [place for place, uses in enumerate(self.uses) if any(key in keys for key in uses)]
        self.leave_out(dict.fromkeys(some, "the image is broken"))

    def leave_out(self, why: Mapping[int, str]) -> None:
        """Leave some rows out, by their places. why: they are."""
        kept = [place for place in range(len(self)) if place not in why]
        self.skipped.update(why.values())
        self.starts, self.lengths = self.starts[kept], self.lengths[kept]
        self.uses, self.kinds = [self.uses[place] for place in kept], [self.kinds[place] for place in kept]


def _row_at(file: BinaryIO, start: int) -> Row:
    file.seek(int(start))
    row = json.loads(file.readline())
    images = [(key, path) for key, path, *_ in row["images"]]
    return Row(images, row["question"], row["answer"], row["type"], row["asked"])


def indexed(source: Source, folder: Path, team: Any, stage: Callable[[str], None] = lambda text: None) -> Rows:
    """Read all rows once, or use the index of an earlier run whose files are unchanged. team: an `Accelerator`, whose
    processes share the work.

    Raises DataError as `raw_rows` and `written`, and where no row is left.
    """
    if not source.files:
        raise DataError("there are no files with rows: give one or more")
    stamps = [[str(Path(file).resolve()), *_stamp(file)] for file in source.files]
    about = json.dumps([FORMAT, stamps, source.ask, source.longest])
    path = folder / f"rows-{hashlib.sha256(about.encode()).hexdigest()[:16]}.jsonl"
    rank, world = team.process_index, team.num_processes
    folder.mkdir(parents=True, exist_ok=True)
    fresh = path.is_file() and _unchanged(path)
    team.wait_for_everyone()
    if not fresh:
        part = path.with_suffix(f".part-{rank}-of-{world}")
        with part.open("w", encoding="utf-8") as file:
            file.writelines(_lines(source, folder, rank, world, stage))
        team.wait_for_everyone()
        if team.is_main_process:
            parts = [path.with_suffix(f".part-{other}-of-{world}") for other in range(world)]
            _merge(parts, path, about)
        team.wait_for_everyone()
    rows = Rows(path)
    if not len(rows):
        reasons = ", ".join(f"{count} because {why}" for why, count in rows.skipped.items()) or "the files are empty"
        raise DataError(f"no row can be used: {reasons}")
    return rows


def _stamp(file: str | os.PathLike) -> list[int]:
    found = Path(file).stat() if Path(file).is_file() else None
    return [0, 0] if found is None else [found.st_size, found.st_mtime_ns]


def _unchanged(index: Path) -> bool:
    """Whether all images are as they were."""
    with index.open(encoding="utf-8") as lines:
        next(lines)
        images = (image for line in lines for image in json.loads(line)["images"])
        return all(_stamp(path) == stamp for _, path, *stamp in images)


def _lines(source: Source, folder: Path, rank: int, world: int, stage: Callable[[str], None]) -> Iterator[str]:
    """The index of each `world`-th row."""
    number = -1
    for file in source.files:
        for raw in raw_rows(file):
            number += 1
            if number % world != rank:
                continue
            if number % 1000 < world:
                stage(f"read the rows: {number}")
            yield json.dumps(_entry(raw, source, folder)) + "\n"


def _entry(raw: Raw, source: Source, folder: Path) -> dict[str, Any]:
    question, answer, kind, asked = written(raw.values, raw.where, source)
    found = [_hashed(given, raw.beside, folder) for given in given_images(raw.values, raw.where)]
    reasons = [why for _, why in found if why]
    if len(question) + len(answer) > source.longest:
        reasons.append(f"the text is longer than {source.longest} characters")
    images = [image for image, _ in found if image]
    row = {"images": images, "question": question, "answer": answer, "type": kind, "asked": asked}
    return {**row, "why": reasons[0]} if reasons else row


def _hashed(given: str | bytes | None, beside: Path, folder: Path) -> tuple[list[Any], str]:
    """hash, path, size and time of an image, and why it cannot be used, if so. Bytes are written to a file of their own
    in the cache.
    """
    if given is None:
        return [], "there is no image in it"
    if isinstance(given, bytes):
        key = hashlib.sha256(given).hexdigest()
        path = folder / "images" / key[:2] / key
        if not path.is_file():
            write_whole(path, given)
        return [key, str(path.resolve()), *_stamp(path)], ""
    try:
        path = (beside / given).resolve()
        there = path.is_file()
    except (OSError, ValueError):  # no name of a file, such as a picture in base64
        return ["", "", 0, 0], "the image is missing"
    if not there:
        return ["", str(path), *_stamp(path)], "the image is missing"
    try:
        return [hashlib.sha256(path.read_bytes()).hexdigest(), str(path), *_stamp(path)], ""
    except OSError as error:
        return ["", str(path), *_stamp(path)], f"the image cannot be read ({error.strerror})"


def _merge(parts: Sequence[Path], path: Path, about: str) -> None:
    """The parts' lines in the order of the rows."""
    temporary = path.with_suffix(".merging")
    files = [part.open(encoding="utf-8") for part in parts]
    try:
        with temporary.open("w", encoding="utf-8") as whole:
            whole.write(about + "\n")
            while lines := [line for line in (file.readline() for file in files) if line]:
                whole.writelines(lines)
            whole.flush()
            os.fsync(whole.fileno())
        temporary.replace(path)
    finally:
        for file, part in zip(files, parts, strict=True):
            file.close()
            part.unlink(missing_ok=True)
