"""Perceiver (Jaegle et al., arXiv 2103.03206, and IO, 2107.14795): latents read inputs once, then read each other.

    z = FF'(z_0 + CrossAttention(LN(z_0), LN(x)));    repeats times:  for each layer  z = FF'(z + SelfAttention(LN(z)))
    FF'(y) = y + FF(LN(y))

The layers are the same in every repeat. Cost grows with inputs times latents, never with inputs squared. Ours differs
from the reference in form: keys and values are one projection, and latents that see no input take nothing from it (the
reference gives them the mean of all). Its eps is 1e-5 in every norm, whatever its configuration says.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.attention._base import Layer, check_input
from regard.attention._feed import FeedForward, copy_norm, eps_of
from regard.attention.cross import CrossAttention
from regard.attention.scaled import NAMES
from regard.errors import ModelError, ShapeError


class Perceiver(Layer):
    """Inputs (B, N, input_dim) to (B, latents, dim).

    heads, hidden, qk_dim: of the self-attention layers; hidden and qk_dim are dim by default. layers: that are repeated
    together, repeats times. cross_heads, cross_hidden, cross_qk_dim, cross_v_dim: of the reading of inputs; by default
    heads, dim, input_dim and as cross_qk_dim. query_residual: whether latents are added to what they read.

    Raises ShapeError where heads do not divide a width, for fewer than 1 latent, or for an input or a mask of another
    shape; ModelError for an unknown activation.
    """

    def __init__(
        self,
        dim: int,
        input_dim: int,
        latents: int,
        heads: int,
        layers: int,
        repeats: int = 1,
        *,
        hidden: int | None = None,
        qk_dim: int | None = None,
        cross_heads: int | None = None,
        cross_hidden: int | None = None,
        cross_qk_dim: int | None = None,
        cross_v_dim: int | None = None,
        query_residual: bool = True,
        activation: str = "gelu",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if latents < 1:
            raise ShapeError(f"latents must be at least 1, got {latents}")
        self.input_dim, self.repeats, self.query_residual = input_dim, repeats, query_residual
        self.latents = nn.Parameter(torch.randn(latents, dim) * 0.02)
        self.norm_input = nn.LayerNorm(input_dim, eps=eps)
        read = CrossAttention(
            dim,
            heads if cross_heads is None else cross_heads,
            input_dim,
            qk_dim=input_dim if cross_qk_dim is None else cross_qk_dim,
            v_dim=cross_v_dim,
        )
        self.read = _Block(read, dim if cross_hidden is None else cross_hidden, activation, eps)
        self.layers = nn.ModuleList()
        for _ in range(layers):
            attention = CrossAttention(dim, heads, qk_dim=qk_dim, v_dim=dim)
            self.layers.append(_Block(attention, dim if hidden is None else hidden, activation, eps))

    def forward(self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "..."] | None = None) -> Float[Tensor, "b l d"]:
        """x: inputs (B, N, C), with their positions. mask: (B, N) or (B, latents, N), True = may be seen."""
        z = self._first(x, mask)
        for _ in range(self.repeats):
            for layer in self.layers:
                z = layer(z)
        return z

    def weights(
        self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "..."] | None = None, layer: int = 0
    ) -> Float[Tensor, "b h l k"]:
        """How latents read: inputs, (B, H, latents, N), at layer 0, each other, (B, H, latents, latents), after it.

        layer: up to layers * repeats, or from the end. Rows sum to 1, or to 0 where nothing is seen.
        """
        last = len(self.layers) * self.repeats
        if not -last - 1 <= layer <= last:
            raise ShapeError(f"layer must be in [{-last - 1}, {last}], got {layer}")
        place = layer % (last + 1)
        if place == 0:
            z, x = self._started(x)
            return self.read.weights(z, x, mask)
        z = self._first(x, mask)
        blocks = [block for _ in range(self.repeats) for block in self.layers]
        for block in blocks[: place - 1]:
            z = block(z)
        found = blocks[place - 1]
        assert isinstance(found, _Block)
        return found.weights(z)

    def _started(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The latents of each row, and the inputs, normed."""
        check_input("x", x, self.input_dim)
        return self.latents.expand(len(x), -1, -1), self.norm_input(x)

    def _first(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The latents when they have read the inputs."""
        z, x = self._started(x)
        return self.read(z, x, mask, self.query_residual)

    @classmethod
    def from_transformers(cls, module: Any) -> "Perceiver":
        """From a `PerceiverModel`: its latents and encoder, so that ours gives its last_hidden_state.

        x is what its preprocessor makes, where it has one. Raises ModelError for another module.
        """
        if not hasattr(module, "embeddings") or not hasattr(getattr(module, "encoder", None), "self_attends"):
            raise ModelError(f"{type(module).__name__} has no embeddings and encoder of a PerceiverModel")
        config, latents, encoder = module.config, module.embeddings.latents, module.encoder
        activation = NAMES.get(str(config.hidden_act), str(config.hidden_act))
        read = encoder.cross_attention
        attention = CrossAttention.from_transformers(read.attention)
        layer = cls(
            attention.dim,
            attention.context_dim,
            len(latents),
            config.num_self_attention_heads,
            len(encoder.self_attends),
            config.num_blocks,
            hidden=config.self_attention_widening_factor * attention.dim,
            qk_dim=config.qk_channels,
            cross_heads=attention.heads,
            cross_hidden=read.mlp.dense1.out_features,
            cross_qk_dim=attention.q.out_features,
            cross_v_dim=attention.out.in_features,
            query_residual=read.attention.use_query_residual,
            activation=activation,
            eps=eps_of(read.layernorm),
        ).to(latents)
        layer.latents.data.copy_(latents)
        copy_norm(layer.norm_input, read.attention.self.layernorm2)
        for mine, theirs in zip((layer.read, *layer.layers), (read, *encoder.self_attends), strict=True):
            assert isinstance(mine, _Block)
            mine.copy_from(theirs, activation)
        return layer


class _Block(nn.Module):
    """Attention of latents, to a context or to each other, and the feed-forward."""

    def __init__(self, attention: CrossAttention, hidden: int, activation: str, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(attention.dim, eps=eps)
        self.attention = attention
        self.feed = FeedForward(attention.dim, hidden, activation, "layer", eps, bias=True)

    def forward(
        self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None, residual: bool = True
    ) -> Tensor:
        normed = self.norm(z)
        y = self.attention(normed, normed if context is None else context, mask)
        z = z + y if residual else y
        return z + self.feed(z)

    def weights(self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        normed = self.norm(z)
        return self.attention.weights(normed, normed if context is None else context, mask)

    def copy_from(self, layer: Any, activation: str) -> None:
        """The weights of a `PerceiverLayer`."""
        copy_norm(self.norm, layer.attention.self.layernorm1)
        self.attention.load_state_dict(CrossAttention.from_transformers(layer.attention).state_dict())
        self.feed.load_state_dict(FeedForward.lifted(layer.layernorm, layer.mlp, activation).state_dict())
