"""Rows and what eyes saw of them: read once, encoded once, and what is broken is counted and said."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regard.errors import DataError
from regard.train import seen as seen_module
from regard.train.feed import Feed, planned
from regard.train.rows import Rows, Source, indexed
from regard.train.seen import Seen, drop_broken
from test_train_vlm import ToyEye, pictures, toy_vlm


@pytest.fixture
def team():
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def written(folder: Path, *rows: dict[str, Any], name: str = "more.jsonl") -> Source:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source((str(folder / name),))


def png(colour=(1, 2, 3), size=(16, 16)) -> bytes:
    import io

    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def test_rows_are_read_in_order_and_what_cannot_be_used_is_counted(tmp_path, team):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png((9, 9, 9)))
    (tmp_path / "torn.png").write_bytes(png()[:40])
    source = written(
        tmp_path,
        {"image": "a.png", "question": "what ?", "answer": "red", "type": "colour"},
        {"image": "gone.png", "answer": "blue"},
        {"image": "torn.png", "answer": "blue"},
        {"images": ["a.png", "b.png"], "prompt": "<image> and <image>", "answer": "both"},
        {"image": str(tmp_path / "b.png"), "answer": "green"},
        {"image": None, "answer": "none"},
        {"image": "a.png", "answer": "x" * 9000},
    )
    rows = indexed(source, tmp_path / "cache", team)
    assert rows.skipped == {
        "the image is missing": 1,
        "there is no image in it": 1,
        "the text is longer than 8000 characters": 1,
    }
    seen = Seen(tmp_path / "cache", ToyEye(), team)
    seen.fill(rows.keys)
    drop_broken(seen.broken, [rows])
    assert rows.skipped["the image is broken"] == 1
    assert [rows[place].answer for place in range(len(rows))] == ["red", "both", "green"]
    assert rows[0].kind == "colour"
    assert (rows[1].question, rows[1].asked) == ("<image> and <image>", True)
    assert (rows[2].question, rows[2].asked) == ("Describe the image.", False)
    assert len(rows[1].images) == 2
    assert rows[1].images[1][0] == rows[2].images[0][0]
    assert list(rows.lengths) == [3, 4, 5]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "a.png", "text": "red"}, "line 1 must have an answer in words"),
        ({"picture": "a.png", "answer": "red"}, "line 1 must have an image, a path or bytes"),
        ({"image": [], "answer": "red"}, "line 1 has no image"),
        ({"image": "a.png", "question": "<image><image>", "answer": "x"}, "line 1 has 2 <image> and 1 images: each"),
        ({"images": ["a.png", "a.png"], "question": "<image>", "answer": "x"}, "line 1 has 1 <image> and 2 images"),
        (["a.png"], "line 1 must be an object"),
    ],
)
def test_a_row_that_is_no_row_is_named(tmp_path, team, row, said):
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(DataError, match=f"more.jsonl, {said}"):
        indexed(written(tmp_path, row), tmp_path / "cache", team)


def test_a_file_that_is_no_file_of_rows_is_named(tmp_path, team):
    (tmp_path / "cut.jsonl").write_text('{"image": "a.png", "ans')
    (tmp_path / "x.csv").write_text("image,answer\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "latin.jsonl").write_bytes('{"image": "a.png", "answer": "grün"}'.encode("latin-1"))
    for name, said in [
        ("cut.jsonl", "line 1 is no JSON, it may be cut short"),
        ("x.csv", "rows come from .jsonl and .parquet files"),
        ("none.jsonl", "there is no file .* with rows"),
        ("latin.jsonl", "is no UTF-8 text"),
        ("empty.jsonl", "no row can be used: the files are empty"),
    ]:
        with pytest.raises(DataError, match=said):
            indexed(Source((str(tmp_path / name),)), tmp_path / "cache", team)
    with pytest.raises(DataError, match="no files with rows"):
        indexed(Source(()), tmp_path / "cache", team)
    gone = written(tmp_path, {"image": "gone.png", "answer": "blue"})
    with pytest.raises(DataError, match="no row can be used: 1 because the image is missing"):
        indexed(gone, tmp_path / "cache", team)


def test_parquet_holds_the_pictures_themselves(tmp_path, team):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.png").write_bytes(png((7, 7, 7)))
    for number in range(2):
        images = [{"bytes": png((number, row, 0)), "path": None} for row in range(3)]
        table = {"image": images, "question": ["what ?"] * 3, "answer": [f"{number}{row}" for row in range(3)]}
        parquet.write_table(pyarrow.table(table), tmp_path / f"{number}.parquet")
    parquet.write_table(
        pyarrow.table({"image": [b"torn", png((9, 0, 0))], "answer": ["x", "y"]}), tmp_path / "2.parquet"
    )
    source = Source(tuple(str(tmp_path / f"{number}.parquet") for number in range(3)))
    rows = indexed(source, tmp_path / "cache", team)
    seen = Seen(tmp_path / "cache", ToyEye(), team)
    seen.fill(rows.keys)
    drop_broken(seen.broken, [rows])
    assert [rows[place].answer for place in range(len(rows))] == ["00", "01", "02", "10", "11", "12", "y"]
    assert seen[rows.uses[5][0]].features[0, 0].tolist() == [1 / 128 - 1, 2 / 128 - 1, -1]
    (tmp_path / "3.parquet").write_bytes((tmp_path / "0.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match="3.parquet' cannot be read as Parquet"):
        indexed(Source((str(tmp_path / "3.parquet"),)), tmp_path / "cache", team)


def test_no_image_is_encoded_twice(tmp_path, team, monkeypatch):
    looks: list[int] = []

    def eye() -> ToyEye:
        return ToyEye(told=lambda: looks.append(1))

    source = pictures(tmp_path, 12)
    rows = indexed(source, tmp_path / "cache", team)
    Seen(tmp_path / "cache", eye(), team)
    assert len(looks) == 2  # the probes
    monkeypatch.setattr(seen_module, "_SECONDS", 0.0)

    class CutError(Exception):
        pass

    def torn() -> None:
        if len(looks) == 2 + 2 + 5:
            raise CutError
        looks.append(1)

    cut = Seen(tmp_path / "cache", ToyEye(told=torn), team)
    with pytest.raises(CutError):
        cut.fill(rows.keys)
    whole = Seen(tmp_path / "cache", eye(), team)
    looks.clear()
    whole.fill(rows.keys)
    assert len(looks) == whole.encoded == 7
    again = Seen(tmp_path / "cache", eye(), team)
    again.fill(rows.keys)
    assert again.encoded == 0
    assert again.folder == whole.folder
    for key, path in rows.keys.items():
        want = ToyEye().look(Image.open(path))
        assert torch.allclose(again[key].features, want.features, atol=1e-3)
        assert torch.equal(again[key].boxes, want.boxes)
        assert again[key].grid == want.grid == again.grid(key)


def test_another_eye_has_a_folder_of_its_own(tmp_path, team):
    class Brighter(ToyEye):
        def look(self, image):
            return super().look(Image.fromarray(np.asarray(image) // 2))

    class Other(ToyEye):  # what it is asked in another space, alone
        def look(self, image):
            tokens = super().look(image)
            return replace(tokens, aligned=tokens.features + 1)

    first = Seen(tmp_path, ToyEye(), team).folder
    assert Seen(tmp_path, ToyEye(), team).folder == first
    assert len({first, *(Seen(tmp_path, eye(), team).folder for eye in (Brighter, Other))}) == 3
    assert Seen(tmp_path, Other(), team).folder == Seen(tmp_path, Other(), team).folder
    assert Seen(tmp_path, ToyEye(asked=3), team).folder != first


def test_all_that_an_eye_gives_is_kept(tmp_path, team):
    class Rich(ToyEye):
        def look(self, image):
            tokens = super().look(image)
            n = tokens.features.shape[1]
            more = {"keys": torch.full((1, n, 2), 1e6), "scores": {"attention": torch.rand(1, n)}}
            return replace(tokens, **more, segment=torch.arange(n)[None], aligned=torch.ones(1, n, 4))

    rows = indexed(pictures(tmp_path, 2), tmp_path / "cache", team)
    seen = Seen(tmp_path / "cache", Rich(), team)
    seen.fill(rows.keys)
    tokens = seen[rows.uses[0][0]]
    assert tokens.keys is not None
    assert bool((tokens.keys == 1e6).all())  # more than 16 bits hold
    assert tokens.scores["attention"].shape == (1, 6)
    assert tokens.segment is not None
    assert tokens.segment.tolist() == [list(range(6))]
    assert tokens.aligned is not None


def test_numbers_that_are_not_finite_are_a_broken_image(tmp_path, team):
    class Blind(ToyEye):
        def look(self, image):
            tokens = super().look(image)
            return tokens if image.width > 24 else type(tokens)(tokens.features * torch.nan, tokens.boxes)

    rows = indexed(pictures(tmp_path, 4), tmp_path / "cache", team)
    seen = Seen(tmp_path / "cache", Blind(), team)
    seen.fill(rows.keys)
    assert set(seen.broken.values()) == {"the eye made numbers of it that are not finite"}
    drop_broken(seen.broken, [rows])
    assert len(rows) == 2


def test_a_damaged_file_of_the_cache_is_named(tmp_path, team):
    rows = indexed(pictures(tmp_path, 2), tmp_path / "cache", team)
    seen = Seen(tmp_path / "cache", ToyEye(), team)
    seen.fill(rows.keys)
    (file,) = seen.folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DataError, match="of the cache cannot be read, remove it"):
        Seen(tmp_path / "cache", ToyEye(), team).fill(rows.keys)


def test_an_image_that_changed_is_read_again(tmp_path, team):
    source = pictures(tmp_path, 3)
    before = indexed(source, tmp_path / "cache", team)
    index = before.path.stat().st_mtime_ns
    assert indexed(source, tmp_path / "cache", team).path.stat().st_mtime_ns == index
    (tmp_path / "1.png").write_bytes(png())
    after = indexed(source, tmp_path / "cache", team)
    assert [a == b for a, b in zip(after.uses, before.uses, strict=True)] == [True, False, True]
    (tmp_path / "1.png").unlink()
    assert len(indexed(source, tmp_path / "cache", team)) == 2
    (tmp_path / "1.png").write_bytes(png())
    assert len(indexed(source, tmp_path / "cache", team)) == 3


@pytest.mark.parametrize("short_first", [False, True])
def test_a_plan_has_each_row_once_and_batches_of_one_bucket(short_first):
    generator = np.random.default_rng(0)
    buckets, lengths = generator.integers(-1, 3, 101), generator.integers(1, 50, 101)
    plan = planned(buckets, lengths, 7, 2, (3, 1), short_first)
    assert plan.shape[1:] == (2, 7)
    rows, counts = np.unique(plan, return_counts=True)
    assert list(rows) == list(range(101))
    assert counts.sum() - 101 < 7 * 2
    pure = sum(len(set(buckets[batch])) == 1 for batch in plan.reshape(-1, 7))
    assert pure >= 101 // 7 - 4
    assert np.array_equal(plan, planned(buckets, lengths, 7, 2, (3, 1), short_first))
    assert not np.array_equal(plan, planned(buckets, lengths, 7, 2, (3, 2), short_first))
    assert len(planned(buckets[:2], lengths[:2], 7, 2, (0, 0))) == 1
    means = lengths[plan.reshape(-1, 7)].mean(axis=1)[:15]  # what follows was taken again from the first
    assert bool(np.all(np.diff(means) >= 0)) == short_first


def test_a_batch_is_what_the_model_prepares_itself(tmp_path, team):
    rows = indexed(pictures(tmp_path, 6), tmp_path / "cache", team)
    vlm = toy_vlm("relevance", eye=ToyEye(asked=4))
    seen = Seen(tmp_path / "cache", vlm.eye, team)
    seen.fill(rows.keys)
    feed = Feed(vlm, rows, seen)
    assert list(feed.buckets) == [0, 1, 0, 1, 0, 1]
    batch = feed.batch([0, 2, 1])
    images = [[Image.open(tmp_path / f"{number}.png")] for number in (0, 2, 1)]
    asks, answers = zip(*((row.question, row.answer) for row in (rows[0], rows[2], rows[1])), strict=True)
    prompts, tokens, question = vlm.prepared(images, asks, answers)
    assert torch.equal(batch.prompts.ids, prompts.ids)
    assert torch.equal(batch.prompts.labels, prompts.labels)
    assert [part.grid for part in batch.tokens] == [part.grid for part in tokens] == [(1, 2, 3), (1, 3, 4)]
    assert torch.allclose(batch.tokens[0].features, tokens[0].features, atol=1e-3)
    assert question is not None
    assert batch.question is not None
    assert torch.equal(batch.question.features, question.features)
    assert batch.images == 3
    assert batch.texts[1].startswith("what colour is it ? ")


def test_an_index_is_read_by_places(tmp_path, team):
    path = indexed(pictures(tmp_path, 5), tmp_path / "cache", team).path
    rows = Rows(path)
    assert rows.digest == Rows(path).digest
    assert rows[3].answer == "red"
    assert rows[4].kind == "dark"
