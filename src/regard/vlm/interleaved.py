"""Prompts in which images stand among words: parted, padded, and with each image's tokens put where it stands."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.errors import DataError

IMAGE = "<image>"  # where an image stands in a prompt's text
UNLEARNED = -100  # a label that no loss counts


@dataclass(frozen=True, eq=False)
class Interleaved:
    """A batch of prompts, padded on the left.

    ids: (B, L), token ids, 0 where an image or padding is. mask: (B, L), True where a token or an image is. image:
    (B, L), True where an image is; in raster order they are the batch's images. labels: (B, L), what is to be learned,
    UNLEARNED elsewhere.
    """

    ids: Int[Tensor, "b l"]
    mask: Bool[Tensor, "b l"]
    image: Bool[Tensor, "b l"]
    labels: Int[Tensor, "b l"]

    def to(self, device: torch.device) -> "Interleaved":
        """The same on another device."""
        return Interleaved(*(part.to(device) for part in (self.ids, self.mask, self.image, self.labels)))


def interleaved(
    tokenizer: Any, texts: Sequence[str], images: Sequence[int], answers: Sequence[str] | None = None
) -> Interleaved:
    """Prompts with IMAGE where an image stands. images: how many each has. answers: what follows each, to be learned,
    with the end of the text.

    Begins as the tokenizer begins a text. Parts are tokenized apart, so an answer that goes on after a space begins
    with it. Raises DataError where there is no prompt, where prompts, answers and images, or a prompt's markers and its
    images, differ in number, or where a prompt has neither word nor image.
    """
    if not texts:
        raise DataError("there are no prompts: give one or more")
    if len(images) != len(texts):
        raise DataError(f"{len(texts)} prompts need as many numbers of images, got {len(images)}")
    if answers is not None and len(answers) != len(texts):
        raise DataError(f"{len(texts)} prompts need as many answers, got {len(answers)}")
    rows, learned = [], []
    for place, (text, count) in enumerate(zip(texts, images, strict=True)):
        parts = text.split(IMAGE)
        if len(parts) != count + 1:
            raise DataError(f"prompt {place} has {len(parts) - 1} {IMAGE} and {count} images: each image needs one")
        row = list(_start(tokenizer))
        for number, part in enumerate(parts):
            row += ([-1] if number else []) + _ids(tokenizer, part)
        answer = [] if answers is None else [*_ids(tokenizer, answers[place]), *_end(tokenizer)]
        if not row:
            raise DataError(f"prompt {place} is empty: give it a word or an image")
        rows.append([*row, *answer])
        learned.append(len(answer))
    longest = max(map(len, rows))
    whole = torch.tensor([[-2] * (longest - len(row)) + row for row in rows])
    taught = torch.arange(longest) >= longest - torch.tensor(learned)[:, None]
    return Interleaved(whole.clamp(min=0), whole > -2, whole == -1, whole.where(taught, torch.tensor(UNLEARNED)))


@dataclass(frozen=True, eq=False)
class Spliced:
    """What a language model reads: embeddings (B, T, D), padded on the left, mask (B, T), True = real, image (B, T),
    True = a token of an image, and labels (B, T). seen: (B, T), how many images stand at or before each place.
    """

    embeddings: Float[Tensor, "b t d"]
    mask: Bool[Tensor, "b t"]
    image: Bool[Tensor, "b t"]
    labels: Int[Tensor, "b t"]
    seen: Int[Tensor, "b t"]

    @property
    def positions(self) -> Int[Tensor, "b t"]:
        """Of each token, from 0 in each prompt."""
        return (self.mask.cumsum(dim=1) - 1).clamp(min=0)


def spliced(
    prompts: Interleaved,
    words: Float[Tensor, "b l d"],
    features: Float[Tensor, "m k d"] | None = None,
    valid: Bool[Tensor, "m k"] | None = None,
) -> Spliced:
    """Each image's tokens where it stands. words: embeddings of the prompts' ids. features: of the batch's images, of
    which the valid are put in; None: images stand nowhere, as where cross-attention reads them.
    """
    counts = prompts.mask.long()
    counts[prompts.image] = 0 if valid is None else valid.sum(dim=1)
    flat = counts.flatten()
    source = torch.arange(len(flat), device=flat.device).repeat_interleave(flat)
    image = prompts.image.flatten()[source]
    rows = words.flatten(0, 1)[source]
    if features is not None and valid is not None:
        rows = rows.masked_scatter(image[:, None], features[valid].to(rows.dtype))
    row = source // counts.shape[1]
    totals = counts.sum(dim=1)
    longest = int(totals.max())
    ends = totals.cumsum(dim=0)
    column = longest - ends[row] + torch.arange(len(source), device=flat.device)
    place = (row, column)

    def put(values: Tensor, empty: float) -> Tensor:
        whole = values.new_full((len(counts), longest, *values.shape[1:]), empty)
        return whole.index_put(place, values)

    labels = prompts.labels.flatten()[source]
    seen = prompts.image.cumsum(dim=1).flatten()[source]
    real = torch.ones_like(image)
    return Spliced(put(rows, 0), put(real, False), put(image, False), put(labels, UNLEARNED), put(seen, 0))


class Splicer(nn.Module):
    """`spliced` as a module, so that who looks into a model can see what it reads. Has no parameters."""

    def forward(
        self, prompts: Interleaved, words: Tensor, features: Tensor | None = None, valid: Tensor | None = None
    ) -> Spliced:
        return spliced(prompts, words, features, valid)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _start(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before any text."""
    bare, whole = _ids(tokenizer, "a"), list(tokenizer("a")["input_ids"])
    return whole[: whole.index(bare[0])] if bare and bare[0] in whole else []


def _end(tokenizer: Any) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def without_images(text: str) -> str:
    """The words of a prompt alone."""
    return re.sub(r"\s+", " ", text.replace(IMAGE, " ")).strip()
