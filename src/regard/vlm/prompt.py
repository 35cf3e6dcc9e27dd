"""Where the images stand in the prompt, and the prompt's own text as a question."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.errors import DataError, ModelError
from regard.tokens import Question
from regard.vlm.columns import Columns
from regard.vlm.family import Run
from regard.vlm.opened import Opened

_REFERENCES = 64


@dataclass(frozen=True, eq=False)
class Prompt:
    """A batch of prompts. ids: (B, L). mask: (B, L), True = real. image: (B, L), True = a placeholder of the images."""

    ids: Int[Tensor, "b l"]
    mask: Bool[Tensor, "b l"]
    image: Bool[Tensor, "b l"]

    @classmethod
    def of(cls, vlm: Opened, inputs: dict[str, Any]) -> "Prompt":
        """Raises DataError where no placeholder is there."""
        ids = inputs["input_ids"]
        mask = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones_like(ids, dtype=torch.bool)
        image = (ids == vlm.image_token) & mask
        if not bool(image.any()):
            raise DataError(
                f"the prompt has no image token (id {vlm.image_token}): "
                "put the image into the chat template, or the processor's image token into the text"
            )
        return cls(ids, mask, image)

    def runs(self) -> list[Run]:
        """Consecutive image tokens, in the order of the prompts."""
        edges = F.pad(self.image.int(), (1, 1)).diff(dim=1)
        starts, stops = (edges == 1).nonzero().tolist(), (edges == -1).nonzero().tolist()
        return [Run(row, start, stop) for (row, start), (_, stop) in zip(starts, stops, strict=True)]

    @cached_property
    def places(self) -> Int[Tensor, "m 2"]:
        """Row and column of every image token, in order."""
        return self.image.nonzero()

    def spans(self, counts: Sequence[int]) -> list[tuple[int, int, int]]:
        """The row of each image, and the columns of its first and last token. counts: tokens of each image.

        Raises DataError where the prompts do not have just these.
        """
        if sum(counts) != len(self.places):
            raise DataError(
                f"the prompt has {len(self.places)} image tokens and the images {sum(counts)} features: "
                "take input_ids and pixel_values from one call of the processor, without truncation"
            )
        ends = torch.tensor(counts).cumsum(0)
        edges = self.places[torch.stack((ends - torch.tensor(counts), ends - 1)).to(self.places.device)].tolist()
        if any(first[0] != last[0] for first, last in zip(*edges, strict=True)):
            raise DataError("the image tokens of one image stand in two prompts: each prompt needs its own")
        return [(row, first, last) for (row, first), (_, last) in zip(*edges, strict=True)]

    def check_end(self, keep: Bool[Tensor, "b l"]) -> None:
        """Raise DataError where a prompt's last token is dropped: the answer follows from there."""
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        last = torch.where(self.mask, columns, -1).amax(dim=1, keepdim=True).clamp(min=0)
        if bool((self.mask & ~keep).gather(1, last).any()):
            raise DataError("a prompt ends with an image: put the text after it, as the answer follows from the end")


def asked(
    vlm: Opened,
    prompt: Prompt,
    spans: Sequence[tuple[int, int, int]],
    question: Any,
    sign: int,
    processor: Any,
    must: bool,
) -> tuple[Question | None, tuple[str, ...]]:
    """The question of each prompt, in the language model's embeddings, and as text.

    spans: of the images. question: words, a `Question`, or None for the prompts' own text. sign: -1 turns it round.
    must: raise DataError where there is no text to ask with, and not give None.
    """
    rows, texts = len(prompt.ids), ["the prompt"]
    if question is None:
        text = _text(vlm, prompt, processor)
        for row, first, last in spans:
            text[row, first : last + 1] = False  # what stands between an image's tiles is no text
        if not bool(text.any(dim=1).all()):
            if must:
                raise DataError("a prompt has no text to compare the image with: give question='...'")
            return None, ("",) * rows
        columns = Columns.kept(text, pad_left=False)
        found = Question(_embedded(vlm, columns.gather(prompt.ids)), columns.mask, reference=_words(vlm))
    elif isinstance(question, Question):
        found, texts = question, [question.text or "the question"]
    else:
        if not isinstance(question, str | Sequence):
            raise DataError(f"the question must be words or a Question, got {type(question).__name__}")
        texts = [question] if isinstance(question, str) else list(question)
        found = in_words(vlm, texts, processor, 1)
    if len(found.features) not in (1, rows):
        raise DataError(f"{len(found.features)} questions for {rows} prompts: give one, or one for each")
    found = found.images(torch.zeros(rows, dtype=torch.long)) if len(found.features) == 1 else found
    return _signed(found, sign), tuple(texts if len(texts) == rows else texts * rows)


def _text(vlm: Opened, prompt: Prompt, processor: Any) -> Bool[Tensor, "b l"]:
    """Where a prompt has words: no image, no padding, no special token that configuration or processor knows."""
    special = special_ids(vlm.config) | special_ids(vlm.text)
    special |= set(getattr(getattr(processor, "tokenizer", processor), "all_special_ids", ()))
    known = torch.tensor(sorted(special), device=prompt.ids.device)
    return prompt.mask & ~prompt.image & ~torch.isin(prompt.ids, known)


def in_words(vlm: Opened, texts: list[str], processor: Any, sign: int) -> Question:
    """Questions in words as unit vectors of their tokens' input embeddings. Raises DataError for an empty one."""
    if not all(isinstance(text, str) and text.strip() for text in texts) or not texts:
        raise DataError("the question is empty: ask in words, such as 'where is the cat?'")
    tokenizer = tokenizer_of(vlm, processor)
    ids = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in ids], batch_first=True)
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    asked = Question(_embedded(vlm, padded.to(vlm.device)), mask.to(vlm.device), reference=_words(vlm))
    return _signed(asked, sign)


def _words(vlm: Opened) -> Float[Tensor, "m d"]:
    """Reference questions of one word each, spread evenly over the vocabulary, as `_embedded`."""
    size = vlm.model.get_input_embeddings().weight.shape[0]  # pyright: ignore
    return _embedded(vlm, torch.linspace(0, size - 1, min(_REFERENCES, size)).long().to(vlm.device))


def _signed(question: Question, sign: int) -> Question:
    if sign == 1:
        return question
    reference = None if question.reference is None else -question.reference
    return replace(question, features=-question.features, reference=reference)


def tokenizer_of(vlm: Opened, processor: Any) -> Any:
    """The tokenizer of a processor, or the one beside the model. Raises ModelError where there is none."""
    if processor is not None:
        tokenizer = getattr(processor, "tokenizer", processor)
        if not callable(tokenizer):
            raise ModelError(f"expected the model's processor or tokenizer, got {type(processor).__name__}")
        return tokenizer
    from transformers import AutoTokenizer

    path = vlm.config.name_or_path
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"there is no tokenizer beside the model ({path!r}): give processor=...") from error


def _embedded(vlm: Opened, ids: Tensor) -> Tensor:
    """Unit vectors of the language model's input embeddings: (...) -> (..., D)."""
    with torch.no_grad():
        return F.normalize(vlm.model.get_input_embeddings()(ids).float(), dim=-1)  # pyright: ignore[reportCallIssue]


def special_ids(config: Any) -> set[int]:
    """The token ids that a configuration names: of images, padding, and the ends of a text."""
    found: set[int] = set()
    for name, value in vars(config).items():
        if name.endswith(("_token_id", "_token_index")):
            found |= {value} if isinstance(value, int) else set(value or ())
    return found
