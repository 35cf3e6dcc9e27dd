"""The survey's ways of seeing, end to end: an image and a question in, what was seen out. One a file."""

from dataclasses import dataclass
from typing import Literal

from regard.record import Record
from regard.tokens import VisualTokens

__all__ = ["Seen"]


@dataclass(frozen=True, eq=False)
class Seen:
    """What a mechanism saw. route: where its tokens go: "prompt" (to a language model's prompt), "memory" (keys and
    values for cross-attention) or "prediction". record: what it did and cost.
    """

    tokens: VisualTokens
    route: Literal["prompt", "memory", "prediction"]
    record: Record
