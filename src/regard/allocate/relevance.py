"""Relevance realization at grid scale: regions of one token, four or sixteen, as fine as the question needs them.

    y_k = mean of x_i over region k,    regions: the first K - 1 cuts of a quadtree, by falling worth
    worth of a cut = (1 - scope) what it compresses + scope what it recovers,    tokens weighed by w_i
    w_i = (1 - prioritization) ((1 - tempering) r_i + tempering e_i) + prioritization v_i

Three ways of knowing make a field, three tensions weigh it, and the budget cuts a quadtree where cutting is worth most
(regard.relevance, docs/relevance.md). With no question the relevance is the image's alone.
"""

from dataclasses import dataclass, field

import torch

from regard.allocate._base import Allocator, Explains
from regard.allocation import Allocation
from regard.errors import DataError
from regard.record import Realization
from regard.relevance.realized import Realized
from regard.relevance.realizer import Realizer
from regard.relevance.tensions import State, States
from regard.tokens import Question, VisualTokens


@dataclass(frozen=True)
class Relevance(Allocator, Explains):
    """Average the tokens of regions that are small where the question needs detail.

    scope: 0 compress .. 1 particularize. tempering: 0 exploit .. 1 explore. prioritization: 0 focus .. 1 diversify.
    Each is a number, or "auto": what the scene, the question and the budget drive it to. realizer: a trained one.
    """

    needs = ("grid",)
    uses = ("question",)
    scope: State = "auto"
    tempering: State = "auto"
    prioritization: State = "auto"
    realizer: Realizer = field(default_factory=Realizer, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._states()

    def decide(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        return self._realized(tokens, question, budget).allocation

    def explain(self, tokens: VisualTokens, question: Question | None, budget: int) -> Realization:
        shared = self.realizer.transjectivity(tokens, question)
        return self._realized(tokens, question, budget).record(shared, self._states().fixed)

    def _states(self) -> States:
        return States(self.scope, self.tempering, self.prioritization)

    @torch.no_grad()
    def _realized(self, tokens: VisualTokens, question: Question | None, budget: int) -> Realized:
        self.check_finite("features", tokens.features, tokens.valid)
        if question is not None and tokens.aligned is not None:
            self.check_finite("aligned", tokens.aligned, tokens.valid)
        if question is not None:
            finite = question.features.isfinite().all(dim=2)
            if not bool((finite if question.mask is None else finite | ~question.mask).all()):
                raise DataError(f"{self.name}: the question is not finite: mend or mask its words")
        return self.realizer(tokens, question, budget, self._states())
