"""Tokens and questions of several images as one batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.errors import ShapeError
from regard.tokens import Question, VisualTokens
from regard.vlm.bridges.bridge import padded


def seen_together(several: Sequence[VisualTokens]) -> VisualTokens:
    """One batch, padded at the end to the most tokens. A grid stays where it is the same for all; aligned, keys, scores
    and segments where all have them. Raises ShapeError for none, or for features of different widths.
    """
    if not several:
        raise ShapeError("there are no tokens to put together: give those of an image or more")
    if len(several) == 1:
        return several[0]
    widths = sorted({tokens.features.shape[2] for tokens in several})
    if len(widths) > 1:
        raise ShapeError(f"features must be of one width, got {widths}: take one eye for all")
    most = max(tokens.features.shape[1] for tokens in several)
    grids = {tokens.grid for tokens in several}

    def part(name: str) -> Tensor | None:
        values = [getattr(tokens, name) for tokens in several]
        return None if any(value is None for value in values) else torch.cat([padded(value, most) for value in values])

    whole = torch.cat([padded(tokens.valid, most) for tokens in several])
    names = set.intersection(*(set(tokens.scores) for tokens in several))
    return VisualTokens(
        torch.cat([padded(tokens.features, most) for tokens in several]),
        torch.cat([padded(tokens.boxes, most) for tokens in several]),
        mask=None if bool(whole.all()) else whole,
        aligned=part("aligned"),
        keys=part("keys"),
        scores={name: torch.cat([padded(tokens.scores[name], most) for tokens in several]) for name in sorted(names)},
        grid=grids.pop() if len(grids) == 1 else None,
        segment=part("segment"),
    )


def asked_together(several: Sequence[Question]) -> Question:
    """One batch of questions, padded at the end. The reference is the first's. Raises ShapeError for none."""
    if not several:
        raise ShapeError("there are no questions to put together: give one or more")
    if len(several) == 1:
        return several[0]
    most = max(question.features.shape[1] for question in several)
    masks = [
        torch.ones_like(question.features[..., 0], dtype=torch.bool) if question.mask is None else question.mask
        for question in several
    ]
    whole = torch.cat([padded(mask, most) for mask in masks])
    features = torch.cat([padded(question.features, most) for question in several])
    return Question(features, None if bool(whole.all()) else whole, reference=several[0].reference)
