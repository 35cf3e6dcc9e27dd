"""Answers of a real model with all of its visual tokens and with fewer, and what each took."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import PIL.Image
import torch
from torch import nn

from regard.allocate import Allocates, made, name_of
from regard.errors import BudgetError, DataError, ModelError
from regard.eyes.crops import Tile
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
from regard.vlm.tiled import TILES, Tiling, checked_tiles, listed, token_pixels

Image = str | os.PathLike | bytes | PIL.Image.Image
ALL, WHOLE = "all tokens", {"keep": 1.0}
QUICK, ROUNDS = 20.0, 3  # where all answers together take up to so many seconds, they are given so many times


@dataclass(frozen=True)
class Asked:
    """answers: the untouched model's first, then one for each allocator, and that from tiles last. records: one an
    image, with all answers. tiles: what the image was cut into, in the order of the prompt.
    """

    answers: tuple[Answer, ...]
    records: tuple[Record, ...]
    tiles: tuple[Tile, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of the answers, such as what is not exact for this model, a line each."""
        return self.records[0].notes


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
    tiles: int | None = None,
    max_new_tokens: int = 32,
    positions: Literal["original", "compact"] = "original",
    sign: Literal[1, -1] = 1,
    states: States | None = None,
    seed: int = 0,
    rounds: int | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Asked:
    """What a model answers to a question about an image, with all of its visual tokens and with fewer.

    model, processor: of Hugging Face, as they come; `regard.vlm.processors` loads both without torchvision. image: a
    path, bytes or PIL image, or several of them for one question about all. budget: tokens an image, or a number for
    each image; or keep: the fraction to keep (a quarter where neither is given). allocator: a name or an object
    ("divprune" where none is given, nothing to compare and no tiles); compare: others to answer with too. tiles: answer
    also from the image cut into tiles of so many tokens in all, as fine as the question needs each, for models whose
    tokens follow an image's size. positions, sign: as in `shorten`. states: of the tensions of `relevance` where it
    goes by its name, and of the tiles. seed: for allocators that draw. rounds: at most so many, 3 by default, for
    the medians of times. progress: told the name of each stage as it starts.

    Answers are greedy and made by the model's own `generate`. The untouched model goes the same way as the others, with
    every token kept, which changes no bit of its logits; so the vision encoder is timed apart for all of them. One run
    that is not counted warms up; times of quick answers are medians of `rounds`. Raises RegardError where a user can
    mend.
    """
    vlm = opened(model)
    several = _several(image)
    amount = checked_amount(len(several), budget, keep, tiles, named=allocator is not None or bool(compare))
    chosen = _chosen(allocator, compare, seed, states) if amount else []
    _check(vlm, question, max_new_tokens, tiles)
    progress("read")
    pictures = [read_picture(one) for one in several]
    with torch.no_grad():
        inputs = chat_inputs(vlm, processor, [picture for picture, _ in pictures], question)
        run = _Run(vlm, processor, inputs, {"question": question, "positions": positions, "sign": sign})
        progress("warm up")
        run.once(None, WHOLE, min(2, max_new_tokens))
        ways = [(ALL, partial(run.once, None, WHOLE, max_new_tokens))]
        ways += [(name_of(each), partial(run.once, each, amount, max_new_tokens)) for each in chosen]
        if tiles is not None:
            tiling = Tiling(vlm, processor, pictures[0][0], question, tiles, sign, states or States())
            ways.append((TILES, partial(run.tiled, tiling, max_new_tokens)))
        done, times = _measured(ways, ROUNDS if rounds is None else rounds, progress)
    made = _made(vlm, seed, times, done[-1].tiles)
    notes = tuple(dict.fromkeys(each.short.caution for each in done if each.short.caution))
    records = _records(done, [preview for _, preview in pictures], made, notes)
    return Asked(tuple(each.answer for each in done), records, done[-1].tiles)


def checked_amount(
    images: int, budget: int | Sequence[int] | None, keep: float | None, tiles: int | None, named: bool
) -> dict[str, Any]:
    """What allocators spend, a quarter of the tokens by default; nothing where tiles alone are asked for.

    named: whether an allocator is. Raises BudgetError, and DataError for tiles of several images.
    """
    given = budget is not None or keep is not None
    if tiles is not None:
        checked_tiles(tiles, images)
        if given and not named:
            raise BudgetError(
                "beside tiles, a budget (or keep) is for allocators, and none is named: name one, or none"
            )
        if not named:
            return {}
    amount = {"budget": budget, "keep": keep if given else 0.25}
    budgets_of([1] * images, **amount)
    return amount


@dataclass(frozen=True)
class _Done:
    """An answer, what the model was given for it, and the tiles it was made from."""

    answer: Answer
    short: Shortened
    tiles: tuple[Tile, ...] = ()


@dataclass(frozen=True)
class _Run:
    """One prompt, to be answered in several ways."""

    vlm: Opened
    processor: Any
    inputs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    def tiled(self, tiling: Tiling, new: int) -> _Done:
        """One answer from the tiles of the image, with all of their tokens; all that it takes to cut is deciding."""
        memory = PeakMemory(self.inputs["input_ids"].device)
        cut = tiling.cut(self.inputs)
        done = replace(self, inputs=cut.inputs).once(None, WHOLE, new, memory)
        answer = replace(done.answer, allocator=TILES, seconds={**done.answer.seconds, "decide": cut.seconds})
        return _Done(answer, done.short, cut.tiles)

    def once(
        self, allocator: Allocates | None, amount: Mapping[str, Any], new: int, memory: PeakMemory | None = None
    ) -> _Done:
        """One answer, with all tokens where there is no allocator. memory: that already counts, where there is one."""
        memory = memory or PeakMemory(self.inputs["input_ids"].device)
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
        return _Done(answer, short)


def _measured(
    ways: Sequence[tuple[str, Callable[[], _Done]]], most: int, progress: Callable[[str], None]
) -> tuple[list[_Done], int]:
    """An answer for each way, and the rounds: `most` where all are quick, for the medians of their times."""
    rounds: list[list[_Done]] = []
    start = time.perf_counter()
    while not rounds or (len(rounds) < most and time.perf_counter() - start < QUICK * len(rounds)):
        rounds.append([])
        for name, answer in ways:
            progress(f"answer: {name}")
            rounds[-1].append(answer())
    by_way = zip(*rounds, strict=True)
    return [replace(same[0], answer=_median([each.answer for each in same])) for same in by_way], len(rounds)


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


def check_asked(question: str, max_new_tokens: int) -> None:
    """Raise DataError for an empty question, BudgetError for an answer of no token."""
    if not isinstance(question, str) or not question.strip():
        raise DataError("the question is empty: ask in words, such as 'where is the cat?'")
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise BudgetError(f"the answer must have at least 1 token, got {max_new_tokens!r}")


def _check(vlm: Opened, question: str, max_new_tokens: int, tiles: int | None) -> None:
    check_asked(question, max_new_tokens)
    if vlm.model.training:
        raise ModelError("the model is in training mode, which answers at random: call model.eval() first")
    if tiles is not None:
        token_pixels(vlm.config)


def _records(
    done: Sequence[_Done], previews: Sequence[Picture], made: dict[str, str], notes: tuple[str, ...]
) -> tuple[Record, ...]:
    """One Record an image, with a Look for each way of shortening. done: the untouched model's answer first."""
    answers = tuple(each.answer for each in done)
    by_image = zip(*(each.short.records(previews) for each in done if not each.tiles), strict=True)
    about: dict[str, Any] = {"answers": answers, "seconds": dict(answers[0].seconds), "made": made, "notes": notes}
    return tuple(replace(whole, looks=tuple(r.looks[0] for r in others), **about) for whole, *others in by_image)


def _made(vlm: Opened, seed: int, rounds: int, tiles: Sequence[Tile]) -> dict[str, str]:
    device = vlm.device
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    name = model_name(vlm.config.name_or_path) or vlm.config.model_type
    dtype = str(next(vlm.model.parameters()).dtype).removeprefix("torch.")
    timed = "once" if rounds == 1 else f"medians of {rounds} rounds"
    about = {"model": f"{name}, {dtype}", "device": place, "timed": timed, "memory": PeakMemory.kind(device)}
    cut = {"tiles": f"{len(tiles)} of {listed([tile.tokens for tile in tiles])} tokens"} if tiles else {}
    return {**made_by(seed), **about, **cut}
