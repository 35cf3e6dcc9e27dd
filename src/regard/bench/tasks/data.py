"""The labelled tasks by name, as the recipes of regard.train want them."""

import torch
from torch import Tensor

from regard.bench.tasks.fetching import Told
from regard.errors import DataError
from regard.train.data import Data

CANVASES = {"translated": (60, 0), "cluttered": (60, 4), "cluttered-100": (100, 8)}  # side and pieces
TASKS = ("mnist", *CANVASES)
_TEST_SEED = 2014  # of the canvases that are tested on, the same for all runs


def data(name: str, told: Told | None = None) -> Data:
    """A task of TASKS. told: given a line before a package is fetched. Raises DataError."""
    if name not in TASKS:
        raise DataError(f"unknown task {name!r}: choose from {', '.join(TASKS)}")
    from regard.bench.tasks.digits import cluttered, mnist

    images = mnist(told=told)
    side, pieces = CANVASES.get(name, (28, 0))

    def placed(digits: Tensor, source: Tensor, generator: torch.Generator) -> Tensor:
        canvases = digits if side == 28 else cluttered(digits, side, pieces, generator, source)
        return canvases[:, None]

    return Data(
        name,
        len(images.train),
        lambda index, generator: (placed(images.train[index], images.train, generator), images.train_labels[index]),
        placed(images.test, images.test, torch.Generator().manual_seed(_TEST_SEED)),
        images.test_labels,
        tuple("0123456789"),
    )
