"""A classifier that reads a gaze's tokens (Chuang et al., arXiv 2507.15833), and where the gaze may come from.

    x_i = W patch_i + slot_i;    p = softmax(ViT([class, x_1 ... x_20]))

The gaze is given (`look_at`, `read_fixations` for a tracker's file), or predicted by a small convolutional net on the
whole image at low resolution: a score for each cell, and in the best one the place. Ours differs in that: the paper
predicts the gaze with the robot's actions. The twin, reading="all", reads all tokens of full resolution by the same
ViT, with fixed positions (sines and cosines) for the slots.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.errors import ModelError, ShapeError
from regard.mechanisms._reader import ClassReader, Read, positions
from regard.mechanisms.gaze import Gazed, GazeTokens
from regard.mechanisms.looker import Looked, Looker, check_fixations, check_pixels, check_sizes, floats_of
from regard.tokens import grid_boxes

GRID = 8  # cells of a side that a glance has scores for


@dataclass(frozen=True, eq=False)
class Glanced:
    """scores: (B, 64), logits of the cells. places: (B, 64, 2), x and y in [-1, 1], where in each cell."""

    scores: Float[Tensor, "b n"]
    places: Float[Tensor, "b n 2"]

    @property
    def best(self) -> Float[Tensor, "b 2"]:
        """The place in the cell of the highest score."""
        rows = torch.arange(len(self.scores), device=self.scores.device)
        return self.places[rows, self.scores.argmax(dim=1)]

    def loss(self, centres: Float[Tensor, "b 2"]) -> Float[Tensor, ""]:
        """Cross-entropy of the cell where the centre is, and how far the place in it is off, in cells."""
        cell = ((centres + 1) * 0.5 * GRID).long().clamp(0, GRID - 1)
        right = cell[:, 1] * GRID + cell[:, 0]
        place = self.places[torch.arange(len(right), device=right.device), right]
        return F.cross_entropy(self.scores, right) + F.smooth_l1_loss(place * GRID / 2, centres * GRID / 2)


class Glance(nn.Module):
    """A convolutional net on the image at view x view pixels, to scores and places of 8 x 8 cells."""

    def __init__(self, channels: int, view: int) -> None:
        super().__init__()
        halvings = int(math.log2(view / GRID)) if view >= 2 * GRID else 0
        if halvings < 1 or GRID * 2**halvings != view:
            raise ShapeError(f"view must be 8 times a power of two, such as 64, got {view}")
        self.view, width, layers = view, channels, []
        for turn in range(halvings):
            out = min(64, 12 * 2**turn)
            for into, stride in ((width, 2), (out, 1))[: 1 + (turn >= halvings - 2)]:
                layers += [nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            width = out
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(width, 3, 1)

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Glanced:
        """pixels: (B, C, H, W), of any size, uint8, or floats in [0, 1], which are read as bytes."""
        read = pixels if pixels.dtype == torch.uint8 else (pixels * 255).round().to(torch.uint8)
        small = F.interpolate(read, (self.view, self.view), mode="bilinear", antialias=True)
        found = self.last(self.layers(small / 127.5 - 1)).flatten(2)
        step = torch.arange(GRID, device=pixels.device)
        corner = torch.stack((step.repeat(GRID), step.repeat_interleave(GRID)), dim=1)
        places = (corner + found[:, 1:].transpose(1, 2).sigmoid()) * (2 / GRID) - 1
        return Glanced(found[:, 0], places)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        side, total = self.view, 0
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                side //= layer.stride[0]
                total += layer.weight.numel() * side * side
        return total + self.last.weight.numel() * GRID**2


class GazeViT(Looker):
    """strides, grids, token: of `GazeTokens`. view: pixels of a side of what the gaze is predicted from.

    reading: "gaze", or "all", its twin, of tokens of the finest stride over the whole image.
    """

    name = "gaze"

    def __init__(
        self,
        classes: int = 10,
        channels: int = 3,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        strides: Sequence[int] = (1, 2, 6),
        grids: Sequence[int] = (2, 3, 3),
        token: int = 16,
        view: int = 64,
        reading: Literal["gaze", "all"] = "gaze",
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, depth=depth, heads=heads)
        self.channels, self.reading = channels, reading
        self.tokens = GazeTokens(strides, grids, token)
        self.embed = nn.Linear(channels * token**2, dim)
        self.slots = nn.Parameter(torch.randn(self.tokens.count, dim) * 0.02) if reading == "gaze" else None
        self.glance = Glance(channels, view) if reading == "gaze" else None
        self.reader = ClassReader(dim, depth, heads, classes)

    def forward(self, pixels: Tensor, gaze: Float[Tensor, "b 2"] | None = None) -> tuple[Read, Gazed]:
        """pixels: (B, C, H, W), uint8, or floats in [0, 1]. gaze: (B, 2), needed but by the twin."""
        if self.slots is None:
            gazed = self._all(pixels)
        elif gaze is None:
            raise ModelError("a gaze is needed: give one, or take that of predict(pixels)")
        else:
            gazed = self.tokens(pixels, gaze)
        return self.read(gazed), gazed

    def read(self, gazed: Gazed) -> Read:
        """What the ViT makes of tokens."""
        x = self.embed(gazed.patches.flatten(2).to(self.embed.weight) * 2 - 1)
        if self.slots is not None:
            return self.reader(x + self.slots, gazed.valid)
        return self.reader(x + positions((gazed.boxes[..., :2] + gazed.boxes[..., 2:]) / 2, self.reader.dim))

    def predict(self, pixels: Tensor) -> Glanced:
        """Where to look, from the image at low resolution. Raises ModelError for the twin."""
        if self.glance is None:
            raise ModelError("the twin that reads all tokens takes no gaze: make it with reading='gaze'")
        return self.glance(pixels)

    def look(self, pixels: Tensor, seed: int = 0) -> Looked:
        """At the gaze that is predicted; the twin everywhere."""
        return self._looked(pixels, None)

    def look_at(self, pixels: Tensor, fixations: Float[Tensor, "b 2"], seed: int = 0) -> Looked:
        """Each image at its place, x and y in [-1, 1]. Raises ShapeError, and ModelError for the twin."""
        return self._looked(pixels, fixations)

    def _looked(self, pixels: Tensor, fixations: Float[Tensor, "b 2"] | None) -> Looked:
        check_pixels(pixels, self.channels)
        batch, guessed = len(pixels), 0
        macs = self.full_macs(*pixels.shape[2:])
        if self.glance is not None:
            macs = self._macs(self.tokens.count)
            if fixations is None:
                fixations, guessed = self.predict(pixels).best, GRID**2
                macs += self.glance.macs
            check_fixations(fixations, batch)
        elif fixations is not None:
            raise ModelError("the twin that reads all tokens takes no fixation: look without one")
        read, gazed = self(pixels, fixations)
        each = torch.ones(batch, dtype=torch.long, device=pixels.device)
        return Looked(
            read.logits,
            read.tokens,
            gazed.boxes,
            gazed.valid.long() - 1,
            each * 0,
            gazed.valid.sum(dim=1) + guessed,
            each * macs,
            None if fixations is None else (fixations[:, None] + 1) / 2,
        )

    def full_macs(self, height: int, width: int) -> int:
        """Of the twin."""
        side = self.tokens.token * self.tokens.strides[0]
        return self._macs(-(-height // side) * -(-width // side))

    def _macs(self, count: int) -> int:
        return count * self.embed.weight.numel() + self.reader.macs(count)

    def _all(self, pixels: Tensor) -> Gazed:
        """All tokens of the finest stride; at the edges 0 is added."""
        token, stride = self.tokens.token, self.tokens.strides[0]
        side, (height, width) = token * stride, pixels.shape[2:]
        whole = F.avg_pool2d(F.pad(floats_of(pixels, self.embed.weight), (0, -width % side, 0, -height % side)), stride)
        cells = whole.unflatten(3, (-1, token)).unflatten(2, (-1, token))
        patches = cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        across, down = (
            torch.arange(count + 1, device=pixels.device).mul(side).clamp(max=size) / size
            for count, size in ((cells.shape[4], width), (cells.shape[2], height))
        )
        boxes = grid_boxes(across, down).expand(len(pixels), -1, -1)
        return Gazed(patches, boxes, torch.ones(boxes.shape[:2], dtype=torch.bool, device=pixels.device))


def centre_of(boxes: Float[Tensor, "b 4"]) -> Float[Tensor, "b 2"]:
    """Where a gaze at a box is, x and y in [-1, 1]."""
    return boxes[:, :2] + boxes[:, 2:] - 1
