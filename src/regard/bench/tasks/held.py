"""The cascade's tasks, with images held out of training, on which the thresholds of its exits are solved.

fashion: Fashion-MNIST on 32 x 32 pixels, the last 5,000 of its training images held out. search: a small thing on a
photo of 512 x 512; a frozen stem reads each image once, into files that the next run finds again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from regard.bench.tasks.data import SEEDS, SIDE
from regard.bench.tasks.fetching import Told
from regard.errors import DataError
from regard.files import write_whole
from regard.mechanisms.cascade import Cascade
from regard.train.data import Held, jittered

HELD = 5000
SEARCH = {"train": 3500, "held": 500, "test": 1000}  # images, those of the task as `data` gives it

_CHUNK = 50  # images of a file


def fashion(told: Told | None = None) -> Held:
    """Fashion-MNIST with a black border of two pixels; those to train on mirrored or not, and moved a little."""
    from regard.bench.tasks.fashion import CLASSES
    from regard.bench.tasks.fashion import fashion as read

    images = read(told=told)
    train, test = (F.pad(part[:, None], (2, 2, 2, 2)) for part in (images.train, images.test))
    count = len(train) - HELD

    def batch(index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return jittered(train[index], generator), images.train_labels[index]

    held, held_labels = train[count:], images.train_labels[count:]
    return Held("fashion", count, batch, test, images.test_labels, tuple(CLASSES), held, held_labels)


def search(read: Callable[[Tensor], Tensor], name: str, folder: Path, told: Told | None = None) -> Held:
    """The search task as features. read: `Cascade.read`; name: of what it reads, for the files in the folder."""
    from regard.bench.tasks.search import CLASSES, search_task

    made = search_task(told=told)
    parts: dict[str, dict[str, Tensor]] = {}
    for part, count in SEARCH.items():
        split, first = ("test", 0) if part == "test" else ("train", SEARCH["train"] if part == "held" else 0)
        found = []
        for start in range(first, first + count, _CHUNK):
            path = folder / f"{name}-{split}-{start:05d}.safetensors"
            if not path.exists():
                batch = made.search(_CHUNK, SIDE, SEEDS[split], split, start)
                features = torch.cat([read(some).half() for some in batch.images.split(10)])
                write_whole(path, save({"features": features, "labels": batch.labels, "boxes": batch.boxes}))
            if told:
                told(f"read the {part} images: {start + _CHUNK - first} of {count}")
            found.append(_loaded(path))
        parts[part] = {key: torch.cat([one[key] for one in found]) for key in found[0]}
    train, held, test = (parts[part] for part in SEARCH)

    def batch_of(index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return train["features"][index], train["labels"][index]

    return Held(
        "search",
        len(train["labels"]),
        batch_of,
        test["features"],
        test["labels"],
        tuple(CLASSES),
        held["features"],
        held["labels"],
        boxes=lambda index: train["boxes"][index],
        test_boxes=test["boxes"],
    )


def _loaded(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{str(path)!r} cannot be read, it may be cut short: remove it ({error})") from error


def held_task(task: str, arguments: dict[str, Any], cache: Path, told: Told | None = None) -> Held:
    """A task by its name, for a `Cascade` of these arguments. cache: where features are kept. Raises DataError."""
    if task == "fashion":
        return fashion(told)
    if task == "search":
        return search(
            Cascade(**arguments).read, f"{arguments['stem']}-{arguments['side']}-{arguments['stages']}", cache, told
        )
    raise DataError(f"unknown task {task!r}: choose from fashion, search")


def pixels_of_test(task: str, count: int) -> Tensor:
    """The first test images of a task, uint8 (count, C, H, W)."""
    if task == "fashion":
        return fashion().test[:count]
    from regard.bench.tasks.search import search_task

    return search_task().search(count, SIDE, SEEDS["test"], "test").images
