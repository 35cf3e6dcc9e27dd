"""`regard ask` without a model's name: the pocket model's answers, with all of its visual tokens and with fewer."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import PIL.Image
import torch

from regard.allocation import Allocation
from regard.cost.language import LanguageModel
from regard.record import STAGES, Answer, Look, Picture, Record
from regard.recorded import boxes_of, explained, look_of, made_by, read_picture, relevance_of
from regard.relevance.tensions import States
from regard.tokens import Question, VisualTokens
from regard.vlm.ask import Asked, check_asked
from regard.vlm.bridges import ALL, Bridged
from regard.vlm.compose import VLM
from regard.vlm.decide import budgets_of
from regard.vlm.interleaved import IMAGE, interleaved
from regard.vlm.measure import PeakMemory, TokenTimes
from regard.vlm.pocket import SELECTING, Pocket, pocket, unknown_words

TRAINED_ON = (
    "the pocket model was trained on composed scenes: cut-outs, shapes and signs on photos, and questions about what, "
    "where, how many, which colour, what is next to it, what is written and what is missing; it was trained briefly "
    "and is often wrong (docs/pocket.md); ask about other pictures with --model"
)


def ask_pocket(
    image: str | os.PathLike | bytes | PIL.Image.Image,
    question: str,
    *,
    budget: int | None = None,
    keep: float | None = None,
    mechanisms: Sequence[str] = ("relevance",),
    max_new_tokens: int = 8,
    states: States | None = None,
    seed: int = 0,
    model: Pocket | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Asked:
    """The pocket model's answer with all tokens, and through each of some mechanisms (`pocket.MECHANISMS`).

    budget: tokens of the image, or keep: the fraction of them, a quarter where neither is given. states: of the
    tensions of `relevance`; seed: for allocators that draw. model: by default the package's. Raises RegardError where a
    user can mend: an empty question, a name that is none, a bad image.
    """
    check_asked(question, max_new_tokens)
    found = model or pocket()
    vlms = {name: ready(found, name, seed, states) for name in dict.fromkeys((ALL, *mechanisms))}
    progress("read")
    picture, preview = read_picture(image)
    start = time.perf_counter()
    tokens, asked = found.eye.look(picture), found.eye.ask(question)
    seen = time.perf_counter() - start
    count = tokens.features.shape[1]
    amount = budgets_of([count], budget, keep if budget is not None or keep is not None else 0.25)[0]
    answers, looks = [], []
    for name, vlm in vlms.items():
        progress(f"answer: {name}")
        answer, bridged = answered(vlm, name, tokens, asked, question, amount, seen, max_new_tokens)
        answers.append(answer)
        looks += _looks(vlm, answer, bridged, tokens, asked, amount)
    record = _record(preview, question, tokens, asked, tuple(looks), tuple(answers), seed)
    record = replace(record, notes=notes_on(found, question))
    return Asked(tuple(answers), (record,))


def ready(model: Pocket, name: str, seed: int = 0, states: States | None = None) -> VLM:
    """The model behind one mechanism, for answers. seed, states: of allocators that draw, or have tensions."""
    vlm = model.vlm(name).eval()
    if name in SELECTING[1:]:
        vlm.bridge.allocator = model.allocator(name, seed, states)
    return vlm


def notes_on(model: Pocket, question: str) -> tuple[str, ...]:
    """What to know about its answer to a question: the words that it does not know, and what it was trained on."""
    unknown = unknown_words(question, model.tokenizer.get_vocab())
    return (*([f"the pocket model does not know {', '.join(unknown)}"] if unknown else []), TRAINED_ON)


@torch.no_grad()
def answered(
    vlm: VLM, name: str, tokens: VisualTokens, asked: Question, question: str, budget: int, seen: float, most: int = 8
) -> tuple[Answer, Bridged]:
    """One answer, and the tokens that it was made from. tokens, asked: of the model's eye, which took `seen` seconds.
    most: tokens of the answer.
    """
    prompts = interleaved(vlm.tokenizer, [IMAGE + question], [1])
    memory, start = PeakMemory(torch.device("cpu")), time.perf_counter()
    bridged = vlm.bridge(tokens, asked, None if name == ALL else budget)
    decided, times = time.perf_counter() - start, TokenTimes()
    ids = vlm.generate(prompts, bridged, streamer=times, do_sample=False, max_new_tokens=most)
    visual = int(bridged.mask.sum())
    answer = Answer(
        allocator=None if name == ALL else name,
        text=vlm.tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip(),
        visual_tokens=visual,
        prompt_tokens=visual + int(prompts.mask.sum()) - 1,
        new_tokens=ids.shape[1],
        seconds=dict(zip(STAGES, (seen, decided, times.prefill, times.decode), strict=True)),
        memory_before=memory.before,
        memory_peak=memory.peak,
    )
    return answer, bridged


def _looks(
    vlm: VLM, answer: Answer, bridged: Bridged, tokens: VisualTokens, asked: Question, budget: int
) -> list[Look]:
    """Where an answer's tokens were spent, where they are a selection."""
    if answer.allocator is None or not isinstance(bridged.reading, Allocation):
        return []
    config: Any = vlm.language_model.config
    look = look_of(
        tokens,
        asked,
        bridged.reading,
        number=0,
        name=answer.allocator,
        allocator=vlm.bridge.allocator,
        budget=budget,
        seconds=answer.seconds["decide"],
        model=LanguageModel.of(config),
        prompt_tokens=answer.prompt_tokens - answer.visual_tokens,
        why=explained(vlm.bridge.allocator, tokens, asked, answer.visual_tokens),
    )
    return [look]


def _record(
    preview: Picture,
    question: str,
    tokens: VisualTokens,
    asked: Question,
    looks: tuple[Look, ...],
    answers: tuple[Answer, ...],
    seed: int,
) -> Record:
    about = {"model": "the pocket model, float32", "device": "cpu", "timed": "once"}
    about["memory"] = PeakMemory.kind(torch.device("cpu"))
    return Record(
        picture=preview,
        eye="the pocket eye",
        questions=(question,),
        boxes=boxes_of(tokens),
        relevance=relevance_of(tokens, [asked]),
        grid=tokens.grid,
        looks=looks,
        answers=answers,
        language_model="the pocket model's decoder",
        prompt_tokens=answers[0].prompt_tokens - answers[0].visual_tokens,
        seconds=dict(answers[-1].seconds),
        made={**made_by(seed), **about},
    )
