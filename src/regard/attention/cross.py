"""Cross-attention, text that reads images, and Flamingo's gated block of it (Alayrac et al., arXiv 2204.14198).

    CrossAttention(x, c) = concat_h( softmax(Q_h K_h' / sqrt(d)) V_h ) W_o,    Q = x W_q,    K, V = c W_kv
    GatedCrossAttentionBlock(x, c) = y + tanh(b) FF(y),    y = x + tanh(a) CrossAttention(norm(x), c)

a and b start at 0, so that a new block leaves the language model as it was. Ours differs from open_flamingo and Idefics
in form: the mask is an argument (`preceding_images` makes Flamingo's), keys and values are one projection, and a token
that sees no image gets zeros from attention whatever the mask (open_flamingo gives it the mean of all images where its
mask is "every image before", or where there are more image tokens than images).
"""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.attention._base import Layer, attend, attention_weights, check_input, checked_mask, heads_of, joined, split
from regard.attention._feed import FeedForward, copy_norm, eps_of, kind_of, norm_layer
from regard.attention.scaled import copy_into, first
from regard.errors import ModelError, ShapeError


class CrossAttention(Layer):
    """Queries of x (B, Q, dim), keys and values of a context (B, K, context_dim): (B, Q, dim).

    context_dim: as dim by default. qk_dim, v_dim: widths of all heads of queries and keys, and of values; by default
    dim, and as qk_dim. kv_heads: fewer heads of keys and values, each shared by heads / kv_heads neighbouring heads of
    queries (arXiv 2305.13245). bias: of all projections. qk_norm: "layer" or "rms", a norm of each head's queries and
    keys, of this eps. Where a row of the mask shows nothing, or there is no context (K = 0), the output is 0 (and not
    the bias), with no gradient.

    Raises ShapeError where heads do not divide a width or kv_heads the heads, or for an input or a mask of another
    shape; ModelError for an unknown norm.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        context_dim: int | None = None,
        *,
        qk_dim: int | None = None,
        v_dim: int | None = None,
        kv_heads: int | None = None,
        bias: bool = True,
        qk_norm: Literal["layer", "rms"] | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        qk_dim = dim if qk_dim is None else qk_dim
        v_dim = qk_dim if v_dim is None else v_dim
        self.dim, self.context_dim = dim, dim if context_dim is None else context_dim
        self.heads, self.kv_heads = heads, heads if kv_heads is None else kv_heads
        self.head, value = heads_of(qk_dim, heads, "qk_dim"), heads_of(v_dim, heads, "v_dim")
        if self.kv_heads < 1 or heads % self.kv_heads:
            raise ShapeError(f"heads must be divided by kv_heads, got heads={heads} and kv_heads={self.kv_heads}")
        self.q = nn.Linear(dim, qk_dim, bias=bias)
        self.kv = nn.Linear(self.context_dim, self.kv_heads * (self.head + value), bias=bias)
        self.out = nn.Linear(v_dim, dim, bias=bias)
        self.q_norm, self.k_norm = (
            nn.Identity() if qk_norm is None else norm_layer(qk_norm, self.head, eps) for _ in range(2)
        )

    def forward(
        self, x: Float[Tensor, "b q c"], context: Float[Tensor, "b k e"], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b q c"]:
        """x: (B, Q, D). context: (B, K, E). mask: (B, K) or (B, Q, K), True = may be seen."""
        q, k, v, shown = self._projected(x, context, mask)
        y = attend(q, k, v, self._grouped(shown, x.shape[1]))
        y = self.out(joined(y.reshape(len(x), self.heads, x.shape[1], v.shape[-1])))
        if shown is None or self.out.bias is None:
            return y
        return y.masked_fill(~shown[:, 0].any(dim=-1, keepdim=True), 0)

    def weights(
        self, x: Float[Tensor, "b q c"], context: Float[Tensor, "b k e"], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b h q k"]:
        """(B, H, Q, K), rows that sum to 1, or to 0 where nothing is seen."""
        q, k, _, shown = self._projected(x, context, mask)
        found = attention_weights(q, k, self._grouped(shown, x.shape[1]))
        return found.reshape(len(x), self.heads, x.shape[1], context.shape[1])

    def _projected(
        self, x: Tensor, context: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries (B, G, H/G * Q, d), keys and values (B, G, K, d), G = kv_heads, and the mask (B, 1, 1 or Q, K)."""
        check_input("x", x, self.dim)
        check_input("context", context, self.context_dim, len(x))
        if mask is None and context.shape[1] == 0:  # every row sees nothing
            mask = torch.ones(context.shape[:2], dtype=torch.bool, device=x.device)
        shown = checked_mask(mask, len(x), x.shape[1], context.shape[1])
        keys, values = self.kv(context).split((self.kv_heads * self.head, self._value * self.kv_heads), dim=-1)
        q, k = self.q_norm(split(self.q(x), self.heads)), self.k_norm(split(keys, self.kv_heads))
        if self.kv_heads != self.heads:
            q = q.reshape(len(x), self.kv_heads, self.heads // self.kv_heads * x.shape[1], self.head)
        return q, k, split(values, self.kv_heads), shown

    @property
    def _value(self) -> int:
        return self.out.in_features // self.heads

    def _grouped(self, shown: Tensor | None, queries: int) -> Tensor | None:
        """The mask of queries whose heads of one group stand one after another."""
        if shown is None or self.kv_heads == self.heads or shown.shape[2] != queries:
            return shown
        return shown.repeat(1, 1, self.heads // self.kv_heads, 1)

    @classmethod
    def from_transformers(cls, module: Any) -> "CrossAttention":
        """From the attention of Idefics' gated layer, of the resamplers of Idefics and Idefics2, or of Perceiver.

        Raises ModelError for a module without their projections.
        """
        inner = getattr(module, "self", module)
        q, k, v = (first(inner, (f"{name[0]}_proj", name)) for name in ("query", "key", "value"))
        out = module.output.dense if inner is not module else first(module, ("o_proj", "output_proj"))
        heads = first(inner, ("num_heads", "n_heads"))
        norms = [getattr(inner, f"{name}_layer_norm", None) for name in "qk"]
        layer = cls(
            out.weight.shape[0],
            heads,
            k.weight.shape[1],
            qk_dim=q.weight.shape[0],
            v_dim=out.weight.shape[1],
            kv_heads=getattr(inner, "num_key_value_heads", heads),
            bias=q.bias is not None,
            qk_norm=None if norms[0] is None else kind_of(norms[0]),  # pyright: ignore
            **({} if norms[0] is None else {"eps": eps_of(norms[0])}),
        ).to(out.weight)
        copy_into(layer.q, q.weight, q.bias)
        copy_into(layer.kv, torch.cat((k.weight, v.weight)), None if k.bias is None else torch.cat((k.bias, v.bias)))
        copy_into(layer.out, out.weight, out.bias)
        for mine, theirs in zip((layer.q_norm, layer.k_norm), norms, strict=True):
            if theirs is not None:
                copy_norm(mine, theirs)
        return layer


class GatedCrossAttentionBlock(Layer):
    """What Flamingo puts before a language model's layers: gated cross-attention, then a gated feed-forward.

    hidden: width of the feed-forward. norm and activation: "layer" and "gelu" are open_flamingo's, "rms" and "swiglu"
    Idefics'. qk_norm: RMSNorm of queries and keys, as in Idefics. vector_gates: a gate for each channel, not one for
    all. Linear layers have no biases and the context is not normed. The rest is of `CrossAttention`.

    Raises ShapeError as `CrossAttention`, ModelError for an unknown norm or activation.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        context_dim: int | None = None,
        *,
        qk_dim: int | None = None,
        norm: Literal["layer", "rms"] = "layer",
        activation: str = "gelu",
        qk_norm: bool = False,
        vector_gates: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm = norm_layer(norm, dim, eps)
        self.attention = CrossAttention(
            dim, heads, context_dim, qk_dim=qk_dim, bias=False, qk_norm="rms" if qk_norm else None, eps=eps
        )
        self.feed = FeedForward(dim, hidden, activation, norm, eps)
        self.attention_gate, self.feed_gate = (nn.Parameter(torch.zeros(dim if vector_gates else 1)) for _ in range(2))

    def forward(
        self, x: Float[Tensor, "b q c"], context: Float[Tensor, "b k e"], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b q c"]:
        """x: text (B, T, D). context: tokens of all images (B, K, E). mask: (B, K) or (B, T, K), True = may be seen."""
        check_input("x", x, self.attention.dim)
        x = x + self.attention_gate.tanh() * self.attention(self.norm(x), context, mask)
        return x + self.feed_gate.tanh() * self.feed(x)

    def weights(
        self, x: Float[Tensor, "b q c"], context: Float[Tensor, "b k e"], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b h q k"]:
        """Of the attention, (B, H, T, K), before the gate."""
        check_input("x", x, self.attention.dim)
        return self.attention.weights(self.norm(x), context, mask)

    @classmethod
    def from_transformers(cls, module: Any) -> "GatedCrossAttentionBlock":
        """From an `IdeficsGatedCrossAttentionLayer`. Its additive image mask is ours where it is 0.

        Raises ModelError for another module, or a gated MLP that is not of silu.
        """
        if not hasattr(module, "alpha_cross_attn"):
            raise ModelError(f"{type(module).__name__} has no alpha_cross_attn: it is not Idefics' gated layer")
        attention = CrossAttention.from_transformers(module.cross_attn)
        feed = FeedForward.lifted(module.post_attention_layernorm, module.mlp)
        gates = module.alpha_cross_attn, module.alpha_dense
        layer = cls(
            attention.dim,
            attention.heads,
            feed.narrow.in_features,
            attention.context_dim,
            norm="rms",
            activation=feed.activation,
            qk_norm=isinstance(attention.q_norm, nn.RMSNorm),
            vector_gates=gates[0].ndim > 1,
            eps=eps_of(module.input_layernorm),
        ).to(gates[0])
        layer.attention.load_state_dict(attention.state_dict())
        layer.feed.load_state_dict(feed.state_dict())
        copy_norm(layer.norm, module.input_layernorm)
        for mine, theirs in zip((layer.attention_gate, layer.feed_gate), gates, strict=True):
            mine.data.copy_(theirs.flatten())
        return layer


def preceding_images(
    image_tokens: Bool[Tensor, "b t"], images: int, tokens: int, every: bool = False
) -> Bool[Tensor, "b t k"]:
    """Flamingo's mask: each text token sees the last image at or before it, or `every` image so far.

    image_tokens: (B, T), True where an image stands in the text. images: of each row, in order, padding at the end.
    tokens: of each image. Returns (B, T, images * tokens), True = may be seen; before the first image, and after more
    image tokens than there are images, a row sees nothing (of `every`: after too many it sees all). Source:
    arXiv 2204.14198, Section 2.1. Raises ShapeError for image_tokens of another dtype or number of dimensions.
    """
    if not isinstance(image_tokens, Tensor) or image_tokens.dtype != torch.bool or image_tokens.ndim != 2:
        kind = f"{image_tokens.dtype} {tuple(image_tokens.shape)}" if isinstance(image_tokens, Tensor) else "no tensor"
        raise ShapeError(f"image_tokens must be bool of shape (B, T), got {kind}")
    if images < 0 or tokens < 1:
        raise ShapeError(f"images must be at least 0 and tokens at least 1, got {images} and {tokens}")
    seen = image_tokens.cumsum(dim=1)[:, :, None]
    order = torch.arange(1, images + 1, device=image_tokens.device)
    return (seen >= order if every else seen == order).repeat_interleave(tokens, dim=2)
