"""What bridges of learned queries share: the queries begin at random, or as what the eye sees of some images."""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import nn

from regard.errors import ShapeError
from regard.tokens import VisualTokens
from regard.vlm.bridges.bridge import Bridge, Reader

Start = Literal["random", "vision"]


class Queried(Bridge):
    """most: how many queries there are. start: "random", or "vision": `begin` sets them from features. began: whether
    it has.
    """

    spread: ClassVar[float]  # standard deviation of queries that begin at random
    read: Reader

    def __init__(self, width: int, dim: int, queries: int, start: Start) -> None:
        super().__init__(width, dim)
        self.most, self.start, self.began = queries, start, False

    @property
    @abstractmethod
    def learned(self) -> nn.Parameter:
        """The queries, (K, D)."""

    @torch.no_grad()
    def begin(self, tokens: VisualTokens) -> None:
        """Set the queries to what the bridge reads of some images: tokens drawn evenly from all.

        Raises ShapeError where there are fewer tokens than queries.
        """
        read = self.read(tokens.features, tokens.boxes)[tokens.valid]
        count = len(self.learned)
        if len(read) < count:
            raise ShapeError(f"{count} queries cannot begin with {len(read)} tokens: give more images")
        self.began = True
        drawn = read[torch.linspace(0, len(read) - 1, count).round().long()]
        self.learned.copy_((drawn - drawn.mean(dim=0)) / drawn.std().clamp(min=1e-6) * self.spread)
