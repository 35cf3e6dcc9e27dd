"""Attention in shifted windows, of the Swin Transformer (Liu et al., arXiv 2103.14030).

    WindowAttention(x) = softmax(Q K' / sqrt(d) + B) V W_o    in each window of w x w tokens,    B_ij = table[p_i - p_j]
    SwinBlock(x) = y + MLP(LN(y)),    y = x + WindowAttention(LN(x))
    PatchMerging(x) = LN([x_00, x_10, x_01, x_11]) W,    of each 2 x 2 tokens

In every second block the windows are shifted cyclically by w // 2, and tokens that only the cycle brought together do
not see each other. Ours differs: where the window is not smaller than the grid's shorter side the block's shrinks to it
and the shift is off, decided at each call and read from the middle of the same table (the reference keeps the first
grid's decision, and fails at a shorter side); tokens apart are minus infinity to each other, not -100; shift and
windows are one reordering of tokens; no dropout and no stochastic depth.
"""

from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.attention._base import Layer, attend, attention_weights, check_input, checked_mask, heads_of, joined
from regard.attention._windows import Grid, Plan, apart_of, check_grid, plan_of, relative_of, restored, taken, within
from regard.attention.scaled import ACTIVATIONS, NAMES, copy_into
from regard.errors import ModelError, ShapeError


class WindowAttention(Layer):
    """Self-attention within windows of window x window tokens, with a learned bias for each relative position.

    shift: by how many rows and columns the windows are moved, less than the window; not at all where the grid is no
    larger. bias: of the joint projection. shrink: a window larger than the grid shrinks to its shorter side, as in
    `SwinBlock`, and is no error. Raises ShapeError where the heads do not divide dim, for a window or shift that cannot
    be, for an input or mask of another shape, and for a grid that does not hold the tokens or a window.
    """

    def __init__(
        self, dim: int, heads: int, window: int, shift: int = 0, bias: bool = True, shrink: bool = False
    ) -> None:
        super().__init__()
        if window < 1 or not 0 <= shift < window:
            raise ShapeError(f"window must be at least 1 and shift in [0, window), got window={window}, shift={shift}")
        self.dim, self.heads, self.window, self.shift, self.shrink = dim, heads, window, shift, shrink
        heads_of(dim, heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim)
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty((2 * window - 1) ** 2, heads), std=0.02))

    def forward(
        self, x: Float[Tensor, "b n c"], grid: Grid, mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b n c"]:
        """x: (B, h * w, D) in raster order. grid: (h, w). mask: (B, N) or (B, N, N), True = may be seen.

        Where windows do not divide the grid it is padded with zeros below and on the right; as in the reference, the
        padding is seen. A token that sees no token (none that the mask shows is in its window) is given zeros.
        """
        plan, side = self._planned(x, grid)
        shown = checked_mask(mask, len(x), x.shape[1], x.shape[1])
        q, k, v = self._projected(x, grid, plan)
        if shown is not None:
            shown, seen = within(shown[:, 0], plan)
            y = attend(q, k, v, shown, self._bias(side, x.device))
            y = restored(joined(y), plan, len(x))
            return self.out(y).masked_fill(~restored(seen, plan, len(x)), 0)
        bias = self._bias(side, x.device)
        if plan.together is not None:
            apart = apart_of(*grid, side, self.shift, x.device, bias.dtype)
            bias = (bias + apart).expand(len(x), -1, -1, -1, -1).flatten(0, 1)
        y = _attend_learned(q, k, v, bias) if x.is_cpu and bias.requires_grad else attend(q, k, v, None, bias)
        return self.out(restored(joined(y), plan, len(x)))

    def weights(
        self, x: Float[Tensor, "b n c"], grid: Grid, mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b h n n"]:
        """(B, H, N, N) between all tokens, 0 between windows. Rows sum to 1, to less where padding takes a share, and
        to 0 where nothing is seen.
        """
        plan, side = self._planned(x, grid)
        shown = checked_mask(mask, len(x), x.shape[1], x.shape[1])
        q, k, _ = self._projected(x, grid, plan)
        if shown is not None:
            shown, _ = within(shown[:, 0], plan)
        elif plan.together is not None:
            shown = plan.together[:, None].repeat(len(x), 1, 1, 1)
        inside = attention_weights(q, k, shown, self._bias(side, x.device))
        inside = inside.unflatten(0, (len(x), len(plan.tokens))).transpose(1, 2)
        count = x.shape[1]
        dense = inside.new_zeros(len(x), self.heads, count + 1, count + 1)
        dense[:, :, plan.tokens[:, :, None], plan.tokens[:, None, :]] = inside  # padding, -1, goes to the last place
        return dense[:, :, :count, :count]

    def _planned(self, x: Tensor, grid: Grid) -> tuple[Plan, int]:
        check_input("x", x, self.dim)
        check_grid(grid, x.shape[1])
        side = min(self.window, *grid)
        if side < self.window and not self.shrink:
            can = f"take a window of {side} or less, or shrink=True"
            raise ShapeError(f"window is larger than the grid: got window={self.window} and grid={tuple(grid)}; {can}")
        return plan_of(*grid, side, self.shift if min(grid) > self.window else 0, x.device), side

    def _projected(self, x: Tensor, grid: Grid, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every window, (B * windows, H, n, d) each."""
        count, n = plan.tokens.shape
        if count * n > x.shape[1]:
            h, w = plan.padded
            x = F.pad(x.unflatten(1, grid), (0, 0, 0, w - grid[1], 0, h - grid[0])).flatten(1, 2)
        if count > 1:
            x = taken(x, plan.order)
        x = x.reshape(len(x) * count, n, self.dim)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _bias(self, side: int, device: torch.device) -> Float[Tensor, "1 h n n"]:
        found = F.embedding(relative_of(self.window, side, device), self.table)
        return found.T.contiguous().view(1, self.heads, side**2, side**2)

    @classmethod
    def from_transformers(cls, module: Any, shift: int = 0) -> "WindowAttention":
        """From `SwinAttention`, which does not know its shift."""
        parts, table = [module.q_proj, module.k_proj, module.v_proj], module.relative_position_bias
        table = table.relative_position_bias_table
        weight = torch.cat([part.weight for part in parts])
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
        window = (isqrt(len(table)) + 1) // 2
        layer = cls(weight.shape[1], module.num_attention_heads, window, shift, bias is not None).to(weight)
        copy_into(layer.qkv, weight, bias)
        copy_into(layer.out, module.o_proj.weight, module.o_proj.bias)
        layer.table.data.copy_(table)
        return layer


class SwinBlock(Layer):
    """A pre-norm block of windows, which shrink to a smaller grid. hidden: width of the MLP. The rest is of
    `WindowAttention`, activation as for `TransformerBlock`. Raises ShapeError as `WindowAttention`, ModelError for an
    unknown activation.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        hidden: int,
        shift: int = 0,
        activation: str = "gelu",
        eps: float = 1e-5,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ModelError(f"no activation is named {activation!r}: there are {', '.join(ACTIVATIONS)}")
        self.activation = activation
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attention = WindowAttention(dim, heads, window, shift, bias, shrink=True)
        self.widen, self.narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(
        self, x: Float[Tensor, "b n c"], grid: Grid, mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b n c"]:
        """As `WindowAttention`: to a token that sees nothing the attention adds nothing."""
        check_input("x", x, self.attention.dim)
        x = x + self.attention(self.norm1(x), grid, mask)
        return x + self.narrow(ACTIVATIONS[self.activation](self.widen(self.norm2(x))))

    def weights(
        self, x: Float[Tensor, "b n c"], grid: Grid, mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b h n n"]:
        """Of the attention, (B, H, N, N)."""
        check_input("x", x, self.attention.dim)
        return self.attention.weights(self.norm1(x), grid, mask)

    @classmethod
    def from_transformers(cls, module: Any, shift: int | None = None) -> "SwinBlock":
        """From `SwinLayer`. shift: by default what the module says, which forgets it once it has seen a small grid."""
        own = WindowAttention.from_transformers(module.attention, module.shift_size if shift is None else shift)
        act, hidden = str(module.attention.config.hidden_act), module.mlp.fc1.out_features
        shape = (own.dim, own.heads, own.window, hidden, own.shift)
        block = cls(*shape, NAMES.get(act, act), module.layernorm_before.eps, own.qkv.bias is not None).to(own.table)
        block.attention.load_state_dict(own.state_dict())
        copy_into(block.norm1, module.layernorm_before.weight, module.layernorm_before.bias)
        copy_into(block.norm2, module.layernorm_after.weight, module.layernorm_after.bias)
        copy_into(block.widen, module.mlp.fc1.weight, module.mlp.fc1.bias)
        copy_into(block.narrow, module.mlp.fc2.weight, module.mlp.fc2.bias)
        return block


class PatchMerging(nn.Module, PyTorchModelHubMixin):
    """Every 2 x 2 tokens become one of twice the width; an odd grid is padded with zeros below and on the right."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(4 * dim, eps=eps)
        self.reduce = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b m e"]:
        """(B, h * w, D) -> (B, ceil(h / 2) * ceil(w / 2), 2 D). Raises ShapeError for another width or grid."""
        check_input("x", x, self.dim)
        check_grid(grid, x.shape[1])
        x = x.unflatten(1, grid)
        if grid[0] % 2 or grid[1] % 2:
            x = F.pad(x, (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, h / 2, row, w / 2, column, D)
        return self.reduce(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)))

    @classmethod
    def from_transformers(cls, module: Any) -> "PatchMerging":
        """From `SwinPatchMerging`."""
        layer = cls(module.reduction.in_features // 4, module.norm.eps).to(module.reduction.weight)
        copy_into(layer.norm, module.norm.weight, module.norm.bias)
        copy_into(layer.reduce, module.reduction.weight, None)
        return layer


def _attend_learned(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Float[Tensor, "bw h n d"]:
    """As `attend`, for the gradient of a bias, of which the CPU has no fused kernel."""
    shape, n = q.shape, q.shape[2]
    bias = bias.expand(shape[0], -1, -1, -1).reshape(-1, n, n)
    q, k, v = (part.reshape(-1, n, shape[3]) for part in (q, k, v))
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=shape[3] ** -0.5)
    return torch.bmm(scores.softmax(dim=-1), v).view(shape)
