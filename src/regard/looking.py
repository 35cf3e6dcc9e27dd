"""The main job: one picture, some questions, and where each way of spending a token budget looks."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import PIL.Image

from regard.allocate import Allocator, catalogue, check_amount, made, missing_needs, name_of
from regard.allocation import Allocation
from regard.cost.language import QWEN2_5_7B
from regard.errors import DataError
from regard.eyes import Eye
from regard.record import Look, Record
from regard.recorded import PROMPT_TOKENS, boxes_of, explained, look_of, made_by, read_picture, relevance_of
from regard.relevance.tensions import States
from regard.tokens import Question, VisualTokens


def look(
    image: str | os.PathLike | bytes | PIL.Image.Image,
    question: str | Sequence[str],
    *,
    budget: int | None = None,
    keep: float | None = None,
    allocators: Sequence[str | Allocator] | None = None,
    eye: Eye | None = None,
    states: States | None = None,
    fixation: tuple[float, float] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
) -> Record:
    """Where each allocator spends the budget, for each question; the image is read and encoded once.

    budget: tokens, or keep: the fraction of the image's tokens to keep (0.1 where neither is given). allocators: names
    or objects; by default every one that the eye can feed. eye: by default the embedded one. states: of the tensions
    of `relevance` where it goes by its name. fixation: where `fovea` rests, x and y in [0, 1], so too. seed: for
    allocators that draw. progress: told the name of each stage as it starts. Raises RegardError for what a user can
    mend.
    """
    questions = checked_questions(question)
    named = [allocators] if isinstance(allocators, str) else allocators
    chosen = None if named is None else [made(a, seed, states, fixation) for a in named]
    check_amount(budget, keep)
    seconds: dict[str, float] = {}
    picture, preview = _timed(seconds, "read", progress, partial(read_picture, image))
    eye = eye or _timed(seconds, "load", progress, _embedded)
    asked = [eye.ask(text) for text in questions]
    tokens = _timed(seconds, "encode", progress, partial(eye.look, picture))
    n = int(tokens.valid.sum())
    amount = budget if budget is not None else max(1, round((0.1 if keep is None else keep) * n))
    if chosen is None:
        every = [made(name, seed, states, fixation) for name in catalogue()]
        chosen = [a for a in every if not missing_needs(a.needs, tokens, asked[0])]
    return Record(
        picture=preview,
        eye=eye.name,
        questions=questions,
        boxes=boxes_of(tokens),
        relevance=relevance_of(tokens, asked),
        grid=tokens.grid,
        looks=tuple(_looks(tokens, asked, chosen, amount, progress)),
        language_model=QWEN2_5_7B.name,
        prompt_tokens=PROMPT_TOKENS,
        seconds=seconds,
        made=made_by(seed),
    )


def _looks(
    tokens: VisualTokens,
    asked: Sequence[Question],
    allocators: Sequence[Allocator],
    budget: int,
    progress: Callable[[str], None],
) -> Iterator[Look]:
    """Every allocator's answer to every question; one that needs no question decides once."""
    decided: dict[tuple[str, int | None], tuple[Allocation, float]] = {}
    for number, question in enumerate(asked):
        for name, allocator in zip(_names(allocators), allocators, strict=True):
            key = (name, number if "question" in (*allocator.needs, *allocator.uses) else None)
            if key not in decided:
                progress(f"decide: {name}")
                decided[key] = _decide(tokens, question, allocator, budget)
            allocation, seconds = decided[key]
            yield look_of(
                tokens,
                question,
                allocation,
                number=number,
                name=name,
                allocator=allocator,
                budget=budget,
                seconds=seconds,
                model=QWEN2_5_7B,
                prompt_tokens=PROMPT_TOKENS,
                why=explained(allocator, tokens, question, budget),
            )


def _names(allocators: Sequence[Allocator]) -> list[str]:
    """What each is called in the record: two of one name are told apart by a number."""
    names: list[str] = []
    for allocator in allocators:
        name = name_of(allocator)
        twins = sum(other.rpartition("-")[0] == name or other == name for other in names)
        names.append(f"{name}-{twins + 1}" if twins else name)
    return names


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


def _embedded() -> Eye:
    from regard.eyes.embedded import EmbeddedEye

    return EmbeddedEye()


def _timed(seconds: dict[str, float], stage: str, progress: Callable[[str], None], work: Callable):
    progress(stage)
    start = time.perf_counter()
    done = work()
    seconds[stage] = round(time.perf_counter() - start, 4)
    return done
