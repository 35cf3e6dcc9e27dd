"""From what was decided to the plain data of a Record."""

import base64
import io
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from regard import __version__
from regard.allocate import Explains
from regard.allocation import Allocation
from regard.cost.language import LanguageModel
from regard.images import load_image_with_notes
from regard.pixels import one_line
from regard.record import Look, Picture, Realization, Step
from regard.tokens import Question, VisualTokens

PREVIEW = 1024  # pixels, the longest side
PROMPT_TOKENS = 64  # text of a short question in its chat template


def look_of(
    tokens: VisualTokens,
    question: Question,
    allocation: Allocation,
    *,
    number: int,
    name: str,
    allocator: object,
    budget: int,
    seconds: float,
    model: LanguageModel,
    prompt_tokens: int,
    steps: Sequence[tuple[int, Allocation]] = (),
    read: Sequence[int] | None = None,
    why: Realization | None = None,
) -> Look:
    """One allocator's answer to question `number`, for tokens of one image. prompt_tokens: all others of the prompt.

    steps: (from layer of the language model, Allocation) where `allocation` is their composition. read: tokens of the
    whole prompt that each layer reads, by default this image's that are left and all others. why: what led to
    the decision, where that can be said.
    """
    n, kept = int(tokens.valid.sum()), int(allocation.valid.sum())
    steps = steps or ((0, allocation),)
    if read is None:
        read = [kept + prompt_tokens] * model.layers
    return Look(
        question=number,
        allocator=name,
        fields=fields_of(allocator),
        budget=budget,
        tokens_in=n,
        tokens_out=kept,
        seconds=seconds,
        nearest_quarter=nearest_quarter(tokens, question, allocation),
        macs_before=model.prefill_macs(n + prompt_tokens),
        macs_after=model.prefill_macs_of_layers(list(read)),
        steps=tuple(Step(layer, step.to_dict()) for layer, step in steps),
        realization=why,
    )


def explained(allocator: object, tokens: VisualTokens, question: Question | None, budget: int) -> Realization | None:
    """What led to an allocator's decision about one image, where it can say."""
    return allocator.explain(tokens, question, budget) if isinstance(allocator, Explains) else None


def fields_of(allocator: object) -> dict[str, Any]:
    """An allocator's parameters as plain data, those that its repr shows; what is not plain as its own repr."""
    if not is_dataclass(allocator) or isinstance(allocator, type):
        return {}
    shown = {field.name: getattr(allocator, field.name) for field in fields(allocator) if field.repr}
    return {name: value if _is_plain(value) else repr(value) for name, value in shown.items()}


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value))


def nearest_quarter(tokens: VisualTokens, question: Question, allocation: Allocation) -> float:
    """The share of the tokens spent on the quarter of the inputs nearest to the question: 0.25 is blind."""
    relevance = tokens.relevance(question).masked_fill(~tokens.valid, -torch.inf)[0]
    count = max(1, int(tokens.valid.sum()) // 4)
    nearest = relevance.sort(descending=True, stable=True).indices[:count]
    spent = allocation.spent()[0]
    return float(spent[nearest].sum() / spent.sum().clamp(min=1))


def boxes_of(tokens: VisualTokens) -> tuple[tuple[float, ...], ...]:
    """The boxes of one image's tokens, as a Record has them."""
    return tuple(tuple(round(side, 6) for side in box) for box in tokens.boxes[0].tolist())


def relevance_of(tokens: VisualTokens, questions: Sequence[Question]) -> tuple[tuple[float, ...], ...]:
    """The relevance of one image's tokens to each question, as a Record has it."""
    return tuple(tuple(float(f"{r:.6g}") for r in tokens.relevance(q)[0].tolist()) for q in questions)


def made_by(seed: int) -> dict[str, str]:
    """Versions, machine and seed."""
    return {
        "regard": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "seed": str(seed),
    }


def read_picture(source: str | os.PathLike | bytes | PIL.Image.Image) -> tuple[PIL.Image.Image, Picture]:
    """The image, strictly read, and the small copy that a Record holds. Raises ImageError."""
    image, notes = load_image_with_notes(source)
    name = one_line(Path(source).name) if isinstance(source, str | os.PathLike) else "image"
    return image, Picture(name, image.width, image.height, _small(image), notes)


def blank_picture(name: str, grid: tuple[int, int, int] | None) -> Picture:
    """A grey stand-in of the grid's shape, where the photo is not at hand."""
    _, h, w = grid or (1, 1, 1)
    scale = max(1, 512 // max(h, w))
    image = PIL.Image.new("RGB", (w * scale, h * scale), (190, 190, 190))
    return Picture(name, image.width, image.height, _small(image))


def _small(image: PIL.Image.Image) -> str:
    small = image.copy()
    small.thumbnail((PREVIEW, PREVIEW), PIL.Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85, optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
