"""An image cut into tiles, each a picture of its own in the prompt, and as fine as the question needs it.

For families whose tokens follow the size of an image. The model's own encoder looks at the whole image first; where the
question needs detail, a tile is cut from the photo itself with more pixels, and so gets more tokens.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import PIL.Image

from regard.allocation import Allocation, TilePlan
from regard.amount import checked_budget
from regard.errors import BudgetError, DataError, ModelError
from regard.eyes.crops import Tile, crops
from regard.relevance.budget import LADDER
from regard.relevance.realizer import plan_tiles
from regard.relevance.tensions import States
from regard.tokens import Question, VisualTokens
from regard.vlm import catalogue, family_of
from regard.vlm.chat import chat_inputs
from regard.vlm.opened import Clock, Opened
from regard.vlm.prompt import Prompt, in_words
from regard.vlm.shorten import shorten

TILES = "tiles"  # what an answer from tiles has for an allocator


@dataclass(frozen=True, eq=False)
class Cut:
    """tiles: in the order of the prompt. inputs: the prompt of them all. seconds: to look, to plan and to cut."""

    tiles: tuple[Tile, ...]
    inputs: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Tiling:
    """How a photo is cut for a question. budget: tokens of all tiles together, at most. sign: as in `shorten`."""

    vlm: Opened
    processor: Any
    photo: PIL.Image.Image
    question: str
    budget: int
    sign: int = 1
    states: States = field(default_factory=States)

    def cut(self, inputs: dict[str, Any]) -> Cut:
        """The tiles in a prompt. inputs: the prompt of the whole photo.

        Raises BudgetError for what its tiles cannot take, and ModelError where the processor gives a tile other tokens
        than were planned.
        """
        clock = Clock(self.vlm.device)
        tiles = tuple(crops(self.photo, self.plan(inputs), token_pixels(self.vlm.config)))
        made = chat_inputs(self.vlm, self.processor, [tile.crop for tile in tiles], self.question, resize=False)
        clock.lap("cut")
        _check_counts(self.vlm, made, tiles)
        return Cut(tiles, made, clock.seconds["cut"])

    def plan(self, inputs: dict[str, Any]) -> TilePlan:
        """Where tokens go: from the model's own tokens of the whole photo, and the question in its words."""
        asked = in_words(self.vlm, [self.question], self.processor, self.sign)
        seen = shorten(self.vlm.model, inputs, _Whole(), keep=1.0, question=asked).tokens[0]
        aspect = self.photo.width / self.photo.height
        return plan_tiles(seen, asked, self.budget, aspect=aspect, states=self.states)


class _Whole:
    """All tokens, in a space with the question's, and nothing else of them."""

    needs = ("question",)

    def allocate(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        batch, n, _ = tokens.features.shape
        return Allocation.identity(batch, n, device=tokens.features.device)


def checked_tiles(tiles: int, images: int) -> int:
    """The tokens of all tiles. images: how many are asked about.

    Raises BudgetError for less than one tile takes, DataError for several images.
    """
    budget = checked_budget(tiles)
    if budget < LADDER[0]:
        raise BudgetError(
            f"a tile takes {LADDER[0]} to {LADDER[-1]} tokens, got {budget} for all tiles: give {LADDER[0]} or more"
        )
    if images != 1:
        raise DataError(f"one image is cut into tiles, got {images}: ask about each by itself")
    return budget


def token_pixels(config: Any) -> int:
    """The side of a token in pixels: patch size x merge size. config: the model's.

    Raises ModelError for a family that gives every image the same tokens, or tiles of its own.
    """
    if not family_of(config).any_size:
        able = [kind for kind in catalogue() if family_of(SimpleNamespace(model_type=kind)).any_size]
        raise ModelError(
            f"the tokens of {config.model_type} do not follow the size of an image, so tiles cannot be given more or "
            f"fewer: the families that can are {', '.join(able)}"
        )
    seen = config.vision_config
    return seen.patch_size * getattr(seen, "spatial_merge_size", 1)


def _check_counts(vlm: Opened, inputs: dict[str, Any], tiles: tuple[Tile, ...]) -> None:
    planned = [tile.tokens for tile in tiles]
    layouts = vlm.family.layouts(vlm.base, inputs, Prompt.of(vlm, inputs).runs())
    came = [len(layout.boxes) for layout in layouts]
    if came != planned:
        side = token_pixels(vlm.config)
        raise ModelError(
            f"tiles of {listed(planned)} tokens were planned and the processor made {listed(came)}: let its image "
            f"processor make a token of {side} x {side} pixels and follow do_resize=False, or set its size from "
            f"{LADDER[0] * side**2} (shortest_edge) to {LADDER[-1] * side**2} (longest_edge) pixels"
        )


def listed(counts: list[int]) -> str:
    """Counts in words, the first eight of them."""
    return ", ".join(map(str, counts[:8])) + (", ..." if len(counts) > 8 else "")
