"""Tokens about a gaze (arXiv 2507.15833), as `regard.mechanisms.gaze` makes them."""

from dataclasses import dataclass

from regard.cost.asked import Asked, Facts


@dataclass(frozen=True)
class GazeTokens:
    """Square levels about a gaze, each `grids` tokens of a side, `strides` times as coarse; none reads what a finer one
    covers. Tokens alone: for a network that reads them, see the mechanism `gaze`.
    """

    strides: tuple[int, ...] = (1, 2, 6)
    grids: tuple[int, ...] = (2, 3, 3)

    applies = frozenset()

    @property
    def count(self) -> int:
        """How many tokens all levels have together."""
        sides = [stride * grid for stride, grid in zip(self.strides, self.grids, strict=True)]
        covered = [0, *(side // stride for side, stride in zip(sides, self.strides[1:], strict=False))]
        return sum(grid**2 - inner**2 for grid, inner in zip(self.grids, covered, strict=True))

    @property
    def uniform(self) -> int:
        """Tokens of the finest level's size that would read the whole square."""
        return (self.strides[-1] * self.grids[-1] // self.strides[0]) ** 2

    def facts(self, asked: Asked) -> Facts:
        """Its tokens, beside those of an image that is read evenly."""
        facts = Facts(notes=[f"{self.count} tokens about a gaze where {self.uniform} would read all"])
        facts.add("visual_tokens", self.count, "tokens")
        facts.add("uniform_tokens", self.uniform, "tokens")
        return facts
