"""The tile scale for any model: a photo as crops, each of the resolution that the question gives it."""

import os

import PIL.Image

from regard.errors import DataError
from regard.eyes import Eye
from regard.eyes.crops import Tile, crops
from regard.images import load_image
from regard.relevance.realizer import Realizer, plan_tiles
from regard.relevance.tensions import States

TOKEN_PIXELS = 28


def tiles(
    image: str | os.PathLike | bytes | PIL.Image.Image,
    question: str | None,
    budget: int,
    eye: Eye | None = None,
    *,
    layout: tuple[int, int] | None = None,
    token_pixels: int = TOKEN_PIXELS,
    states: States | None = None,
    realizer: Realizer | None = None,
) -> list[Tile]:
    """Cut a photo into tiles of 64 to 400 tokens, at most `budget` in all: a list of (crop, box, tokens).

    The crops are made from the photo itself, so that a finer tile shows more than the whole photo did. They go, as
    images, to a model whose tokens follow the size of an image (Qwen2-VL and later), or to a hosted one that is priced
    by size. question: None for what the image alone makes relevant. eye: by default the embedded one. layout: rows and
    columns; by default nearly square tiles of about 160 tokens. token_pixels: the side of a token in pixels. Raises
    BudgetError for a budget that no tiles can have, ImageError and DataError for what cannot be read or asked.
    """
    if question is not None and not question.strip():
        raise DataError("the question is empty: ask in words, such as 'where is the cat?'")
    photo = load_image(image)
    if eye is None:
        from regard.eyes.embedded import EmbeddedEye

        eye = EmbeddedEye()
    tokens = eye.look(photo)
    asked = None if question is None else eye.ask(question)
    aspect = photo.width / photo.height
    plan = plan_tiles(tokens, asked, budget, layout=layout, aspect=aspect, states=states, realizer=realizer)
    return crops(photo, plan, token_pixels)
