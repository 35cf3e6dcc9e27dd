"""Peripheral attention (PerViT, Min et al., arXiv 2206.06801): content and a learned peripheral region, multiplied.

    A_ij = sigmoid(P_ij) exp(q_i k_j' / sqrt(d)) / sum_j(...),    y = A V W_o
    P_i  = GN(conv(relu(GN(conv(R_i))))),    R_ij = |x_j - x_i| w + b

P holds one map of the keys for each query and head: the distance of every key, in 4 H channels, through two 3 x 3
convolutions without padding (the grid is widened by 2 on each side before them) and norms of each map and channel.

P does not depend on the input. Ours takes its first convolution once for all queries, on the map of all offsets, of
which each query's is a window; keeps it while nothing is trained; and leaves the product to the fused kernel, as a
bias, since sigmoid(P) exp(s) = exp(s + log sigmoid(P)). So a row sums to 1 even where the published one falls under its
1e-12. The projection of distances is the layer's own (published: shared by all layers), and grids need not be square:
both sides have the same step, the longer spans [-1, 1].
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.attention._base import Layer, attend, attention_weights, check_input, checked_mask, heads_of, joined
from regard.errors import ShapeError

CHANNELS = 4  # of distances, for each head


class PeripheralAttention(Layer):
    """`layer(x)`: (B, N, D) in and out, N = h w tokens of a grid (h, w), in raster order.

    spread, strength: at what the last norm's shift and scale begin, the size of the region seen and how sharp it is; in
    the paper's model they go from -5 to 4 and from 3 to 0.01 over the layers. Raises ShapeError where the heads do not
    divide dim or for a grid that is not two whole numbers of at least 1.
    """

    def __init__(self, dim: int, heads: int, grid: Sequence[int], spread: float = -5.0, strength: float = 3.0) -> None:
        super().__init__()
        heads_of(dim, heads)
        if len(grid) != 2 or any(not isinstance(side, int) or side < 1 for side in grid):
            raise ShapeError(f"grid must be two whole numbers of at least 1, got {grid}")
        self.dim, self.heads, self.grid = dim, heads, (grid[0], grid[1])
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        wide = CHANNELS * heads
        self.periphery: Any = nn.ModuleDict(
            {
                "distance": nn.Linear(1, wide),
                "conv1": nn.Conv2d(wide, wide, 3),
                "norm1": nn.GroupNorm(wide, wide),
                "conv2": nn.Conv2d(wide, heads, 3),
                "norm2": nn.GroupNorm(heads, heads),
            }
        )
        starts = {"distance.weight": -0.02, "conv1.weight": 0.02, "conv2.weight": 0.02, "norm1.weight": 1.0}
        starts |= {"norm2.weight": strength, "norm2.bias": spread}
        for name, parameter in self.periphery.named_parameters():
            nn.init.constant_(parameter, starts.get(name, 0.0))
        self._kept: tuple[list[Tensor], list[int], bool, Tensor] | None = None

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "..."] | None = None) -> Float[Tensor, "b n d"]:
        """x: (B, N, D), N of the grid. mask: (B, N) or (B, N, N), True = may be seen; a row that sees nothing is 0."""
        q, k, v, seen = self._projected(x, mask)
        y = self.out(joined(attend(q, k, v, seen, self._bias())))
        return y if seen is None else y.masked_fill(~seen.any(dim=-1)[:, 0, :, None], 0)

    def weights(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "..."] | None = None) -> Float[Tensor, "b h n n"]:
        """(B, H, N, N), rows that sum to 1, or to 0 where nothing is seen."""
        q, k, _, seen = self._projected(x, mask)
        return attention_weights(q, k, seen, self._bias())

    def position(self) -> Float[Tensor, "h n n"]:
        """sigmoid(P), (H, N, N), of the parameters as they are: how much of each key each query's region lets in."""
        return self._peripheral().sigmoid()

    def train(self, mode: bool = True) -> "PeripheralAttention":
        """As of any module; what was kept of the positions is dropped."""
        self._kept = None
        return super().train(mode)

    def _projected(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        check_input("x", x, self.dim)
        count = x.shape[1]
        if count != self.grid[0] * self.grid[1]:
            raise ShapeError(f"x must have the {self.grid[0]} x {self.grid[1]} tokens of the grid, got {count}")
        seen = checked_mask(mask, len(x), count, count)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v, seen

    def _bias(self) -> Float[Tensor, "1 h n n"]:
        """Log sigmoid(P). Kept in evaluation where no gradient reaches it, until a parameter is replaced or written to.

        Whether one was is known by its memory and its version, which every write but one through `.data` counts up:
        after such a write, `eval()` drops what was kept. What is compiled keeps nothing.
        """
        parameters = list(self.periphery.parameters())
        learning = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        if self.training or learning or torch.compiler.is_compiling() or any(p.is_inference() for p in parameters):
            return F.logsigmoid(self._peripheral())[None]
        inference, kept = torch.is_inference_mode_enabled(), self._kept
        if kept is None or kept[2] != inference or not _unchanged(parameters, kept[0], kept[1]):
            with torch.no_grad():
                bias = F.logsigmoid(self._peripheral())[None]
            # held, so that no other parameter can come to lie at their address
            kept = ([p.detach() for p in parameters], [p._version for p in parameters], inference, bias)
            self._kept = kept
        return kept[3]

    def _peripheral(self) -> Float[Tensor, "h n n"]:
        distance, conv1, norm1, conv2, norm2 = self.periphery.values()
        h, w = self.grid
        step, like = 2 / max(h - 1, w - 1, 1), distance.weight
        rows, columns = (
            torch.arange(-side - 1, side + 2, device=like.device, dtype=like.dtype) * step for side in (h, w)
        )
        offsets = (rows[:, None] ** 2 + columns**2).sqrt()[..., None]  # of a key from a query, (2h + 3, 2w + 3)
        every = conv1(distance(offsets).permute(2, 0, 1)[None])[0]
        # the window of query i begins at h - 1 - i
        windows = every.unfold(1, h + 2, 1).unfold(2, w + 2, 1).flip(1, 2)
        maps = windows.permute(1, 2, 0, 3, 4).flatten(0, 1)  # (N, 4 H, h + 2, w + 2)
        maps = conv2(F.relu(_normed(maps, norm1)))
        return _normed(maps, norm2).flatten(2).transpose(0, 1)


def _normed(maps: Tensor, norm: nn.GroupNorm) -> Tensor:
    """The norm of each map and channel; of a single value too, which becomes the shift."""
    return torch.group_norm(maps, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _unchanged(parameters: list[nn.Parameter], kept: list[Tensor], versions: list[int]) -> bool:
    return all(
        p.data_ptr() == old.data_ptr() and p._version == version and p.dtype == old.dtype and p.device == old.device
        for p, old, version in zip(parameters, kept, versions, strict=True)
    )
