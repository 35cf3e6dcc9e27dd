"""Whether the answer changes when the image does, in bits.

The model answers about its image; then the same answer is read again, word by word, with the image replaced by noise
of the same mean and spread, and by its mean alone. Between what the model would say next with one image and with the
other lies the Jensen-Shannon divergence: 0 bits where the image makes no difference, 1 where nothing is in common.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from regard.doctor.answers import longer
from regard.doctor.case import Case, ran
from regard.doctor.finding import Finding
from regard.errors import DataError
from regard.tokens import VisualTokens
from regard.vlm.interleaved import UNLEARNED

IGNORED, LITTLE = 1e-3, 1e-2  # bits
_WORDS = 4


def check(case: Case) -> list[Finding]:
    """Raises DataError where there is no image, or none that can be replaced."""
    found = bits(case)
    most = max(found.values())
    said = ", ".join(f"{value:.2g} bits with {name}" for name, value in found.items())
    if most >= LITTLE:
        return []
    if most < IGNORED:
        evidence = f"the answer is the same whatever the image: it moves by {said} in its place"
        advice = "see that the image's features reach the prompt (gates, image tokens, the projector's weights)"
        return [Finding("image_ignored", "error", evidence, advice)]
    evidence = f"the answer hardly follows the image: it moves by {said} in its place"
    return [Finding("image_ignored", "warning", evidence, "ask what only the image can tell, and check again")]


def bits(case: Case, words: int = _WORDS) -> dict[str, float]:
    """The mean Jensen-Shannon divergence over the answer's first words, with each other image, in bits."""
    if not case.images:
        raise DataError("there is no image among the inputs")
    if case.shortened:
        raise DataError("the inputs are shortened, and their images cannot be replaced: give the processor's own")
    with torch.no_grad():
        given = _longer(case, case.seen, _said(case, words - 1))
        before = _next(case, given, words)
        return {
            name: float(divergence(before, _next(case, _replaced(case, given, name), words)).mean())
            for name in ("noise", "its mean alone")
        }


def divergence(one: Float[Tensor, "... v"], other: Float[Tensor, "... v"]) -> Float[Tensor, "..."]:
    """Jensen-Shannon, in bits, of what two rows of logits say."""
    p, q = one.double().softmax(dim=-1), other.double().softmax(dim=-1)
    mean = torch.special.entr((p + q) / 2).sum(dim=-1)
    return (mean - (torch.special.entr(p) + torch.special.entr(q)).sum(dim=-1) / 2).clamp(min=0) / torch.log(
        p.new_tensor(2.0)
    )


def _said(case: Case, count: int) -> Int[Tensor, "b t"]:
    """The first words of the model's own answer to each prompt, whatever ends it."""
    longest: dict[str, Any] = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
    with ran("its generation"):
        if case.vlm is not None:
            return case.vlm.generate(*case.inputs, **longest)[:, -count:]
        return case.model.generate(**case.seen, **longest)[:, -count:]


def _next(case: Case, inputs: Any, count: int) -> Tensor:
    """Logits of the last `count` columns of each prompt, (B, count, V)."""
    return case.run(inputs, last=count).logits[:, -count:]


def _longer(case: Case, inputs: Any, words: Int[Tensor, "b t"]) -> Any:
    """The inputs with words behind each prompt."""
    if case.vlm is not None:
        prompts, *more = inputs
        count = words.shape[1]
        ids, image = torch.cat((prompts.ids, words), dim=1), F.pad(prompts.image, (0, count))
        labels = torch.full_like(ids, UNLEARNED)
        labels[:, -count - 1 :] = 0  # so that so many last logits come
        return (
            replace(prompts, ids=ids, mask=F.pad(prompts.mask, (0, count), value=True), image=image, labels=labels),
            *more,
        )
    return longer(case.model, inputs, words)


def _replaced(case: Case, inputs: Any, by: str) -> Any:
    """The inputs with other images."""
    if case.vlm is None:
        words = {name: value for name, value in inputs.items() if name != "mm_encoder_outputs"}
        return {**words, "pixel_values": _other(case.inputs["pixel_values"], by)}
    prompts, tokens, *more = inputs
    several = [tokens] if isinstance(tokens, VisualTokens) else list(tokens)
    return (prompts, [_tokens(each, by) for each in several], *more)


def _tokens(tokens: VisualTokens, by: str) -> VisualTokens:
    aligned = None if tokens.aligned is None else _other(tokens.aligned, by)
    return replace(tokens, features=_other(tokens.features, by), aligned=aligned)


def _other(values: Tensor, by: str) -> Tensor:
    """Noise like the values, or their mean alone; what is all 0, as an empty tile is, stays so."""
    mean, spread = values.mean(), values.float().std().to(values.dtype)
    drawn = torch.randn(values.shape, generator=torch.Generator().manual_seed(0)).to(values)
    other = mean + spread * drawn if by == "noise" else (mean + 1e-3 * spread).expand_as(values)
    empty = (values == 0).flatten(-2).all(dim=-1)[..., None, None] if values.ndim > 2 else values == 0
    return other.masked_fill(empty, 0)
