"""What a part of a model is worth: take it out, and see what that does to answers that are known.

Each part is taken out by itself, and the model asked about the same rows as before. What changes is paired row by row,
and has a bootstrap interval of 95 % over images. A part that others stand in for looks worthless alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from regard.doctor.answers import Asked, Row, Said, Task
from regard.doctor.examine import evaluating
from regard.doctor.finding import listed
from regard.doctor.opening import patient
from regard.doctor.parts import AttentionLayer, attention_layers, chosen
from regard.doctor.removal import Joint, joints, means_of, removed
from regard.errors import DataError, ModelError
from regard.intervals import interval

By = Literal["zero", "mean"]
Way = Callable[[Asked], Said]
Stage = Callable[[str], None]
Taken = list[tuple[Joint, list[int] | None]]
TOGETHER = "all of these together"


@dataclass(frozen=True)
class Effect:
    """What changed without a part, on average over the rows, with its interval of 95 %. bits: of the answers, lower
    where they are less likely. right: in points, of 100 rows. place: the numbers of a layer, or of layer and head.
    """

    part: str
    bits: float
    bits_low: float
    bits_high: float
    right: float
    right_low: float
    right_high: float
    place: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ablation:
    """effects: the largest change in bits first. bits, right: of the model as it is, on average, and in percent. rows:
    that were asked, about so many images. skipped: rows that were not, and why. missed: attention that cannot be
    reached. by: what took the place of heads.
    """

    effects: tuple[Effect, ...]
    bits: float
    right: float
    rows: int
    images: int
    skipped: dict[str, int] = field(default_factory=dict)
    missed: tuple[str, ...] = ()
    by: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def ablate(
    model: nn.Module,
    rows: Iterable[Mapping[str, Any] | Row],
    *,
    layers: Sequence[int] = (),
    heads: Sequence[tuple[int, int]] = (),
    each: Literal["layer", "head"] | None = None,
    part: str = "language",
    by: By = "zero",
    processor: Any = None,
    budget: int | None = None,
    seed: int = 0,
    progress: Stage = lambda stage: None,
) -> Ablation:
    """Take attention out of a model, a layer or a head at a time, and measure it on rows.

    model: a vision-language model of Hugging Face, or a `regard.VLM`. rows: mappings with "image" (a path, bytes, a
    PIL image, or several of these), "question" and "answer". layers: numbers, negative from the end. heads: (layer,
    head). Where several are named, they are taken out one by one, then all together. each: every layer, or every head;
    every layer where nothing is named. part: as in `regard.capture`. by: what takes their place: nothing, or their mean
    over all tokens of all rows (images are then encoded twice). processor: the model's; by default loaded from where
    the model was. budget: tokens an image, of a `regard.VLM`. seed: of the bootstrap.

    An answer's bits are the logarithm to base 2 of its probability, its end included; it is right where the model says
    it, word for word, by itself. The model is left as it was, and without a hook. A row whose image cannot be read is
    skipped and counted. Raises ModelError for a layer or head that is not there or cannot be reached, DataError for no
    rows, or one that has not all of a row.
    """
    task = Task(model, rows, processor, budget, settled=part in ("language", "cross"))
    return removals(model, task, layers=layers, heads=heads, each=each, part=part, by=by, seed=seed, progress=progress)


def removals(
    model: nn.Module,
    task: Iterable[Asked],
    *,
    layers: Sequence[int] = (),
    heads: Sequence[tuple[int, int]] = (),
    each: Literal["layer", "head"] | None = None,
    part: str = "language",
    by: By = "zero",
    seed: int = 0,
    progress: Stage = lambda stage: None,
) -> Ablation:
    """As `ablate`, on a task that is ready to be asked, each time anew."""
    if by not in ("zero", "mean") or each not in (None, "layer", "head"):
        raise ModelError(f"by must be 'zero' or 'mean' and each 'layer' or 'head', got {by!r} and {each!r}")
    opened = patient(model)
    with evaluating(model):
        named = [*layers, *(layer for layer, _ in heads)]
        every = attention_layers(opened.model, part)
        wanted = chosen(every, None if each or not named else named)
        first = next(iter(task), None)
        if first is None:
            raise DataError(f"none of the rows can be asked: {_why(task)}")
        found, missed = joints(wanted, first.said)
        known = {joint.layer.number: joint for joint in found}
        taken = _taken(known, every, layers, heads, each)
        parts = list(dict.fromkeys(joint for several in taken.values() for joint, _ in several))
        means = None
        if by == "mean":
            progress("take the means")
            means = means_of(parts, ((asked.said, asked.mask) for asked in task))
        ways = {name: partial(_without, several, means) for name, several in taken.items()}
        measured = measure(task, lambda asked: asked.said(), ways, seed, progress)
    effects = tuple(replace(effect, place=_place(taken[effect.part])) for effect in measured.effects)
    return replace(measured, effects=effects, missed=tuple(missed), by=by)


def measure(
    task: Iterable[Asked], plain: Way, ways: Mapping[str, Way], seed: int = 0, progress: Stage = lambda stage: None
) -> Ablation:
    """Ask about all rows as it is, and in each way. Raises DataError where no row can be asked."""
    images, said = list[str](), {name: list[Said]() for name in ("", *ways)}
    for number, asked in enumerate(task, 1):
        progress(f"rows {number}")
        images += asked.images
        for name, way in (("", plain), *ways.items()):
            said[name].append(way(asked))
    if not images:
        raise DataError(f"none of the rows can be asked: {_why(task)}")
    whole = {name: [np.concatenate(parts) for parts in zip(*several, strict=True)] for name, several in said.items()}
    bits, right = whole.pop("")
    groups = np.unique(images, return_inverse=True)[1]
    effects = []
    for name, (others, rights) in whole.items():
        lost, wrong = others - bits, 100 * (rights.astype(float) - right)
        spans = [interval(values, seed, groups=groups) for values in (lost, wrong)]
        effects.append(Effect(name, float(lost.mean()), *spans[0], float(wrong.mean()), *spans[1]))
    effects.sort(key=lambda effect: -abs(effect.bits))
    skipped = dict(getattr(task, "skipped", {}))
    return Ablation(tuple(effects), float(bits.mean()), 100 * float(right.mean()), len(bits), len(set(images)), skipped)


def _taken(
    known: Mapping[int, Joint],
    every: list[AttentionLayer],
    layers: Sequence[int],
    heads: Sequence[tuple[int, int]],
    each: str | None,
) -> dict[str, Taken]:
    """What is taken out together, by name. known: the joints of layers that can be reached."""
    if each == "head":
        apart = [(joint, head) for joint in known.values() for head in range(joint.heads or 0)]
        if not apart:
            next(iter(known.values())).checked(0)  # says why
        return {f"head {joint.layer.number}.{head}": [(joint, [head])] for joint, head in apart}
    if each == "layer" or not (layers or heads):
        return {f"layer {number}": [(joint, None)] for number, joint in known.items()}
    found: dict[str, Taken] = {}
    for joint in (_joint(number, known, every) for number in layers):
        found[f"layer {joint.layer.number}"] = [(joint, None)]
    for joint, head in ((_joint(number, known, every), head) for number, head in heads):
        found[f"head {joint.layer.number}.{joint.checked(head)}"] = [(joint, [head])]
    return {**found, TOGETHER: [one for several in found.values() for one in several]} if len(found) > 1 else found


def _joint(number: int, known: Mapping[int, Joint], every: list[AttentionLayer]) -> Joint:
    layer = chosen(every, number)[0]
    if layer.number not in known:
        raise ModelError(f"the attention of {layer.name} ({type(layer.module).__name__}) cannot be reached")
    return known[layer.number]


def _without(taken: Taken, means: Mapping[int, Tensor] | None, asked: Asked) -> Said:
    with removed(taken, means):
        return asked.said()


def _place(taken: Taken) -> tuple[int, ...]:
    (joint, heads), *more = taken
    return () if more else (joint.layer.number, *(heads or ()))


def _why(task: object) -> str:
    """Why rows were skipped, in one line."""
    skipped: Mapping[str, int] = getattr(task, "skipped", {})
    return listed([f"{count} because {why}" for why, count in skipped.items()]) or "there are none"
