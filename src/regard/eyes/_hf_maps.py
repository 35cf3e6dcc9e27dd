"""The attention that patches receive, and their keys, at an encoder's layer before the last, made again from its input.

Works under any attention kernel. Attention is averaged over heads, and taken from the class token where there is one,
else over all queries, some rows at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

_HELD = 1 << 20  # attention weights held at once


def layer_before_last(model: nn.Module) -> nn.Module:
    """The attention module of an encoder's layer before the last."""
    found = []
    for module in model.modules():
        names = {name for name, _ in module.named_children()}
        if {"q_proj", "k_proj"} <= names or "qkv" in names:
            found.append(module)
    return found[-2:][0]


@contextmanager
def input_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What a layer is called with while the context lasts, call by call."""
    calls: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        calls.append(args[0] if args else kwargs["hidden_states"])

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@torch.no_grad()
def attention_and_keys(
    layer: Any, hidden: Float[Tensor, "b s d"], heads: int, fused: bool, cls: bool, mask: Bool[Tensor, "b s"] | None
) -> tuple[Float[Tensor, "b s"], Float[Tensor, "b s e"]]:
    """Attention received and keys, both averaged over heads, in float32. fused: one projection makes q, k and v."""
    if fused:
        q, k, _ = layer.qkv(hidden).chunk(3, dim=-1)
    else:
        q, k = layer.q_proj(hidden), layer.k_proj(hidden)
    q, k = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if mask is None else mask
    rows = mask[:, :1] if cls else mask
    total = q.new_zeros(hidden.shape[:2])
    step = max(1, _HELD // (len(q) * heads * k.shape[2]))
    for start in range(0, rows.shape[1], step):
        part = rows[:, start : start + step]
        logits = q[:, :, start : start + part.shape[1]] @ k.transpose(2, 3) * k.shape[3] ** -0.5
        weights = logits.masked_fill(~mask[:, None, None], -torch.inf).softmax(dim=-1)
        total += (weights * part[:, None, :, None]).sum(dim=(1, 2))
    return total / (heads * rows.sum(dim=1, keepdim=True)), k.mean(dim=1)
