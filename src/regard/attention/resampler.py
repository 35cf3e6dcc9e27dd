"""Flamingo's Perceiver Resampler (arXiv 2204.14198, Section 3.1.1): any number of image tokens to a few.

    z_0 = latents;    z' = z + CrossAttention(norm(z), [norm(x), norm(z)]);    z = z' + FF(z');    out = norm(z_depth)

The keys are the media x and then the latents z themselves. Ours differs from open_flamingo, Idefics and Idefics2 in
form: keys and values are one projection, padded media are hidden by a mask, and shared heads of keys are not repeated.
Embeddings of frames (open_flamingo's frame_embs, media_time_embs) are the caller's to add before frames are flattened.
"""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.attention._base import Layer, check_input, checked_mask
from regard.attention._feed import FeedForward, copy_norm, eps_of, kind_of, norm_layer
from regard.attention.cross import CrossAttention
from regard.attention.scaled import first
from regard.errors import ModelError, ShapeError


class PerceiverResampler(Layer):
    """Media (B, N, dim) to (B, latents, dim).

    depth: of blocks. hidden: width of the feed-forward. qk_dim: width of all heads, dim by default. kv_heads: of
    `CrossAttention`. norm and activation: "layer" and "gelu" are open_flamingo's, "layer" and "relu" Idefics', "rms"
    and "swiglu" Idefics2's (arXiv 2405.02246). qk_norm: LayerNorm of each head's queries and keys. No biases.
    A mask hides media only, never latents: where no media is seen, latents read each other.

    Raises ShapeError as `CrossAttention`, or for fewer than 1 latent; ModelError for an unknown norm or activation.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        latents: int,
        depth: int,
        hidden: int,
        *,
        qk_dim: int | None = None,
        kv_heads: int | None = None,
        norm: Literal["layer", "rms"] = "layer",
        activation: str = "gelu",
        qk_norm: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if latents < 1:
            raise ShapeError(f"latents must be at least 1, got {latents}")
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            normed = "layer" if qk_norm else None
            attention = CrossAttention(
                dim, heads, qk_dim=qk_dim, kv_heads=kv_heads, bias=False, qk_norm=normed, eps=eps
            )
            self.blocks.append(_Block(attention, FeedForward(dim, hidden, activation, norm, eps), norm, eps))
        self.norm = norm_layer(norm, dim, eps)

    def forward(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "..."] | None = None, count: int | None = None
    ) -> Float[Tensor, "b l d"]:
        """x: media (B, N, D). mask: (B, N) or (B, latents, N), True = may be seen. count: of the latents used."""
        z, mask = self._started(x, mask, count)
        for block in self.blocks:
            z = block(z, x, mask)
        return self.norm(z)

    def weights(
        self,
        x: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "..."] | None = None,
        layer: int = -1,
        count: int | None = None,
    ) -> Float[Tensor, "b h l k"]:
        """Of one block, from 0 or from the end: (B, H, latents, N + latents), rows that sum to 1, media first."""
        if not -len(self.blocks) <= layer < len(self.blocks):
            raise ShapeError(f"layer must be in [{-len(self.blocks)}, {len(self.blocks)}), got {layer}")
        z, mask = self._started(x, mask, count)
        place = layer % len(self.blocks)
        for block in self.blocks[:place]:
            z = block(z, x, mask)
        found = self.blocks[place]
        assert isinstance(found, _Block)
        return found.attention.weights(*found.read(z, x), mask)

    def _started(self, x: Tensor, mask: Tensor | None, count: int | None) -> tuple[Tensor, Tensor | None]:
        """The latents of each row, and the mask of media and latents."""
        latents, dim = self.latents.shape
        if count is not None and not 1 <= count <= latents:
            raise ShapeError(f"count must be from 1 to the {latents} latents, got {count}")
        latents = latents if count is None else count
        check_input("x", x, dim)
        checked_mask(mask, len(x), latents, x.shape[1])
        if mask is not None:
            mask = torch.cat((mask, mask.new_ones(*mask.shape[:-1], latents)), dim=-1)
        return self.latents[:latents].expand(len(x), -1, -1), mask

    @classmethod
    def from_transformers(cls, module: Any) -> "PerceiverResampler":
        """From an `IdeficsPerceiverResampler` or an `Idefics2PerceiverResampler`.

        Raises ModelError for a module without their parts, or a gated MLP that is not of silu.
        """
        blocks, norm = first(module, ("blocks", "layers")), first(module, ("layer_norm", "norm"))
        if not len(blocks):
            raise ModelError(f"{type(module).__name__} has no block to be lifted")
        lifted = [_Block.from_transformers(block) for block in blocks]
        attention, feed = lifted[0].attention, lifted[0].feed
        layer = cls(
            attention.dim,
            attention.heads,
            len(first(module, ("latents",))),
            len(lifted),
            feed.narrow.in_features,
            qk_dim=attention.q.out_features,
            kv_heads=attention.kv_heads,
            norm=kind_of(norm),  # pyright: ignore
            activation=feed.activation,
            qk_norm=isinstance(attention.q_norm, nn.LayerNorm),
            eps=eps_of(norm),
        ).to(module.latents)
        layer.blocks.load_state_dict(nn.ModuleList(lifted).state_dict())
        copy_norm(layer.norm, norm)
        layer.latents.data.copy_(module.latents)
        return layer


class _Block(nn.Module):
    """Latents read media and themselves, then the feed-forward."""

    def __init__(self, attention: CrossAttention, feed: FeedForward, norm: str, eps: float) -> None:
        super().__init__()
        self.norm_media, self.norm_latents = (norm_layer(norm, attention.dim, eps) for _ in range(2))
        self.attention, self.feed = attention, feed

    def forward(self, z: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        z = z + self.attention(*self.read(z, x), mask)
        return z + self.feed(z)

    def read(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """What queries and what keys are made of."""
        z = self.norm_latents(z)
        return z, torch.cat((self.norm_media(x), z), dim=1)

    @classmethod
    def from_transformers(cls, block: Any) -> "_Block":
        if hasattr(block, "self_attn"):
            attention, norm, mlp = block.self_attn, block.post_attention_layernorm, block.mlp
            norms = block.input_context_norm, block.input_latents_norm
        else:
            attention, mlp = block
            norm, norms = mlp.ln, (attention.context_layer_norm, attention.latents_layer_norm)
        own = cls(
            CrossAttention.from_transformers(attention), FeedForward.lifted(norm, mlp), kind_of(norm), eps_of(norm)
        ).to(norm.weight)
        copy_norm(own.norm_media, norms[0])
        copy_norm(own.norm_latents, norms[1])
        return own
