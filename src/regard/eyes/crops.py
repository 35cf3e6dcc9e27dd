"""A TilePlan carried out: each tile cut from the photo itself and resized to its tokens, to be encoded anew."""

import math
from typing import NamedTuple

from PIL import Image

from regard.allocation import TilePlan
from regard.errors import ShapeError


class Tile(NamedTuple):
    """A part of a photo. crop: RGB, as many pixels as its tokens take. box: x0, y0, x1, y1 in [0, 1] of the photo."""

    crop: Image.Image
    box: tuple[float, float, float, float]
    tokens: int


def crops(image: Image.Image, plan: TilePlan, token_pixels: int) -> list[Tile]:
    """The tiles of one photo, in the plan's order, those of no tokens left out.

    token_pixels: the side of a token in pixels, patch size times merge: 28 for Qwen2-VL and Qwen2.5-VL, 32 for
    Qwen3-VL. A tile of s x s tokens is s x token_pixels wide and high. Raises ShapeError for a plan of several images
    or a count that is no square.
    """
    if len(plan.counts) != 1 or token_pixels < 1:
        raise ShapeError(f"crops take a plan of one image and 1 pixel or more, got {len(plan.counts)}, {token_pixels}")
    found = []
    for box, count in zip(plan.boxes[0].tolist(), plan.counts[0].tolist(), strict=True):
        side = math.isqrt(count)
        if side * side != count:
            raise ShapeError(f"a tile must have a square number of tokens, got {count}")
        if not count:
            continue
        edges = tuple(part * size for part, size in zip(box, (image.width, image.height) * 2, strict=True))
        pixels = (side * token_pixels, side * token_pixels)
        crop = image.resize(pixels, Image.Resampling.LANCZOS, box=edges, reducing_gap=2.0)
        found.append(Tile(crop, tuple(round(edge, 6) for edge in box), count))
    return found
