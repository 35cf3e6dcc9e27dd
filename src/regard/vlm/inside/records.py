"""Records of what was pruned inside a language model, one an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from regard.allocation import Allocation
from regard.cost.language import LanguageModel
from regard.errors import DataError
from regard.record import Picture, Record
from regard.recorded import blank_picture, boxes_of, look_of, made_by, relevance_of
from regard.tokens import Question, VisualTokens
from regard.vlm.inside.pruner import Pruner, spread
from regard.vlm.opened import Opened, checked_inputs
from regard.vlm.prompt import Prompt
from regard.vlm.shortened import Shortened

Steps = list[tuple[int, Allocation]]


@dataclass(frozen=True, eq=False)
class Image:
    """An image as the language model got it. row: its prompt. tokens: how many. before: the record of shortening."""

    row: int
    tokens: int
    before: Record | None = None
    boxes: Tensor | None = None
    grid: tuple[int, int, int] | None = None
    others: int = 0


def records_of(
    vlm: Opened,
    method: Pruner,
    steps: list[Steps],
    scores: list[list[Tensor]],
    inputs: Mapping[str, Any],
    pictures: Sequence[Picture] | None,
) -> list[Record]:
    """One Record an image. steps and scores: of each prompt (and beam). inputs: what the model was given."""
    images = _shortened(inputs, pictures) if isinstance(inputs, Shortened) else _processed(vlm, inputs)
    if pictures is not None and len(pictures) != len(images):
        raise DataError(f"{len(pictures)} pictures for {len(images)} images: one each is needed")
    rows = len(inputs["input_ids"])
    beams = max(1, len(steps) // rows)
    totals = [sum(image.tokens for image in images if image.row == row) for row in range(rows)]
    read = [prompt[0][1].n_in for prompt in steps[::beams]]
    if read != totals:
        raise DataError(f"these inputs have {totals} image tokens, and {read} were read: give those that were read")
    mask = inputs.get("attention_mask")
    lengths = [inputs["input_ids"].shape[1]] * rows if mask is None else mask.sum(dim=1).tolist()
    text = [length - total for length, total in zip(lengths, totals, strict=True)]
    records, done, depth = [], [0] * rows, vlm.text.num_hidden_layers
    for number, image in enumerate(images):
        start, row = done[image.row], image.row * beams
        own = part(steps[row], start, image.tokens)
        stages = [(layer, allocation.n_out) for layer, allocation in steps[row]]
        read = [text[image.row] + count for count in spread(totals[image.row], stages, depth)]
        attention = scores[row][0][start : start + image.tokens].float().cpu()
        done[image.row] += image.tokens
        picture = blank_picture(f"image {number + 1}", image.grid) if pictures is None else pictures[number]
        records.append(_record(vlm, method, image, own, attention, picture, read))
    return records


def part(steps: Steps, start: int, tokens: int) -> Steps:
    """The steps of one image among the tokens of its prompt: `tokens` of them from slot `start` on."""
    own = []
    for layer, allocation in steps:
        anchor = allocation.anchor[0].cpu()
        here = anchor[(anchor >= start) & (anchor < start + tokens)] - start
        whole = len(here) == tokens > 0
        own.append((layer, Allocation.identity(1, tokens) if whole else Allocation.select(here[None], tokens)))
        start, tokens = int((anchor < start).sum()), len(here)
    return own


def composed(steps: Steps) -> Allocation:
    """All steps in one."""
    return reduce(Allocation.then, (allocation for _, allocation in steps))


def _shortened(short: Shortened, pictures: Sequence[Picture] | None) -> list[Image]:
    rows = [decision.row for decision in short._decisions]
    records = short.records(pictures)
    return [Image(row, r.looks[0].tokens_out, before=r) for row, r in zip(rows, records, strict=True)]


def _processed(vlm: Opened, inputs: Mapping[str, Any]) -> list[Image]:
    given = checked_inputs(vlm, inputs)
    prompt = Prompt.of(vlm, given)
    layouts = vlm.family.layouts(vlm.base, given, prompt.runs())
    counts = [len(layout.boxes) for layout in layouts]
    lengths = prompt.mask.sum(dim=1).tolist()
    return [
        Image(row, count, None, layout.boxes.cpu(), layout.grid, lengths[row] - count)
        for (row, _, _), count, layout in zip(prompt.spans(counts), counts, layouts, strict=True)
    ]


def _record(
    vlm: Opened, method: Pruner, image: Image, own: Steps, attention: Tensor, picture: Picture, read: list[int]
) -> Record:
    """attention: (N,), of the prompt's last token at the first stage: the relevance where there is no other.

    read: tokens of the whole prompt that each layer reads.
    """
    question = Question(torch.ones(1, 1, 1), text="the prompt")
    model = LanguageModel.of(vlm.config)
    if image.before is None:
        assert image.boxes is not None
        tokens = VisualTokens(attention[None, :, None], image.boxes[None], grid=image.grid)
        steps, name = own, type(method).__name__
        record = Record(
            picture=picture,
            eye=f"{vlm.config.model_type} vision encoder",
            questions=("the prompt",),
            boxes=boxes_of(tokens),
            relevance=relevance_of(tokens, [question]),
            grid=image.grid,
            looks=(),
            language_model=model.name,
            prompt_tokens=image.others,
            seconds={},
            made=made_by(0),
        )
    else:
        record, first = image.before, image.before.looks[0]
        tokens = VisualTokens(torch.tensor(record.relevance[0])[None, :, None], torch.tensor(record.boxes)[None])
        steps = [(step.layer, step.rebuilt()) for step in first.steps] + own
        name = f"{first.allocator}, then {type(method).__name__}"
    counts = spread(tokens.features.shape[1], [(layer, step.n_out) for layer, step in steps], model.layers)
    look = look_of(
        tokens,
        question,
        composed(steps),
        number=0,
        name=name,
        allocator=method,
        budget=round(sum(counts) / model.layers),
        seconds=0.0,
        model=model,
        prompt_tokens=record.prompt_tokens,
        steps=steps,
        read=read,
    )
    return replace(record, looks=(look,))
