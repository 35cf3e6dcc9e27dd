"""A picture as a Hugging Face image processor cuts it: pixels, and which part of the picture they show.

The processor itself resizes, crops and normalises; what it does to places is computed beside it and checked against the
size that came out, so that boxes are those of the original picture. Tiles are AnyRes of LLaVA-NeXT (Liu et al. 2024),
with its choice of grid: the whole picture and each tile are squashed to the encoder's own size, none is cropped; ours
cuts the picture itself, where LLaVA resizes and pads it first.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from regard.errors import ImageError, ModelError

CONVNEXT, NAFLEX = "ConvNextImageProcessor", "Siglip2ImageProcessor"
_SQUASHES_FROM = 384  # pixels: ConvNeXt's processor crops smaller pictures only
PROCESSORS = (
    *("CLIPImageProcessor", "SiglipImageProcessor", NAFLEX, "BlipImageProcessor"),
    *("BitImageProcessor", "ViTImageProcessor", CONVNEXT),
)
Part = tuple[float, float, float, float]
WHOLE: Part = (0.0, 0.0, 1.0, 1.0)


class View(NamedTuple):
    """What an encoder gets.

    pixels: (3, H, W), or (patches, 3 P P) of NaFlex. shape: (H, W) in pixels, of NaFlex in patches. part: x0, y0, x1,
    y1 in [0, 1] of the picture that they show.
    """

    pixels: Tensor
    shape: tuple[int, int]
    part: Part


@dataclass(frozen=True)
class Views:
    """Cuts pictures. stride: pixels of a token's side. longest, tiles: as of `HuggingFaceEye`. Raises ModelError."""

    processor: Any
    stride: int
    longest: int | None = None
    tiles: tuple[int, int] | int | None = None

    def __post_init__(self) -> None:
        if kind_of(self.processor) not in PROCESSORS:
            known = ", ".join(PROCESSORS)
            raise ModelError(f"expected an image processor of {known}, got {type(self.processor).__name__}")
        if self.longest is not None and (self.tiles is not None or self.flexible):
            other = "tiles" if self.tiles is not None else "SigLIP 2's processor, which has max_num_patches"
            raise ModelError(f"longest goes without {other}: give one of them")
        if self.longest is not None and self.longest < self.stride:
            raise ModelError(f"longest must be {self.stride} pixels, a token's side, or more, got {self.longest}")
        counts = self.tiles if isinstance(self.tiles, tuple) and len(self.tiles) == 2 else (self.tiles,)
        if self.tiles is not None and not all(isinstance(count, int) and count >= 1 for count in counts):
            raise ModelError(f"tiles must be (rows, columns) or how many at most, from 1, got {self.tiles}")

    @property
    def flexible(self) -> bool:
        """Whether it makes patches of any aspect (NaFlex)."""
        return kind_of(self.processor) == NAFLEX

    def of(self, image: Image.Image) -> list[View]:
        """The picture's views: itself, or the whole of it and then its tiles in raster order. Raises ImageError."""
        if not (image.width and image.height):
            raise ImageError(f"expected a picture with pixels, got {image.width} x {image.height}")
        image = image.convert("RGB")
        if self.tiles is not None:
            return self._tiled(image)
        if self.longest is not None:
            return [self._squashed(image, _within(image.size, self.longest, self.stride), WHOLE)]
        return [self._flexible(image, WHOLE) if self.flexible else self._as_the_processor_does(image)]

    def _tiled(self, image: Image.Image) -> list[View]:
        side = self._side()
        rows, columns = self.tiles if isinstance(self.tiles, tuple) else anyres(image.size, self.tiles or 1, side)
        if columns > image.width or rows > image.height:
            raise ImageError(f"a picture of {image.width} x {image.height} pixels has no {columns} x {rows} tiles")
        x = [round(image.width * i / columns) for i in range(columns + 1)]
        y = [round(image.height * i / rows) for i in range(rows + 1)]
        boxes = [(0, 0, *image.size)]
        if rows * columns > 1:
            boxes += [(x[j], y[i], x[j + 1], y[i + 1]) for i in range(rows) for j in range(columns)]
        views = []
        for box in boxes:
            x0, y0, x1, y1 = (edge / size for edge, size in zip(box, image.size * 2, strict=True))
            tile = image.crop(box)
            part = (x0, y0, x1, y1)
            views.append(self._flexible(tile, part) if self.flexible else self._squashed(tile, side, part))
        return views

    def _side(self) -> tuple[int, int]:
        """Width and height in pixels of the encoder's own picture."""
        if self.flexible:
            side = int(self.processor.patch_size * math.sqrt(self.processor.max_num_patches))
            return side, side
        size = self.processor.crop_size if self.processor.do_center_crop else self.processor.size
        short = size.get("shortest_edge")
        return (short, short) if short else (size["width"], size["height"])

    def _flexible(self, image: Image.Image, part: Part) -> View:
        made = self.processor(images=[image], return_tensors="pt")
        h, w = made["spatial_shapes"][0].tolist()
        return View(made["pixel_values"][0, : h * w], (h, w), part)

    def _squashed(self, image: Image.Image, size: tuple[int, int], part: Part) -> View:
        resized = image.resize(size, self.processor.resample)
        made = self.processor(images=[resized], do_resize=False, do_center_crop=False, return_tensors="pt")
        return View(made["pixel_values"][0], (size[1], size[0]), part)

    def _as_the_processor_does(self, image: Image.Image) -> View:
        pixels = torch.as_tensor(self.processor(images=[image], return_tensors="pt")["pixel_values"][0])
        (w, h), crop = _resized(self.processor, image.size)
        shape = (pixels.shape[1], pixels.shape[2])
        crop_w, crop_h = crop or (w, h)
        if shape != (crop_h, crop_w) or crop_w > w or crop_h > h:
            raise ModelError(
                f"{type(self.processor).__name__} makes {shape[1]} x {shape[0]} of a picture resized to {w} x {h}, "
                "expected a resize, then a crop no larger: mend its size and crop_size"
            )
        left, top = (w - crop_w) // 2, (h - crop_h) // 2
        return View(pixels, shape, (left / w, top / h, (left + crop_w) / w, (top + crop_h) / h))


def kind_of(processor: Any) -> str:
    """The name of a processor's class, whatever its backend."""
    return type(processor).__name__.removesuffix("Pil").removesuffix("Fast")


def anyres(size: tuple[int, int], most: int, side: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of at most so many tiles: the most of the picture's own pixels, then the least waste.

    size, side: width and height of the picture and of a tile.
    """

    def worth(grid: tuple[int, int]) -> tuple[int, int]:
        wide, high = grid[1] * side[0], grid[0] * side[1]
        scale = min(wide / size[0], high / size[1])
        used = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return used, used - wide * high

    grids = [(r, c) for r in range(1, most + 1) for c in range(1, most // r + 1)]
    return max((g for g in grids if g[0] <= size[1] and g[1] <= size[0]), key=worth)


def _within(size: tuple[int, int], longest: int, stride: int) -> tuple[int, int]:
    """Width and height in whole tokens, no side over `longest`, never enlarged by more than a token's rounding."""
    scale = min(1.0, longest / max(size))
    w, h = (stride * min(max(1, round(side * scale / stride)), longest // stride) for side in size)
    return w, h


def _resized(processor: Any, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Width and height that a processor resizes to, and those that it then crops from the middle."""
    crop = processor.crop_size if processor.do_center_crop else None
    cropped = None if crop is None else (crop["width"], crop["height"])
    if not processor.do_resize:
        return size, cropped
    short = processor.size.get("shortest_edge")
    if not short:
        if not processor.size.get("height"):
            raise ModelError(f"expected a size of shortest_edge, or height and width, got {processor.size}")
        return (processor.size["width"], processor.size["height"]), cropped
    if kind_of(processor) == CONVNEXT:
        if short >= _SQUASHES_FROM:
            return (short, short), cropped
        short, cropped = int(short / processor.crop_pct), (short, short)
    longer = int(short * max(size) / min(size))
    return ((short, longer) if size[0] <= size[1] else (longer, short)), cropped
