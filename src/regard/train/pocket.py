"""The pocket model's recipe: one decoder and all its bridges, trained together, each step through another mechanism.

A step draws a mechanism and a budget, and questions about scenes of one size; the loss is that of the answers' words.
So all mechanisms have the same reader, the same data and as many steps in expectation, and none an adapted decoder.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Bool
from torch import Tensor

from regard.allocation import Allocation
from regard.tokens import Question, VisualTokens
from regard.train.checkpoint import Checkpoint
from regard.train.loop import Recipe, Tell, fit, settings, silent
from regard.vlm.bridges import ALL
from regard.vlm.bridges.projector import Projector
from regard.vlm.compose import VLM
from regard.vlm.interleaved import IMAGE, UNLEARNED, interleaved
from regard.vlm.pocket import MECHANISMS, Pocket

BUDGETS = (16, 32, 64, 128)
SHARES = {ALL: 0.5, "recurrent": 0.5}  # of the draws that another mechanism gets
_FEWER = 4  # times smaller batches of all tokens


class Batch(Protocol):
    """Questions about scenes of one grid."""

    @property
    def tokens(self) -> VisualTokens: ...

    @property
    def question(self) -> Question: ...

    @property
    def asks(self) -> list[str]: ...

    @property
    def answers(self) -> list[str]: ...


class Scenes(Protocol):
    """What is learned from."""

    def sides(self) -> list[list[tuple[int, int]]]:
        """For each size of grid, the places of all questions: scene and question."""
        ...

    def batch(self, places: Sequence[tuple[int, int]]) -> Batch: ...

    def digest(self) -> str:
        """Of all that is learned from."""
        ...

    def kept(self, places: Sequence[tuple[int, int]], budget: int) -> Tensor:
        """The groups (B, N) that `relevance` makes of these, as of `Allocation.merge`."""
        ...


class Kept:
    """An allocator whose decisions were made before: it gives those of the batch at hand."""

    def __init__(self) -> None:
        self.groups = torch.empty(0, 0, dtype=torch.long)

    def allocate(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        """As it was decided."""
        return Allocation.merge(self.groups, budget, boxes=tokens.boxes)


def train(words: Iterable[str], scenes: Scenes, recipe: Recipe, folder: Path, tell: Tell = silent) -> Pocket:
    """Train the pocket model, or go on. recipe.batch: questions of a step. Raises as `fit`."""
    torch.manual_seed(recipe.seed)
    words = list(words)
    model = Pocket(words)
    vlms, kept = {name: model.vlm(name) for name in MECHANISMS}, Kept()
    realizing = vlms["relevance"].bridge
    assert isinstance(realizing, Projector)
    realizing.allocator = kept  # pyright: ignore[reportAttributeAccessIssue]
    sides = scenes.sides()
    sizes = torch.tensor([float(len(side)) for side in sides])
    shares = torch.tensor([SHARES.get(name, 1.0) for name in MECHANISMS])

    def step(index: Tensor, generator: torch.Generator, done: float) -> tuple[Tensor, Tensor]:
        name = MECHANISMS[int(shares.multinomial(1, generator=generator))]
        budget = BUDGETS[int(torch.randint(len(BUDGETS), (), generator=generator))]
        side = sides[int(sizes.multinomial(1, generator=generator))]
        count = max(1, len(index) // (_FEWER if name == ALL else 1))
        places = [side[i] for i in torch.randint(len(side), (count,), generator=generator).tolist()]
        if name == "relevance":
            kept.groups = scenes.kept(places, budget)
        batch = scenes.batch(places)
        loss, right = taught(vlms[name], batch, budget)
        return loss, right.double().mean() * len(index)

    about = Checkpoint("pocket", {"words": words}, settings(recipe, scenes=scenes.digest()), [])
    fit(model, step, sum(map(len, sides)), recipe, folder, about, tell)
    return model


def taught(vlm: VLM, batch: Batch, budget: int | None) -> tuple[Tensor, Bool[Tensor, " b"]]:
    """The loss of the answers' words, and which answers the model would give by itself, word for word to the end."""
    prompts = interleaved(vlm.tokenizer, [IMAGE + ask for ask in batch.asks], [1] * len(batch.asks), batch.answers)
    output: Any = vlm(prompts, batch.tokens, batch.question, budget)
    keep = output.logits.shape[1]
    labels = prompts.labels[:, -keep:][:, 1:]
    right = (output.logits[:, :-1].argmax(dim=2) == labels) | (labels == UNLEARNED)
    return output.loss, right.all(dim=1)
