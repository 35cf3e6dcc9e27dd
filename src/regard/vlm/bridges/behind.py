"""A mechanism behind a projector: what makes tokens of its own reads what the projector makes of each of the eye's.

    out = then(projector(x))

So what one projector has learned serves several mechanisms; and where it is `hearing`, queries, glimpses and cascades
are told of the question as much as what selects tokens, as InstructBLIP's Q-Former is (arXiv 2305.06500).
"""

from dataclasses import replace

from regard.tokens import Question, VisualTokens
from regard.vlm.bridges.bridge import Bridge, Bridged
from regard.vlm.bridges.projector import Projector


class Behind(Bridge):
    """projector: of all tokens, whatever the budget. then: from what it makes to the language model."""

    name = "behind"
    ragged = True  # as `then` itself is asked for each image's amount

    def __init__(self, projector: Projector, then: Bridge) -> None:
        super().__init__(projector.width, then.dim)
        self.projector, self.then = projector, then
        self.most, self.hears = then.most, projector.hears or then.hears

    def bridged(self, tokens: VisualTokens, question: Question | None, budget: int) -> Bridged:
        projected = self.projector.bridged(tokens, question, tokens.features.shape[1]).features
        return self.then(replace(tokens, features=projected), question, budget)
