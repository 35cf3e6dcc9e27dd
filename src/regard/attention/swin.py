"""The Swin Transformer (Liu et al., arXiv 2103.14030): blocks of windows on grids that halve from stage to stage.

    x = LN(patches W + b) + positions;    stage: block_2n+1(block_2n(x)), then PatchMerging but for the last;    LN(x)

Ours differs from the reference as `regard.attention.window` says.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.attention._base import Layer
from regard.attention._windows import Grid
from regard.attention.scaled import copy_into
from regard.attention.window import PatchMerging, SwinBlock
from regard.errors import ModelError, ShapeError


class SwinTransformer(Layer):
    """Pixels (B, C, H, W) to (B, N, D) of the last stage, D = dim * 2 ** (stages - 1), in raster order.

    depths, heads: blocks and heads of each stage. Every second block is shifted by window // 2. mlp_ratio: width of the
    MLP over that of the tokens. positions: how many learned absolute positions, 0 for none. eps: of the norms in blocks
    and at the end. The rest is of `SwinBlock`. Raises ShapeError for depths and heads of different lengths, for pixels
    of another number of channels, and, with positions, for another number of patches; otherwise as `SwinBlock`.
    """

    def __init__(
        self,
        patch_size: int,
        dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        *,
        mlp_ratio: float = 4.0,
        channels: int = 3,
        positions: int = 0,
        activation: str = "gelu",
        eps: float = 1e-5,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if len(depths) != len(heads) or not depths:
            raise ShapeError(f"depths and heads must be of each stage, got {list(depths)} and {list(heads)}")
        self.patch_size, self.channels = patch_size, channels
        self.patches = nn.Conv2d(channels, dim, patch_size, patch_size)
        self.patch_norm = nn.LayerNorm(dim)
        self.positions = nn.Parameter(torch.randn(positions, dim) * 0.02) if positions else None
        widths = [dim * 2**stage for stage in range(len(depths))]
        self.stages = nn.ModuleList(
            nn.ModuleList(
                SwinBlock(
                    width, count, window, int(width * mlp_ratio), place % 2 * (window // 2), activation, eps, bias
                )
                for place in range(depth)
            )
            for width, depth, count in zip(widths, depths, heads, strict=True)
        )
        self.merges = nn.ModuleList(PatchMerging(width) for width in widths[:-1])
        self.norm = nn.LayerNorm(widths[-1], eps=eps)

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """(B, C, H, W) -> (B, N, D). Pixels that patches do not divide are padded with zeros below and on the right."""
        x, grid = self._embedded(pixels)
        for layer, _ in self._layers():
            x, grid = _applied(layer, x, grid)
        return self.norm(x)

    def weights(self, pixels: Float[Tensor, "b c h w"], layer: int = -1) -> Float[Tensor, "b heads n n"]:
        """The attention of one block, (B, H, N, N), as `WindowAttention.weights`. layer: which of all stages' blocks,
        from 0, or from the end. Raises ShapeError where there is no such block.
        """
        total = sum(found for _, found in self._layers())
        if not -total <= layer < total:
            raise ShapeError(f"layer must be in [{-total}, {total}), got {layer}")
        x, grid = self._embedded(pixels)
        place = layer % total
        for module, is_block in self._layers():
            if is_block and place == 0:
                return module.weights(x, grid)  # pyright: ignore
            place -= is_block
            x, grid = _applied(module, x, grid)
        raise AssertionError("there is such a block")

    def _layers(self) -> Iterator[tuple[nn.Module, bool]]:
        """Blocks and merges in order, and which are blocks."""
        for stage, blocks in enumerate(self.stages):
            for block in blocks:  # pyright: ignore
                yield block, True
            if stage < len(self.merges):
                yield self.merges[stage], False

    def _embedded(self, pixels: Tensor) -> tuple[Tensor, Grid]:
        if pixels.ndim != 4 or pixels.shape[1] != self.channels or not min(pixels.shape[2:]):
            raise ShapeError(f"pixels must have shape (B, {self.channels}, H, W), got {tuple(pixels.shape)}")
        below, right = (-pixels.shape[2] % self.patch_size, -pixels.shape[3] % self.patch_size)
        if below or right:
            pixels = F.pad(pixels, (0, right, 0, below))
        x = self.patches(pixels)
        grid = (x.shape[2], x.shape[3])
        x = self.patch_norm(x.flatten(2).transpose(1, 2))
        if self.positions is None:
            return x, grid
        if len(self.positions) != x.shape[1]:
            raise ShapeError(f"pixels must make {len(self.positions)} patches, got {x.shape[1]} of {grid}")
        return x + self.positions, grid

    @classmethod
    def from_transformers(cls, module: Any) -> "SwinTransformer":
        """From `SwinModel`, or a model that has one as `swin`. Raises ModelError for another."""
        module = getattr(module, "swin", module)
        config = module.config
        if config.model_type not in ("swin", "donut-swin", "maskformer-swin") or not hasattr(module, "embeddings"):
            raise ModelError(f"{type(module).__name__} is no Swin Transformer: a SwinModel is lifted")
        embeddings = module.embeddings
        patches, learned = embeddings.patch_embeddings.projection, embeddings.position_embeddings
        blocks = [
            [
                SwinBlock.from_transformers(one, place % 2 * (config.window_size // 2))
                for place, one in enumerate(stage.blocks)
            ]
            for stage in module.encoder.layers
        ]
        first = blocks[0][0]
        tower = cls(
            patches.kernel_size[0],
            patches.out_channels,
            [len(stage) for stage in blocks],
            [stage[0].attention.heads for stage in blocks],
            config.window_size,
            mlp_ratio=config.mlp_ratio,
            channels=patches.in_channels,
            positions=0 if learned is None else learned.shape[1],
            activation=first.activation,
            eps=config.layer_norm_eps,
            bias=first.attention.qkv.bias is not None,
        ).to(patches.weight)
        for mine, theirs in (
            (tower.patches, patches),
            (tower.patch_norm, embeddings.norm),
            (tower.norm, module.layernorm),
        ):
            copy_into(mine, theirs.weight, theirs.bias)
        if tower.positions is not None and learned is not None:
            tower.positions.data.copy_(learned[0])
        for mine, theirs in zip(tower.stages, blocks, strict=True):
            mine.load_state_dict(nn.ModuleList(theirs).state_dict())
        for mine, stage in zip(tower.merges, module.encoder.layers, strict=False):
            mine.load_state_dict(PatchMerging.from_transformers(stage.downsample).state_dict())
        return tower


def _applied(layer: nn.Module, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    halved = isinstance(layer, PatchMerging)
    return layer(x, grid), (-(-grid[0] // 2), -(-grid[1] // 2)) if halved else grid
