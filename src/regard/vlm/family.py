"""What a family of models has to say: how its image features lie in the image and in the prompt."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.errors import DataError
from regard.tokens import grid_boxes


@dataclass(frozen=True, eq=False)
class Layout:
    """The tokens of one image, in the order in which the language model gets them.

    boxes: (n, 4), x0, y0, x1, y1 in [0, 1]. grid: (T, H, W) when the tokens are one, in raster order.
    segment: (n,), which tile or frame, 0 for the whole picture.
    """

    boxes: Float[Tensor, "n 4"]
    grid: tuple[int, int, int] | None = None
    segment: Int[Tensor, " n"] | None = None


@dataclass(frozen=True)
class Run:
    """Consecutive image tokens in a row of the prompt: columns start to stop."""

    row: int
    start: int
    stop: int


class Family(ABC):
    """One family of models; holds no model. `base` is the model without its head (`model.base_model`).

    model_types: the values of `config.model_type`. encoder_inputs: the inputs that `base.get_image_features` takes;
    required: those of them that must be there.
    listed_by: where that function returns a list of features, what its entries are of.
    any_size: whether the tokens of an image follow its size, one for each square of patch size x merge size pixels.
    """

    model_types: ClassVar[tuple[str, ...]]
    encoder_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    required: ClassVar[tuple[str, ...]] = ("pixel_values",)
    listed_by: ClassVar[Literal["image", "prompt"]] = "image"
    any_size: ClassVar[bool] = False

    @abstractmethod
    def attention_layer(self, base: nn.Module) -> nn.Module:
        """The encoder's layer that attention and keys are read from: the one before the last, as published."""

    @abstractmethod
    def layouts(self, base: nn.Module, inputs: Mapping[str, Any], runs: Sequence[Run]) -> list[Layout]:
        """Where the tokens of each image stand, image by image. runs: of image tokens in the prompt."""

    @abstractmethod
    def arrange(self, base: nn.Module, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        """A value for each position of the encoder, (..., S, C), as one for each image token, (M, C)."""

    @abstractmethod
    def positions(self, base: nn.Module, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
        """Position ids of the whole prompt: (B, L), or (3, B, L) for time, height and width. mask: (B, L) bool."""

    @final
    def encode(self, base: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """The model's own output for the images."""
        given = {name: inputs[name] for name in self.encoder_inputs if inputs.get(name) is not None}
        return base.get_image_features(**given, return_dict=True)  # pyright: ignore[reportCallIssue]

    @final
    def flat(self, features: Tensor | Sequence[Tensor]) -> Float[Tensor, "m d"]:
        """All image features in the order of the image tokens in the prompt."""
        return features.flatten(0, -2) if isinstance(features, Tensor) else torch.cat(list(features))

    @final
    def packed(self, flat: Float[Tensor, "k d"], like: Any, per_image: list[int], rows: list[int]) -> Any:
        """The features that are left, held as the model holds them: one tensor, or a list. per_image: tokens of each
        image. rows: the prompt of each image.
        """
        if isinstance(like, Tensor):
            return flat[:, None]  # one entry a token: beams repeat them by the prompt
        if self.listed_by == "image":
            return list(flat.split(per_image))
        per_row: dict[int, int] = {}
        for row, count in zip(rows, per_image, strict=True):
            per_row[row] = per_row.get(row, 0) + count
        return list(flat.split(list(per_row.values())))


def counted(mask: Tensor) -> Int[Tensor, "b l"]:
    """Text positions: each real token one more than the one before, 0 where padded. mask: (B, L) bool."""
    return (mask.long().cumsum(1) - 1).masked_fill(~mask, 0)


def cells(h: int, w: int, within: Sequence[float] = (0.0, 0.0, 1.0, 1.0)) -> Float[Tensor, "n 4"]:
    """The boxes of an h x w grid in raster order within a part of the image, (h*w, 4)."""
    x0, y0, x1, y1 = within
    return grid_boxes(torch.linspace(x0, x1, w + 1), torch.linspace(y0, y1, h + 1))[0]


def tiled(h: int, w: int, edge: int) -> Layout:
    """H x w tiles of edge x edge tokens in raster order, segments 1 and on, and the whole picture last; or it alone."""
    whole = cells(edge, edge)
    if not h * w:
        return Layout(whole, grid=(1, edge, edge))
    boxes = [cells(edge, edge, (x / w, y / h, (x + 1) / w, (y + 1) / h)) for y in range(h) for x in range(w)]
    numbers = torch.tensor([*range(1, h * w + 1), 0]).repeat_interleave(edge * edge)
    return Layout(torch.cat((*boxes, whole)), segment=numbers)


def side(n: int, what: str) -> int:
    """The side of a square grid of n. Raises DataError where n is no square."""
    root = math.isqrt(n)
    if root * root != n:
        raise DataError(f"{what}: {n} tokens are no square grid: this encoder's features cannot be placed in the image")
    return root


def block_means(maps: Float[Tensor, "t s c"], block: int) -> Float[Tensor, "t n c"]:
    """Averages over block x block neighbours of square grids, (T, S, C) -> (T, S / block^2, C), in raster order."""
    tiles, n, c = maps.shape
    edge = side(n, "pixel shuffle") // block
    return maps.view(tiles, edge, block, edge, block, c).mean(dim=(2, 4)).flatten(1, 2)
