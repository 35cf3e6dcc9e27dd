"""Values of boxes on the pixels of a picture, exactly: what a box holds is spread evenly over its area."""

import torch
from jaxtyping import Float
from torch import Tensor

from regard.errors import ShapeError


def pixel_map(values: Float[Tensor, " n"], boxes: Float[Tensor, "n 4"], size: tuple[int, int]) -> Float[Tensor, "h w"]:
    """(N,) values of boxes (x0, y0, x1, y1 in [0, 1]) to (H, W) pixels, by how much of each pixel a box covers.

    The map sums to the values of all boxes that have an area; those that have none (the newlines of LLaVA-NeXT) are on
    no pixel. Boxes may overlap, as tiles and the whole picture do: they add. Raises ShapeError for another shape.
    """
    if values.ndim != 1 or boxes.shape != (*values.shape, 4):
        raise ShapeError(f"values must be (N,) and boxes (N, 4), got {tuple(values.shape)} and {tuple(boxes.shape)}")
    if len(size) != 2 or min(size) < 1:
        raise ShapeError(f"a size must be (height, width) in pixels, got {tuple(size)}")
    boxes = boxes.to(values.device, torch.float64)
    down, across = _covered(boxes[:, 1], boxes[:, 3], size[0]), _covered(boxes[:, 0], boxes[:, 2], size[1])
    area = down.sum(dim=1) * across.sum(dim=1)
    density = torch.where(area > 0, values.double() / area.clamp(min=1e-12), 0)
    return ((down * density[:, None]).T @ across).to(values.dtype)


def _covered(low: Tensor, high: Tensor, count: int) -> Float[Tensor, "n p"]:
    """How much of each of `count` pixels a stretch covers, (N, count), in pixels."""
    edges = torch.arange(count, device=low.device, dtype=low.dtype)
    start, end = torch.maximum(low[:, None] * count, edges), torch.minimum(high[:, None] * count, edges + 1)
    return (end - start).clamp(min=0)
