"""Vision transformers (arXiv 2010.11929) in the forms that vision-language models read, and CLIP's text tower."""

from dataclasses import dataclass
from typing import Literal

from regard.cost.counted import Cost
from regard.cost.layers import cross_attention, mlp, transformer_block
from regard.cost.parts import linear, norm, parameters, patches


@dataclass(frozen=True)
class ViT:
    """VisionTransformer, with a head where there is one.

    side: pixels, which its positions were made for; at another size they are interpolated, and no more parameters.
    hidden: 4 * dim by default. bias: of queries, keys and values, of "qv" not of keys (BEiT, EVA). pool: what the head
    reads: the class token, the mean, or attention by one query (SigLIP's, with its own MLP). out: width of the
    linear head, 0 for none.
    """

    dim: int
    depth: int
    heads: int
    patch: int
    side: int = 224
    hidden: int = 0
    out: int = 1000
    out_bias: bool = True
    class_token: bool = True
    registers: int = 0
    bias: bool | Literal["qv"] = True
    patch_bias: bool = True
    pre_norm: bool = False
    layer_scale: bool = False
    gated: bool = False
    pool: Literal["class", "mean", "query"] = "class"
    channels: int = 3

    @property
    def first(self) -> int:
        """Tokens before the patches."""
        return self.class_token + self.registers

    def patches(self, side: int) -> int:
        """Of an image of this size; what is left over at its edges is not read."""
        return (side // self.patch) ** 2

    def tokens(self, side: int) -> int:
        """That each block reads."""
        return self.patches(side) + self.first

    def embedding(self, side: int) -> Cost:
        """Patches, positions and tokens."""
        placed = (self.patches(self.side) + self.class_token) * self.dim
        ends = parameters(placed + self.first * self.dim)
        cost = patches(self.patches(side), self.channels, self.dim, self.patch, self.patch_bias) + ends
        return cost + norm(self.tokens(side), self.dim) if self.pre_norm else cost

    def block(self, n: int) -> Cost:
        """Over so many tokens."""
        cost = transformer_block(n, self.dim, self.heads, self.wide, bool(self.bias), self.layer_scale, self.gated)
        return cost + Cost(-self.dim) if self.bias == "qv" else cost

    @property
    def wide(self) -> int:
        """Of the MLP."""
        return self.hidden or 4 * self.dim

    def head(self, n: int) -> Cost:
        """The last norm and what comes after it, of so many tokens."""
        cost = norm(n, self.dim)
        if self.pool == "query":
            cost += parameters(self.dim) + cross_attention(1, n, self.dim, self.heads)
            cost += norm(1, self.dim) + mlp(1, self.dim, self.wide) + Cost(cache=-2 * n * self.dim)
        return cost + linear(1, self.dim, self.out, self.out_bias) if self.out else cost

    def cost(self, side: int) -> Cost:
        """Of an image of side x side pixels."""
        n = self.tokens(side)
        blocks = self.block(n) * self.depth + self.head(n)
        return self.embedding(side) + blocks.beside(self.channels * side**2)


@dataclass(frozen=True)
class TextTower:
    """CLIP's (arXiv 2103.00020): every text is padded to `context` tokens; the last one is projected."""

    dim: int
    depth: int
    heads: int
    out: int
    context: int = 77
    vocabulary: int = 49408

    def cost(self) -> Cost:
        """Of one text."""
        words = parameters((self.vocabulary + self.context) * self.dim)
        blocks = transformer_block(self.context, self.dim, self.heads, 4 * self.dim) * self.depth
        return words + blocks + norm(self.context, self.dim) + linear(1, self.dim, self.out, bias=False)
