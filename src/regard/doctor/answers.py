"""Questions with known answers, and how likely a model finds these: what an ablation is measured on.

One run of the model reads prompt and answer together. It tells how likely each word of the answer is after those before
it, and whether the model would have said each by itself: greedy, so an answer is right where all its tokens are.
"""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import PIL.Image
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.allocate import Allocates
from regard.doctor.case import ran, takes
from regard.errors import DataError, ImageError, ModelError
from regard.images import load_image
from regard.tokens import Question, VisualTokens
from regard.vlm import catalogue
from regard.vlm.bridges import Bridged
from regard.vlm.chat import chat_inputs
from regard.vlm.compose import VLM, Tokens
from regard.vlm.interleaved import UNLEARNED, Interleaved, without_images
from regard.vlm.opened import Opened
from regard.vlm.processors import load_processor
from regard.vlm.shorten import shorten, shorten_each

Image = str | os.PathLike | bytes | PIL.Image.Image
_SUFFIX = {"paligemma"}  # what is read both ways is of type 0, and an answer of type 1


class Said(NamedTuple):
    """Of each row. bits: the logarithm to base 2 of the probability of its answer. right: whether the model says it."""

    bits: Float[Tensor, " b"]
    right: Bool[Tensor, " b"]


@dataclass(frozen=True)
class Row:
    """image: one, or several in the order of the prompt, before the question."""

    image: Image | Sequence[Image]
    question: str
    answer: str

    @property
    def images(self) -> list[Image]:
        """Of mappings, as `datasets` writes them, their bytes or path."""
        several: Any = self.image
        if not isinstance(several, Sequence) or isinstance(several, str | bytes):
            several = [several]
        images: list[Any] = [
            one.get("bytes") or one.get("path") if isinstance(one, Mapping) else one for one in several
        ]
        return images

    @property
    def key(self) -> str:
        """Which images it is about: rows that share them are no independent samples."""
        return " ".join(_key(image) for image in self.images)


def rows_of(given: Iterable[Mapping[str, Any] | Row]) -> list[Row]:
    """Rows of mappings with image, question and answer. Raises DataError where one has not all, or there is none."""
    rows = []
    for number, row in enumerate(given, 1):
        if not isinstance(row, Row):
            if not isinstance(row, Mapping) or not {"image", "question", "answer"} <= row.keys():
                has = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
                raise DataError(f"row {number} must have image, question and answer: it has {has or 'nothing'}")
            row = Row(row["image"], row["question"], row["answer"])
        if not all(isinstance(text, str) and text.strip() for text in (row.question, row.answer)):
            raise DataError(f"question and answer of row {number} must be words, got {row.question!r}, {row.answer!r}")
        for image in row.images:
            if not isinstance(image, Image):
                got = "nothing" if image is None else type(image).__name__
                raise DataError(f"the image of row {number} must be a path, bytes or a picture, got {got}")
        rows.append(row)
    if not rows:
        raise DataError("there are no rows to measure on: give some with image, question and answer")
    return rows


@dataclass(frozen=True, eq=False)
class OfModel:
    """Rows that a model of Hugging Face is given. images: of each row, which it is about. inputs: with the answers;
    labels: (B, T), which tokens these are. words: the question.
    """

    images: tuple[str, ...]
    model: Any
    inputs: Mapping[str, Any]
    labels: Int[Tensor, "b t"]
    words: str
    processor: Any
    mask: None = None  # no row has padding

    @torch.no_grad()
    def said(self) -> Said:
        count = self.labels.shape[1] + 1
        keep = {"logits_to_keep": count} if takes(self.model, "logits_to_keep") else {}
        with ran("the model"):
            logits = self.model(**self.inputs, use_cache=False, **keep).logits
        return scored(logits[:, -count:-1], self.labels)

    @torch.no_grad()
    def encoded(self) -> "OfModel":
        """The same with its images encoded."""
        return replace(self, inputs=shorten(self.model, self.inputs, "random", keep=1.0))  # any keeps all

    @torch.no_grad()
    def shortened(self, allocators: Sequence[Allocates], budget: int) -> list["OfModel"]:
        """The same through each allocator, its images encoded once."""
        given = {"budget": budget, "question": self.words, "processor": self.processor}
        return [replace(self, inputs=short) for short in shorten_each(self.model, self.inputs, allocators, **given)]


@dataclass(frozen=True, eq=False)
class OfParts:
    """Rows that a `regard.VLM` is given. images: of each row, which it is about. afresh: whether the bridge is run
    again each time, as where it is what is looked into.
    """

    images: tuple[str, ...]
    vlm: VLM
    prompts: Interleaved
    tokens: Tokens
    question: Question | None = None
    budget: int | None = None
    afresh: bool = False

    @cached_property
    def bridged(self) -> Any:
        with torch.no_grad():
            given = self.tokens if isinstance(self.tokens, VisualTokens | Bridged) else list(self.tokens)
            return given if isinstance(given, Bridged) else self.vlm._bridged(given, self.question, self.budget) or ()

    @property
    def mask(self) -> Bool[Tensor, "b t"]:
        """Which columns are no padding."""
        with torch.no_grad():
            return self.vlm._read(self.prompts, self.bridged, None, None)[1].mask

    @torch.no_grad()
    def said(self, vlm: VLM | None = None) -> Said:
        """vlm: in the place of the rows' own."""
        with ran("the model"):
            if self.afresh or vlm is not None:
                logits = (vlm or self.vlm)(self.prompts, self.tokens, self.question, self.budget).logits
            else:
                logits = self.vlm(self.prompts, self.bridged).logits
        return scored(logits[:, :-1], self.prompts.labels[:, 1 - logits.shape[1] :])


Asked = OfModel | OfParts


def scored(logits: Float[Tensor, "b t v"], labels: Int[Tensor, "b t"]) -> Said:
    """How likely the labels are, and whether all are what is most likely. UNLEARNED ones do not count."""
    taught = labels != UNLEARNED
    places = labels.clamp(min=0)[..., None]
    nats = logits.double().log_softmax(dim=-1).gather(-1, places)[..., 0].masked_fill(~taught, 0).sum(dim=1)
    right = ((logits.argmax(dim=-1) == labels) | ~taught).all(dim=1)
    return Said((nats / math.log(2)).cpu(), right.cpu())


class Task:
    """Rows as a model is asked about them: `for asked in task`, each time anew, so that images need not be held.

    model: of Hugging Face, or a `regard.VLM`. settled: whether what the language model is given of an image stays the
    same, and so is made once. budget: tokens an image, of a `regard.VLM`. skipped: rows of the last time
    whose images cannot be read, and why.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Iterable[Mapping[str, Any] | Row],
        processor: Any = None,
        budget: int | None = None,
        settled: bool = True,
    ) -> None:
        self.model, self.rows, self.budget, self.settled = model, rows_of(rows), budget, settled
        self.skipped = Counter[str]()
        self.processor = processor
        if not isinstance(model, VLM):
            config = getattr(model, "config", None)
            if not hasattr(config, "get_text_config"):
                raise ModelError(f"{type(model).__name__} is no model of Hugging Face and no regard.VLM")
            self.processor = processor or load_processor(config.name_or_path)  # pyright: ignore

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Asked]:
        self.skipped = Counter()
        for row in self.rows:
            try:
                pictures = [load_image(image) for image in row.images]
            except ImageError as error:
                self.skipped[str(error)] += 1
                continue
            yield self._of_parts(row, pictures) if isinstance(self.model, VLM) else self._of_model(row, pictures)

    def _of_parts(self, row: Row, pictures: list[PIL.Image.Image]) -> OfParts:
        assert isinstance(self.model, VLM)
        prompts, tokens, question = self.model.prepared([pictures], [row.question], [row.answer])
        return OfParts((row.key,), self.model, prompts, tokens, question, self.budget, not self.settled)

    def _of_model(self, row: Row, pictures: list[PIL.Image.Image]) -> OfModel:
        model: Any = self.model
        known = model.config.model_type in catalogue()
        words = without_images(row.question)
        inputs = chat_inputs(Opened(model, model.base_model, None, model.config), self.processor, pictures, words)  # pyright: ignore
        answer = answer_ids(self.processor.tokenizer, model, inputs["input_ids"][0], row.answer)
        labels = torch.tensor([answer], device=inputs["input_ids"].device)
        made = OfModel((row.key,), model, longer(model, inputs, labels), labels, words, self.processor)
        return made.encoded() if known and self.settled else made


def answer_ids(tokenizer: Any, model: Any, prompt: Int[Tensor, " l"], answer: str) -> list[int]:
    """The tokens of an answer as they go on from a prompt, after a space where that does not end with one, and the
    model's end of an answer.
    """
    open_ended = not tokenizer.decode(prompt[-1:])[-1:].strip()
    before, after = ("\n", answer) if open_ended else (":", f" {answer}")
    first = tokenizer(before, add_special_tokens=False)["input_ids"]
    whole = tokenizer(before + after, add_special_tokens=False)["input_ids"]
    ids = whole[len(first) :] if whole[: len(first)] == first else None
    ids = ids or tokenizer(answer, add_special_tokens=False)["input_ids"]
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = own if isinstance(own, list) else [] if own is None else [own]
    end = tokenizer.eos_token_id
    return [*ids, *([end] if end in ends or (not ends and end is not None) else ends[:1])]


def longer(model: Any, inputs: Mapping[str, Any], words: Int[Tensor, "b t"]) -> dict[str, Any]:
    """The inputs of a model of Hugging Face with words of an answer behind each prompt. Raises DataError where prompts
    are padded on the right.
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    if not bool(mask[:, -1].all()):
        raise DataError("the prompts are padded on the right, where an answer would stand: pad them on the left")
    made = {"input_ids": torch.cat((ids, words), dim=1), "attention_mask": F.pad(mask, (0, words.shape[1]), value=1)}
    suffix = int(model.config.model_type in _SUFFIX)
    kinds = {"token_type_ids": suffix, "mm_token_type_ids": 0}
    types = {name: F.pad(inputs[name], (0, words.shape[1]), value=of) for name, of in kinds.items() if name in inputs}
    across = inputs.get("cross_attention_mask")  # (B, L, I, T), of Mllama
    if across is not None:
        made["cross_attention_mask"] = torch.cat((across, across[:, -1:].expand(-1, words.shape[1], -1, -1)), dim=1)
    return {**inputs, **made, **types}


def _key(image: Image) -> str:
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    if isinstance(image, PIL.Image.Image):
        return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()
    return str(image)
