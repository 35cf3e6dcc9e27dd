"""Small grey images with labels, in the split that their makers published."""

from typing import NamedTuple

from torch import Tensor


class Images(NamedTuple):
    """Images uint8 (N, 28, 28), 0 is black; labels int64 (N,), 0 to 9."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
