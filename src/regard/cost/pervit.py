"""PerViT (arXiv 2206.06801): peripheral attention, a convolutional stem, and blocks that widen from stage to stage.

What depends on no image, the map of positions, is made once and kept; `periphery` is its cost. The published counts
also leave out the two products of attention: `attends=False`.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

from regard.cost.counted import Cost, total
from regard.cost.parts import activation, attention, convolution, linear, norm, of_data

CHANNELS = 4  # of distances, for each head


def periphery(grid: tuple[int, int], heads: int) -> Cost:
    """The positions of PeripheralAttention, for all queries: the first convolution once, on the map of all offsets."""
    (h, w), wide = grid, CHANNELS * heads
    offsets, inner = (2 * h + 3) * (2 * w + 3), (2 * h + 1) * (2 * w + 1)
    first = linear(offsets, 1, wide) + convolution(inner, wide, wide, 3, before=offsets)
    windows = h * w * (h + 2) * (w + 2)
    second = norm(windows, wide) + activation(windows, wide)
    second += convolution((h * w) ** 2, wide, heads, 3, before=windows) + norm((h * w) ** 2, heads)
    return first + second


def peripheral_attention(grid: tuple[int, int], dim: int, heads: int, cached: bool = True) -> Cost:
    """PeripheralAttention. cached: the positions are known (their parameters count)."""
    n, positions = grid[0] * grid[1], periphery(grid, heads)
    positions = Cost(positions.params) if cached else positions
    return positions + linear(n, dim, 3 * dim, bias=False) + attention(n, n, heads, dim // heads) + linear(n, dim, dim)


def convolutional_stem(side: int, widths: tuple[int, ...], bias: bool) -> Cost:
    """3 x 3 convolutions of stride 2, each with a batch norm and ReLU. widths: of pixels, and after each."""
    parts = []
    for place, (into, out) in enumerate(pairwise(widths)):
        before, side = side**2, -(-side // 2)
        layer = convolution(side**2, into, out, 3, bias=bias, before=before)
        parts += [layer if place else of_data(layer), norm(side**2, out), activation(side**2, out)]
    return total(parts)


@dataclass(frozen=True)
class PerViT:
    """The published models where `distances` (the projection of distances) is shared by all blocks; else ours, in
    which each block has its own. dims: of each block. stem: widths after each convolution.
    """

    dims: tuple[int, ...]
    stem: tuple[int, ...]
    heads: int
    classes: int = 1000
    channels: int = 3
    shared: bool = True
    attends: bool = True

    @property
    def patch(self) -> int:
        """Pixels of a token's side."""
        return 2 ** len(self.stem)

    def tokens(self, side: int) -> int:
        """Of every block."""
        return (side // self.patch) ** 2

    def without_products(self) -> "PerViT":
        """As the published multiply-accumulates are counted."""
        return replace(self, attends=False)

    def cost(self, side: int) -> Cost:
        """Of an image of side x side pixels, positions known."""
        n, last = self.tokens(side), self.dims[-1]
        parts = [convolutional_stem(side, (self.channels, *self.stem), bias=self.shared)]
        parts.append(convolution(n, self.stem[-1], self.stem[-1], 1))
        parts += [self._block(side // self.patch, into, out) for into, out in pairwise((*self.dims, last))]
        parts += [norm(n, last), linear(1, last, self.classes)]
        distances = linear(0, 1, CHANNELS * self.heads).params
        return total(parts) + Cost(-distances * (len(self.dims) - 1) if self.shared else 0)

    def _block(self, side: int, dim: int, out: int) -> Cost:
        n, grid = side**2, (side, side)
        read = convolution(n, dim, dim, 3, groups=dim) + norm(n, dim) + peripheral_attention(grid, dim, self.heads)
        if not self.attends:
            both = attention(n, n, self.heads, dim // self.heads)
            read += Cost(macs=-both.macs, backward=-both.backward)
        fed = norm(n, dim) + linear(n, dim, 4 * dim) + activation(n, 4 * dim) + linear(n, 4 * dim, out)
        return (read + fed).beside(n * dim) + (linear(n, dim, out) if out != dim else Cost())
