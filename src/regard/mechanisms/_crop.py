"""A square out of each image of a batch, about a place of its own, by copies of rows."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def cropped(
    images: Float[Tensor, "b c h w"] | Int[Tensor, "b c h w"], at: Float[Tensor, "b 2"], side: int
) -> Float[Tensor, "b c s s"]:
    """So many pixels of a side about (x, y) in [-1, 1], moved to whole pixels; 0 outside of the image.

    images: floats, or uint8, which are read as [0, 1]. The cost does not depend on the size of the image.
    """
    square = windows(images, at, side)
    return square / 255 if images.dtype == torch.uint8 else square


def windows(
    images: Float[Tensor, "b c h w"] | Int[Tensor, "b c h w"], at: Float[Tensor, "b 2"], side: int
) -> Float[Tensor, "b c s s"] | Int[Tensor, "b c s s"]:
    """The same, of the images' own kind. Rows are copied, of the nearest square inside and then of that one moved."""
    height, width = images.shape[2:]
    corner = corners(at, side, height, width)
    if min(height, width) < side:  # F.pad copies the whole image even where it adds nothing
        images = F.pad(images, (0, max(side - width, 0), 0, max(side - height, 0)))
    inside = corner.clamp(min=0).minimum(corner.new_tensor((images.shape[3] - side, images.shape[2] - side)))
    edge = side // 2 + 1  # the place is in the image, so that no more than half of the square is outside
    moved = (corner - inside).clamp(-edge, edge) + edge
    return _rows(F.pad(_rows(images, inside, side), (edge,) * 4), moved, side)


def _rows(images: Tensor, corner: Int[Tensor, "b 2"], side: int) -> Tensor:
    batch = torch.arange(len(images), device=images.device)
    return images.unfold(2, side, 1).unfold(3, side, 1)[batch, :, corner[:, 1], corner[:, 0]]


def corners(at: Float[Tensor, "b 2"], side: int, height: int, width: int) -> Int[Tensor, "b 2"]:
    """The column and row where each such square begins; outside of the image too."""
    return ((at + 1) * 0.5 * at.new_tensor((width, height)) - side / 2 + 0.5).floor().long()
