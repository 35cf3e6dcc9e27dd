"""The IDX format, and Fashion-MNIST out of a package: on made-up bytes; on the real ones in `make slow`."""

import gzip
import struct
from pathlib import Path

import pytest
import torch

from regard import DataError
from regard.bench.tasks import fashion
from regard.bench.tasks.fashion import idx
from test_scenes import deb, pinned


def packed(values: torch.Tensor) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.numpy().tobytes()


@pytest.mark.parametrize("shape", [(7,), (5, 28, 28), (0,), (2, 3, 4)])
def test_idx_is_read_as_it_was_written(shape: tuple[int, ...]):
    values = torch.randint(0, 256, shape, dtype=torch.uint8)
    assert torch.equal(idx(packed(values)), values)


def test_what_is_not_idx_is_one_line():
    good = packed(torch.ones(2, 3, 4, dtype=torch.uint8))
    cases = {
        b"": "not an IDX file of one or three dimensions: it begins with nothing",
        b"PK\x03\x04": "it begins with 50 4b 03 04",
        good[:9]: "not an IDX file",
        b"\x00\x00\x0d" + good[3:]: "of unsigned bytes begins with 00 00 08, this one with 00 00 0d",
        good[:-1]: r"of the shape \(2, 3, 4\) has 24 bytes, got 23",
        good + b"x": "has 24 bytes, got 25",
    }
    for blob, message in cases.items():
        with pytest.raises(DataError, match=message) as raised:
            idx(blob)
        assert "\n" not in str(raised.value)


def test_images_and_labels_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parts = [torch.randint(0, 10, shape, dtype=torch.uint8) for shape in ((6, 28, 28), (6,), (3, 28, 28), (3,))]
    names = [f"{fashion._ROOT}{name}-ubyte.gz" for name in fashion._FILES]
    files = {name: gzip.compress(packed(part)) for name, part in zip(names, parts, strict=True)}
    path = deb(tmp_path, dict(reversed(files.items())))
    monkeypatch.setattr(fashion, "PACKAGE", pinned(path))
    made = fashion.fashion(path)
    for got, part in zip(made, parts, strict=True):
        assert torch.equal(got, part)
    assert made.train_labels.dtype == torch.int64
    (tmp_path / "other").mkdir()
    other = deb(tmp_path / "other", dict([*files.items()][1:]))
    monkeypatch.setattr(fashion, "PACKAGE", pinned(other))
    with pytest.raises(DataError, match=r"thing=1\.0 lacks some of train-images-idx3"):
        fashion.fashion(other)


def test_another_package_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"expected 39e172fe32dd318e\.\.\.: get that version"):
        fashion.fashion(deb(tmp_path, {}))


@pytest.mark.slow
def test_fashion_mnist_is_fashion_mnist():
    made = fashion.fashion()
    assert made.train.shape == (60000, 28, 28)
    assert made.test.shape == (10000, 28, 28)
    assert made.train_labels.bincount().tolist() == [6000] * 10
    assert made.test_labels.bincount().tolist() == [1000] * 10
    assert made.train_labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert len(fashion.CLASSES) == 10
