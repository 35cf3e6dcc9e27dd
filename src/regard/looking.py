"""The main job: one picture, some questions, and where each way of spending a token budget looks."""

import base64
import io
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

import PIL.Image
import torch

from regard import __version__
from regard.allocate import Allocator, catalogue, checked_budget, load, missing_needs, name_of
from regard.allocation import Allocation
from regard.cost.language import QWEN2_5_7B
from regard.errors import BudgetError, DataError
from regard.eyes import Eye
from regard.images import load_image_with_notes
from regard.pixels import one_line
from regard.record import Look, Picture, Record, Step
from regard.tokens import Question, VisualTokens

PROMPT_TOKENS = 64  # text of a short question in its chat template
PREVIEW = 1024  # pixels, the longest side


def look(
    image: str | os.PathLike | bytes | PIL.Image.Image,
    question: str | Sequence[str],
    *,
    budget: int | None = None,
    keep: float | None = None,
    allocators: Sequence[str | Allocator] | None = None,
    eye: Eye | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
) -> Record:
    """Where each allocator spends the budget, for each question; the image is read and encoded once.

    budget: tokens, or keep: the fraction of the image's tokens to keep (0.1 where neither is given). allocators: names
    or objects; by default every one that the eye can feed. eye: by default the embedded one. seed: for allocators that
    draw. progress: told the name of each stage as it starts. Raises RegardError for what a user can mend.
    """
    questions = checked_questions(question)
    named = [allocators] if isinstance(allocators, str) else allocators
    chosen = None if named is None else [_seeded(a, seed) for a in named]
    _check_amount(budget, keep)
    seconds: dict[str, float] = {}
    picture, preview = _timed(seconds, "read", progress, partial(_read, image))
    eye = eye or _timed(seconds, "load", progress, _embedded)
    asked = [eye.ask(text) for text in questions]
    tokens = _timed(seconds, "encode", progress, partial(eye.look, picture))
    n = int(tokens.valid.sum())
    amount = budget if budget is not None else max(1, round((0.1 if keep is None else keep) * n))
    if chosen is None:
        every = [_seeded(name, seed) for name in catalogue()]
        chosen = [a for a in every if not missing_needs(a.needs, tokens, asked[0])]
    return Record(
        picture=preview,
        eye=eye.name,
        questions=questions,
        boxes=tuple(tuple(round(side, 6) for side in box) for box in tokens.boxes[0].tolist()),
        relevance=tuple(tuple(float(f"{r:.6g}") for r in tokens.relevance(q)[0].tolist()) for q in asked),
        grid=tokens.grid,
        looks=tuple(_looks(tokens, asked, chosen, amount, progress)),
        language_model=QWEN2_5_7B.name,
        prompt_tokens=PROMPT_TOKENS,
        seconds=seconds,
        made={
            "regard": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "seed": str(seed),
        },
    )


def _looks(
    tokens: VisualTokens,
    asked: Sequence[Question],
    allocators: Sequence[Allocator],
    budget: int,
    progress: Callable[[str], None],
) -> Iterator[Look]:
    """Every allocator's answer to every question; one that needs no question decides once."""
    n = int(tokens.valid.sum())
    decided: dict[tuple[str, int | None], tuple[Allocation, float]] = {}
    for number, question in enumerate(asked):
        for name, allocator in zip(_names(allocators), allocators, strict=True):
            key = (name, number if "question" in allocator.needs else None)
            if key not in decided:
                progress(f"decide: {name}")
                decided[key] = _decide(tokens, question, allocator, budget)
            allocation, seconds = decided[key]
            kept = int(allocation.valid.sum())
            yield Look(
                question=number,
                allocator=name,
                fields={f: value if _is_plain(value) else repr(value) for f, value in asdict(allocator).items()},
                budget=budget,
                tokens_in=n,
                tokens_out=kept,
                seconds=seconds,
                nearest_quarter=nearest_quarter(tokens, question, allocation),
                macs_before=QWEN2_5_7B.prefill_macs(n + PROMPT_TOKENS),
                macs_after=QWEN2_5_7B.prefill_macs(kept + PROMPT_TOKENS),
                steps=(Step(0, allocation.to_dict()),),
            )


def _names(allocators: Sequence[Allocator]) -> list[str]:
    """What each is called in the record: two of one name are told apart by a number."""
    names: list[str] = []
    for allocator in allocators:
        name = name_of(allocator)
        twins = sum(other.rpartition("-")[0] == name or other == name for other in names)
        names.append(f"{name}-{twins + 1}" if twins else name)
    return names


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value))


def nearest_quarter(tokens: VisualTokens, question: Question, allocation: Allocation) -> float:
    """The share of the tokens spent on the quarter of the inputs nearest to the question: 0.25 is blind."""
    relevance = tokens.relevance(question).masked_fill(~tokens.valid, -torch.inf)[0]
    count = max(1, int(tokens.valid.sum()) // 4)
    nearest = relevance.sort(descending=True, stable=True).indices[:count]
    spent = allocation.spent()[0]
    return float(spent[nearest].sum() / spent.sum())


def _decide(tokens: VisualTokens, question: Question, allocator: Allocator, budget: int) -> tuple[Allocation, float]:
    """The allocation and the best time of up to three, as the first pays for warming up."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        allocation = allocator.allocate(tokens, question, budget)
        best = min(best, time.perf_counter() - start)
        if best > 0.2:
            break
    return allocation, best


def checked_questions(question: str | Sequence[str]) -> tuple[str, ...]:
    """The questions, one line each. Raises DataError where there is none or one is empty."""
    questions = (question,) if isinstance(question, str) else tuple(question or ())
    if not questions or any(not isinstance(text, str) or not text.strip() for text in questions):
        raise DataError("the question is empty: ask in words, such as 'where is the cat?'")
    return tuple(" ".join(text.encode(errors="replace").decode().split()) for text in questions)


def _check_amount(budget: int | None, keep: float | None) -> None:
    if budget is not None and keep is not None:
        raise BudgetError("give a budget in tokens or a fraction to keep, not both")
    if budget is not None:
        checked_budget(budget)
    if keep is not None and not (isinstance(keep, int | float) and 0 < keep <= 1):
        raise BudgetError(f"the fraction to keep must be over 0 and at most 1, got {keep!r}")


def _seeded(allocator: str | Allocator, seed: int) -> Allocator:
    if not isinstance(allocator, str):
        return allocator
    loaded = load(allocator)
    return replace(loaded, seed=seed) if any(f.name == "seed" for f in fields(loaded)) else loaded


def _embedded() -> Eye:
    from regard.eyes.embedded import EmbeddedEye

    return EmbeddedEye()


def _timed(seconds: dict[str, float], stage: str, progress: Callable[[str], None], work: Callable):
    progress(stage)
    start = time.perf_counter()
    done = work()
    seconds[stage] = round(time.perf_counter() - start, 4)
    return done


def _read(source: str | os.PathLike | bytes | PIL.Image.Image) -> tuple[PIL.Image.Image, Picture]:
    image, notes = load_image_with_notes(source)
    name = one_line(Path(source).name) if isinstance(source, str | os.PathLike) else "image"
    small = image.copy()
    small.thumbnail((PREVIEW, PREVIEW), PIL.Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85, optimize=True)
    preview = base64.b64encode(file.getvalue()).decode("ascii")
    return image, Picture(name, image.width, image.height, preview, notes)
