"""PerViT, the peripheral vision transformer (Min et al., arXiv 2206.06801): each head learns where about it to look.

    x = x + A(LN(x + conv(x)));    x = x + MLP(LN(x));    p = softmax(W mean(LN(x)))

A is peripheral attention (`regard.attention.peripheral`), conv a depthwise 3 x 3 that tells positions, the stem
convolutions of stride 2 with batch norms. Its regions begin sharp and narrow in the first block, and vague in the
last. Ours is small: one width, and as many blocks as asked for. attention="plain" is its twin, of the same shapes with
softmax attention instead, and of the same cost: what depends on no image is made once, and not counted.
"""

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.attention.peripheral import PeripheralAttention
from regard.attention.scaled import MultiHeadAttention
from regard.errors import ModelError, ShapeError
from regard.mechanisms.looker import Looked, Looker, check_pixels, check_sizes, floats_of
from regard.tokens import grid_boxes

Kind = Literal["peripheral", "plain"]


class Block(nn.Module):
    """Positions by a depthwise convolution, attention, and an MLP, on a grid of tokens."""

    def __init__(
        self, dim: int, heads: int, grid: tuple[int, int], attention: Kind, spread: float, strength: float
    ) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        if attention == "peripheral":
            self.attention = PeripheralAttention(dim, heads, grid, spread, strength)
        else:
            self.attention = MultiHeadAttention(dim, heads, bias=False)
        self.widen, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The tokens of the grid, in raster order, in and out."""
        near = self.conv(x.transpose(1, 2).unflatten(2, self.grid)).flatten(2).transpose(1, 2)
        x = x + self.attention(self.norm1(x + near))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))

    @property
    def macs(self) -> int:
        """Of one image: products of its layers and of attention."""
        n, d = self.grid[0] * self.grid[1], self.conv.out_channels
        return n * (12 * d * d + 9 * d) + 2 * n * n * d


class PerViT(Looker):
    """side: pixels of a side. patch: pixels of a token's side, a power of two. attention: "peripheral", or "plain".

    Raises ShapeError where patches do not divide the side, ModelError for another attention.
    """

    name = "pervit"

    def __init__(
        self,
        classes: int = 10,
        channels: int = 1,
        side: int = 28,
        patch: int = 4,
        dim: int = 64,
        depth: int = 4,
        heads: int = 4,
        attention: Kind = "peripheral",
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, heads=heads)
        halvings = patch.bit_length() - 1
        if patch < 2 or patch != 2**halvings or side % patch or depth < 1:
            got = f"patch={patch}, side={side} and depth={depth}"
            raise ShapeError(f"patch must be a power of two from 2 that divides side, and depth 1 or more, got {got}")
        if dim < patch // 2:
            raise ShapeError(
                f"dim must be half of patch or more, as the stem halves it, got dim={dim} and patch={patch}"
            )
        if attention not in ("peripheral", "plain"):
            raise ModelError(f"no attention is named {attention!r} here: there are peripheral, plain")
        self.channels, self.side, self.patch, self.grid = channels, side, patch, (side // patch, side // patch)
        widths = [channels, *(dim // 2 ** (halvings - turn) for turn in range(1, halvings + 1))]
        stem: list[nn.Module] = []
        for into, out in pairwise(widths):
            stem += [nn.Conv2d(into, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.stem = nn.Sequential(*stem, nn.Conv2d(dim, dim, 1))
        starts = zip(_between(-5, 4, depth), _between(3, 0.01, depth), strict=True)
        self.blocks = nn.ModuleList([Block(dim, heads, self.grid, attention, *start) for start in starts])
        self.norm, self.classify = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, pixels: Tensor) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b n d"]]:
        """Logits, and the tokens after the last norm. pixels: uint8, or floats in [0, 1]."""
        check_pixels(pixels, self.channels, self.side)
        x = self.stem(floats_of(pixels, self.classify.weight) * 2 - 1).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.classify(x.mean(dim=1)), x

    def look(self, pixels: Tensor, seed: int = 0) -> Looked:
        """Every token, in every block; stages are all 0."""
        logits, x = self(pixels)
        batch, count, _ = x.shape
        edges = torch.linspace(0, 1, self.grid[0] + 1, device=x.device)
        each = torch.ones(batch, dtype=torch.long, device=x.device)
        return Looked(
            logits,
            x,
            grid_boxes(edges, edges).expand(batch, -1, -1),
            torch.zeros(batch, count, dtype=torch.long, device=x.device),
            each * 0,
            each * count,
            each * self.macs,
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        side, total = self.grid[0] * self.patch, self.classify.weight.numel()
        for layer in self.stem:
            if isinstance(layer, nn.Conv2d):
                side = math.ceil(side / layer.stride[0])
                total += layer.weight.numel() * side * side
        return total + sum(block.macs for block in self.blocks if isinstance(block, Block))

    def full_macs(self, height: int, width: int) -> int:
        """Of every look: nothing is left out."""
        return self.macs


def _between(first: float, last: float, count: int) -> list[float]:
    """As the paper's model has it over its blocks."""
    return torch.linspace(first, last, count).tolist()
