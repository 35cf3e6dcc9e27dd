"""Labelled images as the recipes want them, and what a trained mechanism makes of those it has not seen."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from regard.mechanisms.looker import Looker

AT_ONCE, PIXELS = 500, 4_000_000  # images that are looked at together, and their pixels at most


@dataclass(frozen=True, eq=False)
class Data:
    """A task. batch(index, generator): the images (B, C, H, W) and labels (B,) of these of its `count` training
    samples, as drawn by the generator where the task draws. test, test_labels: what is held out. labels: the classes.
    boxes(index), test_boxes: where the thing is, (B, 4) of x0, y0, x1, y1 in [0, 1], in tasks that know it.
    """

    name: str
    count: int
    batch: Callable[[Int[Tensor, " b"], torch.Generator], tuple[UInt8[Tensor, "b c h w"], Int[Tensor, " b"]]]
    test: UInt8[Tensor, "n c h w"]
    test_labels: Int[Tensor, " n"]
    labels: tuple[str, ...]
    boxes: Callable[[Int[Tensor, " b"]], Float[Tensor, "b 4"]] | None = field(default=None, kw_only=True)
    test_boxes: Float[Tensor, "n 4"] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class Held(Data):
    """A task with images held out of training, as `batch` gives them, and their labels."""

    held: Tensor
    held_labels: Tensor


def evaluate(model: Looker, data: Data, seed: int = 0) -> dict[str, float]:
    """Over all test images: test_error in percent, and the mean macs, tokens and exit of an image."""
    wrong, macs, tokens, exits = 0, 0.0, 0.0, 0.0
    model.eval()
    size = min(AT_ONCE, max(1, PIXELS // data.test[0, 0].numel()))
    with torch.no_grad():
        for place, (images, labels) in enumerate(zip(data.test.split(size), data.test_labels.split(size), strict=True)):
            looked = model.look(images, seed + place)  # no error by one draw alone
            wrong += int((looked.logits.argmax(dim=1) != labels).sum())
            macs += float(looked.macs.sum())
            tokens += float(looked.tokens.sum())
            exits += float(looked.exits.sum())
    count = len(data.test)
    means = {"macs": macs / count, "tokens": tokens / count, "exit": exits / count}
    return {"test_error": round(100 * wrong / count, 4), **means}


def jittered(images: UInt8[Tensor, "b c h w"], generator: torch.Generator, most: int = 2) -> UInt8[Tensor, "b c h w"]:
    """Each image moved by up to `most` pixels each way, black coming in, and mirrored or not, as likely."""
    batch, channels, height, width = images.shape
    top, left = torch.randint(2 * most + 1, (2, batch, 1, 1), generator=generator)
    mirror = torch.randint(2, (batch, 1, 1), generator=generator).bool()
    columns = torch.arange(width)
    columns = left + torch.where(mirror, width - 1 - columns, columns)
    place = (top + torch.arange(height)[:, None]) * (width + 2 * most) + columns
    padded = F.pad(images, (most, most, most, most)).flatten(2)
    index = place.flatten(1)[:, None].expand(-1, channels, -1)
    return padded.gather(2, index).view(batch, channels, height, width)
