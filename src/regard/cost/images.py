"""Networks that read square images, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from regard.cost.asked import Asked, Facts, checked_side
from regard.cost.counted import Cost


class OfImages(Protocol):
    """A network that reads square images of side x side pixels."""

    def tokens(self, side: int) -> int:
        """How many its last block reads."""
        ...

    def cost(self, side: int) -> Cost:
        """Of one image."""
        ...


@dataclass(frozen=True)
class ImageModel:
    """side: its own resolution. unit: what must divide another, `rule` says why. note: what else is to be known.

    published: the same as its source counts it, where that is not exact. least: MACs of an image that stops first.
    """

    model: OfImages
    side: int = 224
    unit: int = 16
    rule: str = "which its patches divide"
    note: str = ""
    published: OfImages | None = None
    least: Callable[[Any, int], int] | None = None

    applies = frozenset({"resolution"})

    def facts(self, asked: Asked) -> Facts:
        """Raises ShapeError for a resolution that it cannot read."""
        side, facts = checked_side(asked.resolution, self.side, self.unit, self.rule), Facts()
        model = self.published if self.published and asked.convention == "published" else self.model
        facts.add_cost(model.cost(side), asked.batch, model.tokens(side))
        if self.least:
            facts.add("macs_least", asked.batch * self.least(model, side), "G")
        facts.add("resolution", side, "pixels")
        facts.notes += [self.note] if self.note else []
        return facts
