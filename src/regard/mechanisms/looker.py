"""What the trained mechanisms have in common: classifiers that choose where to look, and say where they did."""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.errors import ModelError, ShapeError
from regard.mechanisms import Seen
from regard.record import Record
from regard.recorded import boxes_of, made_by, read_picture
from regard.tokens import VisualTokens
from regard.trace import Trace


@dataclass(frozen=True, eq=False)
class Looked:
    """What a classifier that chooses where to look made of a batch, and what each image took.

    logits: (B, classes). features: (B, R, D), what it has of each region that it read, in order; boxes: (B, R, 4), the
    regions, x0, y0, x1, y1 in [0, 1]; stages: (B, R), at which stage (glimpse, resolution, layer) each was read, from
    0, and -1 for one that this image did not need. exits: (B,), the stage at which it stopped. tokens: (B,), visual
    tokens read in all. macs: (B,), multiply-accumulates spent. fixations: (B, T, 2), x and y in [0, 1], NaN after the
    exit.
    """

    logits: Float[Tensor, "b k"]
    features: Float[Tensor, "b r d"]
    boxes: Float[Tensor, "b r 4"]
    stages: Int[Tensor, "b r"]
    exits: Int[Tensor, " b"]
    tokens: Int[Tensor, " b"]
    macs: Int[Tensor, " b"]
    fixations: Float[Tensor, "b t 2"] | None = None


class Looker(nn.Module, ABC):
    """A trained classifier that chooses where to look.

    name: of the mechanism. narrows: everything is read at first and less at each stage, so that `Looked.stages` say at
    which a region was read last, not first. runs: how many over an image have their mean as the answer. channels: of
    its pixels. side: pixels of a side that it was made for, None for any size.
    """

    name: ClassVar[str]
    narrows: ClassVar[bool] = False
    runs: ClassVar[int] = 1
    channels: int
    side: int | None = None

    @abstractmethod
    def look(self, pixels: Tensor, seed: int = 0) -> Looked:
        """Look at a batch. pixels: (B, channels, H, W), uint8, or floats in [0, 1]. seed: for what is drawn; each
        image gets the same draws, so that its result does not depend on its neighbours.
        """

    @abstractmethod
    def full_macs(self, height: int, width: int) -> int:
        """What reading all of an image of this size once would take by the same kind of network."""

    def look_at(self, pixels: Tensor, fixations: Float[Tensor, "b 2"], seed: int = 0) -> Looked:
        """Look at a batch, first at these places, x and y in [-1, 1]. Raises ModelError where none are taken."""
        raise ModelError(f"{self.name} takes no fixation: look without one, or choose a mechanism that takes one")

    def see(
        self,
        image: str | os.PathLike | bytes | PIL.Image.Image,
        labels: Sequence[str] = (),
        seed: int = 0,
        fixation: tuple[float, float] | None = None,
    ) -> Seen:
        """Look at one image. labels: names of the classes. fixation: x and y in [0, 1], where to look first.

        Raises ImageError, and as `look_at` where a fixation is given.
        """
        picture, preview = read_picture(image)
        start = time.perf_counter()
        read = picture if self.side is None else picture.resize((self.side, self.side), PIL.Image.Resampling.BICUBIC)
        array = np.array(read if self.channels == 3 else read.convert("L"))
        pixels = torch.from_numpy(array).view(read.height, read.width, self.channels).permute(2, 0, 1)[None]
        device = next(self.parameters()).device
        with torch.no_grad():
            if fixation is None:
                looked = self.eval().look(pixels.to(device), seed)
            else:
                place = torch.tensor([fixation], device=device) * 2 - 1
                looked = self.eval().look_at(pixels.to(device), place, seed)
        seconds = time.perf_counter() - start
        if labels and len(labels) != looked.logits.shape[1]:
            raise ModelError(f"expected names for {looked.logits.shape[1]} classes, got {len(labels)}")
        kept = looked.stages[0] >= 0
        tokens = VisualTokens(looked.features[:, kept], looked.boxes[:, kept])
        record = Record(
            picture=preview,
            eye=self.name,
            questions=(),
            boxes=boxes_of(tokens),
            relevance=(),
            grid=None,
            looks=(),
            language_model="none",
            prompt_tokens=0,
            seconds={"look": round(seconds, 4)},
            made=made_by(seed),
            trace=self._trace(looked, self.runs * self.full_macs(*pixels.shape[2:]), labels),
        )
        return Seen(tokens, "prediction", record)

    def _trace(self, looked: Looked, full: int, labels: Sequence[str]) -> Trace:
        """What the first image of a batch took, as plain data."""
        stages = looked.stages[0]
        fixations = [] if looked.fixations is None else looked.fixations[0].tolist()
        return Trace(
            mechanism=self.name,
            stages=tuple(stages[stages >= 0].tolist()),
            fixations=tuple((round(x, 4), round(y, 4)) for x, y in fixations if x == x),
            exit=int(looked.exits[0]),
            tokens=int(looked.tokens[0]),
            macs=int(looked.macs[0]),
            macs_full=full,
            probabilities=tuple(round(p, 6) for p in looked.logits[0].softmax(dim=0).tolist()),
            labels=tuple(labels),
            narrows=self.narrows,
        )


def check_sizes(**sizes: int) -> None:
    """Raise ShapeError unless all of these are 1 or more."""
    for name, value in sizes.items():
        if value < 1:
            raise ShapeError(f"{name} must be 1 or more, got {value}")


def check_pixels(pixels: Tensor, channels: int, side: int | None = None) -> None:
    """Raise ShapeError unless pixels are (B, channels, H, W), of this side where one is given, uint8 or floats."""
    wanted = f"(B, {channels}, {side or 'H'}, {side or 'W'})"
    good = isinstance(pixels, Tensor) and pixels.ndim == 4 and pixels.shape[1] == channels
    if not good or (side is not None and pixels.shape[2:] != (side, side)):
        got = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise ShapeError(f"pixels must have shape {wanted}, got {got}")
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        raise ShapeError(f"pixels must be uint8, or floats in [0, 1], got {pixels.dtype}")


def floats_of(pixels: Tensor, like: Tensor) -> Tensor:
    """Pixels as floats in [0, 1], of the kind of `like`."""
    return pixels.to(like.dtype) / 255 if pixels.dtype == torch.uint8 else pixels.to(like.dtype)


def check_fixations(fixations: Tensor, batch: int) -> None:
    """Raise ShapeError unless fixations are floats (B, 2), x and y in [-1, 1]."""
    if not isinstance(fixations, Tensor) or fixations.shape != (batch, 2) or not fixations.is_floating_point():
        got = (
            f"{fixations.dtype} {tuple(fixations.shape)}" if isinstance(fixations, Tensor) else type(fixations).__name__
        )
        raise ShapeError(f"fixations must be floats of shape ({batch}, 2), one an image, got {got}")
    if not bool((fixations.abs() <= 1).all()):
        raise ShapeError(f"fixations must be in [-1, 1], (-1, -1) the top left corner, got {fixations.tolist()[:4]}")
