"""A transformer with a class token whose attention says which tokens told it most."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.attention._base import attend, attention_weights, joined
from regard.attention.scaled import TransformerBlock
from regard.errors import ShapeError


class Stage(NamedTuple):
    """What it makes of tokens: logits (B, classes), features (B, N, D), and saliency (B, N), 0 where none is asked."""

    logits: Tensor
    features: Tensor
    saliency: Tensor

    def of(self, rows: Tensor) -> "Stage":
        """Of these images."""
        return Stage(*(part[rows] for part in self))


class Salient(nn.Module):
    """Pre-norm blocks, and CF-ViT's global class attention (arXiv 2203.03821) over the layers from `first` on:

    g = b g + (1 - b) mean_h softmax(q_class K' / sqrt(d)),    from g = 0, with b = smoothing
    """

    def __init__(
        self, classes: int, width: int, depth: int, heads: int, expand: int, first: int, smoothing: float
    ) -> None:
        super().__init__()
        if not 0 <= first < depth or not 0 <= smoothing < 1:
            got = f"first={first} of depth={depth} and smoothing={smoothing}"
            raise ShapeError(f"first must be a layer from 0 on and smoothing in [0, 1), got {got}")
        self.width, self.expand, self.first, self.smoothing = width, expand, first, smoothing
        self.class_token = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList([TransformerBlock(width, heads, expand * width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, classes)

    def forward(self, tokens: Float[Tensor, "b n d"], salient: bool = True) -> Stage:
        """salient: also how much the class token attended to each token."""
        x = torch.cat((self.class_token.expand(len(tokens), 1, -1), tokens), dim=1)
        saliency = x.new_zeros(x.shape[:2])
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, TransformerBlock)
            inner = block.attention
            q, k, v = inner.projected(block.norm1(x))
            if salient and layer >= self.first:
                row = attention_weights(q[:, :, :1], k).mean(dim=1)[:, 0]
                saliency = self.smoothing * saliency + (1 - self.smoothing) * row
            x = block.fed(block.attended(x, inner.out(joined(attend(q, k, v)))))
        x = self.norm(x)
        return Stage(self.classify(x[:, 0]), x[:, 1:], saliency[:, 1:])

    def macs(self, tokens: int, salient: bool = True) -> int:
        """Multiply-accumulates for an image of so many tokens, as a profiler counts them."""
        count, width, depth = tokens + 1, self.width, len(self.blocks)
        layer = count * (4 + 2 * self.expand) * width**2 + 2 * count**2 * width
        rows = (depth - self.first) * count * width if salient else 0
        return depth * layer + rows + width * self.classify.out_features
