"""What stands between an eye and a language model: visual tokens in, a budget of tokens of the model's width out."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.allocation import Allocation, Attribution
from regard.amount import checked_budget
from regard.errors import ShapeError
from regard.tokens import Question, VisualTokens

_OCTAVES = 6


class Bridged(NamedTuple):
    """features: (B, K, D), of the language model's width. mask: (B, K), True = real. reading: how each read the eye's
    tokens, or where it looked; None in training, where a mechanism computes new features.
    """

    features: Float[Tensor, "b k d"]
    mask: Bool[Tensor, "b k"]
    reading: Allocation | Attribution | None


class Bridge(nn.Module, ABC):
    """A mechanism as the bridge. width: of the eye's features; dim: of the language model.

    most: more tokens than this it cannot give; None: as many as the eye has.
    """

    name: ClassVar[str]
    most: int | None = None

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
        return self.bridged(tokens, question, amount if self.most is None else min(amount, self.most))

    @abstractmethod
    def bridged(self, tokens: VisualTokens, question: Question | None, budget: int) -> Bridged:
        """As `forward`, budget being from 1 to the number of tokens, and no more than `most`."""


class Places(nn.Module):
    """Where tokens are and how large, (B, N, 4) to (B, N, dim): a linear map of sines and cosines of their boxes'
    centres, in octaves, and the logarithms of their sides.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(4 * _OCTAVES + 4, dim)

    def forward(self, boxes: Float[Tensor, "b n 4"]) -> Float[Tensor, "b n d"]:
        boxes = boxes.to(self.map.weight.dtype)
        low, high = boxes[..., :2], boxes[..., 2:]
        centre = (low + high) / 2
        angles = centre[..., None] * torch.pi * 2.0 ** torch.arange(_OCTAVES, device=boxes.device)
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(2)
        return self.map(torch.cat((waves, centre, (high - low).clamp(min=1e-3).log()), dim=-1))


class Reader(nn.Module):
    """Features of an eye and where they are: norm, a linear map, and `Places`. (B, N, width) to (B, N, dim)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.norm, self.map, self.places = nn.LayerNorm(width), nn.Linear(width, dim), Places(dim)

    def forward(self, features: Float[Tensor, "b n c"], boxes: Float[Tensor, "b n 4"]) -> Float[Tensor, "b n d"]:
        return self.map(self.norm(features.to(self.map.weight.dtype))) + self.places(boxes)
