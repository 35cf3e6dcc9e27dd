"""ConvNeXt (arXiv 2201.03545): depthwise convolutions in the place of attention."""

from dataclasses import dataclass

from regard.cost.counted import Cost, total
from regard.cost.layers import mlp
from regard.cost.parts import convolution, linear, norm, patches


def convnext_block(grid: tuple[int, int], dim: int, hidden: int | None = None, kernel: int = 7) -> Cost:
    """ConvNeXtBlock with layer scale. (torch's counter takes the gradient of a depthwise kernel for a dense one's.)"""
    n, hidden = grid[0] * grid[1], 4 * dim if hidden is None else hidden
    read = convolution(n, dim, dim, kernel, groups=dim) + norm(n, dim) + mlp(n, dim, hidden)
    return read.beside(n * dim) + Cost(dim, saved=n * dim)


@dataclass(frozen=True)
class ConvNeXt:
    """classes: of a linear head on the mean of the last cells, 0 for none. It pools by stride 4, then 2 a stage."""

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    classes: int = 1000
    channels: int = 3

    @property
    def patch(self) -> int:
        """Pixels of a side that make one cell of the last stage."""
        return 4 * 2 ** (len(self.dims) - 1)

    def tokens(self, side: int) -> int:
        """After the last stage."""
        return (side // self.patch) ** 2

    def cost(self, side: int) -> Cost:
        """side: pixels, a multiple of 32."""
        grid = side // 4
        parts = [patches(grid**2, self.channels, self.dims[0], 4), norm(grid**2, self.dims[0])]
        for stage, (dim, depth) in enumerate(zip(self.dims, self.depths, strict=True)):
            if stage:
                before, grid = grid**2, grid // 2
                parts += [norm(before, self.dims[stage - 1])]
                parts += [convolution(grid**2, self.dims[stage - 1], dim, 2, before=before)]
            parts.append(convnext_block((grid, grid), dim) * depth)
        parts.append(norm(1, self.dims[-1]))
        return total(parts) + (linear(1, self.dims[-1], self.classes) if self.classes else Cost())
