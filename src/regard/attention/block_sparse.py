"""BigBird's attention (Zaheer et al., arXiv 2007.14062): blocks of a window, two global blocks, and random ones.

    y_i = softmax(q_i K_S' / sqrt(d)) V_S,    S = the first and last block, those of i and of its neighbours, and random

and all blocks for queries of the first and last. Keys are gathered for each block of queries, so that cost and memory
grow with N. Ours differs from the reference, which draws random blocks at each call in training and takes the first
block for all of them otherwise: they are a buffer, `blocks`, drawn once by a seed and saved with the weights.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.attention._base import Layer, attend, attention_weights, check_input, heads_of, joined, split
from regard.attention._keys import key_mask
from regard.attention.scaled import copy_into
from regard.errors import ModelError, ShapeError

SLAB = 1024  # queries whose keys are gathered together: larger buffers are given back to the system each time


class BlockSparseAttention(Layer):
    """Self-attention over `tokens` tokens in blocks of `block`; the last block need not be full.

    blocks: (H, blocks - 2, random) of the blocks but the first and last, drawn by `seed` among those not seen anyway,
    and -1, none, where so few are left. One that is seen anyway counts once more, as in the reference. project: an
    output projection, or none, as in `BigBirdBlockSparseAttention`. Raises ShapeError where the heads do not divide
    dim, for tokens or a block below 1, and for an input or a mask of another shape.
    """

    blocks: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        tokens: int,
        block: int = 64,
        random: int = 3,
        seed: int = 0,
        bias: bool = True,
        project: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.heads, self.block, self.head = dim, heads, block, heads_of(dim, heads)
        if tokens < 1 or block < 1 or random < 0:
            got = f"tokens={tokens}, block={block} and random={random}"
            raise ShapeError(f"tokens and block must be 1 or more and random not below 0, got {got}")
        self.count = -(-tokens // block)
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim) if project else nn.Identity()
        self.register_buffer("blocks", _drawn(heads, self.count, random, seed))

    def forward(self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n c"]:
        """x: (B, N, D), N of as many blocks as `tokens`. mask: (B, N), True = may be seen; a row that sees
        nothing is 0.
        """
        seen = self._checked(x, mask)
        fill = self.count * self.block - x.shape[1]
        qkv = F.pad(self.qkv(x), (0, 0, 0, fill)).unflatten(1, (self.count, self.block))
        qkv = qkv.unflatten(-1, (3, self.heads, self.head)).permute(3, 0, 4, 1, 2, 5)  # (3, B, H, blocks, block, d)
        if fill:
            seen = F.pad(x.new_ones(x.shape[:2], dtype=torch.bool) if seen is None else seen, (0, fill))
        ends = qkv[0][:, :, [0] if self.count == 1 else [0, -1]].flatten(2, 3)
        k, v = qkv[1].flatten(2, 3), qkv[2].flatten(2, 3)
        y = attend(ends, k, v, None if seen is None else seen[:, None, None])
        empty = None if seen is None else ~seen.any(dim=1, keepdim=True).expand(-1, self.count)
        if self.count > 2:
            near, blind = self._middle(qkv, None if seen is None else seen.unflatten(1, (self.count, -1)))
            y = torch.cat((y[:, :, : self.block], near, y[:, :, self.block :]), dim=2)
            if empty is not None:
                empty = torch.cat((empty[:, :1], blind, empty[:, :1]), dim=1)
        y = self.out(joined(y)[:, : x.shape[1]])
        if empty is None:
            return y
        return y.masked_fill(empty.repeat_interleave(self.block, 1)[:, : x.shape[1], None], 0)

    def _middle(
        self, qkv: Float[Tensor, "3 b h m s d"], seen: Bool[Tensor, "b m s"] | None
    ) -> tuple[Float[Tensor, "b h n d"], Bool[Tensor, "b l"]]:
        """Attention of the blocks between the first and the last, slab by slab, and which of them see nothing."""
        order, usable = self._order()
        batch, head = qkv.shape[1], torch.arange(self.heads, device=qkv.device)[:, None, None]
        size = max(SLAB // (max(batch, 1) * self.block), 1)
        near, blind = [], []
        for q, blocks, counts in zip(
            qkv[0][:, :, 1:-1].split(size, dim=2), order.split(size, dim=1), usable.split(size, dim=1), strict=True
        ):
            k, v = (part[:, head, blocks].flatten(3, 4).flatten(0, 1) for part in (qkv[1], qkv[2]))
            shown = counts[None, ..., None].expand(batch, -1, -1, -1, self.block)
            shown = (shown if seen is None else shown & seen[:, blocks]).flatten(3)
            y = attend(q.flatten(0, 1), k, v, shown.flatten(0, 1)[:, :, None])
            near.append(y.unflatten(0, (batch, self.heads)).flatten(2, 3))
            blind.append(~shown.any(dim=-1).any(dim=1))
        return torch.cat(near, dim=2), torch.cat(blind, dim=1)

    def weights(self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b h n n"]:
        """(B, H, N, N), rows that sum to 1, or to 0 where nothing is seen; a block seen twice has twice the weight."""
        seen = self._checked(x, mask)
        q, k, _ = (split(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        times = torch.ones(self.heads, self.count, self.count, dtype=x.dtype, device=x.device)
        if self.count > 2:
            order, usable = self._order()
            times[:, 1:-1] = torch.zeros_like(times[:, 1:-1]).scatter_add(2, order, usable.to(x.dtype))
        place = torch.arange(x.shape[1], device=x.device) // self.block
        times = times[:, place][:, :, place]
        shown = times > 0 if seen is None else (times > 0) & seen[:, None, None]
        return attention_weights(q, k, shown.expand(len(x), -1, -1, -1), times.clamp(min=1).log())

    def _order(self) -> tuple[Int[Tensor, "h m s"], Bool[Tensor, "h m s"]]:
        """The blocks that each block but the first and last looks at, and which of these entries count."""
        row = torch.arange(1, self.count - 1, device=self.blocks.device)
        first, last = torch.zeros_like(row), torch.full_like(row, self.count - 1)
        near = torch.stack((first, row - 1, row, row + 1, last), dim=-1)
        once = torch.stack((row > 0, row > 1, row > 0, row < self.count - 2, row > 0), dim=-1)
        order = torch.cat((near.expand(self.heads, -1, -1), self.blocks.clamp(min=0)), dim=-1)
        return order, torch.cat((once.expand(self.heads, -1, -1), self.blocks >= 0), dim=-1)

    def _checked(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        check_input("x", x, self.dim)
        if not (self.count - 1) * self.block < x.shape[1] <= self.count * self.block:
            want = f"{(self.count - 1) * self.block + 1} to {self.count * self.block}"
            raise ShapeError(f"x must have {want} tokens, for which its blocks were drawn, got {x.shape[1]}")
        return key_mask(mask, len(x), x.shape[1])

    @classmethod
    def from_transformers(cls, module: Any, tokens: int) -> "BlockSparseAttention":
        """From `BigBirdAttention` (its residual and norm are left) or `BigBirdBlockSparseAttention` (no projection).

        tokens: of the inputs to come. The random blocks are those that the module itself takes for so many: the first
        block in evaluation, those of its seed in training. Raises ModelError for another module.
        """
        inner = getattr(module, "self", module)
        if not hasattr(inner, "num_random_blocks"):
            raise ModelError(f"{type(module).__name__} is not BigBird's block-sparse attention")
        parts = (inner.query, inner.key, inner.value)
        dense, bias = None if inner is module else module.output.dense, inner.query.bias is not None
        heads, size, random = inner.num_attention_heads, inner.block_size, inner.num_random_blocks
        layer = cls(inner.all_head_size, heads, tokens, size, random, bias=bias, project=dense is not None)
        layer = layer.to(inner.query.weight)
        weights = torch.cat([one.weight for one in parts])
        copy_into(layer.qkv, weights, torch.cat([one.bias for one in parts]) if bias else None)
        if dense is not None:
            copy_into(layer.out, dense.weight, dense.bias)
        layer.blocks.copy_(torch.from_numpy(_theirs(inner, layer.count * size)))
        return layer


def _drawn(heads: int, count: int, random: int, seed: int) -> Int[Tensor, "h m r"]:
    """Random blocks for each head and block but the first and last, none of them seen anyway."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.full((heads, max(count - 2, 0), random), -1)
    for head in range(heads):
        for row in range(1, count - 1):
            left = [one for one in range(1, count - 1) if abs(one - row) > 1]
            found = torch.tensor(left, dtype=torch.long)[torch.randperm(len(left), generator=generator)[:random]]
            blocks[head, row - 1, : len(found)] = found
    return blocks


def _theirs(module: Any, tokens: int) -> np.ndarray:
    """The random blocks that a module of transformers takes for so many tokens, numpy's own state left as it was."""
    size, random, heads = module.block_size, module.num_random_blocks, module.num_attention_heads
    state = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(module.seed)  # noqa: NPY002
        if tokens in (1024, 3072, 4096):
            whole = (module.max_seqlen, module.max_seqlen, size, size, random)
            found = [module._bigbird_block_rand_mask(*whole, last_idx=1024) for _ in range(heads)]
            return np.stack([one[: tokens // size - 2] for one in found])
        ends, counts = module._get_rand_attn_plan(tokens, size, random)
        return np.stack(module._bigbird_block_rand_mask_with_head(tokens, tokens, size, size, heads, ends, counts))
    finally:
        np.random.set_state(state)  # noqa: NPY002
