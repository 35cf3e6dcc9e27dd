"""A vision transformer that classifies (Dosovitskiy et al., arXiv 2010.11929): reads all; others are built around it.

    logits = W LN(x_class) + b,    x = block_L(... block_1(embed(pixels)))

`StaticViT` reads every patch in every layer. DynamicViT, A-ViT and EViT share its parts and read fewer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.attention.scaled import TransformerBlock
from regard.attention.vision import VisionTransformer
from regard.errors import ModelError, ShapeError
from regard.mechanisms.looker import Looked, Looker, check_pixels, floats_of
from regard.tokens import grid_boxes

Count = TypeVar("Count", int, Tensor)


class ViTLooker(Looker):
    """Around a vision transformer with a class token and learned positions, or the arguments of one.

    classes: of its linear head. mean, std: of the pixels in [0, 1], which are read as (pixel - mean) / std; one number,
    or one for each channel.
    Raises ModelError for a transformer without a class token, or with rotary positions.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vision: VisionTransformer | Mapping[str, Any],
        classes: int = 10,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        vision = vision if isinstance(vision, VisionTransformer) else VisionTransformer(**vision)
        if vision.class_token is None or vision.positions is None:
            lacks = "a class token" if vision.class_token is None else "learned positions"
            raise ModelError(f"the vision transformer has no {lacks}, which {self.name} needs: choose another")
        if not len(vision.blocks):
            raise ShapeError(f"the vision transformer must have 1 block or more, got {len(vision.blocks)}")
        self.vision = vision
        self.channels, self.side = vision.channels, vision.side * vision.patch_size
        self.dim = vision.patches.out_channels
        self.first = 1 if vision.registers is None else 1 + len(vision.registers)  # the place of the first patch
        self.patch_count = vision.side**2
        self.head = nn.Linear(self.dim, classes)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    @property
    def blocks(self) -> list[TransformerBlock]:
        """Those of its transformer, first to last."""
        return list(self.vision.blocks)  # pyright: ignore

    def embed(self, pixels: Tensor) -> Float[Tensor, "b n d"]:
        """Pixels to what goes into the first block. Raises ShapeError."""
        check_pixels(pixels, self.channels, self.side)
        return self.vision.embed((floats_of(pixels, self.head.weight) - self.mean) / self.std)[0]

    def classify(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b k"]:
        """Logits from the class token of the last block's output."""
        return self.head(self.vision.final_norm(x[:, 0]))

    def boxes(self, batch: int) -> Float[Tensor, "b n 4"]:
        """Of the patches, in raster order."""
        edges = torch.linspace(0, 1, self.vision.side + 1, device=self.head.weight.device)
        return grid_boxes(edges, edges).expand(batch, -1, -1)

    def block_macs(self, depth: int, tokens: Count) -> Count:
        """Multiply-accumulates of a block over so many tokens: `attention_macs` and `feed_macs`."""
        return self.attention_macs(depth, tokens) + self.feed_macs(depth, tokens)

    def attention_macs(self, depth: int, tokens: Count) -> Count:
        """Of its attention: the projections, and the two products of queries, keys and values."""
        attention = self.blocks[depth].attention
        return tokens * (attention.qkv.weight.numel() + attention.out.weight.numel() + 2 * tokens * self.dim)

    def feed_macs(self, depth: int, tokens: Count) -> Count:
        """Of its MLP."""
        block = self.blocks[depth]
        return tokens * (block.widen.weight.numel() + block.narrow.weight.numel())

    def ends_macs(self, patches: int | None = None) -> int:
        """Of what comes before and after the blocks: the embedding of the patches, and the head."""
        count = self.patch_count if patches is None else patches
        return count * self.vision.patches.weight.numel() + self.head.weight.numel()

    def full_macs(self, height: int, width: int) -> int:
        """Every patch in every layer, and nothing that decides."""
        patches = (height // self.vision.patch_size) * (width // self.vision.patch_size)
        blocks = sum(self.block_macs(depth, self.first + patches) for depth in range(len(self.blocks)))
        return blocks + self.ends_macs(patches)


class StaticViT(ViTLooker):
    """The plain classifier: every patch, in every layer. What the others are measured against."""

    name = "vit"

    def forward(self, pixels: Tensor) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b n d"]]:
        """Logits, and all tokens after the last block, normed."""
        x = self.embed(pixels)
        for block in self.blocks:
            x = block(x)
        x = self.vision.final_norm(x)
        return self.head(x[:, 0]), x

    def look(self, pixels: Tensor, seed: int = 0) -> Looked:
        """stages: all 0. tokens: patches read, summed over the layers, as for those that drop some."""
        logits, x = self(pixels)
        each = torch.ones(len(x), dtype=torch.long, device=x.device)
        stages = torch.zeros(len(x), self.patch_count, dtype=torch.long, device=x.device)
        side = self.vision.side * self.vision.patch_size
        return Looked(
            logits,
            x[:, self.first :],
            self.boxes(len(x)),
            stages,
            each * 0,
            each * self.patch_count * len(self.blocks),
            each * self.full_macs(side, side),
        )


def checked_layers(layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """The blocks that fewer tokens go into, from 0; by default those at 1/4, 1/2 and 3/4 of the depth.

    Raises ShapeError unless they rise and are blocks after the first.
    """
    chosen = tuple(layers) if layers is not None else tuple(dict.fromkeys(max(1, depth * k // 4) for k in (1, 2, 3)))
    if list(chosen) != sorted(set(chosen)) or not all(0 < layer < depth for layer in chosen):
        raise ShapeError(f"layers must rise, each from 1 to {depth - 1} of {depth} blocks, got {list(chosen)}")
    return chosen


def highest(scores: Float[Tensor, "b n"], count: int) -> Int[Tensor, "b k"]:
    """The places of the highest scores, ties to the lower place, in raster order."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values


def gathered(x: Float[Tensor, "b n d"], index: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    """The tokens at these places of each image."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def scattered(
    into: Float[Tensor, "b n d"], index: Int[Tensor, "b k"], x: Float[Tensor, "b k d"]
) -> Float[Tensor, "b n d"]:
    """The inverse: x at these places, the others as they are."""
    return into.scatter(1, index[..., None].expand(-1, -1, x.shape[2]), x)
