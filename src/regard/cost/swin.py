"""The Swin Transformer (arXiv 2103.14030): attention in windows, on grids that halve from stage to stage."""

from dataclasses import dataclass

from regard.cost.counted import Cost, total
from regard.cost.layers import mlp, pre_norm
from regard.cost.parts import attention, linear, norm, parameters, patches

Grid = tuple[int, int]


def window_attention(grid: Grid, dim: int, heads: int, window: int, bias: bool = True, shifted: bool = False) -> Cost:
    """WindowAttention. A grid that windows do not divide is padded to one they do, and the padding computed; a window
    that is larger than the grid shrinks to its shorter side. shifted: each window then has biases of its own.
    """
    side = min(window, *grid)
    windows = -(-grid[0] // side) * -(-grid[1] // side)
    n, inside = grid[0] * grid[1], windows * side**2
    biases = (windows if shifted and min(grid) > window else 1) * heads * side**4
    read = linear(inside, dim, 3 * dim, bias)
    attended = attention(side**2, side**2, heads, dim // heads).batch(windows).beside(biases)
    attended += Cost(saved=inside * dim + biases)  # out of the windows is a copy
    out = linear(n, dim, dim).beside(3 * inside * dim + biases)
    return read + parameters((2 * window - 1) ** 2 * heads) + (attended + out).beside((n + inside) * dim)


def swin_block(
    grid: Grid, dim: int, heads: int, window: int, hidden: int, bias: bool = True, shifted: bool = False
) -> Cost:
    """SwinBlock, pre-norm; a shift costs memory alone."""
    n = grid[0] * grid[1]
    return pre_norm(n, dim, window_attention(grid, dim, heads, window, bias, shifted), mlp(n, dim, hidden))


def patch_merging(grid: Grid, dim: int) -> Cost:
    """PatchMerging: 2 x 2 tokens to one of twice the width; an odd side is padded."""
    n = -(-grid[0] // 2) * -(-grid[1] // 2)
    return (norm(n, 4 * dim) + linear(n, 4 * dim, 2 * dim, bias=False)).beside(grid[0] * grid[1] * dim)


@dataclass(frozen=True)
class Swin:
    """SwinTransformer. classes: of a linear head on the mean of the tokens, 0 for none."""

    dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    classes: int = 1000
    patch: int = 4
    mlp_ratio: int = 4
    channels: int = 3

    def tokens(self, side: int) -> int:
        """After the last stage."""
        last = side // self.patch
        for _ in self.depths[1:]:
            last = -(-last // 2)
        return last**2

    def cost(self, side: int) -> Cost:
        """side: pixels, which patches divide."""
        grid, dim = (side // self.patch, side // self.patch), self.dim
        n = grid[0] * grid[1]
        parts = [patches(n, self.channels, dim, self.patch), norm(n, dim)]
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if stage:
                parts.append(patch_merging(grid, dim))
                grid, dim = (-(-grid[0] // 2), -(-grid[1] // 2)), 2 * dim
            sizes = (grid, dim, heads, self.window, self.mlp_ratio * dim)
            parts += [swin_block(*sizes) * (depth - depth // 2), swin_block(*sizes, shifted=True) * (depth // 2)]
        parts.append(norm(grid[0] * grid[1], dim))
        cost = total(parts) + (linear(1, dim, self.classes) if self.classes else Cost())
        return cost.beside(self.channels * side**2)
