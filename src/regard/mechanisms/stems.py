"""What the cascade reads patches with: pixels into features, by nothing that is trained."""

from functools import cached_property
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from regard.errors import ShapeError
from regard.eyes.efficientnet import MIDDLE, STRIDE, EfficientNetLite0


class Stem(Protocol):
    """Images or parts of them, floats in [0, 1], to `width` features a patch of `patch` pixels, in raster order.

    margin: patches about a part that change what is read in it.
    """

    patch: int
    width: int
    margin: int

    def __call__(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n f"]: ...

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates for pixels of this size."""
        ...


class PixelStem:
    """The pixels of a patch themselves, in [-1, 1]."""

    margin = 0

    def __init__(self, channels: int, patch: int) -> None:
        self.patch, self.width = patch, channels * patch**2

    def __call__(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n f"]:
        return _parted(pixels, self.patch) * 2 - 1

    def macs(self, height: int, width: int) -> int:
        """None: a patch is its pixels."""
        return 0


class EmbeddedStem:
    """The frozen EfficientNet-Lite0 up to stride 16: a patch is 2 x 2 of its cells, and sees the patches about it."""

    patch, width, margin = STRIDE, 4 * 112, 1

    def __init__(self, channels: int, patch: int) -> None:
        if channels != 3 or patch != STRIDE:
            raise ShapeError(f"the embedded stem reads 3 channels and patches of {STRIDE}, got {channels} and {patch}")

    @cached_property
    def net(self) -> EfficientNetLite0:
        """The network with its installed weights, loaded when first used."""
        return EfficientNetLite0.installed()

    def __call__(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n f"]:
        cells = self.net.cells((pixels.cpu() * 255 - 127) / 128, MIDDLE).to(pixels.device)
        return _parted(cells, 2)

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of an image of height x width pixels."""
        return self.net.cells_macs(height, width, MIDDLE)


def _parted(x: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b n f"]:
    """Squares of size x size, in raster order, each all that is in it."""
    apart = x.unflatten(3, (-1, size)).unflatten(2, (-1, size))
    return apart.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
