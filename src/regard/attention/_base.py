"""What the attention layers share: their call shape, their checks, one attention product, and saving.

A mask is boolean, True = may be seen: (B, K) of keys, or (B, Q, K) of queries and keys. A row that sees nothing gives
zeros, in the output and in the weights, and no gradient.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.errors import ShapeError


class Layer(nn.Module, PyTorchModelHubMixin, ABC):
    """A layer of the literature: `layer(x)` or `layer(x, context, mask=...)`, (B, N, D) in and out.

    `save_pretrained` and `from_pretrained` keep its arguments and weights (config.json and model.safetensors).
    """

    @abstractmethod
    def weights(self, *args, **kwargs) -> Float[Tensor, "b h q k"]:
        """The attention matrix (B, H, Q, K) of the same call, by the eager path."""


def heads_of(dim: int, heads: int, name: str = "dim") -> int:
    """The width of a head. Raises ShapeError where the heads do not divide the width, or it is below 1."""
    if dim < 1:
        raise ShapeError(f"{name} must be 1 or more, got {dim}")
    if heads < 1 or dim % heads:
        raise ShapeError(f"{name} must be divided by heads, got {name}={dim} and heads={heads}")
    return dim // heads


def check_input(name: str, x: Tensor, width: int, batch: int | None = None) -> None:
    """Raise ShapeError unless x is floats of shape (batch, N, width)."""
    wanted = f"({'B' if batch is None else batch}, N, {width})"
    if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[2] != width or not x.is_floating_point():
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(f"{name} must be floats of shape {wanted}, got {got}")
    if batch is not None and x.shape[0] != batch:
        raise ShapeError(f"{name} must be of the same batch as x, {wanted}, got {tuple(x.shape)}")


def checked_mask(
    mask: Tensor | None, batch: int, queries: int, keys: int, name: str = "mask"
) -> Bool[Tensor, "b 1 q k"] | None:
    """The mask with a dimension for heads, (B, 1, 1 or Q, K). Raises ShapeError where its shape or dtype is another."""
    if mask is None:
        return None
    shapes = ((batch, keys), (batch, queries, keys))
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) not in shapes:
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ShapeError(f"{name} must be bool (True = may be seen) of shape {shapes[0]} or {shapes[1]}, got {got}")
    return mask[:, None, None] if mask.ndim == 2 else mask[:, None]


def split(x: Float[Tensor, "b n c"], heads: int) -> Float[Tensor, "b h n d"]:
    """Heads apart: (B, N, H * d) -> (B, H, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b n c"]:
    """Heads together again."""
    return x.transpose(1, 2).flatten(2)


def attend(
    q: Float[Tensor, "b h q d"],
    k: Float[Tensor, "b h k d"],
    v: Float[Tensor, "b h k e"],
    mask: Bool[Tensor, "... #h #q k"] | None = None,
    bias: Float[Tensor, "... q k"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b h q e"]:
    """softmax(q k' scale + bias) v over what the mask shows, by the fused kernel. scale: 1 / sqrt(d) by default."""
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    seen = mask.any(dim=-1, keepdim=True)
    shown = mask | ~seen  # a row that sees nothing is given all, and zeroed
    added = shown if bias is None else bias.masked_fill(~shown, -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale).masked_fill(~seen, 0)


def attention_weights(
    q: Float[Tensor, "b h q d"],
    k: Float[Tensor, "b h k d"],
    mask: Bool[Tensor, "... #h #q k"] | None = None,
    bias: Float[Tensor, "... q k"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b h q k"]:
    """The same, readable: rows that sum to 1, or to 0 where nothing is seen."""
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if bias is None else scores + bias
    if mask is None:
        return scores.softmax(dim=-1)
    seen = mask.any(dim=-1, keepdim=True)
    return scores.masked_fill(~(mask | ~seen), -torch.inf).softmax(dim=-1).masked_fill(~(mask & seen), 0)
