"""Attention sinks: tokens that are attended to for being there, and not for what they say.

Massive activations (Sun et al., arXiv 2402.17762): values above 100 that are 1000 times the median of their hidden
state; the dimensions they stand in are found in the model at hand. A token is a sink where in one of these dimensions
|x / RMS(x)| is at least 20 (Kang et al., arXiv 2503.03321; it is sqrt(D) at most, so narrow models have a lower bound),
or where it gets more than 0.3 of all attention of the words (the bound of Gu et al., arXiv 2410.10781, for one head).
That of the text, mostly its first token, is normal (Xiao et al., arXiv 2309.17453); those of the image take attention
from the tokens that show something, and are harmless to remove.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.doctor.capture import capture
from regard.doctor.case import Case
from regard.doctor.finding import Finding, listed
from regard.errors import DataError, ModelError, RegardError

MASSIVE, TIMES = 100.0, 1000.0
TAU, NARROW = 20.0, 0.8
SHARE = 0.3
FIRST = 2  # layers before this have no sinks yet


@dataclass(frozen=True, eq=False)
class Sinks:
    """Of the first prompt. dimensions: of massive activations. massive: the largest of them, and its layer.
    columns: of the sinks, text's and images'. share: (S,), of the attention of words that each column gets, the mean
    over heads and layers; None where attention cannot be reached.
    """

    dimensions: tuple[int, ...]
    massive: tuple[float, int]
    columns: tuple[int, ...]
    share: Float[Tensor, " s"] | None


@torch.no_grad()
def sinks(case: Case) -> Sinks:
    """Find them in one run of the model."""
    told: list[tuple[int, Tensor]] = []
    handles = [
        layer.register_forward_pre_hook(partial(_listen, told, number), with_kwargs=True)
        for number, layer in enumerate(case.layers)
    ]
    try:
        case.decoded()
    finally:
        for handle in handles:
            handle.remove()
    real = case.real[0].nonzero()[:, 0]
    dimensions: set[int] = set()
    largest, where = 0.0, 0
    for number, x in told:
        found = massive(x[real])
        dimensions |= set(found.tolist())
        if len(found) and (value := float(x[real].abs().max())) > largest:
            largest, where = value, number
    columns: set[int] = set()
    chosen = sorted(dimensions)
    if chosen:
        for _, x in told[min(FIRST, len(told) - 1) :]:
            columns |= set(real[phi(x[real], chosen) >= threshold(x.shape[-1])].tolist())
    return Sinks(tuple(chosen), (largest, where), tuple(sorted(columns)), None)


def _listen(told: list, number: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    x = args[0] if args else kwargs["hidden_states"]
    told.append((number, x[0].float()))


def massive(x: Float[Tensor, "n d"]) -> Int[Tensor, " m"]:
    """The dimensions of a hidden state in which some token has a massive activation."""
    size = x.abs()
    return ((size > MASSIVE) & (size >= TIMES * size.median())).any(dim=0).nonzero()[:, 0]


def phi(x: Float[Tensor, "n d"], dimensions: list[int]) -> Float[Tensor, " n"]:
    """The sink value of each token: the largest of its normalised values in these dimensions."""
    rms = x.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-12)
    return (x[:, dimensions] / rms).abs().amax(dim=-1)


def threshold(width: int) -> float:
    """From which sink value on a token of this width is a sink."""
    return min(TAU, NARROW * width**0.5)


def attention_share(case: Case) -> Float[Tensor, " s"]:
    """What each column of the first prompt gets of the attention of its words, (S,), from the third layer on."""
    words = case.words()
    if not words:
        raise DataError("the prompt has no word after its image: put the question there")
    with capture(case.model, queries=torch.tensor(words)) as seen, torch.no_grad():
        case.run(case.seen)
    if not seen.calls:
        raise ModelError(f"nothing that {listed(list(seen.names.values()), 2)} does is a softmax that can be seen")
    layers = [number for place, number in enumerate(seen.layers) if place >= min(FIRST, len(seen.layers) - 1)]
    rows = [seen.of(number).weights[0].mean(dim=(0, 1)) for number in layers]
    return torch.stack([row / row.sum().clamp(min=1e-12) for row in rows]).mean(dim=0)


def found_in(case: Case) -> tuple[Sinks, str]:
    """The sinks by activations and by attention, and why there is none by attention, if so."""
    found, why = sinks(case), ""
    try:
        share = attention_share(case)
    except RegardError as error:
        return found, str(error)
    columns = {*found.columns, *(share > SHARE).nonzero()[:, 0].tolist()}
    return Sinks(found.dimensions, found.massive, tuple(sorted(columns)), share), why


def check(case: Case) -> list[Finding]:
    """The sinks of the text, a note, and those of the images, a warning, with what moving their attention does."""
    found, why = found_in(case)
    image = case.image[0]
    visual = [column for column in found.columns if bool(image[column])]
    text = [column for column in found.columns if not bool(image[column])]
    problems = []
    if why:
        advice = (
            "model.set_attn_implementation('sdpa') or 'eager' first; massive activations were looked for all the same"
        )
        problems.append(Finding("sinks", "skipped", f"attention to sinks was not measured: {why}", advice))
    if text:
        evidence = f"{_named(text)} of the text {_are(text)}{_by(found)}{_gets(found, text)}"
        advice = "normal in language models: keep it where a cache is cut, and leave it out of maps"
        problems.append(Finding("sinks", "note", evidence, advice))
    if visual:
        problems.append(_visual(case, found, visual))
    return problems


def _visual(case: Case, found: Sinks, visual: list[int]) -> Finding:
    evidence = f"{_named(visual)} of the image {_are(visual)}{_by(found)}"
    share = found.share
    if share is not None:
        image = case.image[0]
        whole = share[: len(image)][image].sum().clamp(min=1e-12)
        taken, fair = float(share[visual].sum() / whole), len(visual) / int(image.sum())
        evidence += f": they take {taken:.0%} of the attention that words give to the image, and are {fair:.1%} of it"
        evidence += _moved(case, found)
    advice = "leave them out of maps; regard.doctor.redistributed(model, inputs) moves their attention to other tokens"
    return Finding("sinks", "warning", evidence, advice)


def _moved(case: Case, found: Sinks) -> str:
    """Before and after."""
    from regard.doctor.redistribution import compared

    try:
        before, after, bits = compared(case, found)
    except RegardError as error:
        return f" (moving it was not tried: {error})"
    less = f"with 60 % of it moved, the share of all sinks goes from {before:.0%} to {after:.0%}"
    return f"; {less}, and the next word by {bits:.2g} bits"


def _named(columns: list[int]) -> str:
    return f"column{'s' if len(columns) > 1 else ''} {listed([str(column) for column in columns], 8)}"


def _are(columns: list[int]) -> str:
    return "are sinks" if len(columns) > 1 else "is a sink"


def _by(found: Sinks) -> str:
    if not found.dimensions:
        return ""
    value, layer = found.massive
    dimensions = listed([str(dimension) for dimension in found.dimensions], 8)
    return f", with massive activations (up to {value:,.0f}, before layer {layer}) in dimensions {dimensions}"


def _gets(found: Sinks, columns: list[int]) -> str:
    return "" if found.share is None else f"; of all attention {float(found.share[columns].sum()):.0%}"
