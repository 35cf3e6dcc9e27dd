"""What a computation costs, in whole numbers that add up."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one image, prompt or call. All are counts, of numbers and not of bytes.

    params: parameters. macs: multiply-accumulates of a forward pass, products of matrices and convolutions alone, as
    profilers count them; FLOPs are twice as many. backward: those of the gradients of the parameters and of the
    input. saved: numbers that a forward pass keeps for the backward pass, with attention by a fused kernel, which
    keeps no matrix of weights. peak: the most numbers that live at once in a forward pass without gradients: what an
    operation reads and makes, and what waits beside it. cache: keys, values and states kept for later tokens.
    """

    params: int = 0
    macs: int = 0
    backward: int = 0
    saved: int = 0
    peak: int = 0
    cache: int = 0

    @property
    def flops(self) -> int:
        """Twice the multiply-accumulates."""
        return 2 * self.macs

    def __add__(self, other: "Cost") -> "Cost":
        """One after the other."""
        return Cost(
            self.params + other.params,
            self.macs + other.macs,
            self.backward + other.backward,
            self.saved + other.saved,
            max(self.peak, other.peak),
            self.cache + other.cache,
        )

    def __mul__(self, times: int) -> "Cost":
        """So many alike one after the other, each with its own parameters."""
        return Cost(
            self.params * times,
            self.macs * times,
            self.backward * times,
            self.saved * times,
            self.peak if times else 0,
            self.cache * times,
        )

    def again(self, times: int) -> "Cost":
        """So many passes one after the other, through the same parameters."""
        passes = self * times
        return Cost(self.params, passes.macs, passes.backward, passes.saved, passes.peak, passes.cache)

    def batch(self, size: int) -> "Cost":
        """So many at once, through the same parameters."""
        return Cost(self.params, *(size * one for one in (self.macs, self.backward, self.saved, self.peak, self.cache)))

    def beside(self, numbers: int) -> "Cost":
        """While so many numbers wait for it, such as a residual."""
        return Cost(self.params, self.macs, self.backward, self.saved, self.peak + numbers, self.cache)

    def ungraded(self) -> "Cost":
        """With frozen parameters and an input that needs no gradient."""
        return Cost(self.params, self.macs, 0, 0, self.peak, self.cache)


def total(costs: Iterable[Cost]) -> Cost:
    """One after the other."""
    return sum(costs, Cost())
