"""What a way of pruning inside a language model has to say: where, how many stay, and whose attention decides."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import final

from regard.errors import ModelError


class Pruner(ABC):
    """Drops image tokens between the layers of a language model; holds no model. Layers are counted from 0.

    A subclass is a frozen dataclass whose fields are the method's parameters.
    """

    @abstractmethod
    def layers(self, depth: int) -> tuple[int, ...]:
        """The first layer of each stage, ascending, in a model of `depth` layers."""

    @abstractmethod
    def judge(self, layer: int) -> int:
        """The layer whose attention, of the prompt's last token, decides what goes on into `layer`."""

    @abstractmethod
    def counts(self, tokens: int, depth: int) -> tuple[int, ...]:
        """How many of a prompt's image tokens are left in each stage. Raises BudgetError where it cannot be."""

    @final
    def per_layer(self, tokens: int, depth: int) -> tuple[int, ...]:
        """Image tokens that each layer reads, of a prompt that has so many."""
        return spread(tokens, list(zip(self.layers(depth), self.counts(tokens, depth), strict=True)), depth)


def spread(tokens: int, stages: Sequence[tuple[int, int]], depth: int) -> tuple[int, ...]:
    """Tokens in each layer, from (first layer, tokens) of each stage."""
    each = [tokens] * depth
    for layer, count in stages:
        each[layer:] = [count] * (depth - layer)
    return tuple(each)


def share(keep: float, tokens: int) -> int:
    """A fraction of the tokens, rounded, at least 1 where there are any."""
    return min(tokens, max(1, round(keep * tokens)))


def checked_layers(name: str, layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """Raise ModelError where these are no layers to prune at, in ascending order."""
    rising = all(a < b for a, b in pairwise(layers))
    if not layers or not rising or layers[0] < 1 or layers[-1] >= depth:
        raise ModelError(
            f"{name}: layers must ascend within 1 to {depth - 1} of a language model of {depth}, got {list(layers)}"
        )
    return tuple(layers)
