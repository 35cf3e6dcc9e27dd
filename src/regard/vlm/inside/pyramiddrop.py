"""PyramidDrop (arXiv 2410.17247): a share of the image tokens is dropped at each of several depths.

    before each layer l of the stages:    keep a share of the image tokens by mean_h softmax(q_last K' / sqrt(d)) at l

As in the published code, what decides at a layer is the attention that the prompt's last token would pay there: that
layer's norm and projections, averaged over heads, before anything is dropped for it. By default half of the tokens go
at 1/4, 1/2 and 3/4 of the depth (layers 8, 16 and 24 of 32). Here tokens keep their positions (the published code
numbers them anew) and a share is rounded (the published code cuts it off).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from regard.allocate import check_amount
from regard.errors import BudgetError, ModelError
from regard.vlm.inside.pruner import Pruner, checked_layers, share, spread

HALVINGS = 40


@dataclass(frozen=True)
class PyramidDrop(Pruner):
    """keep: the fraction left of the stage before (0.5 where no budget is given); or budget: image tokens of a prompt,
    averaged over all layers, at most. layers_at: the first layer of each stage, a share of the depth where under 1.
    """

    keep: float | None = None
    layers_at: Sequence[float] = (0.25, 0.5, 0.75)
    budget: int | None = None

    def __post_init__(self) -> None:
        check_amount(self.budget, self.keep)
        object.__setattr__(self, "layers_at", tuple(self.layers_at))
        if any(isinstance(at, bool) or at <= 0 or (at >= 1 and at != int(at)) for at in self.layers_at):
            raise ModelError(f"PyramidDrop: layers_at must be layers or shares of the depth, got {self.layers_at}")

    def layers(self, depth: int) -> tuple[int, ...]:
        return checked_layers("PyramidDrop", [int(at * depth if at < 1 else at) for at in self.layers_at], depth)

    def judge(self, layer: int) -> int:
        return layer

    def counts(self, tokens: int, depth: int) -> tuple[int, ...]:
        if self.budget is None:
            return self._shares(0.5 if self.keep is None else self.keep, tokens)
        return self._within(self.budget, tokens, depth)

    def _shares(self, keep: float, tokens: int) -> tuple[int, ...]:
        return tuple(share(keep**stage, tokens) for stage in range(1, len(self.layers_at) + 1))

    def _within(self, budget: int, tokens: int, depth: int) -> tuple[int, ...]:
        """The counts of the largest fraction whose average over layers is no more than the budget."""
        if budget >= tokens:
            return self._shares(1.0, tokens)
        layers = self.layers(depth)

        def total(keep: float) -> int:
            return sum(spread(tokens, list(zip(layers, self._shares(keep, tokens), strict=True)), depth))

        low, high = 0.0, 1.0
        if total(low) > budget * depth:
            raise BudgetError(
                f"PyramidDrop: {budget} tokens on average cannot be reached, as the first {layers[0]} of {depth} "
                f"layers read all {tokens}: the least is {-(-total(low) // depth)}"
            )
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if total(middle) <= budget * depth else (low, middle)
        return self._shares(low, tokens)
