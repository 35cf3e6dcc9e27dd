"""The attention and the keys of one layer of a vision encoder, recomputed from that layer's input.

Works under any attention kernel, as no kernel is asked for its weights: only the queries and keys of one layer are made
again. The class token's row is enough where there is one; else every query's attention is averaged, a few rows at a
time. The encoder is looked at through one forward hook that is gone before the function returns.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.errors import ModelError

Result = TypeVar("Result")
CHUNK = 1 << 20  # attention weights held at once: few fit a cache, and many would be the peak of memory


def attention_layers(tower: nn.Module) -> list[nn.Module]:
    """The attention modules of an encoder, first to last: those that project queries and keys."""
    layers = []
    for module in tower.modules():
        names = {name for name, _ in module.named_children()}
        if {"q_proj", "k_proj"} <= names or "qkv" in names:
            layers.append(module)
    if not layers:
        raise ModelError(f"{type(tower).__name__} has no layer with q_proj and k_proj, or qkv, to read attention from")
    return layers


def before_last(tower: nn.Module) -> nn.Module:
    """The attention module of the layer before the last."""
    return attention_layers(tower)[-2:][0]


@contextmanager
def watched(layer: nn.Module) -> Iterator[list[tuple[Tensor, dict[str, Any]]]]:
    """What a layer is called with while the context lasts: its input and its keyword arguments, call by call."""
    calls: list[tuple[Tensor, dict[str, Any]]] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        calls.append((hidden, {name: value for name, value in kwargs.items() if name != "hidden_states"}))

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def encoded_with_maps(
    encode: Callable[[], Result], find_layer: Callable[[], nn.Module], has_cls: bool, needs: set[str]
) -> tuple[Result, dict[str, Callable[[], Tensor]]]:
    """The encoder's output, and functions that give the maps of one of its layers.

    "scores:attention": (..., S, 1), averaged over heads, from the class token or else from all queries.
    "keys": (..., S, d), averaged over heads, before any rotation.
    """
    if not needs:
        return encode(), {}
    layer = find_layer()
    with watched(layer) as calls:
        output = encode()
    if not calls:
        raise ModelError("the vision encoder's layers were not run one by one: compile only the language model")
    hidden, given = calls[-1]
    project = cache(partial(keys_of, layer, hidden))
    maps = {
        "keys": lambda: project().mean(dim=-2),
        "scores:attention": lambda: received(layer, hidden, project(), given, has_cls),
    }
    return output, {name: maps[name] for name in needs}


@torch.no_grad()
def received(
    layer: nn.Module, hidden: Tensor, k: Tensor, given: dict[str, Any], has_cls: bool
) -> Float[Tensor, "*t s 1"]:
    """Attention that each position receives, averaged over heads and queries (of the class token, if there is one).

    hidden: (..., S, D), the layer's input. k: (..., S, heads, d). given: what else the layer was called with. Rows of
    its mask that see nothing are not counted.
    """
    q = _queries(layer, hidden[:, :1] if has_cls else hidden).float()
    k = k.float()
    if given.get("position_embeddings") is not None:
        cos, sin = (x.float() for x in given["position_embeddings"])
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
    if hidden.ndim == 2:  # sequences of several images end to end
        lengths = given["cu_seqlens"].diff().tolist()
        pairs = zip(q.split(lengths), k.split(lengths), strict=True)
        return torch.cat([_mean_rows(a[None], b[None], None)[0] for a, b in pairs])[:, None]
    return _mean_rows(q, k, given.get("attention_mask"))[..., None]


def _queries(layer: Any, hidden: Tensor) -> Float[Tensor, "*t s h d"]:
    if hasattr(layer, "qkv"):
        return layer.qkv(hidden).chunk(3, dim=-1)[0].unflatten(-1, (_heads(layer), -1))
    q = layer.q_proj(hidden)
    return (layer.q_norm(q) if hasattr(layer, "q_norm") else q).unflatten(-1, (_heads(layer), -1))


@torch.no_grad()
def keys_of(layer: Any, hidden: Tensor) -> Float[Tensor, "*t s h d"]:
    """The keys of each head, before any rotation. hidden: (..., S, D), the layer's input."""
    if hasattr(layer, "qkv"):
        return layer.qkv(hidden).chunk(3, dim=-1)[1].unflatten(-1, (_heads(layer), -1))
    k = layer.k_proj(hidden)
    return (layer.k_norm(k) if hasattr(layer, "k_norm") else k).unflatten(-1, (_heads(layer), -1))


def _heads(layer: Any) -> int:
    return layer.num_heads if hasattr(layer, "num_heads") else layer.num_attention_heads


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos.unsqueeze(-2) + turned * sin.unsqueeze(-2)


def _mean_rows(q: Tensor, k: Tensor, mask: Any) -> Float[Tensor, "t s"]:
    """Softmax rows averaged over heads and the queries that may look there, never all rows at once.

    q: (T, R, heads, d), the first R queries. k: (T, S, heads, d). mask: as any kernel has it.
    """
    q, k = q.transpose(1, 2) * q.shape[-1] ** -0.5, k.permute(0, 2, 3, 1)
    tiles, heads, rows, _ = q.shape
    s = k.shape[3]
    mask = None if mask is None else _dense(mask, s)
    step = max(1, CHUNK // (tiles * heads * s))
    total, seeing = q.new_zeros(tiles, s), q.new_zeros(1, s)
    for start in range(0, rows, step):
        logits = q[:, :, start : start + step] @ k
        if mask is not None:
            part = mask[:, :, start : min(start + step, rows)]
            logits = logits.masked_fill(~part, -torch.inf)
            seeing = seeing + part[:, 0].sum(dim=1)
        weights = logits.softmax(dim=-1)
        total += (weights if mask is None else weights.nan_to_num(0)).sum(dim=(1, 2))  # 0 of rows that see nothing
    return total / (heads * (rows if mask is None else seeing.clamp(min=1)))


def _dense(mask: Any, s: int) -> Bool[Tensor, "t 1 s s"]:
    """Where a query may look, from the masks of the kernels: (T, S) of keys, (T, 1, S, S) bool or added, or blocks."""
    if not isinstance(mask, Tensor):
        from torch.nn.attention.flex_attention import create_mask

        tiles = mask.shape[0]
        return create_mask(mask.mask_mod, tiles, 1, s, s, device=str(mask.kv_indices.device))
    mask = mask if mask.dtype == torch.bool or mask.ndim == 2 else mask > torch.finfo(mask.dtype).min / 2
    return mask.bool()[:, None, None].expand(-1, 1, s, s) if mask.ndim == 2 else mask
