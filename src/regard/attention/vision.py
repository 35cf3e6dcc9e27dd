"""The Vision Transformer (Dosovitskiy et al., arXiv 2010.11929) in the forms that vision-language models read.

    x = [class, registers, patches W + b] + positions;    x = block_L(... block_1(x));    LN(x)

A class token or none, registers after it (arXiv 2309.16588), positions learned, or rotary over rows and columns (half
of a head's width each), a norm before the blocks (CLIP, arXiv 2103.00020), layer scale and SwiGLU (DINOv2). At another
size than the one it was made for, learned positions are interpolated (bicubic).
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.attention._base import Layer, heads_of
from regard.attention.scaled import Rotary, TransformerBlock, copy_into
from regard.errors import ModelError, ShapeError


class VisionTransformer(Layer):
    """Pixels (B, C, H, W) to (B, N, D): the class token and registers first, then the patches in raster order.

    image_size: pixels of a side, of the learned positions. registers: 0 or more, only with a class token. positions:
    "learned" or "rotary". pre_norm, final_norm: a norm before and after the blocks. antialias: how learned positions
    are brought to another size. The rest is of `TransformerBlock`. Raises ShapeError for sizes or pixels that patches
    do not divide, or pixels of another number of channels.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
        *,
        channels: int = 3,
        class_token: bool = True,
        registers: int = 0,
        positions: Literal["learned", "rotary"] = "learned",
        patch_bias: bool = True,
        pre_norm: bool = False,
        final_norm: bool = True,
        antialias: bool = False,
        activation: str = "gelu",
        eps: float = 1e-6,
        bias: bool = True,
        layer_scale: bool = False,
        gated: bool = False,
    ) -> None:
        super().__init__()
        head = heads_of(dim, heads)
        if positions == "rotary" and head % 4:
            raise ShapeError(f"rotary positions over rows and columns need heads of a multiple of 4, got {head}")
        if min(patch_size, image_size, channels, hidden) < 1 or image_size % patch_size:
            got = f"image_size={image_size}, patch_size={patch_size}, channels={channels} and hidden={hidden}"
            raise ShapeError(f"sizes must be 1 or more and image_size divided by patch_size, got {got}")
        if registers and not class_token:
            raise ShapeError(f"registers stand after a class token, got {registers} and no class token")
        self.patch_size, self.channels, self.head, self.antialias = patch_size, channels, head, antialias
        self.side = image_size // patch_size
        self.patches = nn.Conv2d(channels, dim, patch_size, patch_size, bias=patch_bias)
        self.class_token = nn.Parameter(torch.randn(dim) * 0.02) if class_token else None
        self.registers = nn.Parameter(torch.randn(registers, dim) * 0.02) if registers else None
        learned = torch.randn(self.side**2 + class_token, dim) * 0.02
        self.positions = nn.Parameter(learned) if positions == "learned" else None
        self.pre_norm = nn.LayerNorm(dim, eps=eps) if pre_norm else nn.Identity()
        block = (dim, heads, hidden, activation, eps, bias, layer_scale, gated)
        self.blocks = nn.ModuleList([TransformerBlock(*block) for _ in range(depth)])
        self.final_norm = nn.LayerNorm(dim, eps=eps) if final_norm else nn.Identity()

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """(B, C, H, W) -> (B, N, D), what the references call last_hidden_state."""
        x, rotary = self.embed(pixels)
        for block in self.blocks:
            x = block(x, None, rotary)
        return self.final_norm(x)

    def weights(self, pixels: Float[Tensor, "b c h w"], layer: int = -1) -> Float[Tensor, "b heads n n"]:
        """The attention of one block, (B, H, N, N). layer: which, from 0, or from the end."""
        if not -len(self.blocks) <= layer < len(self.blocks):
            raise ShapeError(f"layer must be in [{-len(self.blocks)}, {len(self.blocks)}), got {layer}")
        x, rotary = self.embed(pixels)
        place = layer % len(self.blocks)
        for block in self.blocks[:place]:
            x = block(x, None, rotary)
        found = self.blocks[place]
        assert isinstance(found, TransformerBlock)
        return found.weights(x, None, rotary)

    def embed(self, pixels: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b n d"], Rotary | None]:
        """What goes into the first block, and the rotary positions, if any."""
        size = self.patch_size
        if pixels.ndim != 4 or pixels.shape[1] != self.channels or pixels.shape[2] % size or pixels.shape[3] % size:
            want = f"(B, {self.channels}, H, W) with sides divided by {size}"
            raise ShapeError(f"pixels must have shape {want}, got {tuple(pixels.shape)}")
        h, w = pixels.shape[2] // size, pixels.shape[3] // size
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(len(x), 1, -1), x), dim=1)
        if self.positions is not None:
            x = x + self._positions(self.positions, h, w)
        if self.registers is not None:
            x = torch.cat((x[:, :1], self.registers.expand(len(x), -1, -1), x[:, 1:]), dim=1)
        rotary = None if self.positions is not None else self._rotary(h, w, x)
        return self.pre_norm(x), rotary

    def _positions(self, learned: Tensor, h: int, w: int) -> Tensor:
        """The learned positions at h x w patches, (N, D)."""
        if (h, w) == (self.side, self.side):
            return learned
        first = int(self.class_token is not None)
        grid = learned[first:].T.reshape(1, -1, self.side, self.side)
        dtype = grid.dtype
        grid = grid.float() if self.antialias else grid
        grid = F.interpolate(grid, size=(h, w), mode="bicubic", align_corners=False, antialias=self.antialias)
        return torch.cat((learned[:first], grid.to(dtype).flatten(2)[0].T))

    def _rotary(self, h: int, w: int, x: Tensor) -> Rotary:
        """Cosines and sines, (N, d): the first half of the frequencies turns with the row, the second with the column;
        what comes before the patches is not turned.
        """
        count = self.head // 4
        speed = 10_000.0 ** (-torch.arange(count, device=x.device, dtype=torch.float32) / count)
        row = torch.arange(h, device=x.device)[:, None, None].expand(h, w, 1)
        column = torch.arange(w, device=x.device)[None, :, None].expand(h, w, 1)
        angle = torch.cat((row * speed, column * speed), dim=2).flatten(0, 1)
        angle = F.pad(angle.repeat(1, 2), (0, 0, x.shape[1] - h * w, 0))
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)

    @classmethod
    def from_transformers(cls, module: Any) -> "VisionTransformer":
        """From ViTModel, CLIPVisionModel (its projection is left), SiglipVisionModel (its head is left),
        Blip2VisionModel (EVA-CLIP g/14), Dinov2Model or Dinov2WithRegistersModel. Raises ModelError for another.
        """
        module = getattr(module, "vision_model", module)
        kind = module.config.model_type
        if kind not in _KINDS:
            raise ModelError(f"a module of type {kind!r} is no vision transformer: known are {', '.join(_KINDS)}")
        embeddings, config = module.embeddings, module.config
        encoder = getattr(module, "encoder", module)
        blocks = [TransformerBlock.from_transformers(one) for one in getattr(encoder, "layers", None) or encoder.layer]
        first = blocks[0]
        patches = getattr(embeddings, "patch_embedding", None) or embeddings.patch_embeddings.projection
        learned: Any = getattr(embeddings, "position_embedding", None)
        learned = embeddings.position_embeddings if learned is None else learned
        learned = (learned.weight if isinstance(learned, nn.Embedding) else learned).squeeze(0)
        token = getattr(embeddings, "class_embedding", getattr(embeddings, "cls_token", None))
        registers = getattr(embeddings, "register_tokens", None)
        pre, final = getattr(module, "pre_layrnorm", None), _final_norm(module, kind)
        tower = cls(
            math.isqrt(len(learned) - (token is not None)) * config.patch_size,
            config.patch_size,
            first.attention.dim,
            len(blocks),
            first.attention.heads,
            first.narrow.in_features,
            channels=patches.in_channels,
            class_token=token is not None,
            registers=0 if registers is None else registers.shape[1],
            patch_bias=patches.bias is not None,
            pre_norm=pre is not None,
            final_norm=final is not None,
            antialias=kind.startswith("dinov2_with"),
            activation=first.activation,
            eps=first.norm1.eps,
            bias=first.attention.qkv.bias is not None,
            layer_scale=first.scale1 is not None,
            gated=first.gated,
        ).to(patches.weight)
        copy_into(tower.patches, patches.weight, patches.bias)
        for mine, theirs in ((tower.pre_norm, pre), (tower.final_norm, final)):
            if theirs is not None:
                copy_into(mine, theirs.weight, theirs.bias)
        for mine, theirs in ((tower.class_token, token), (tower.registers, registers), (tower.positions, learned)):
            if mine is not None and theirs is not None:
                mine.data.copy_(theirs.reshape(mine.shape))
        for mine, theirs in zip(tower.blocks, blocks, strict=True):
            mine.load_state_dict(theirs.state_dict())
        return tower


_KINDS = ("vit", "clip_vision_model", "siglip_vision_model", "blip_2_vision_model", "dinov2", "dinov2_with_registers")


def _final_norm(module: Any, kind: str) -> nn.LayerNorm | None:
    """The norm of every output token; CLIP's is of the pooled one alone."""
    if kind == "clip_vision_model":
        return None
    return getattr(module, "post_layernorm", None) or module.layernorm
