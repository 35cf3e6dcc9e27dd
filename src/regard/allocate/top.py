"""The tokens nearest to the question: the highest inner products with it, averaged over the question's tokens.

    S = the K tokens of the largest r_i,    r_i = mean_t x_i' q_t

How alike the kept tokens are does not count, so a large thing may get all of them.
"""

from dataclasses import dataclass

from regard.allocate._base import Allocator, top_slots
from regard.allocation import Allocation
from regard.tokens import Question, VisualTokens


@dataclass(frozen=True)
class Top(Allocator):
    """Keep the `budget` tokens most relevant to the question."""

    needs = ("question",)

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        assert question is not None
        relevance = tokens.relevance(question)
        self.check_finite("relevance", relevance, tokens.valid)
        return Allocation.select(top_slots(relevance, tokens.valid, budget), relevance.shape[1])
