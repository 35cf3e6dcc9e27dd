"""The attention and the keys of one layer of a vision encoder, recomputed from that layer's input.

Works under any attention kernel, as no kernel is asked for its weights: only the queries and keys of one layer are made
again. The class token's row is enough where there is one; else every query's attention is averaged, a few rows at a
time. The encoder is looked at through one forward hook that is gone before the function returns.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.errors import ModelError

Result = TypeVar("Result")
CHUNK = 1 << 24  # attention weights held at once


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
    maps = {"scores:attention": lambda: received(layer, hidden, given, has_cls), "keys": lambda: keys(layer, hidden)}
    return output, {name: maps[name] for name in needs}


@torch.no_grad()
def keys(layer: nn.Module, hidden: Tensor) -> Float[Tensor, "*t s d"]:
    """The layer's keys, averaged over heads: (..., S, d)."""
    return _projected(layer, hidden)[1].mean(dim=-2)


@torch.no_grad()
def received(layer: nn.Module, hidden: Tensor, given: dict[str, Any], has_cls: bool) -> Float[Tensor, "*t s 1"]:
    """Attention that each position receives, averaged over heads and queries (of the class token, if there is one)."""
    q, k = (x.float() for x in _projected(layer, hidden))
    if given.get("position_embeddings") is not None:
        cos, sin = (x.float() for x in given["position_embeddings"])
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
    if hidden.ndim == 2:  # sequences of several images end to end
        lengths = given["cu_seqlens"].diff().tolist()
        pairs = zip(q.split(lengths), k.split(lengths), strict=True)
        parts = [_mean_rows(a[None], b[None], None, False)[0] for a, b in pairs]
        return torch.cat(parts)[:, None]
    return _mean_rows(q, k, given.get("attention_mask"), has_cls)[..., None]


def _projected(layer: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys, each (..., S, heads, d)."""
    heads = layer.num_heads
    if hasattr(layer, "qkv"):
        q, k, _ = layer.qkv(hidden).chunk(3, dim=-1)  # pyright: ignore[reportCallIssue]
    else:
        q, k = layer.q_proj(hidden), layer.k_proj(hidden)  # pyright: ignore[reportCallIssue]
        if hasattr(layer, "q_norm"):
            q, k = layer.q_norm(q), layer.k_norm(k)  # pyright: ignore[reportCallIssue]
    return q.unflatten(-1, (heads, -1)), k.unflatten(-1, (heads, -1))  # pyright: ignore[reportArgumentType]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos.unsqueeze(-2) + turned * sin.unsqueeze(-2)


def _mean_rows(q: Tensor, k: Tensor, mask: Tensor | None, has_cls: bool) -> Float[Tensor, "t s"]:
    """Softmax rows averaged over heads and queries, never all at once. q, k: (T, S, heads, d); mask: (T|1, 1, S, S)."""
    q, k = q.transpose(1, 2) * q.shape[-1] ** -0.5, k.permute(0, 2, 3, 1)
    tiles, heads, s, _ = q.shape
    if has_cls:
        q = q[:, :, :1]
        mask = None if mask is None else mask[:, :, :1]
    rows = q.shape[2]
    step = max(1, CHUNK // (tiles * heads * s))
    total = q.new_zeros(tiles, s)
    for start in range(0, rows, step):
        logits = q[:, :, start : start + step] @ k
        if mask is not None:
            part = mask[:, :, start : start + step]
            logits = logits.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else logits + part
        total += logits.softmax(dim=-1).sum(dim=(1, 2))
    return total / (heads * rows)
