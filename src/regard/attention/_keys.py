"""What the layers share whose cost grows with N and not with N x N: masks of keys alone, and sums kept in single."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regard.errors import ShapeError


def key_mask(mask: Tensor | None, batch: int, keys: int) -> Bool[Tensor, "b k"] | None:
    """The mask of keys, (B, K). Raises ShapeError for another shape or dtype: a mask for each query would be N x N."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != (batch, keys):
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ShapeError(f"mask must be bool (True = may be seen) of shape {(batch, keys)}, got {got}")
    return mask


def summable(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """At least float32: sums over thousands of tokens leave the range of float16 and the digits of bfloat16."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
