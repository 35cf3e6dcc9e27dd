"""A small thing somewhere on a large photograph: of which of ten kinds is it?

The things are cut-outs of Debian's tuxpaint-stamps-default, 32 to 64 pixels on their longest side however large the
photo is, some mirrored, darker or lighter, and set where they can be told from what is behind them. The photos are
those of monuments in Debian's gcompris-qt-data; to train and to test are different photos. The things are the same in
both: what is asked is to find a thing, not to know one that was never seen.
"""

import io
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regard.bench.tasks import gcompris, scenes, stamps
from regard.bench.tasks.cutouts import trimmed
from regard.bench.tasks.fetching import Told
from regard.errors import DataError

SIDES = (512, 768, 1024)  # pixels
SPLITS = ("train", "test")
THING = (32, 64)  # pixels, the longest side
EDGE = 4  # pixels, to the edge
LIGHT = (0.7, 1.3)  # how much darker or lighter

_TRIES = 24
_PART = (0.6, 1)  # of a photo's shorter side
_STAMPS = {
    "bird": "animals/birds: blackbird crow drake duck gander pigeon seagull silver-gull magpie rainbow-lorikeet tucan "
    "pink_flamingo pelican",
    "penguin": "animals/birds: penguin little-penguin magellanic_penguin",
    "beast": "animals/mammals: bears/bear bears/european-bear bovines/bison bovines/bull bovines/cow "
    "bovines/cow_white bovines/gnu-stand bovines/yak cats/lion cats/tiger camel/camel camel/dromedary elephant "
    "equines/zebra equines/horse equines/donkey pig",
    "fruit": "food/fruit: apricot Apricot_whole Strawberry2 avocado lemon mandarine orange_seville pineapple grapes "
    "Cherry_Stella",
    "flower": "plants/flowers: daffodil marigold rose red-gazania whitestar-petunia yellow-flower anemone_red "
    "anthoorium chemparathi iris",
    "mushroom": "plants/mushrooms: cep cep-1 cep-2",
    "instrument": "hobbies/music/string: cello violin guitar2 guitar_classical guitar_electric guitar_electric_bass",
    "vehicle": "vehicles: auto/sedan auto/sportscar2 auto/truck auto/beetle garbagetruck emergency/firetruck "
    "masstransit/green_korean_bus construction/dumper",
    "tool": "household/tools: hammer mallet_metal saw wrench wrench_adjustable wrench_plumbers plyers",
    "gravestone": "seasonal/halloween: grave-a grave-b grave-d grave-e grave-f",
}
CLASSES = tuple(_STAMPS)


class Batch(NamedTuple):
    """Images uint8 (B, 3, side, side); labels int64 (B,), places in CLASSES; boxes float32 (B, 4) of x0, y0, x1, y1.

    Boxes are fractions of the image and as tight as the thing's opaque part.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor


class SearchTask(NamedTuple):
    """What the images are made from."""

    things: dict[str, list[Image.Image]]  # RGBA, by kind, in the order of CLASSES
    photos: dict[str, list[Image.Image]]  # RGB of any size, by split

    def search(self, count: int, side: int, seed: int, split: str, first: int = 0) -> Batch:
        """The images first to first + count - 1 of a seed, which do not depend on how many are made at once.

        side: of SIDES. split: "train" or "test". Ten images one after another have a thing of each kind. Raises
        DataError.
        """
        if side not in SIDES:
            raise DataError(f"no images of side {side!r}: there are {SIDES[0]}, {SIDES[1]} and {SIDES[2]}")
        if split not in SPLITS:
            raise DataError(f"no split {split!r}: there are train and test")
        if min(count, seed, first) < 0:
            raise DataError(f"count, seed and first must be 0 or more, got {count}, {seed} and {first}")
        images, boxes = torch.empty(count, 3, side, side, dtype=torch.uint8), torch.empty(count, 4)
        labels = torch.empty(count, dtype=torch.int64)
        for place in range(count):
            labels[place], image, box = self._one(first + place, side, seed, SPLITS.index(split))
            images[place] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            boxes[place] = torch.tensor(box) / side
        return Batch(images, labels, boxes)

    def _one(self, index: int, side: int, seed: int, split: int) -> tuple[int, Image.Image, tuple[int, int, int, int]]:
        """The label, image and box in pixels."""
        turn, place = divmod(index, len(self.things))
        label = int(np.random.default_rng([seed, split, 0, turn]).permutation(len(self.things))[place])
        rng = np.random.default_rng([seed, split, 1, side, index])
        kind, photos = self.things[CLASSES[label]], self.photos[SPLITS[split]]
        thing = _varied(rng, kind[int(rng.integers(len(kind)))])
        image = _part(rng, photos[int(rng.integers(len(photos)))], side)
        best, most = (0, 0), -1.0
        for _ in range(_TRIES):
            x, y = (int(rng.integers(EDGE, side - EDGE - length + 1)) for length in thing.size)
            seen = scenes.contrast(thing, image.crop((x, y, x + thing.width, y + thing.height)))
            if seen > most:
                best, most = (x, y), seen
            if most >= scenes.CONTRAST:
                break
        image.paste(thing, best, thing)
        return label, image, (*best, best[0] + thing.width, best[1] + thing.height)


def search_task(folder: Path | None = None, told: Told | None = None) -> SearchTask:
    """The task of the real photos. Takes about twenty seconds, once.

    folder: where the .deb files of the two packages are; fetched where there is none. told: given a line before each
    is fetched. Raises DataError.
    """
    cut, whole = (package.within(folder) or package.fetched(told) for package in (stamps.PACKAGE, gcompris.PACKAGE))
    return _unpacked(cut, whole)


def search(count: int, side: int, seed: int, split: str, first: int = 0) -> Batch:
    """As SearchTask.search, of the real photos. Fetches two packages. Raises DataError."""
    return search_task().search(count, side, seed, split, first)


@cache
def _unpacked(cut: Path, whole: Path) -> SearchTask:
    """From the .deb of the stamps and that of the photos."""
    paths = {kind: _paths(listed) for kind, listed in _STAMPS.items()}
    wanted = {path for of in paths.values() for path in of}
    files = stamps.PACKAGE.files(wanted.__contains__, cut)
    things = {kind: [trimmed(Image.open(io.BytesIO(files[path]))) for path in of] for kind, of in paths.items()}
    halves = dict(zip(SPLITS, ("tune", "report"), strict=True))
    return SearchTask(things, {split: [*scenes.backgrounds(half, whole).values()] for split, half in halves.items()})


def _paths(listed: str) -> list[str]:
    """The paths in the package of "folder: name name"."""
    folder, names = listed.split(": ")
    return [f"{stamps.ROOT}{folder}/{name}.png" for name in names.split()]


def _varied(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """A cut-out in a size of its own, mirrored or not, darker or lighter; no larger than its opaque part; RGBA."""
    scale = int(rng.integers(THING[0], THING[1] + 1)) / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)  # Pillow weights colours by alpha
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    lit = np.clip(np.arange(256) * rng.uniform(*LIGHT), 0, 255).round().astype(int).tolist()
    return trimmed(image.point(lit * 3 + list(range(256))))


def _part(rng: np.random.Generator, photo: Image.Image, side: int) -> Image.Image:
    """Some square of a photo, mirrored or not."""
    length = int(min(photo.size) * rng.uniform(*_PART))
    x, y = (int(rng.integers(0, whole - length + 1)) for whole in photo.size)
    part = photo.resize((side, side), Image.Resampling.BILINEAR, (x, y, x + length, y + length))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part
