"""Answers of a real model with all of its visual tokens and with fewer, and what each took."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import PIL.Image
import torch
from torch import nn

from regard.allocate import Allocates, made, name_of
from regard.errors import BudgetError, DataError, ModelError
from regard.record import STAGES, Answer, Picture, Record
from regard.recorded import made_by, read_picture
from regard.relevance.tensions import States
from regard.vlm.chat import chat_inputs
from regard.vlm.decide import budgets_of
from regard.vlm.measure import PeakMemory, TokenTimes
from regard.vlm.opened import Opened, opened
from regard.vlm.processors import model_name
from regard.vlm.shorten import shorten
from regard.vlm.shortened import Shortened

Image = str | os.PathLike | bytes | PIL.Image.Image
ALL = "all tokens"
QUICK, ROUNDS = 20.0, 3  # where all answers together take up to so many seconds, they are given so many times


@dataclass(frozen=True)
class Asked:
    """answers: the untouched model's first, then one for each allocator. records: one an image, with all answers.

    notes: what is not exact for this model, in one line each.
    """

    answers: tuple[Answer, ...]
    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()


def ask(
    model: nn.Module,
    processor: Any,
    image: Image | Sequence[Image],
    question: str,
    *,
    budget: int | Sequence[int] | None = None,
    keep: float | None = None,
    allocator: str | Allocates | None = None,
    compare: Sequence[str | Allocates] = (),
    max_new_tokens: int = 32,
    positions: Literal["original", "compact"] = "original",
    sign: Literal[1, -1] = 1,
    states: States | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
) -> Asked:
    """What a model answers to a question about an image, with all of its visual tokens and with fewer.

    model, processor: of Hugging Face, as they come; `regard.vlm.processors` loads both without torchvision. image: a
    path, bytes or PIL image, or several of them for one question about all. budget: tokens an image, or a number for
    each image; or keep: the fraction to keep (a quarter where neither is given). allocator: a name or an object
    ("divprune" where none is given and nothing to compare); compare: others to answer with too. positions, sign: as in
    `shorten`. states: of the tensions of `relevance` where it goes by its name. seed: for allocators that draw.
    progress: told the name of each stage as it starts.

    Answers are greedy and made by the model's own `generate`. The untouched model goes the same way as the others, with
    every token kept, which changes no bit of its logits; so the vision encoder is timed apart for all of them. One run
    that is not counted warms up; times of quick answers are medians of three. Raises RegardError where a user can mend.
    """
    vlm = opened(model)
    chosen = _chosen(allocator, compare, seed, states)
    keep = 0.25 if budget is None and keep is None else keep
    progress("read")
    pictures = [read_picture(one) for one in _several(image)]
    _check(vlm, question, max_new_tokens, budgets_of([1] * len(pictures), budget, keep))
    with torch.no_grad():
        inputs = chat_inputs(vlm, processor, [picture for picture, _ in pictures], question)
        run = _Run(vlm, processor, inputs, {"question": question, "positions": positions, "sign": sign})
        progress("warm up")
        run.once(None, {"keep": 1.0}, min(2, max_new_tokens))
        ways = [(None, {"keep": 1.0}), *((each, {"budget": budget, "keep": keep}) for each in chosen)]
        answers, shorts, rounds = run.measured(ways, max_new_tokens, progress)
    records = _records(shorts[1:], [preview for _, preview in pictures], answers, _made(vlm, seed, rounds))
    return Asked(answers, records, tuple(dict.fromkeys(short.caution for short in shorts if short.caution)))


@dataclass(frozen=True)
class _Run:
    """One prompt, to be answered in several ways."""

    vlm: Opened
    processor: Any
    inputs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    def measured(
        self, ways: Sequence[tuple[Allocates | None, Mapping[str, Any]]], new: int, progress: Callable[[str], None]
    ) -> tuple[tuple[Answer, ...], list[Shortened], int]:
        """An answer for each way, and the rounds: three where all are quick, for the medians of their times."""
        rounds: list[list[tuple[Answer, Shortened]]] = []
        start = time.perf_counter()
        while not rounds or (len(rounds) < ROUNDS and time.perf_counter() - start < QUICK * len(rounds)):
            rounds.append([])
            for allocator, amount in ways:
                progress(f"answer: {ALL if allocator is None else name_of(allocator)}")
                rounds[-1].append(self.once(allocator, amount, new))
        answers = tuple(_median([answer for answer, _ in same]) for same in zip(*rounds, strict=True))
        return answers, [short for _, short in rounds[0]], len(rounds)

    def once(self, allocator: Allocates | None, amount: Mapping[str, Any], new: int) -> tuple[Answer, Shortened]:
        """One answer, with all tokens where there is no allocator."""
        memory = PeakMemory(self.inputs["input_ids"].device)
        way = "random" if allocator is None else allocator  # any keeps all, and this one needs nothing
        short = shorten(self.vlm.model, self.inputs, way, processor=self.processor, **amount, **self.options)
        times = TokenTimes()
        output = self.vlm.model.generate(  # pyright: ignore[reportCallIssue]
            **short, streamer=times, do_sample=False, num_beams=1, max_new_tokens=new
        )
        peak = memory.peak
        decide = sum(spent for stage, spent in short.seconds.items() if stage != "encode") if allocator else 0.0
        stages = (short.seconds["encode"], decide, times.prefill, times.decode)
        answer = Answer(
            allocator=None if allocator is None else name_of(allocator),
            text=short.decode(output)[0].strip(),
            visual_tokens=short.tokens_out,
            prompt_tokens=int(short.mask.sum()),
            new_tokens=short.new_tokens(output).shape[1],
            seconds=dict(zip(STAGES, stages, strict=True)),
            memory_before=memory.before,
            memory_peak=peak,
        )
        return answer, short


def _median(same: Sequence[Answer]) -> Answer:
    seconds = {stage: statistics.median(answer.seconds[stage] for answer in same) for stage in STAGES}
    return replace(same[0], seconds=seconds)


def _several(image: Image | Sequence[Image]) -> list[Image]:
    several = [image] if isinstance(image, str | os.PathLike | bytes | PIL.Image.Image) else list(image)
    if not several:
        raise DataError("there is no image: give a path, bytes or a PIL image, or several")
    return several


def _chosen(
    allocator: str | Allocates | None, compare: Sequence[str | Allocates], seed: int, states: States | None
) -> list[Allocates]:
    others = [compare] if isinstance(compare, str) else list(compare)
    first = [] if allocator is None else [allocator]
    unique: list[str | Allocates] = []
    for each in [*first, *others] or ["divprune"]:
        if not any(each is other or (isinstance(each, str) and each == other) for other in unique):
            unique.append(each)
    return [made(each, seed, states) for each in unique]


def _check(vlm: Opened, question: str, max_new_tokens: int, budgets: Sequence[int]) -> None:
    if not isinstance(question, str) or not question.strip():
        raise DataError("the question is empty: ask in words, such as 'where is the cat?'")
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise BudgetError(f"the answer must have at least 1 token, got {max_new_tokens!r}")
    if vlm.model.training:
        raise ModelError("the model is in training mode, which answers at random: call model.eval() first")


def _records(
    shorts: Sequence[Shortened], previews: Sequence[Picture], answers: tuple[Answer, ...], made: dict[str, str]
) -> tuple[Record, ...]:
    """One Record an image, with a Look for each way of shortening."""
    by_image = zip(*(short.records(previews) for short in shorts), strict=True)
    seconds = dict(answers[0].seconds)
    return tuple(
        replace(same[0], looks=tuple(r.looks[0] for r in same), answers=answers, seconds=seconds, made=made)
        for same in by_image
    )


def _made(vlm: Opened, seed: int, rounds: int) -> dict[str, str]:
    device = vlm.device
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    name = model_name(vlm.config.name_or_path) or vlm.config.model_type
    dtype = str(next(vlm.model.parameters()).dtype).removeprefix("torch.")
    timed = "once" if rounds == 1 else f"medians of {rounds} rounds"
    about = {"model": f"{name}, {dtype}", "device": place, "timed": timed, "memory": PeakMemory.kind(device)}
    return {**made_by(seed), **about}
