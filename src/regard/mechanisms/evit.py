"""EViT (Liang et al., arXiv 2202.07800): what the class token attends to is kept, all else becomes one token.

    a = mean_h softmax(q_class K' / sqrt(d)),    x <- [x_class, x_i of the ceil(rho N) highest a, sum_others a_i x_i]

Between attention and MLP of some blocks, without a parameter of its own. The fused token is one of the N of the next
stage, where it may be kept or fused again. Trained and used by the same path. Ours differs from the authors' code in
that patches stay in raster order, which changes no logit.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from regard.attention._base import attend, attention_weights, joined
from regard.attention.scaled import TransformerBlock
from regard.attention.vision import VisionTransformer
from regard.errors import ShapeError
from regard.mechanisms.looker import Looked
from regard.mechanisms.vit import ViTLooker, checked_layers, gathered, highest, scattered


class EViT(ViTLooker):
    """keep: rho, the share of what is there that each stage keeps. layers: the blocks in which it does.

    fuse: gather the others into one token, or drop them. The rest is of `ViTLooker`. Raises ShapeError.
    """

    name = "evit"
    narrows = True

    def __init__(
        self,
        vision: VisionTransformer | Mapping[str, Any],
        classes: int = 10,
        keep: float = 0.7,
        layers: Sequence[int] | None = None,
        fuse: bool = True,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__(vision, classes, mean, std)
        self.layers = checked_layers(layers, len(self.blocks))
        if not 0 < keep <= 1:
            raise ShapeError(f"keep must be a share in (0, 1], got {keep}")
        self.keep, self.fuse = keep, fuse

    def forward(self, pixels: Tensor) -> Float[Tensor, "b k"]:
        """Logits, with gradients: `look` of what is kept."""
        return self.look(pixels).logits

    def look(self, pixels: Tensor, seed: int = 0) -> Looked:
        """stages: how many of the prunings a patch outlived; fused is not outlived. features: as it was when it was
        last read. tokens: patches, and a fused token as one, summed over the layers.
        """
        x = self.embed(pixels)
        batch, first, macs, tokens = len(x), self.first, self.ends_macs(), 0
        nowhere = torch.full(
            (batch, 1), self.patch_count, device=x.device
        )  # where a fused token stands, beside the patches
        place = torch.arange(self.patch_count, device=x.device).expand(batch, -1)
        features = F.pad(x[:, first:], (0, 0, 0, 1))
        stages = torch.zeros_like(features[..., 0], dtype=torch.long)
        for depth, block in enumerate(self.blocks):
            there = x.shape[1] - first
            macs, tokens = macs + self.attention_macs(depth, x.shape[1]), tokens + there
            x, attention = _attended(block, x) if depth in self.layers else (_plain(block, x), None)
            if attention is not None:
                macs += x.shape[1] * self.dim
                kept = highest(attention[:, first:], math.ceil(self.keep * there - 1e-9))
                features = scattered(features, place, x[:, first:])
                place = place.gather(1, kept)
                if kept.shape[1] < there:
                    x = cut(x, attention, kept, first, self.fuse)
                    macs += there * self.dim * self.fuse
                    place = torch.cat((place, nowhere), dim=1) if self.fuse else place
                stages = stages.scatter(1, place, self.layers.index(depth) + 1)
            x = block.fed(x)
            macs += self.feed_macs(depth, x.shape[1])
        features = scattered(features, place, x[:, first:])[:, :-1]
        each = torch.ones(batch, dtype=torch.long, device=x.device)
        exits, boxes = each * len(self.layers), self.boxes(batch)
        return Looked(self.classify(x), features, boxes, stages[:, :-1], exits, each * tokens, each * macs)


def cut(
    x: Float[Tensor, "b n d"], attention: Float[Tensor, "b n"], kept: Int[Tensor, "b k"], first: int, fuse: bool = True
) -> Float[Tensor, "b m d"]:
    """What comes before the patches, the kept patches in their order, and the sum of the others, weighted by attention.

    kept: places among the patches, the first of which is at place `first`. fuse: False for no sum.
    """
    patches, attention = x[:, first:], attention[:, first:]
    parts = [x[:, :first], gathered(patches, kept)]
    if fuse:
        parts.append(attention.scatter(1, kept, 0)[:, None] @ patches)
    return torch.cat(parts, dim=1)


def _attended(block: TransformerBlock, x: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor]:
    """The block's first half, and what its class token attends to, the mean over heads, (B, N)."""
    q, k, v = block.attention.projected(block.norm1(x))
    rows = attention_weights(q[:, :, :1], k)
    return block.attended(x, block.attention.out(joined(attend(q, k, v)))), rows[:, :, 0].mean(dim=1)


def _plain(block: TransformerBlock, x: Float[Tensor, "b n d"]) -> Tensor:
    return block.attended(x, block.attention(block.norm1(x)))
