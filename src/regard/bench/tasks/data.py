"""The labelled tasks by name, as the recipes of regard.train want them."""

import torch
from torch import Tensor

from regard.bench.tasks.fetching import Told
from regard.errors import DataError
from regard.train.data import Data, jittered

CANVASES = {"translated": (60, 0), "cluttered": (60, 4), "cluttered-100": (100, 8)}  # side and pieces
TASKS = ("mnist", *CANVASES, "fashion", "search")
SIDE, TRAIN, TEST = 512, 4000, 1000  # of the search task: pixels of a side, images to train and to test with
_TEST_SEED = 2014  # of the canvases that are tested on, the same for all runs
SEEDS = {"train": 0, "test": _TEST_SEED}  # of the search task's images


def data(name: str, told: Told | None = None) -> Data:
    """A task of TASKS. told: given a line before a package is fetched. Raises DataError."""
    if name not in TASKS:
        raise DataError(f"unknown task {name!r}: choose from {', '.join(TASKS)}")
    if name == "fashion":
        return _fashion(told)
    if name == "search":
        return _search(told)
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


def _fashion(told: Told | None) -> Data:
    """Clothes, moved by up to two pixels and mirrored in training."""
    from regard.bench.tasks.fashion import CLASSES, fashion

    images = fashion(told=told)
    train = images.train[:, None]
    return Data(
        "fashion",
        len(train),
        lambda index, generator: (jittered(train[index], generator), images.train_labels[index]),
        images.test[:, None],
        images.test_labels,
        tuple(CLASSES),
    )


def _search(told: Told | None) -> Data:
    """A small thing on a photograph, and where it is. Takes about two minutes and 4 GiB."""
    from regard.bench.tasks.search import CLASSES, search_task

    task = search_task(told=told)
    seen, unseen = (task.search(count, SIDE, SEEDS[part], part) for part, count in (("train", TRAIN), ("test", TEST)))
    return Data(
        "search",
        TRAIN,
        lambda index, generator: (seen.images[index], seen.labels[index]),
        unseen.images,
        unseen.labels,
        CLASSES,
        boxes=lambda index: seen.boxes[index],
        test_boxes=unseen.boxes,
    )
