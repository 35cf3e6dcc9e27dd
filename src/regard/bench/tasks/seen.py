"""Asked scenes as the pocket eye sees them: what was encoded (`encoded`), in the space of its `Grounding` too.

That is added when files are read, so that it can be learned from them.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from regard.bench.tasks.asked.wording import named
from regard.bench.tasks.asked.wording import tokens as tokens_of
from regard.bench.tasks.encoded import Encoded, Eye, basis_of, encoded, pairs_of
from regard.bench.tasks.fetching import Told
from regard.eyes.grounding import Grounding
from regard.tokens import Question, VisualTokens, grid_boxes
from regard.train.checkpoint import digest
from regard.train.pocket import NAMED
from regard.train.words import Things

_OF_OTHERS = ("what", "next", "missing")  # kinds whose question names another thing than the answer's
_MOSTLY = 0.4  # of a token, that a thing fills


class Sight(NamedTuple):
    """A scene as an eye saw it. features: (N, D) and aligned: (N, E), on a grid of side x side. questions: (Q, E).
    covered, answered: (Q, N), kinds, asks, answers: as `Encoded`. All float16, but for questions.
    """

    side: int
    features: Tensor
    aligned: Tensor
    questions: Tensor
    covered: Tensor
    answered: Tensor
    kinds: list[str]
    asks: list[str]
    answers: list[str]


@dataclass(frozen=True, eq=False)
class Batch:
    """Questions about scenes of one grid. tokens: of each question's scene; covered, answered: (B, N), as `Encoded`."""

    tokens: VisualTokens
    question: Question
    covered: Float[Tensor, "b n"]
    answered: Float[Tensor, "b n"]
    kinds: list[str]
    asks: list[str]
    answers: list[str]


@dataclass(frozen=True, eq=False)
class Sights:
    """Scenes of a split, by their grids. reference: (M, E), of all questions."""

    scenes: tuple[Sight, ...]
    reference: Float[Tensor, "m e"]

    def batch(self, places: Sequence[tuple[int, int]]) -> Batch:
        """places: scene and question of each; scenes of one grid."""
        several = [self.scenes[scene] for scene, _ in places]
        side = several[0].side
        tokens = VisualTokens.from_grid(
            torch.stack([one.features for one in several]).float(),
            (side, side),
            aligned=torch.stack([one.aligned for one in several]).float(),
        )

        def of(name: str) -> list[Any]:
            return [getattr(one, name)[turn] for one, (_, turn) in zip(several, places, strict=True)]

        asks, covered, answered = (torch.stack(of(name)).float() for name in ("questions", "covered", "answered"))
        question = Question(asks[:, None], reference=self.reference)
        return Batch(tokens, question, covered, answered, of("kinds"), of("asks"), of("answers"))

    def sides(self, *kinds: str) -> list[list[tuple[int, int]]]:
        """For each size of grid, smallest first, the places of all questions, or of those kinds: scene and question."""
        by: dict[int, list[tuple[int, int]]] = {}
        for place, scene in enumerate(self.scenes):
            turns = [turn for turn, kind in enumerate(scene.kinds) if not kinds or kind in kinds]
            by.setdefault(scene.side, []).extend((place, turn) for turn in turns)
        return [by[side] for side in sorted(by)]

    def things(self) -> Things:
        """The tokens that are mostly of what an answer is about, and its names, colours and words."""
        features, boxes, said = [], [], []
        for scene in self.scenes:
            for turn, kind in enumerate(scene.kinds):
                words = [] if kind in _OF_OTHERS else named(scene.asks[turn])
                words += tokens_of(scene.answers[turn]) if kind in NAMED else []
                there = (scene.answered[turn] > _MOSTLY).nonzero()[:, 0]
                if words:
                    features.append(scene.features[there])
                    boxes.append(cells(scene.side)[there])
                    said += [" ".join(words)] * len(there)
        return Things(torch.cat(features).float(), torch.cat(boxes), said)

    def texts(self, kind: str) -> list[tuple[str, str]]:
        """The questions of a kind and their answers."""
        return [
            (ask, answer)
            for scene in self.scenes
            for of, ask, answer in zip(scene.kinds, scene.asks, scene.answers, strict=True)
            if of == kind
        ]

    def digest(self) -> str:
        """Of all that is learned from: what was asked and answered, and what the eye saw and heard."""
        return digest((*(part for scene in self.scenes for part in scene), self.reference))


def seen(eye: Eye, split: str, indices: range, folder: Path, told: Told | None = None) -> Sights:
    """Scenes of a split, encoded where the folder has them not, 50 at once. Raises DataError."""
    whole = encoded(eye, split, indices, folder, told)
    exact = deepcopy(eye.grounding).double()  # so that what is rounded is the same however many threads there are
    return Sights(tuple(_grounded(exact, one) for one in whole), _reference(eye, exact, pairs_of(split)[1]))


@torch.no_grad()
def _grounded(grounding: Grounding, one: Encoded) -> Sight:
    """What the eye's grounding makes of it beside the classes."""
    found = grounding.tokens(one.features[None].double(), cells(one.side)[None])[0]
    asked_for = grounding.questions(one.heard.double()).float()
    aligned, questions = torch.cat((one.classes, found.half()), dim=1), torch.cat((one.questions, asked_for), dim=1)
    return Sight(
        one.side, one.features, aligned, questions, one.covered, one.answered, one.kinds, one.asks, one.answers
    )


@cache
def cells(side: int) -> Float[Tensor, "n 4"]:
    """The boxes of a grid of side x side."""
    return grid_boxes(*[torch.linspace(0, 1, side + 1)] * 2)[0]


@torch.no_grad()
def _reference(eye: Eye, grounding: Grounding, most: int) -> Float[Tensor, "m f"]:
    """The reference questions in the space of `Sight.aligned`."""
    compact = (eye.classes_of(eye.reference).double() @ basis_of(eye)).tril().float()  # as R of QR; above is rounding
    asked_for = grounding.questions(eye.reference.double()).float()
    return torch.cat((torch.nn.functional.pad(compact, (0, most + 1)), asked_for), dim=1)
