"""What stands between an eye and a language model: visual tokens in, a budget of tokens of the model's width out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from regard.allocation import Allocation, Attribution
from regard.amount import checked_budget
from regard.errors import ShapeError
from regard.places import Places
from regard.tokens import Question, VisualTokens


class Bridged(NamedTuple):
    """features: (B, K, D), of the language model's width. mask: (B, K), True = real. reading: how each read the eye's
    tokens, or where it looked; None in training, where a mechanism computes new features.
    """

    features: Float[Tensor, "b k d"]
    mask: Bool[Tensor, "b k"]
    reading: Allocation | Attribution | None


class Bridge(nn.Module, ABC):
    """A mechanism as the bridge. width: of the eye's features; dim: of the language model.

    An image gets min(budget, most, its real tokens), whatever its batch. most: more tokens than this a bridge cannot
    give; None: as many as the eye has. hears: whether it makes use of a question. ragged: whether `bridged` itself
    gives images of one batch different counts.
    """

    name: ClassVar[str]
    ragged: ClassVar[bool] = False
    most: int | None = None
    hears: bool = False

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.width, self.dim = width, dim

    def forward(self, tokens: VisualTokens, question: Question | None, budget: int | None = None) -> Bridged:
        """budget: tokens an image, as many as there are by default. Raises BudgetError for a budget under 1, ShapeError
        for tokens of another width, DataError where the mechanism needs a question and there is none.
        """
        if tokens.features.shape[2] != self.width:
            raise ShapeError(f"the bridge reads features of width {self.width}, got {tokens.features.shape[2]}")
        count = tokens.features.shape[1]
        amount = count if budget is None else min(count, checked_budget(budget))
        amount = amount if self.most is None else min(amount, self.most)
        if tokens.mask is None:
            return self.bridged(tokens, question, amount)
        gone = ~tokens.mask[..., None]
        tokens = replace(tokens, features=tokens.features.masked_fill(gone, 0), boxes=tokens.boxes.masked_fill(gone, 0))
        amounts = tokens.valid.sum(dim=1).clamp(max=amount)
        if self.ragged or bool((amounts == amount).all()):
            return self.bridged(tokens, question, amount)
        return self._by_amount(tokens, question, amounts)

    def _by_amount(self, tokens: VisualTokens, question: Question | None, amounts: Int[Tensor, " b"]) -> Bridged:
        """Images with as many tokens to get at once, then all in their order."""
        parts, order = [], []
        for amount in amounts.unique().tolist():
            rows = (amounts == amount).nonzero()[:, 0]
            order.append(rows)
            if amount:
                asked = None if question is None else question.images(rows)
                parts.append(self.bridged(tokens.images(rows), asked, amount))
            else:
                none = next(self.parameters()).new_zeros(len(rows), 0, self.dim)
                unread = Attribution(none.new_zeros(len(rows), 0, tokens.features.shape[1]))
                parts.append(Bridged(none, none[..., 0].bool(), None if self.training else unread))
        whole, back = bridged_together(parts), torch.cat(order).argsort()
        reading = None if whole.reading is None else Attribution(whole.reading.matrix()[back])
        return Bridged(whole.features[back], whole.mask[back], reading)

    @abstractmethod
    def bridged(self, tokens: VisualTokens, question: Question | None, budget: int) -> Bridged:
        """As `forward`; budget is from 1 to `most` and the real tokens of each image (of any, where `ragged`)."""


def bridged_together(several: Sequence[Bridged]) -> Bridged:
    """One batch, padded at the end to the most tokens; with a reading where all have one of as many inputs."""
    if len(several) == 1:
        return several[0]
    most = max(part.features.shape[1] for part in several)
    readings = [part.reading.matrix() for part in several if part.reading is not None]
    whole = len(readings) == len(several) and len({reading.shape[2] for reading in readings}) == 1
    return Bridged(
        torch.cat([padded(part.features, most) for part in several]),
        torch.cat([padded(part.mask, most) for part in several]),
        Attribution(torch.cat([padded(reading, most) for reading in readings])) if whole else None,
    )


def padded(value: Tensor, most: int) -> Tensor:
    """(B, N, ...) to (B, most, ...), zeros (False) at the end."""
    spare = most - value.shape[1]
    return value if not spare else pad(value, (0, 0) * (value.ndim - 2) + (0, spare))


@torch.no_grad()
def heard(tokens: VisualTokens, question: Question | None) -> Float[Tensor, "b n"]:
    """How near each token is to the question, (B, N), of mean 0 and deviation 1 in each image; 0 where none is asked.

    The same for words that no training had, and for any eye.
    """
    valid = tokens.valid
    if question is None:
        return torch.zeros_like(tokens.boxes[..., 0])
    near = tokens.relevance(question).masked_fill(~valid, 0)
    count = valid.sum(dim=1, keepdim=True)
    away = (near - near.sum(dim=1, keepdim=True) / count).masked_fill(~valid, 0)
    return away / (away.square().sum(dim=1, keepdim=True) / count).sqrt().clamp(min=1e-6)


class Reader(nn.Module):
    """Features of an eye and where they are: norm, a linear map, and `Places`. (B, N, width) to (B, N, dim)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.norm, self.map, self.places = nn.LayerNorm(width), nn.Linear(width, dim), Places(dim)

    def forward(self, features: Float[Tensor, "b n c"], boxes: Float[Tensor, "b n 4"]) -> Float[Tensor, "b n d"]:
        """features, and the boxes of the same tokens."""
        return self.map(self.norm(features.to(self.map.weight.dtype))) + self.places(boxes)
