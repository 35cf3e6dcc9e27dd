"""What the foveated mechanisms read their tokens with: a small pre-norm ViT whose class token decides."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.attention._base import attention_weights, joined
from regard.attention.scaled import TransformerBlock
from regard.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Read:
    """logits: (B, classes). attention: (B, N), the class token's over the tokens, a mean over heads; without its share
    for itself. tokens: (B, N, D), as the last block got them.
    """

    logits: Float[Tensor, "b k"]
    attention: Float[Tensor, "b n"]
    tokens: Float[Tensor, "b n d"]


class ClassReader(nn.Module):
    """A class token before the tokens, blocks, a norm and a linear layer. In the last block the class token alone
    asks, as nothing else is read from it. Raises ShapeError for a depth below 1, or a dim that 4 does not divide.
    """

    def __init__(self, dim: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        if depth < 1 or dim % 4:
            raise ShapeError(f"depth must be 1 or more, and dim divided by 4, got depth={depth} and dim={dim}")
        self.dim = dim
        self.token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = nn.ModuleList([TransformerBlock(dim, heads, 4 * dim) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Linear(dim, classes)

    def forward(self, tokens: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"] | None = None) -> Read:
        """tokens: (B, N, D). valid: (B, N), True = may be seen; at least one of each image."""
        x = torch.cat((self.token.expand(len(tokens), -1, -1), tokens), dim=1)
        if valid is not None:
            valid = torch.cat((valid.new_ones(len(valid), 1), valid), dim=1)
        *blocks, last = (cast(TransformerBlock, block) for block in self.blocks)
        for block in blocks:
            x = block(x, valid)
        attention, mask = last.attention, None if valid is None else valid[:, None, None]
        q, k, v = attention.projected(last.norm1(x))
        weights = attention_weights(q[:, :, :1], k, mask)
        y = last.fed(last.attended(x[:, :1], attention.out(joined(weights @ v))))
        return Read(self.classify(self.norm(y[:, 0])), weights[:, :, 0, 1:].mean(dim=1), x[:, 1:])

    def macs(self, count: int) -> int:
        """Multiply-accumulates for so many tokens: products of linear layers and of attention."""
        n, d = count + 1, self.dim
        block = n * 12 * d * d + 2 * n * n * d
        last = n * 3 * d * d + 2 * n * d + 9 * d * d
        return block * (len(self.blocks) - 1) + last + d * self.classify.out_features


def positions(places: Float[Tensor, "... 2"], dim: int) -> Float[Tensor, "... d"]:
    """Sines and cosines of x and y in [0, 1], each by dim / 4 frequencies from half a turn up to 64."""
    turns = 2 ** torch.linspace(0, 7, dim // 4, device=places.device) * math.pi
    angles = (places[..., None] * turns).flatten(-2)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
