"""The gaze tokeniser of Look, Focus, Act (Chuang et al., arXiv 2507.15833), after segment-this-thing.

    level k: a grid of g_k x g_k tokens about the gaze, each of t x t areas of s_k x s_k pixels, averaged

A level does not read again what the finer one covers. With strides 1, 2, 6, grids 2, 3, 3 and t = 16 these are
4 + 8 + 8 = 20 tokens for 288 x 288 pixels, where 324 tokens would read them all. Ours differs in that the square about
the gaze is copied in whole pixels, for the whole batch at once, so that the cost does not depend on the size of the
image, and no integral image of it is made. What lies outside of the image is 0.
"""

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from regard.errors import DataError, ShapeError
from regard.mechanisms._crop import corners, cropped


@dataclass(frozen=True, eq=False)
class Gazed:
    """Tokens about a gaze, the finest level first, each level in raster order.

    patches: (B, N, C, t, t). boxes: (B, N, 4), what of the image each covers, x0, y0, x1, y1 in [0, 1]. valid: (B, N),
    False for a token without a pixel of the image; its box is empty.
    """

    patches: Float[Tensor, "b n c t t"]
    boxes: Float[Tensor, "b n 4"]
    valid: Bool[Tensor, "b n"]


class GazeTokens:
    """strides, grids: of each level, the finest first. token: areas of a token's side.

    Raises ShapeError unless each level's square is a whole number of the next one's tokens, in their middle.
    """

    def __init__(self, strides: Sequence[int] = (1, 2, 6), grids: Sequence[int] = (2, 3, 3), token: int = 16) -> None:
        self.strides, self.grids, self.token = tuple(strides), tuple(grids), token
        whole = all(isinstance(one, int) and one > 0 for one in (*self.strides, *self.grids, token))
        if not whole or len(self.strides) != len(self.grids) or not self.strides:
            got = f"strides {list(strides)}, grids {list(grids)} and token {token}"
            raise ShapeError(f"strides and grids must be as many whole numbers above 0, and token one, got {got}")
        self.covered = (0, *(_covered(self.strides, self.grids, level) for level in range(1, len(self.grids))))
        self.side = self.strides[-1] * self.grids[-1] * token
        self.kept = [_outer(grid, covered) for grid, covered in zip(self.grids, self.covered, strict=True)]
        self.count = sum(len(kept) for kept in self.kept)
        self.uniform = (self.side // (self.strides[0] * token)) ** 2

    def __call__(self, pixels: Tensor, gaze: Float[Tensor, "b 2"]) -> Gazed:
        """pixels: (B, C, H, W), floats, or uint8, read as [0, 1]. gaze: (B, 2), x and y in [-1, 1]."""
        square = cropped(pixels, gaze, self.side)
        parts = []
        for stride, grid, kept in zip(self.strides, self.grids, self.kept, strict=True):
            wide = stride * grid * self.token
            edge = (self.side - wide) // 2
            view = F.avg_pool2d(square[..., edge : edge + wide, edge : edge + wide], stride)
            cells = view.unflatten(3, (grid, self.token)).unflatten(2, (grid, self.token))
            parts.append(cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)[:, kept.to(pixels.device)])
        boxes, valid = self._boxes(gaze, *pixels.shape[2:])
        return Gazed(torch.cat(parts, dim=1), boxes, valid)

    def areas(self) -> Tensor:
        """The squares that the tokens cover, int64 (N, 4), x0, y0, x1, y1 in pixels from the whole square's corner."""
        parts = []
        for stride, grid, kept in zip(self.strides, self.grids, self.kept, strict=True):
            cell = stride * self.token
            edge = (self.side - cell * grid) // 2
            corner = torch.stack((kept % grid, kept // grid), dim=1) * cell + edge
            parts.append(torch.cat((corner, corner + cell), dim=1))
        return torch.cat(parts)

    def _boxes(self, gaze: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        first = corners(gaze, self.side, height, width)
        size = first.new_tensor((width, height, width, height))
        held = (first.repeat(1, 2)[:, None] + self.areas().to(gaze.device)).clamp(min=0).minimum(size)
        return held / size.to(gaze.dtype), (held[..., :2] < held[..., 2:]).all(dim=-1)


def read_fixations(path: str | os.PathLike) -> Float[Tensor, "n 2"]:
    """Fixations from an eye tracker's file, x and y in [-1, 1], one for each image, in the file's order.

    A CSV with a line of names, among them x and y: parts of the image's width and height in [0, 1], from the top left
    corner. Other columns are left alone. Raises DataError.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"x", "y"} <= set(reader.fieldnames or ()):
                raise DataError(f"{str(path)!r} must have columns x and y, it has {', '.join(reader.fieldnames or ())}")
            rows = [(reader.line_num, row["x"], row["y"]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the fixations {str(path)!r}: {error}") from error
    places = [(_part(path, line, x), _part(path, line, y)) for line, x, y in rows]
    return torch.tensor(places, dtype=torch.float32).view(-1, 2) * 2 - 1


def _part(path: str | os.PathLike, line: int, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise DataError(f"{str(path)!r}, line {line}: x and y must be numbers in [0, 1], got {text!r}")
    return value


def _covered(strides: tuple[int, ...], grids: tuple[int, ...], level: int) -> int:
    """How many tokens of a level's side the finer level covers. Raises ShapeError where these do not nest."""
    inner, cell, grid = strides[level - 1] * grids[level - 1], strides[level], grids[level]
    covered = inner // cell
    if inner % cell or covered >= grid or (grid - covered) % 2:
        raise ShapeError(
            f"level {level}, {grid} x {grid} tokens of stride {cell}, does not hold level {level - 1}, "
            f"{grids[level - 1]} x {grids[level - 1]} of stride {strides[level - 1]}, as whole tokens in its middle: "
            f"choose others, such as strides 1, 2, 6 and grids 2, 3, 3"
        )
    return covered


def _outer(grid: int, covered: int) -> Tensor:
    """The places in a grid, but for covered x covered of them in its middle."""
    edge = (grid - covered) // 2
    read = torch.ones(grid, grid, dtype=torch.bool)
    read[edge : edge + covered, edge : edge + covered] = False
    return read.flatten().nonzero()[:, 0]
