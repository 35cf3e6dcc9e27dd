"""Scaled dot-product self-attention (Vaswani et al., arXiv 1706.03762) and the pre-norm block around it.

    MultiHeadAttention(x) = concat_h( softmax(Q_h K_h' / sqrt(d)) V_h ) W_o,    Q, K, V = x W_qkv + b
    TransformerBlock(x) = y + s2 * MLP(LN(y)),    y = x + s1 * MultiHeadAttention(LN(x))

Ours differs from most in form only: one projection for queries, keys and values, and rows that see nothing give zeros.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.attention._base import Layer, attend, attention_weights, check_input, checked_mask, heads_of, joined
from regard.errors import ModelError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
}
# what transformers calls them
NAMES = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu"}
Rotary = tuple[Float[Tensor, "... n angles"], Float[Tensor, "... n angles"]]


class MultiHeadAttention(Layer):
    """Self-attention of `heads` heads. bias: of the joint projection and of the output.

    Raises ShapeError where the heads do not divide dim, or for an input or a mask of another shape.
    """

    def __init__(self, dim: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        heads_of(dim, heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "..."] | None = None, rotary: Rotary | None = None
    ) -> Float[Tensor, "b n c"]:
        """x: (B, N, D). mask: (B, N) or (B, N, N), True = may be seen. rotary: cosines and sines, (N, d) each.

        A row that sees nothing is 0.
        """
        q, k, v = self.projected(x, rotary)
        shown = checked_mask(mask, len(x), x.shape[1], x.shape[1])
        y = self.out(joined(attend(q, k, v, shown)))
        return y if shown is None else y.masked_fill(~shown.any(dim=-1)[:, 0, :, None], 0)

    def weights(
        self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "..."] | None = None, rotary: Rotary | None = None
    ) -> Float[Tensor, "b h n n"]:
        """(B, H, N, N), rows that sum to 1, or to 0 where nothing is seen."""
        q, k, _ = self.projected(x, rotary)
        return attention_weights(q, k, checked_mask(mask, len(x), x.shape[1], x.shape[1]))

    def projected(self, x: Tensor, rotary: Rotary | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, H, N, d) each."""
        check_input("x", x, self.dim)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return (q, k, v) if rotary is None else (rotated(q, rotary), rotated(k, rotary), v)

    @classmethod
    def from_transformers(cls, module: Any) -> "MultiHeadAttention":
        """From the attention of ViT, DINOv2, CLIP, SigLIP (q, k, v apart) or of BLIP-2's EVA tower (together).

        Raises ModelError for a module that has neither.
        """
        if hasattr(module, "qkv"):
            weight, bias, out = module.qkv.weight, module.qkv.bias, module.projection
        else:
            parts = [first(module, (f"{name}_proj", name)) for name in ("q", "k", "v")]
            weight = torch.cat([part.weight for part in parts])
            bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
            out = first(module, ("o_proj", "out_proj"))
        heads = first(module, ("num_heads", "num_attention_heads"), module.config.num_attention_heads)
        layer = cls(out.weight.shape[0], heads, bias is not None).to(weight)
        copy_into(layer.qkv, weight, bias)
        copy_into(layer.out, out.weight, out.bias)
        return layer


class TransformerBlock(Layer):
    """A pre-norm block. hidden: width of the MLP. activation: "gelu", "gelu_tanh", "quick_gelu" or "relu".

    layer_scale: learned factors on both branches, as in DINOv2 (arXiv 2304.07193). gated: SwiGLU, silu(a) * b, for a
    plain MLP. Raises ShapeError as `MultiHeadAttention`, ModelError for an unknown activation.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        activation: str = "gelu",
        eps: float = 1e-6,
        bias: bool = True,
        layer_scale: bool = False,
        gated: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ModelError(f"no activation is named {activation!r}: there are {', '.join(ACTIVATIONS)}")
        self.activation, self.gated = activation, gated
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attention = MultiHeadAttention(dim, heads, bias)
        self.widen = nn.Linear(dim, 2 * hidden if gated else hidden)
        self.narrow = nn.Linear(hidden, dim)
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(dim)) if layer_scale else None for _ in range(2))

    def forward(
        self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "..."] | None = None, rotary: Rotary | None = None
    ) -> Float[Tensor, "b n c"]:
        """x: (B, N, D). mask, rotary: as for `MultiHeadAttention`."""
        check_input("x", x, self.attention.dim)
        return self.fed(self.attended(x, self.attention(self.norm1(x), mask, rotary)))

    def attended(self, x: Float[Tensor, "b n c"], y: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """X + s1 y, y being what the attention gave."""
        return x + (y if self.scale1 is None else y * self.scale1)

    def fed(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """X + s2 MLP(LN(x)), the second half of the block."""
        y = self.widen(self.norm2(x))
        if self.gated:
            gate, y = y.chunk(2, dim=-1)
            y = F.silu(gate) * y
        else:
            y = ACTIVATIONS[self.activation](y)
        y = self.narrow(y)
        return x + (y if self.scale2 is None else y * self.scale2)

    def weights(
        self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "..."] | None = None, rotary: Rotary | None = None
    ) -> Float[Tensor, "b h n n"]:
        """Of the attention, (B, H, N, N)."""
        check_input("x", x, self.attention.dim)
        return self.attention.weights(self.norm1(x), mask, rotary)

    @classmethod
    def from_transformers(cls, module: Any) -> "TransformerBlock":
        """From a layer of ViT, DINOv2 (with registers), CLIP vision, SigLIP or BLIP-2's EVA tower."""
        attention = first(module, ("attention", "self_attn"))
        inner = getattr(attention, "attention", attention)
        norm1 = first(module, ("layernorm_before", "layer_norm1", "norm1"))
        norm2 = first(module, ("layernorm_after", "layer_norm2", "norm2"))
        mlp, gated = module.mlp, hasattr(module.mlp, "gate_proj")
        wide = [mlp.gate_proj, mlp.up_proj] if gated else [mlp.fc1]
        narrow = mlp.down_proj if gated else mlp.fc2
        config = first(inner, ("config",))
        scales = [getattr(module, name, None) for name in ("layer_scale1", "layer_scale2")]
        own = MultiHeadAttention.from_transformers(inner)
        layer = cls(
            own.dim,
            own.heads,
            narrow.weight.shape[1],
            NAMES.get(str(config.hidden_act), str(config.hidden_act)),
            norm1.eps,
            own.qkv.bias is not None,
            scales[0] is not None,
            gated,
        ).to(narrow.weight)
        layer.attention.load_state_dict(own.state_dict())
        for mine, theirs in ((layer.norm1, norm1), (layer.norm2, norm2), (layer.narrow, narrow)):
            copy_into(mine, theirs.weight, theirs.bias)
        copy_into(layer.widen, torch.cat([part.weight for part in wide]), torch.cat([part.bias for part in wide]))
        for mine, theirs in ((layer.scale1, scales[0]), (layer.scale2, scales[1])):
            if mine is not None and theirs is not None:
                mine.data.copy_(theirs.lambda1)
        return layer


def rotated(x: Float[Tensor, "b h n d"], rotary: Rotary) -> Float[Tensor, "b h n d"]:
    """Rotary positions (arXiv 2104.09864): each pair (x_i, x_{i + d/2}) turned by its angle."""
    cos, sin = rotary
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def copy_into(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Copy weights, detached, into a layer of the same shape."""
    with torch.no_grad():
        layer.weight.copy_(weight)  # pyright: ignore
        if bias is not None:
            layer.bias.copy_(bias)  # pyright: ignore


def first(module: Any, names: tuple[str, ...], default: Any = None) -> Any:
    """The first of these attributes that a module has. Raises ModelError where it has none and there is no default."""
    for name in names:
        if getattr(module, name, None) is not None:
            return getattr(module, name)
    if default is not None:
        return default
    raise ModelError(f"{type(module).__name__} has none of {', '.join(names)}: it is not a module that can be lifted")
