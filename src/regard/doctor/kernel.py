"""What one attention module gave to the attention kernel, and rows of the softmax made of it.

Under SDPA a kernel is given queries, keys and a mask and never says what its weights were; the rows that are asked for
are made again from the same tensors, in float32 (float64 where the model is), a few at a time: never N x N. Under the
eager kernel the weights are there, and rows are taken from them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK = 1 << 22  # weights held at once where all rows are read


def tokens_read(args: tuple, kwargs: dict[str, Any]) -> int | None:
    """How many tokens a module of attention is given, by its arguments; None where they do not tell."""
    read = (kwargs.get("hidden_states"), *args, *kwargs.values())
    return next((x.shape[-2] for x in read if isinstance(x, Tensor) and x.ndim > 1), None)


@dataclass(frozen=True, eq=False)
class Kernel:
    """One call. q: (B or 1, H, Q, d), k and v: (B, H / group, K, d), or weights: (B, H, Q, K) where the kernel is
    eager. mask: (B or 1, H or 1, Q or 1, K), True where visible, or added. out: what the call gave.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    mask: Tensor | None
    causal: bool
    weights: Tensor | None
    out: Tensor

    @classmethod
    def fused(cls, args: tuple, kwargs: dict[str, Any], out: Tensor, tokens: int | None) -> "Kernel":
        """From the arguments of `scaled_dot_product_attention`. tokens: queries of the module, to tell where heads that
        share keys were laid one after another.
        """
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names, args, strict=False)) | kwargs
        q, k, v, mask = given["query"], given["key"], given["value"], given.get("attn_mask")
        while mask is not None and mask.ndim < 4:
            mask = mask.unsqueeze(0)
        if tokens and q.shape[2] > tokens and q.shape[2] % tokens == 0:
            groups = (q.shape[2] // tokens, tokens)
            if mask is not None and mask.shape[2] > 1:
                mask = mask.expand(-1, q.shape[1], -1, -1).unflatten(2, groups).flatten(1, 2)
            q, out = q.unflatten(2, groups).flatten(1, 2), out.unflatten(2, groups).flatten(1, 2)
        scale = given.get("scale") or q.shape[-1] ** -0.5
        return cls(q, k, v, scale, mask, bool(given.get("is_causal", False)), None, out)

    @classmethod
    def eager(cls, weights: Tensor, sink: bool) -> "Kernel":
        """From the softmax itself, (B, H, Q, K). sink: its last column is no key."""
        return cls(weights, weights, weights, 1.0, None, False, weights[..., :-1] if sink else weights, weights)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, Q, K)."""
        if self.weights is not None:
            return tuple(self.weights.shape)  # pyright: ignore[reportReturnType]
        return len(self.k), self.q.shape[1], self.q.shape[2], self.k.shape[2]

    def rows(self, index: Int[Tensor, "b r"], heads: Sequence[int] | None = None) -> Float[Tensor, "b h r k"]:
        """The rows of these queries, 0 where the index is -1 or nothing is seen."""
        if self.weights is not None:
            found = _at(self.weights if heads is None else self.weights[:, heads], index)
            return _wide(found).masked_fill((index < 0)[:, None, :, None], 0)
        logits = _products(_at(self.q, index), self.k, heads) * self.scale
        if self.mask is not None:
            mask = self.mask if heads is None or self.mask.shape[1] == 1 else self.mask[:, heads]
            mask = _at(mask, index) if mask.shape[2] > 1 else mask
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        if self.causal:
            later = torch.arange(logits.shape[-1], device=logits.device) > index[:, None, :, None]
            logits = logits.masked_fill(later, -torch.inf)
        blind = (index < 0)[:, None, :, None] | (logits == -torch.inf).all(dim=-1, keepdim=True)
        return logits.softmax(dim=-1).masked_fill(blind, 0)

    def slopes(self, index: Int[Tensor, "b r"], gradient: Tensor) -> Float[Tensor, "b h r k"]:
        """Of the same rows, how a value changes with each weight. gradient: of that value, with respect to `out`."""
        if self.weights is not None:
            rows = gradient[..., : self.weights.shape[-1]]
            return _wide(_at(rows, index)).masked_fill((index < 0)[:, None, :, None], 0)
        return _products(_at(gradient, index), self.v, None).masked_fill((index < 0)[:, None, :, None], 0)

    def chunks(self) -> Iterator[Int[Tensor, "b r"]]:
        """The numbers of all queries, as many at once as may be."""
        batch, heads, queries, keys = self.shape
        step = max(1, CHUNK // (batch * heads * keys))
        for start in range(0, queries, step):
            part = torch.arange(start, min(start + step, queries), device=self.out.device)
            yield part.expand(batch, -1)


@dataclass(frozen=True, eq=False)
class Reading:
    """All calls of one forward of a module: one, or one for each part of a sequence that attends within itself."""

    kernels: tuple[Kernel, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, Q, K)."""
        shapes = [kernel.shape for kernel in self.kernels]
        return (*shapes[0][:2], sum(shape[2] for shape in shapes), sum(shape[3] for shape in shapes))

    @property
    def device(self) -> torch.device:
        return self.kernels[0].out.device

    def rows(self, index: Int[Tensor, "b r"], heads: Sequence[int] | None = None) -> Float[Tensor, "b h r k"]:
        """As of one kernel; a part sees nothing of another."""
        if len(self.kernels) == 1:
            return self.kernels[0].rows(index, heads)
        found = []
        for kernel, first, _ in self.placed():
            here = (index >= first) & (index < first + kernel.shape[2])
            found.append(kernel.rows(torch.where(here, index - first, -1), heads))
        return torch.cat(found, dim=-1)

    def mean(self, real: Bool[Tensor, "b q"] | None, heads: Sequence[int] | None = None) -> Float[Tensor, "b h 1 k"]:
        """What each key is given by a query of its part on average, of those that are real and see anything."""
        parts = []
        for kernel, first, _ in self.placed():
            total: Tensor | float = 0.0
            seeing: Tensor | float = 0.0
            for index in kernel.chunks():
                if real is not None:
                    index = torch.where(real.gather(1, index + first), index, -1)
                rows = kernel.rows(index, heads)
                total = total + rows.sum(dim=2, keepdim=True)
                seeing = seeing + (rows[:, :1].sum(dim=-1, keepdim=True) > 0).sum(dim=2, keepdim=True)
            parts.append(total / seeing.clamp(min=1))  # pyright: ignore[reportAttributeAccessIssue]
        return torch.cat(parts, dim=-1)

    def placed(self) -> Iterator[tuple[Kernel, int, int]]:
        """Each call, and the first query and the first key of it among all."""
        query = key = 0
        for kernel in self.kernels:
            yield kernel, query, key
            query, key = query + kernel.shape[2], key + kernel.shape[3]


def _at(x: Tensor, index: Tensor) -> Tensor:
    """(B or 1, H, Q, C) at these queries: (B, H, R, C)."""
    if len(x) == 1:
        x = x.expand(len(index), -1, -1, -1)
    at = index.clamp(min=0)[:, None, :, None].to(x.device)
    return x.gather(2, at.expand(-1, x.shape[1], -1, x.shape[3]))


def _products(x: Tensor, y: Tensor, heads: Sequence[int] | None) -> Tensor:
    """(B, H, R, d) and (B, H / group, K, d) to (B, H, R, K), of these heads; never a copy of `y` for each head."""
    group = x.shape[1] // y.shape[1]
    x, y = _wide(x), _wide(y)
    if heads is not None:
        return x[:, heads] @ y[:, [head // group for head in heads]].transpose(-1, -2)
    together = x.unflatten(1, (y.shape[1], group)).flatten(2, 3) @ y.transpose(-1, -2)
    return together.unflatten(2, (group, -1)).flatten(1, 2)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
