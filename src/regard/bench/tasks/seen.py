"""Asked scenes as the pocket eye sees them: what was encoded (`encoded`), in the space of its `Grounding` too.

That is added when files are read, so that it can be learned from them; what relevance decides is kept beside them.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from regard.bench.tasks.asked.wording import taken
from regard.bench.tasks.asked.wording import tokens as tokens_of
from regard.bench.tasks.encoded import CHUNK, FIELDS, MOST, Encoded, Eye, basis_of, encoded
from regard.bench.tasks.fetching import Told
from regard.errors import DataError
from regard.files import write_whole
from regard.reading import Grouped
from regard.relevance.realizer import Realizer
from regard.tokens import Question, VisualTokens, grid_boxes
from regard.train.pocket import BUDGETS, NAMED, Things

_OF_OTHERS = ("what", "next", "missing")  # kinds whose question names another thing than the answer's
_MOSTLY = 0.4  # of a token, that a thing fills


class Sight(NamedTuple):
    """A scene as an eye saw it. features: (N, D) and aligned: (N, E), on a grid of side x side. questions: (Q, E).
    covered: (Q, N), how much of each token's box the answer's things fill. kinds, asks, answers: of each question. All
    float16, but for questions.
    """

    side: int
    features: Tensor
    aligned: Tensor
    questions: Tensor
    covered: Tensor
    kinds: list[str]
    asks: list[str]
    answers: list[str]


@dataclass(frozen=True, eq=False)
class Batch:
    """Questions about scenes of one grid. tokens: of each question's scene; covered: (B, N), where its answer is."""

    tokens: VisualTokens
    question: Question
    covered: Float[Tensor, "b n"]
    kinds: list[str]
    asks: list[str]
    answers: list[str]


@dataclass(frozen=True, eq=False)
class Sights:
    """Scenes of a split, by their grids. reference: (M, E), of all questions. decided: (Q, BUDGETS, N) of each scene,
    the group that `relevance` puts each token in, at each budget; of scenes that are trained with.
    """

    scenes: tuple[Sight, ...]
    reference: Float[Tensor, "m e"]
    decided: tuple[Tensor, ...] = ()

    def batch(self, places: Sequence[tuple[int, int]]) -> Batch:
        """places: scene and question of each; scenes of one grid."""
        several = [self.scenes[scene] for scene, _ in places]
        side = several[0].side
        tokens = VisualTokens.from_grid(
            torch.stack([one.features for one in several]).float(),
            (side, side),
            aligned=torch.stack([one.aligned for one in several]).float(),
        )
        asks = torch.stack([one.questions[turn] for one, (_, turn) in zip(several, places, strict=True)])
        return Batch(
            tokens,
            Question(asks.float()[:, None], reference=self.reference),
            torch.stack([one.covered[turn] for one, (_, turn) in zip(several, places, strict=True)]).float(),
            *([getattr(one, name)[turn] for one, (_, turn) in zip(several, places, strict=True)] for name in FIELDS),
        )

    def sides(self, *kinds: str) -> list[list[tuple[int, int]]]:
        """For each size of grid, smallest first, the places of all questions, or of those kinds: scene and question."""
        by: dict[int, list[tuple[int, int]]] = {}
        for place, scene in enumerate(self.scenes):
            turns = [turn for turn, kind in enumerate(scene.kinds) if not kinds or kind in kinds]
            by.setdefault(scene.side, []).extend((place, turn) for turn in turns)
        return [by[side] for side in sorted(by)]

    def things(self) -> Things:
        """The tokens that are mostly of what a question is about, and its names, colours and words."""
        common, features, boxes, said = taken(), [], [], []
        for scene in self.scenes:
            for turn, kind in enumerate(scene.kinds):
                words = [word for word in tokens_of(scene.asks[turn]) if word not in common and kind not in _OF_OTHERS]
                words += tokens_of(scene.answers[turn]) if kind in NAMED else []
                there = (scene.covered[turn] > _MOSTLY).nonzero()[:, 0]
                if words:
                    features.append(scene.features[there])
                    boxes.append(cells(scene.side)[there])
                    said += [" ".join(words)] * len(there)
        return Things(torch.cat(features).float(), torch.cat(boxes), said)

    def kept(self, places: Sequence[tuple[int, int]], budget: int) -> Int[Tensor, "b n"]:
        """What `relevance` makes of these at a budget of BUDGETS, as `Allocation.merge` takes it, decided before."""
        at = BUDGETS.index(budget)
        return torch.stack([self.decided[scene][turn, at] for scene, turn in places]).long()

    def digest(self) -> str:
        """Of all that can be learned from: questions, answers and what the eye saw."""
        whole = hashlib.sha256()
        for scene in self.scenes:
            whole.update(json.dumps([scene.side, scene.asks, scene.answers]).encode())
            whole.update(scene.features.numpy().tobytes())
        for groups in self.decided:
            whole.update(groups.numpy().tobytes())
        return whole.hexdigest()[:16]


def seen(eye: Eye, split: str, count: int, folder: Path, told: Told | None = None) -> Sights:
    """The first scenes of a split, encoded where the folder has them not. Raises DataError."""
    reference = _reference(eye)
    whole = encoded(eye, split, count, folder, told)
    sights = tuple(_grounded(eye, one) for one in whole)
    decided: list[Tensor] = []
    if split == "train":
        rule = _rule(eye)
        for start in range(0, count, CHUNK):
            decided += _decided(
                eye.realizer, sights[start : start + CHUNK], folder / f"{split}-{start:05d}-relevance-{rule}", reference
            )
    return Sights(sights, reference, tuple(decided))


@torch.no_grad()
def _grounded(eye: Eye, one: Encoded) -> Sight:
    """What the eye's grounding makes of it beside the classes."""
    found = eye.grounding.tokens(one.features[None].float(), cells(one.side)[None])[0]
    asked_for = eye.grounding.questions(one.heard)
    aligned, questions = torch.cat((one.classes, found.half()), dim=1), torch.cat((one.questions, asked_for), dim=1)
    return Sight(one.side, one.features, aligned, questions, one.covered, one.kinds, one.asks, one.answers)


@cache
def cells(side: int) -> Float[Tensor, "n 4"]:
    """The boxes of a grid of side x side."""
    return grid_boxes(*[torch.linspace(0, 1, side + 1)] * 2)[0]


def _decided(realizer: Realizer, scenes: Sequence[Sight], stem: Path, reference: Tensor) -> list[Tensor]:
    """What `relevance` makes of a file's scenes, decided where it has not been; another rule decides anew."""
    place = stem.with_name(f"{stem.name}.safetensors")
    if not place.exists():
        made = [
            realized(realizer, one.features.float(), one.aligned.float(), one.questions, reference) for one in scenes
        ]
        write_whole(place, save({str(number): groups for number, groups in enumerate(made)}))
    try:
        found = load_file(place)
        return [found[str(number)] for number in range(len(scenes))]
    except (SafetensorError, OSError, KeyError) as error:
        raise DataError(f"{str(place)!r} cannot be read, it may be cut short: remove it ({error})") from error


def _rule(eye: Eye) -> str:
    """What tells one way of deciding from another: what it makes of some noise."""
    draw = torch.Generator().manual_seed(0)
    noise = [torch.randn(*shape, generator=draw) for shape in ((144, 12), (144, 9), (3, 9), (5, 9))]
    whole = hashlib.sha256(realized(eye.realizer, *noise).numpy().tobytes())
    for value in eye.grounding.state_dict().values():
        whole.update(value.numpy().tobytes())
    return whole.hexdigest()[:8]


def realized(
    realizer: Realizer,
    features: Float[Tensor, "n d"],
    aligned: Float[Tensor, "n e"],
    asks: Float[Tensor, "q e"],
    reference: Float[Tensor, "m e"],
) -> Int[Tensor, "q b n"]:
    """The groups that `relevance` makes of a scene's tokens for each question, at each of BUDGETS, int16."""
    count, side = len(asks), round(len(features) ** 0.5)
    tokens = VisualTokens.from_grid(features.expand(count, -1, -1), (side, side), aligned=aligned.expand(count, -1, -1))
    with torch.no_grad():
        measured = realizer.measure(tokens, Question(asks[:, None], reference=reference))
        made = [realizer.decide(measured, budget).allocation.reading for budget in BUDGETS]
    assert all(isinstance(one, Grouped) for one in made)
    return torch.stack([one.group for one in made], dim=1).to(torch.int16)  # pyright: ignore


@torch.no_grad()
def _reference(eye: Eye) -> Float[Tensor, "m f"]:
    """The reference questions in the space of `Sight.aligned`."""
    compact = (eye.classes_of(eye.reference).double() @ basis_of(eye)).float()
    return torch.cat((torch.nn.functional.pad(compact, (0, MOST + 1)), eye.grounding.questions(eye.reference)), dim=1)
