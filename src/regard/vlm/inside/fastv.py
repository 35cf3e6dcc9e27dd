"""FastV (arXiv 2403.06764): after a layer, the image tokens that the prompt's last token attends to least are dropped.

    before layer l:    keep the image tokens of the largest mean_h softmax(q_last K' / sqrt(d)) of layer l - 1

As in the published code, what decides is the attention of the last token in layer `layer - 1`, averaged over heads
(the paper writes of the attention that a token receives on average). Tokens keep their positions, and `layer` is the
first that reads the shorter prompt. Of several images in a prompt the tokens compete with each other.
"""

import math
from dataclasses import dataclass

from regard.allocate import check_amount
from regard.errors import BudgetError, ModelError
from regard.vlm.inside.pruner import Pruner, checked_layers, share


@dataclass(frozen=True)
class FastV(Pruner):
    """keep: the fraction of a prompt's image tokens left from `layer` on (0.5 where no budget is given); or budget:
    image tokens of a prompt, averaged over all layers, at most.
    """

    keep: float | None = None
    layer: int = 2
    budget: int | None = None

    def __post_init__(self) -> None:
        check_amount(self.budget, self.keep)
        if isinstance(self.layer, bool) or not isinstance(self.layer, int):
            raise ModelError(f"FastV: layer must be a whole number, got {self.layer!r}")

    def layers(self, depth: int) -> tuple[int, ...]:
        return checked_layers("FastV", [self.layer], depth)

    def judge(self, layer: int) -> int:
        return layer - 1

    def counts(self, tokens: int, depth: int) -> tuple[int, ...]:
        if self.budget is None:
            return (share(0.5 if self.keep is None else self.keep, tokens),)
        if self.budget >= tokens:
            return (tokens,)
        whole, later = self.layer * tokens, depth - self.layer
        if self.budget * depth < whole + later:
            least = math.ceil((whole + later) / depth)
            raise BudgetError(
                f"FastV: {self.budget} tokens on average cannot be reached, as the first {self.layer} of {depth} "
                f"layers read all {tokens}: the least is {least}"
            )
        return ((self.budget * depth - whole) // later,)
