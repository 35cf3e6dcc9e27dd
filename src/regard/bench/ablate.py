"""What `regard ablate` takes out besides attention: ways of knowing, tensions and mechanisms; and scenes to measure on.

A way is given no weight, a tension held in the middle between its poles, and a mechanism has the place of relevance.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from regard.allocate.relevance import Relevance
from regard.bench.ablations import without
from regard.bench.mechanisms import AT_ONCE, BLIND
from regard.bench.tasks.seen import Sights
from regard.doctor.ablate import Way
from regard.doctor.answers import Asked, OfModel, OfParts, Said
from regard.errors import ModelError
from regard.record import STATES, WAYS
from regard.vlm.compose import VLM
from regard.vlm.interleaved import IMAGE, interleaved
from regard.vlm.pocket import Pocket

NEUTRAL = 0.5


@dataclass(frozen=True, eq=False)
class Scenes:
    """Scenes that were encoded, as a task for a model of the eye that did. budget: tokens an image."""

    vlm: VLM
    sights: Sights
    budget: int | None

    def __iter__(self) -> Iterator[OfParts]:
        for side in self.sights.sides():
            for start in range(0, len(side), AT_ONCE):
                places = side[start : start + AT_ONCE]
                batch = self.sights.batch(places)
                asks = [IMAGE + ask for ask in batch.asks]
                prompts = interleaved(self.vlm.tokenizer, asks, [1] * len(asks), batch.answers)
                images = tuple(f"scene {scene}" for scene, _ in places)
                yield OfParts(images, self.vlm, prompts, batch.tokens, batch.question, self.budget)


def of_relevance(ways: bool, tensions: bool, whole: Relevance) -> dict[str, Relevance]:
    """Relevance with a way left out, or a tension held in the middle, by name."""
    found = {f"without {way}": replace(whole, realizer=without(way, whole.realizer)) for way in WAYS if ways}
    return found | {f"{state} held at {NEUTRAL}": replace(whole, **{state: NEUTRAL}) for state in STATES if tensions}


def through(vlm: VLM, allocators: Mapping[str, Relevance]) -> dict[str, Way]:
    """Ways of asking a `regard.VLM` whose bridge allocates. Raises ModelError for one that does not by relevance."""
    relevance_of(vlm)
    return {name: _asks(_with(vlm, allocator)) for name, allocator in allocators.items()}


def relevance_of(vlm: VLM) -> Relevance:
    """The allocator of a model that spends its tokens by relevance. Raises ModelError for another."""
    found: Any = getattr(vlm.bridge, "allocator", None)
    if not isinstance(found, Relevance):
        raise ModelError(f"ways and tensions are of relevance, and this model's mechanism is {vlm.mechanism!r}")
    return found


def mechanisms(pocket: Pocket, names: Sequence[str]) -> dict[str, Way]:
    """Ways of asking the pocket model through others of its mechanisms. names: of MECHANISMS, or "blind" for those that
    do not hear the question. Raises ModelError for another.
    """
    several = [name for given in names for name in (BLIND if given == "blind" else (given,))]
    return {f"{name} in its place": _asks(pocket.vlm(name).eval()) for name in dict.fromkeys(several)}


class Shortening:
    """Ways of asking a model of Hugging Face, whose tokens each of some allocators spends, images encoded once.

    whole: what the model is asked through as it is; ways: the others.
    """

    def __init__(self, whole: Relevance, allocators: Mapping[str, Relevance], budget: int) -> None:
        self.allocators, self.budget = {"": whole, **allocators}, budget
        self.ways: dict[str, Way] = {name: partial(self._said, name) for name in allocators}
        self._last: Asked | None = None
        self._made: dict[str, OfModel] = {}

    def whole(self, asked: Asked) -> Said:
        return self._said("", asked)

    def _said(self, name: str, asked: Asked) -> Said:
        if asked is not self._last:
            assert isinstance(asked, OfModel)
            several = asked.shortened(list(self.allocators.values()), self.budget)
            self._last, self._made = asked, dict(zip(self.allocators, several, strict=True))
        return self._made[name].said()


def _with(vlm: VLM, allocator: Relevance) -> VLM:
    """The same parts, where another allocator spends the tokens."""
    bridge: Any = copy(vlm.bridge)
    bridge.allocator = allocator
    return VLM(vlm.eye, bridge, vlm.language_model, vlm.tokenizer, vlm.fusion).eval()


def _asks(vlm: VLM) -> Way:
    def way(asked: Asked) -> Said:
        assert isinstance(asked, OfParts)
        return asked.said(vlm)

    return way
