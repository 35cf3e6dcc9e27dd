"""Vision transformers that read fewer and fewer patches: EViT (arXiv 2202.07800), DynamicViT (arXiv 2106.02034).

For A-ViT (arXiv 2112.07658) how many are read depends on the image: `regard.mechanisms.avit` counts them as it looks,
and its most is the cost of the transformer around which it is made.
"""

import math
from dataclasses import dataclass

from regard.cost.counted import Cost, total
from regard.cost.layers import mlp, self_attention
from regard.cost.parts import activation, linear, norm
from regard.cost.vit import ViT


@dataclass(frozen=True)
class EViT:
    """After the attention of some blocks ceil(keep n) patches go on, and one token that is the sum of the others."""

    vit: ViT
    keep: float
    layers: tuple[int, ...] = (3, 6, 9)

    def counts(self, side: int) -> tuple[int, ...]:
        """Patches, and a fused token as one, that each block's attention reads."""
        there, found = self.vit.patches(side), []
        for depth in range(self.vit.depth):
            found.append(there)
            there = self._after(there) if depth in self.layers else there
        return tuple(found)

    def _after(self, there: int) -> int:
        kept = self._kept(there)
        return kept + (kept < there)

    def _kept(self, there: int) -> int:
        return math.ceil(self.keep * there - 1e-9)

    def tokens(self, side: int) -> int:
        """That the last block's attention reads."""
        return self.counts(side)[-1] + self.vit.first

    def cost(self, side: int) -> Cost:
        """Of an image of side x side pixels."""
        vit, counts = self.vit, self.counts(side)
        parts = [vit.embedding(side)]
        for depth, there in enumerate(counts):
            left = self._after(there) if depth in self.layers else there
            n, m = there + vit.first, left + vit.first
            read = norm(n, vit.dim) + self_attention(n, vit.dim, vit.heads, bool(vit.bias))
            if depth in self.layers:
                row, fused = n * vit.dim, there * vit.dim * (self._kept(there) < there)
                read += Cost(macs=row + fused, backward=2 * (row + fused))
            parts.append(read.beside(n * vit.dim) + (norm(m, vit.dim) + mlp(m, vit.dim, vit.wide)).beside(m * vit.dim))
        return total(parts) + vit.head(m)


def predictor(patches: int, dim: int) -> Cost:
    """DynamicViT's, which says which patches are read no more."""
    half, quarter = dim // 2, dim // 4
    cost = norm(patches, dim) + linear(patches, dim, dim) + activation(patches, dim)
    cost += linear(patches, dim, half) + activation(patches, half)
    return cost + linear(patches, half, quarter) + activation(patches, quarter) + linear(patches, quarter, 2)


@dataclass(frozen=True)
class DynamicViT:
    """Before some blocks a predictor leaves int(keep^s n) patches of the n, s being which one it is. As it is used;
    to learn, it reads all.
    """

    vit: ViT
    keep: float
    layers: tuple[int, ...] = (3, 6, 9)

    def counts(self, side: int) -> tuple[int, ...]:
        """Patches that each block reads."""
        whole, stage, found = self.vit.patches(side), 0, []
        for depth in range(self.vit.depth):
            stage += depth in self.layers
            found.append(max(1, int(whole * self.keep**stage + 1e-9)))
        return tuple(found)

    def tokens(self, side: int) -> int:
        """That the last block reads."""
        return self.counts(side)[-1] + self.vit.first

    def cost(self, side: int) -> Cost:
        """Of an image of side x side pixels."""
        vit, counts = self.vit, self.counts(side)
        parts = [vit.embedding(side)]
        for depth, count in enumerate(counts):
            if depth in self.layers:
                parts.append(predictor(counts[depth - 1], vit.dim))
            parts.append(vit.block(count + vit.first))
        return total(parts) + vit.head(counts[-1] + vit.first)
