"""What reads tokens about a gaze, or in regions about fixations, and their twins; and PerViT: by cross-entropy.

Where a task knows the thing's box, they learn from it too: the gaze is predicted at its centre, and the class token's
attention is drawn to it. The twins that read everything learn from it in the same way.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from regard.errors import DataError, ModelError
from regard.mechanisms.foveated import FoveaTer
from regard.mechanisms.gaze import Gazed
from regard.mechanisms.gaze_vit import GazeViT, centre_of
from regard.mechanisms.pervit import PerViT
from regard.train.checkpoint import Checkpoint
from regard.train.data import AT_ONCE, Data
from regard.train.guide import GUIDE, drawn, overlapping
from regard.train.loop import Recipe, Tell, begun, fit, silent

JITTER = 0.04  # of the gaze in training, in halves of the image
LOOKS = 8  # at each image in training, every other one at its mirror image


def train_gaze(
    arguments: dict[str, Any],
    data: Data,
    recipe: Recipe,
    folder: Path,
    tell: Tell = silent,
    start: Path | None = None,
) -> GazeViT:
    """Train the gaze's ViT and its prediction of the gaze, or its twin, or go on. arguments: of `GazeViT`.

    start: a run whose ViT the new one begins with, as the twin may. Images are mirrored or not, the gaze is near the
    box's centre; its tokens are read once, at LOOKS gazes. Raises DataError for a task that does not know boxes,
    ModelError for a start of other sizes, and as `fit`.
    """
    boxes_of = data.boxes
    if boxes_of is None:
        raise DataError(f"a gaze is learned from boxes, which the task {data.name!r} does not know: choose search")
    torch.manual_seed(recipe.seed)
    model = GazeViT(**arguments)
    other = None if start is None else Checkpoint.load(start)
    if other is not None:
        _begin(model, other)
    kept = None if model.glance is None else _Kept(model, data, recipe.seed)

    def step(index: Tensor, generator: torch.Generator, done: float) -> tuple[Tensor, Tensor]:
        if kept is None:
            images, labels = data.batch(index, generator)
            images, boxes = mirrored(images, boxes_of(index), generator)
            read, gazed = model(images)
            loss = GUIDE * drawn(read.attention, overlapping(gazed.boxes, boxes))
        else:
            gazed, views, boxes, labels = kept.drawn(index, generator)
            read, loss = model.read(gazed), model.predict(views).loss(centre_of(boxes))
        loss = loss + F.cross_entropy(read.logits, labels)
        return loss, (read.logits.argmax(dim=1) == labels).sum()

    about = begun(model, arguments, data, recipe, start=other and other.digest)
    fit(model, step, data.count, recipe, folder, about, tell)
    return model


def train_foveater(
    arguments: dict[str, Any], data: Data, recipe: Recipe, folder: Path, tell: Tell = silent
) -> FoveaTer:
    """Train FoveaTer or its twin, or go on: the mean of the logits after each fixation, the first one anywhere.

    arguments: of `FoveaTer`. What a frozen backbone makes of the images is made once, and kept in memory. Raises as
    `fit`.
    """
    torch.manual_seed(recipe.seed)
    model = FoveaTer(**arguments)
    frozen = None if isinstance(model.backbone, torch.nn.Module) else cells_of(model, data)

    def step(index: Tensor, generator: torch.Generator, done: float) -> tuple[Tensor, Tensor]:
        boxes = None if data.boxes is None else data.boxes(index)
        if frozen is None:
            images, labels = data.batch(index, generator)
            cells, grid = model.features(images)
        else:
            labels, grid, cells = frozen[2][index], frozen[1], frozen[0][index].float()
        first = torch.rand(len(index), 2, generator=generator) * 2 - 1
        sums, loss = torch.zeros(()), torch.zeros(())
        seen = model.scan(cells, grid, first)
        for turn, one in enumerate(seen):
            sums = sums + one.read.logits
            loss = loss + F.cross_entropy(sums / (turn + 1), labels) / len(seen)
            if boxes is not None:
                place = at_cell(centre_of(boxes), grid)
                right = one.region.gather(1, place[:, None])
                target = torch.zeros_like(one.read.attention).scatter(1, right, 1.0)
                loss = loss + GUIDE * drawn(one.read.attention, target) / len(seen)
        return loss, (sums.argmax(dim=1) == labels).sum()

    fit(model, step, data.count, recipe, folder, begun(model, arguments, data, recipe), tell)
    return model


def train_pervit(arguments: dict[str, Any], data: Data, recipe: Recipe, folder: Path, tell: Tell = silent) -> PerViT:
    """Train PerViT or its twin, or go on. arguments: of `PerViT`. Raises as `fit`."""
    torch.manual_seed(recipe.seed)
    model = PerViT(**arguments)

    def step(index: Tensor, generator: torch.Generator, done: float) -> tuple[Tensor, Tensor]:
        images, labels = data.batch(index, generator)
        logits, _ = model(images)
        return F.cross_entropy(logits, labels), (logits.argmax(dim=1) == labels).sum()

    fit(model, step, data.count, recipe, folder, begun(model, arguments, data, recipe), tell)
    return model


class _Kept:
    """What of the images to train with a gaze's ViT reads: tokens at gazes near the things, and small views."""

    @torch.no_grad()
    def __init__(self, model: GazeViT, data: Data, seed: int) -> None:
        assert model.glance is not None
        assert data.boxes is not None
        generator, view = torch.Generator().manual_seed(seed), model.glance.view
        patches, valid, views, labels = [], [], [], []
        for index in torch.arange(data.count).split(AT_ONCE // 10):
            images, classes = data.batch(index, generator)
            boxes = data.boxes(index)
            centres = centre_of(boxes)[:, None].repeat(1, LOOKS, 1)
            centres[:, 1::2, 0] *= -1
            at = (centres + torch.randn(centres.shape, generator=generator) * JITTER).clamp(-1, 1)
            sides = (images, images.flip(3))
            looks = [model.tokens(sides[turn % 2], at[:, turn]) for turn in range(LOOKS)]
            patches.append(torch.stack([(look.patches * 255).round().to(torch.uint8) for look in looks], dim=1))
            valid.append(torch.stack([look.valid for look in looks], dim=1))
            views.append(F.interpolate(images, (view, view), mode="bilinear", antialias=True))
            labels.append(classes)
        self.patches, self.valid, self.views = torch.cat(patches), torch.cat(valid), torch.cat(views)
        self.labels, self.boxes = torch.cat(labels), data.boxes(torch.arange(data.count))

    def drawn(self, index: Tensor, generator: torch.Generator) -> tuple[Gazed, Tensor, Tensor, Tensor]:
        """Tokens at one of the gazes of each image, and views, boxes and labels. The boxes are those of the views."""
        look = torch.randint(LOOKS, (len(index),), generator=generator)
        patches, valid = self.patches[index, look] / 255, self.valid[index, look]
        views, boxes = mirrored(self.views[index], self.boxes[index], generator)
        return Gazed(patches, boxes[:, None].expand(-1, valid.shape[1], -1), valid), views, boxes, self.labels[index]


def _begin(model: GazeViT, start: Checkpoint) -> None:
    """Give a model the embedding and the ViT of another run."""
    own = model.state_dict()
    for name, value in own.items():
        if name.startswith(("embed.", "reader.")):
            other = start.tensors.get(f"model.{name}")
            if other is None or other.shape != value.shape:
                raise ModelError(f"the run has no {name} of shape {tuple(value.shape)}: start with another")
            own[name] = other
    model.load_state_dict(own)


@torch.no_grad()
def cells_of(model: FoveaTer, data: Data) -> tuple[Tensor, tuple[int, int], Tensor]:
    """What the backbone makes of all images to train with, float16, its grid, and the labels."""
    parts, labels, grid = [], [], (0, 0)
    for index in torch.arange(data.count).split(AT_ONCE // 25):
        images, classes = data.batch(index, torch.Generator().manual_seed(0))
        cells, grid = model.features(images)
        parts.append(cells.half())
        labels.append(classes)
    return torch.cat(parts), grid, torch.cat(labels)


def mirrored(
    images: Tensor, boxes: Float[Tensor, "b 4"], generator: torch.Generator
) -> tuple[Tensor, Float[Tensor, "b 4"]]:
    """About half of the images turned left to right, with their boxes."""
    turn = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(turn[:, None, None, None], images.flip(3), images)
    other = torch.stack((1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]), dim=1)
    return images, torch.where(turn[:, None], other, boxes)


def at_cell(places: Float[Tensor, "b 2"], grid: tuple[int, int]) -> Int[Tensor, " b"]:
    """The cell of (x, y) in [-1, 1], in raster order."""
    height, width = grid
    column, row = ((places + 1) * 0.5 * places.new_tensor((width, height))).long().unbind(dim=1)
    return row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
