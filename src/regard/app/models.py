"""The models of the app, each loaded once for all users, and their answers, one at a time."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor

from regard.allocation import Allocation
from regard.app.looks import spent
from regard.app.sight import Heard, Sight
from regard.eyes.pocket import PocketEye
from regard.record import Answer
from regard.relevance.gaze import by_likeness, gaze
from regard.relevance.tensions import States
from regard.tokens import Question, VisualTokens
from regard.vlm.ask import Asked, ask
from regard.vlm.bridges import ALL
from regard.vlm.compose import VLM
from regard.vlm.pocket import MECHANISMS, SELECTING, Pocket, pocket
from regard.vlm.pocket_ask import answered, notes_on
from regard.vlm.processors import load_model, load_processor

LONGEST_ANSWER = 32  # tokens, of a model of Hugging Face


@dataclass(frozen=True, eq=False)
class Looked:
    """One mechanism. spent: (N,), tokens that look at each of the eye's. answer: where it goes on to the decoder. path:
    fixations, x and y in [0, 1].
    """

    name: str
    spent: Tensor
    answer: Answer | None = None
    path: tuple[tuple[float, float], ...] = ()


class Models:
    """The pocket model and at most one of Hugging Face, the last that was asked."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._loading = threading.Lock()
        self._other: tuple[str, Any, Any] | None = None

    @property
    def pocket(self) -> Pocket:
        """The model that comes with the package. Raises ModelError where it is not whole."""
        with self._loading:
            return pocket()

    @property
    def eye(self) -> PocketEye:
        """The pocket model's."""
        return self.pocket.eye

    def of_pocket(self, heard: Heard, names: Sequence[str], budget: int, states: States) -> list[Answer]:
        """The pocket model's answers, with all tokens and through each of the allocators that it was trained with."""
        through = [ALL, *(name for name in dict.fromkeys(names) if name in MECHANISMS)]
        return [self._through(heard, name, budget, states)[0] for name in through]

    def notes(self, question: str) -> tuple[str, ...]:
        """What to know about the pocket model's answer to a question."""
        return notes_on(self.pocket, question)

    def mechanisms(self, heard: Heard, budget: int) -> Iterator[Looked]:
        """What each mechanism of the pocket model looks at, and its answer; and relevance in several looks."""
        for name in MECHANISMS:
            answer, bridged = self._through(heard, name, budget, States())
            yield Looked(answer.allocator or "all tokens", bridged.reading.spent()[0], answer)
        tokens, kept = heard.sight.tokens, min(budget, heard.sight.count)
        gazed = gaze(heard.realizer, tokens, heard.question, kept, by_likeness(heard.realizer, tokens))
        path = [(x, y) for x, y in gazed.fixations[0, : int(gazed.count[0]) - 1].tolist()]
        yield Looked("relevance, looking again", gazed.allocation.spent()[0], path=tuple(path))

    def _through(self, heard: Heard, name: str, budget: int, states: States) -> tuple[Answer, Any]:
        sight, vlm = heard.sight, _vlm(self.pocket, name)
        bridge: Any = vlm.bridge
        decided = spent(heard, name, budget, states) if name in SELECTING[1:] else None
        with self._one_at_a_time:
            if decided is not None:
                bridge.allocator = Decided(decided.allocation)
            answer, bridged = answered(vlm, name, sight.tokens, heard.question, heard.text, budget, sight.seconds)
        if decided is not None:
            answer.seconds["decide"] += decided.seconds
        return answer, bridged

    def of_other(
        self, name: str, sight: Sight, question: str, names: Sequence[str], budget: int, states: States
    ) -> Asked:
        """A Hugging Face model's answers, with all of its tokens and through each allocator. Raises RegardError."""
        with self._one_at_a_time:
            if self._other is None or self._other[0] != name:
                self._other = None  # its memory is needed
                self._other = (name, load_model(name), load_processor(name))
            _, model, processor = self._other
            way = {"budget": budget, "compare": tuple(dict.fromkeys(names)), "states": states}
            return ask(model, processor, sight.image, question, **way, max_new_tokens=LONGEST_ANSWER, rounds=1)


class Decided(NamedTuple):
    """In an allocator's place, what it has decided of the question already."""

    allocation: Allocation

    def allocate(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        """The decision."""
        return self.allocation


@cache
def _vlm(model: Pocket, name: str) -> VLM:
    return model.vlm(name).eval()
