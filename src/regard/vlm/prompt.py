"""Where the images stand in the prompt, and the prompt's own text as a question."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from regard.errors import DataError, ModelError
from regard.tokens import Question
from regard.vlm._family import Run
from regard.vlm.columns import Columns
from regard.vlm.opened import Opened


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

    def placed(self, counts: Sequence[int]) -> tuple[list[int], Int[Tensor, "m 2"]]:
        """The prompt of each image, and (row, column) of every image token. counts: tokens of each image."""
        places = self.image.nonzero()
        if sum(counts) != len(places):
            raise DataError(
                f"the prompt has {len(places)} image tokens and the images {sum(counts)} features: "
                "take input_ids and pixel_values from one call of the processor, without truncation"
            )
        ends = torch.tensor(counts).cumsum(0).tolist()
        rows = places[:, 0].tolist()
        first = [rows[end - count] for end, count in zip(ends, counts, strict=True)]
        if any(rows[end - 1] != row for end, row in zip(ends, first, strict=True)):
            raise DataError(
                "the image tokens of one image stand in two prompts: each prompt needs its own images' tokens"
            )
        return first, places


def asked(vlm: Opened, prompt: Prompt, question: Any, sign: int, processor: Any) -> tuple[Question, tuple[str, ...]]:
    """The question of each prompt, in the language model's embeddings, and as text.

    question: words, a `Question`, or None for the prompts' own text. sign: -1 turns it round.
    """
    rows, texts = len(prompt.ids), ["the prompt"]
    if question is None:
        found = _own_text(vlm, prompt)
    elif isinstance(question, Question):
        found, texts = question, [question.text or "the question"]
    else:
        texts = [question] if isinstance(question, str) else list(question)
        found = in_words(vlm, texts, processor, 1)
    if len(found.features) not in (1, rows):
        raise DataError(f"{len(found.features)} questions for {rows} prompts: give one, or one for each")
    found = found.images(torch.zeros(rows, dtype=torch.long)) if len(found.features) == 1 else found
    return _signed(found, sign), tuple(texts if len(texts) == rows else texts * rows)


def _own_text(vlm: Opened, prompt: Prompt) -> Question:
    """The prompts' own text, without images, padding and special tokens."""
    special = torch.tensor(sorted(_special(vlm.config) | _special(vlm.text)), device=prompt.ids.device)
    text = prompt.mask & ~prompt.image & ~torch.isin(prompt.ids, special)
    if not bool(text.any(dim=1).all()):
        raise DataError("a prompt has no text to compare the image with: give question='...'")
    columns = Columns.kept(text, pad_left=False)
    return Question(_embedded(vlm, columns.gather(prompt.ids)), columns.mask)


def in_words(vlm: Opened, texts: list[str], processor: Any, sign: int) -> Question:
    """Questions in words as unit vectors of their tokens' input embeddings. Raises DataError for an empty one."""
    if not all(isinstance(text, str) and text.strip() for text in texts) or not texts:
        raise DataError("the question is empty: ask in words, such as 'where is the cat?'")
    tokenizer = tokenizer_of(vlm, processor)
    ids = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in ids], batch_first=True)
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return _signed(Question(_embedded(vlm, padded.to(vlm.device)), mask.to(vlm.device)), sign)


def _signed(question: Question, sign: int) -> Question:
    return question if sign == 1 else replace(question, features=-question.features)


def tokenizer_of(vlm: Opened, processor: Any) -> Any:
    """The tokenizer of a processor, or the one beside the model. Raises ModelError where there is none."""
    if processor is not None:
        return getattr(processor, "tokenizer", processor)
    from transformers import AutoTokenizer

    path = vlm.config.name_or_path
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"there is no tokenizer beside the model ({path!r}): give processor=...") from error


def _embedded(vlm: Opened, ids: Tensor) -> Tensor:
    """Unit vectors of the language model's input embeddings: (B, T) -> (B, T, D)."""
    with torch.no_grad():
        return F.normalize(vlm.model.get_input_embeddings()(ids).float(), dim=-1)  # pyright: ignore[reportCallIssue]


def _special(config: Any) -> set[int]:
    found: set[int] = set()
    for name, value in vars(config).items():
        if name.endswith(("_token_id", "_token_index")):
            found |= {value} if isinstance(value, int) else set(value or ())
    return found
