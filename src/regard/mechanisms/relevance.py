"""Relevance realization, the fourth way: tokens where the question needs them, in one look or several."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import PIL.Image

from regard.allocate.relevance import Relevance
from regard.amount import checked_budget
from regard.cost.language import QWEN2_5_7B
from regard.eyes import Eye
from regard.eyes.embedded import EmbeddedEye
from regard.mechanisms import Seen
from regard.record import Record
from regard.recorded import PROMPT_TOKENS, boxes_of, look_of, made_by, read_picture, relevance_of
from regard.relevance.gaze import Attend, by_likeness, gaze
from regard.relevance.realizer import Realizer
from regard.relevance.tensions import States
from regard.tokens import VisualTokens


@dataclass(frozen=True)
class RelevanceRealization:
    """Allocate, attend, feed the attention back, allocate again (regard.relevance.gaze).

    eye: by default the embedded one. attends: makes what attends from the realizer and the image's tokens, by default
    the question's own words, over the tokens. looks: at most so many. One look is the allocator alone, and the default:
    the words by themselves know nothing after a look that they did not before it (docs/relevance.md has the figures).
    """

    eye: Eye = field(default_factory=EmbeddedEye)
    realizer: Realizer = field(default_factory=Realizer)
    states: States = field(default_factory=States)
    attends: Callable[[Realizer, VisualTokens], Attend] = by_likeness
    looks: int = 1

    def __call__(self, image: str | os.PathLike | bytes | PIL.Image.Image, question: str, budget: int) -> Seen:
        """Look at an image. budget: tokens to keep; more than the image has keeps all. Raises RegardError."""
        budget = checked_budget(budget)
        picture, preview = read_picture(image)
        start = time.perf_counter()
        tokens, asked = self.eye.look(picture), self.eye.ask(question)
        encoded = time.perf_counter() - start
        kept = min(budget, int(tokens.valid.sum()))
        start = time.perf_counter()
        gazed = gaze(
            self.realizer, tokens, asked, kept, self.attends(self.realizer, tokens), self.states, most=self.looks
        )
        seconds = time.perf_counter() - start
        allocator = Relevance(*(self.states.scope, self.states.tempering, self.states.prioritization), self.realizer)
        last = int(gazed.count[0]) - 1
        why = gazed.looks[last].record(self.realizer.transjectivity(tokens, asked), self.states.fixed)
        path = tuple((round(x, 4), round(y, 4)) for x, y in gazed.fixations[0, :last].tolist())
        look = look_of(
            tokens,
            asked,
            gazed.allocation,
            number=0,
            name="relevance",
            allocator=allocator,
            budget=budget,
            seconds=seconds,
            model=QWEN2_5_7B,
            prompt_tokens=PROMPT_TOKENS,
            why=replace(why, fixations=path),
        )
        record = Record(
            picture=preview,
            eye=self.eye.name,
            questions=(question,),
            boxes=boxes_of(tokens),
            relevance=relevance_of(tokens, [asked]),
            grid=tokens.grid,
            looks=(look,),
            language_model=QWEN2_5_7B.name,
            prompt_tokens=PROMPT_TOKENS,
            seconds={"encode": round(encoded, 4)},
            made=made_by(0),
        )
        return Seen(gazed.allocation.apply(tokens), "prompt", record)
