"""Longformer attention (Beltagy et al., arXiv 2004.05150): a window around each token, and a few global tokens.

    y_i = softmax(q_i K_S' / sqrt(d)) V_S,       S = {j: |i - j| <= window / 2} and the global tokens,   i not global
    y_g = softmax(q^g_g K^g' / sqrt(d)) V^g      over all tokens, by projections of its own,             g global

Blocks of queries are each compared with their own keys and those `window / 2` to both sides, by the fused kernel: cost
and memory grow with N x window. Ours differs in form, and in that a global query is carried to the space of the tokens
where that is cheaper, (W_k' q)' x for q' (W_k x), so that keys and values of all tokens need not be made for a few.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.attention._base import Layer, attend, attention_weights, check_input, heads_of, joined, split
from regard.attention._keys import key_mask
from regard.attention.scaled import copy_into
from regard.errors import ModelError, ShapeError

SMALLEST = 64  # queries of a block: smaller ones would save products and lose more in calls


class SlidingWindowAttention(Layer):
    """Self-attention in windows of `window` + 1 tokens. window: even, half of it to each side; it may exceed N.

    project: an output projection, or none, as in `LongformerSelfAttention`. Raises ShapeError where the heads do not
    divide dim, for a window that is odd or below 2, and for an input, a mask or global tokens of another shape.
    """

    def __init__(self, dim: int, heads: int, window: int, bias: bool = True, project: bool = True) -> None:
        super().__init__()
        self.dim, self.heads, self.window, self.head = dim, heads, window, heads_of(dim, heads)
        if window < 2 or window % 2:
            raise ShapeError(f"window must be even and 2 or more, got {window}")
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.q_global = nn.Linear(dim, dim, bias=bias)
        self.kv_global = nn.Linear(dim, 2 * dim, bias=bias)
        self.out = nn.Linear(dim, dim) if project else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        mask: Bool[Tensor, "b n"] | None = None,
        global_tokens: Int[Tensor, "b g"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """x: (B, N, D). mask: (B, N), True = may be seen; a row that sees nothing is 0.

        global_tokens: (B, G) places of the global tokens, -1 for none; a masked one is not global, and one named twice
        is named once (`places` makes them from a mask). Raises ShapeError for places of N or more, when not compiled.
        """
        seen, index, valid = self._checked(x, mask, global_tokens)
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, self.head))
        if index is None or valid is None:
            y, empty = self._windows(qkv, seen, None, None)
            y = self.out(joined(y)[:, : x.shape[1]])
            return y if seen is None else y.masked_fill(empty[:, : x.shape[1], None], 0)
        shown = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if seen is None else seen
        marked = _marked(index, valid, x.shape[1])
        y, empty = self._windows(qkv, shown & ~marked, index, valid)
        y = joined(y)
        y = y if y.shape[1] > x.shape[1] else F.pad(y, (0, 0, 0, 1))  # a row for what names no token
        rows = index.masked_fill(~valid, x.shape[1])[..., None].expand(-1, -1, self.dim)
        y = self.out(y.scatter(1, rows, self._global(x, index, seen))[:, : x.shape[1]])
        return y if seen is None else y.masked_fill((empty[:, : x.shape[1]] & ~marked)[..., None], 0)

    def weights(
        self,
        x: Float[Tensor, "b n c"],
        mask: Bool[Tensor, "b n"] | None = None,
        global_tokens: Int[Tensor, "b g"] | None = None,
    ) -> Float[Tensor, "b h n n"]:
        """(B, H, N, N), rows that sum to 1, or to 0 where nothing is seen; those of global tokens are of their own
        projections.
        """
        seen, index, valid = self._checked(x, mask, global_tokens)
        count = x.shape[1]
        q, k, _ = (split(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        place = torch.arange(count, device=x.device)
        shown = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if seen is None else seen
        near = (place[:, None] - place).abs() <= self.window // 2
        if index is None or valid is None:
            return attention_weights(q, k, (near & shown[:, None])[:, None])
        marked = _marked(index, valid, count)
        local = attention_weights(q, k, ((near | marked[:, None]) & shown[:, None])[:, None])
        q, k = split(self.q_global(x), self.heads), split(self.kv_global(x)[..., : self.dim], self.heads)
        return torch.where(marked[:, None, :, None], attention_weights(q, k, shown[:, None, None]), local)

    def _checked(
        self, x: Tensor, mask: Tensor | None, places: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The mask of keys, the places, and which of them name a token that is seen and was not named before."""
        check_input("x", x, self.dim)
        seen = key_mask(mask, len(x), x.shape[1])
        if places is None:
            return seen, None, None
        if not isinstance(places, Tensor) or places.dtype != torch.long or places.ndim != 2 or len(places) != len(x):
            got = f"{places.dtype} {tuple(places.shape)}" if isinstance(places, Tensor) else type(places).__name__
            raise ShapeError(f"global_tokens must be int64 of shape ({len(x)}, G), got {got}")
        if not torch.compiler.is_compiling() and bool((places >= x.shape[1]).any()):
            raise ShapeError(f"global_tokens must be below {x.shape[1]} tokens, got {int(places.max())}")
        index = places.clamp(min=0)
        valid = (places >= 0) & ~(places[:, :, None] == places[:, None]).tril(-1).any(dim=-1)
        return seen, index, valid if seen is None else valid & seen.gather(1, index)

    def _windows(
        self, qkv: Tensor, seen: Tensor | None, index: Tensor | None, valid: Tensor | None
    ) -> tuple[Float[Tensor, "b h n d"], Bool[Tensor, "b n"]]:
        """Local attention of all tokens and of the rows that fill the last block, and which of them see nothing; the
        global keys come first.
        """
        batch, count = qkv.shape[:2]
        half = min(self.window // 2, count)
        size = min(max(half, SMALLEST), max(count, 1))
        blocks, fill = -(-count // size), -count % size
        q = F.pad(qkv[:, :, 0], (0, 0, 0, 0, 0, fill)).reshape(batch * blocks, size, self.heads, self.head)
        kv = F.pad(qkv[:, :, 1:], (0, 0, 0, 0, 0, 0, half, half + fill)).unfold(1, size + 2 * half, size)
        k, v = kv.permute(2, 0, 1, 3, 5, 4).flatten(1, 2)
        shown = qkv.new_ones(1, count, dtype=torch.bool) if seen is None else seen
        shown = F.pad(shown, (half, half + fill)).unfold(1, size + 2 * half, size)[:, :, None]  # (B, blocks, 1, keys)
        offset = torch.arange(size + 2 * half, device=q.device) - torch.arange(size, device=q.device)[:, None]
        mask = ((offset >= 0) & (offset <= 2 * half) & shown).expand(batch, -1, -1, -1)
        if index is not None and valid is not None:
            picked = qkv.gather(1, index[:, :, None, None, None].expand(-1, -1, *qkv.shape[2:]))[:, :, 1:]
            first = picked.permute(2, 0, 3, 1, 4)[:, :, None].expand(-1, -1, blocks, -1, -1, -1).flatten(1, 2)
            k, v = torch.cat((first[0], k), dim=2), torch.cat((first[1], v), dim=2)
            mask = torch.cat((valid[:, None, None].expand(-1, blocks, size, -1), mask), dim=3)
        y = attend(q.transpose(1, 2), k, v, mask.flatten(0, 1)[:, None])
        return y.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3), ~mask.any(dim=-1).flatten(1)

    def _global(self, x: Tensor, index: Tensor, seen: Tensor | None) -> Float[Tensor, "b g c"]:
        """Attention of the global tokens to all that is seen."""
        q = self.q_global(x.gather(1, index[..., None].expand(-1, -1, self.dim))).unflatten(-1, (self.heads, self.head))
        mask = None if seen is None else seen[:, None, None]
        if index.shape[1] >= self.head:
            k, v = (split(part, self.heads) for part in self.kv_global(x).chunk(2, dim=-1))
            return joined(attend(q.transpose(1, 2), k, v, mask))
        to_keys, to_values = self.kv_global.weight.view(2, self.heads, self.head, self.dim)
        carried = torch.einsum("bghd,hdc->bghc", q, to_keys).flatten(1, 2)[:, None]
        tokens = x[:, None]
        read = attend(carried, tokens, tokens, mask, scale=self.head**-0.5)[:, 0].unflatten(1, (-1, self.heads))
        y = torch.einsum("bghc,hdc->bghd", read, to_values).flatten(2)
        return y if self.kv_global.bias is None else y + self.kv_global.bias[self.dim :]

    @classmethod
    def from_transformers(cls, module: Any) -> "SlidingWindowAttention":
        """From `LongformerAttention` (its residual and norm are left) or `LongformerSelfAttention` (no projection).

        Raises ModelError for another module.
        """
        inner = getattr(module, "self", module)
        if not hasattr(inner, "one_sided_attn_window_size"):
            raise ModelError(f"{type(module).__name__} is not Longformer's attention")
        dense = None if inner is module else module.output.dense
        window = 2 * inner.one_sided_attn_window_size
        layer = cls(inner.embed_dim, inner.num_heads, window, project=dense is not None).to(inner.query.weight)
        parts = (
            (layer.qkv, (inner.query, inner.key, inner.value)),
            (layer.q_global, (inner.query_global,)),
            (layer.kv_global, (inner.key_global, inner.value_global)),
        )
        for mine, theirs in parts:
            copy_into(mine, torch.cat([one.weight for one in theirs]), torch.cat([one.bias for one in theirs]))
        if dense is not None:
            copy_into(layer.out, dense.weight, dense.bias)
        return layer


def places(mask: Bool[Tensor, "b n"]) -> Int[Tensor, "b g"]:
    """The places of True, (B, G), in order, with -1 where a row has fewer than the most: what transformers takes as
    `global_attention_mask`, as `global_tokens`.
    """
    most = int(mask.sum(dim=1).max()) if mask.numel() else 0
    order = mask.long().argsort(dim=1, descending=True, stable=True)[:, :most]
    return order.masked_fill(~mask.gather(1, order), -1)


def _marked(index: Tensor, valid: Tensor, count: int) -> Bool[Tensor, "b n"]:
    """Which tokens are global."""
    return torch.zeros(len(index), count, dtype=torch.long, device=index.device).scatter_add(1, index, valid.long()) > 0
