"""Fashion-MNIST, from Debian's package dataset-fashion-mnist (Zalando SE, MIT)."""

import gzip
import struct
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regard.bench.tasks.debian import Package
from regard.bench.tasks.fetching import Told
from regard.bench.tasks.labelled import Images
from regard.errors import DataError

PACKAGE = Package(
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
)
CLASSES = "t-shirt, trousers, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot".split(", ")

_ROOT = "./usr/share/datasets/fashion-mnist/"
_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
_HEADS = {1: ">HBB1I", 3: ">HBB3I"}  # two bytes that are 0, the type, the number of dimensions, the dimensions
_UINT8 = 8


def fashion(package: Path | None = None, told: Told | None = None) -> Images:
    """60,000 pieces of clothing to train with and 10,000 to test with, of CLASSES; do not write into them.

    package: the .deb, fetched where there is none. told: given a line before it is fetched. Raises DataError.
    """
    return _unpacked(package or PACKAGE.fetched(told))


def idx(blob: bytes) -> Tensor:
    """What a file of unsigned bytes in the IDX format holds, uint8 (N,) or (N, height, width). Raises DataError."""
    head = _HEADS.get(blob[3] if len(blob) > 3 else 0)
    if head is None or len(blob) < struct.calcsize(head):
        raise DataError(f"not an IDX file of one or three dimensions: it begins with {blob[:4].hex(' ') or 'nothing'}")
    zero, kind, _, *shape = struct.unpack_from(head, blob)
    if (zero, kind) != (0, _UINT8):
        raise DataError(f"an IDX file of unsigned bytes begins with 00 00 08, this one with {blob[:3].hex(' ')}")
    values = np.frombuffer(blob, np.uint8, offset=struct.calcsize(head))
    if values.size != np.prod(shape):
        raise DataError(f"an IDX file of the shape {tuple(shape)} has {np.prod(shape)} bytes, got {values.size}")
    return torch.from_numpy(values.reshape(shape).copy())


@cache
def _unpacked(deb: Path) -> Images:
    names = [f"{_ROOT}{name}-ubyte.gz" for name in _FILES]
    files = PACKAGE.files(lambda path: path in names, deb)
    if len(files) < len(names):
        raise DataError(f"{PACKAGE} lacks some of {', '.join(_FILES)}: get that version")
    train, train_labels, test, test_labels = (idx(gzip.decompress(files[name])) for name in names)
    return Images(train, train_labels.long(), test, test_labels.long())
