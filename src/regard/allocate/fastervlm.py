"""FasterVLM (arXiv 2412.01818): the tokens that the encoder's own [CLS] token attends to most, in their own order.

    S = the K tokens of the largest a_i,    a_i the attention that token i receives

As the authors' code does it. There is nothing else to it: `scores["attention"]` is the whole rule, so an eye without a
[CLS] token should give the mean attention that each token receives. Equal scores go to the lower slot, where the
original leaves the choice to `topk`.
"""

from dataclasses import dataclass

from regard.allocate._base import Allocator, top_slots
from regard.allocation import Allocation
from regard.tokens import Question, VisualTokens


@dataclass(frozen=True)
class FasterVLM(Allocator):
    """Keep the `budget` tokens that receive the most attention."""

    needs = ("scores:attention",)

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        attention = self.clean("scores:attention", tokens.scores["attention"], tokens.valid)
        return Allocation.select(top_slots(attention, tokens.valid, budget), attention.shape[1])
