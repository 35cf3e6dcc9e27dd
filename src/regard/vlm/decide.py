"""What the allocator is given for each image, and what it decides, image by image."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.allocate import Allocates, checked_budget, checked_keep
from regard.allocation import Allocation
from regard.errors import BudgetError, ModelError, ShapeError
from regard.tokens import Question, VisualTokens
from regard.vlm.family import Layout

EVERYTHING = ("question", "keys", "scores:attention")  # for an object that does not say what it needs


def needs_of(allocator: Allocates) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What an allocator asks for beyond features and boxes, and what it takes where it is there: everything where it
    does not say.
    """
    needs = getattr(allocator, "needs", None)
    if isinstance(allocator, type) or not callable(getattr(allocator, "allocate", None)):
        got = f"the class {allocator.__name__}" if isinstance(allocator, type) else type(allocator).__name__
        raise ModelError(f"expected the name of an allocator or an object with allocate(...), got {got}")
    return ((), EVERYTHING) if needs is None else (needs, getattr(allocator, "uses", ()))


def image_tokens(flat: Tensor, layouts: Sequence[Layout], maps: dict[str, Tensor], aligned: bool) -> list[VisualTokens]:
    """One VisualTokens (B = 1) an image. flat: (M, D); maps: (M, C) each; aligned: unit vectors of the features too."""
    counts = [len(layout.boxes) for layout in layouts]
    parts = {name: values.split(counts) for name, values in maps.items()}
    images = []
    for number, (features, layout) in enumerate(zip(flat.split(counts), layouts, strict=True)):
        extra: dict[str, Any] = {"keys": parts["keys"][number][None]} if "keys" in parts else {}
        if "scores:attention" in parts:
            extra["scores"] = {"attention": parts["scores:attention"][number].squeeze(1)[None]}
        if layout.segment is not None:
            extra["segment"] = layout.segment.to(flat.device)[None]
        if aligned:
            extra["aligned"] = F.normalize(features.float(), dim=-1)[None]
        boxes = layout.boxes.to(flat.device)[None]
        images.append(VisualTokens(features[None], boxes, grid=layout.grid, **extra))
    return images


def budgets_of(counts: list[int], budget: int | Sequence[int] | None, keep: float | None) -> list[int]:
    """Tokens for each image, at most what it has. Raises BudgetError."""
    if (budget is None) == (keep is None):
        raise BudgetError("give a budget in tokens an image, or a fraction to keep, and not both")
    if keep is not None:
        return [max(1, round(checked_keep(keep) * count)) for count in counts]
    if isinstance(budget, Sequence):
        if len(budget) != len(counts):
            raise BudgetError(f"{len(budget)} budgets for {len(counts)} images: one each is needed")
        wanted = [0 if amount == 0 and not isinstance(amount, bool) else checked_budget(amount) for amount in budget]
    else:
        wanted = [checked_budget(budget)] * len(counts)  # pyright: ignore[reportArgumentType]
    return [min(amount, count) for amount, count in zip(wanted, counts, strict=True)]


def decided(
    images: Sequence[VisualTokens],
    rows: Sequence[int],
    question: Question | None,
    allocator: Allocates,
    budgets: Sequence[int],
) -> list[Allocation]:
    """One Allocation (B = 1) an image; images of one size and budget are decided together. rows: their prompts."""
    groups: dict[tuple, list[int]] = {}
    for number, (image, budget) in enumerate(zip(images, budgets, strict=True)):
        groups.setdefault((image.features.shape[1], image.grid, budget), []).append(number)
    allocations: list[Allocation | None] = [None] * len(images)
    for (n, _, budget), members in groups.items():
        tokens = _stacked([images[i] for i in members])
        if budget == 0:
            whole = Allocation.select(torch.zeros(len(members), 0, dtype=torch.long, device=tokens.features.device), n)
        else:
            asked = None if question is None else question.images(torch.tensor([rows[i] for i in members]))
            whole = allocator.allocate(tokens, asked, budget)
        fits = isinstance(whole, Allocation) and whole.n_in == n and len(whole.anchor) == len(members)
        if not fits or whole.mask is not None or whole.n_out > budget:
            want = f"an Allocation of {len(members)} x {n} tokens, without padding, at most {budget} out"
            raise ShapeError(f"{type(allocator).__name__}.allocate must give {want}, got {_shape(whole)}")
        for place, i in enumerate(members):
            allocations[i] = whole.images(torch.tensor([place], device=whole.anchor.device))
    return [allocation for allocation in allocations if allocation is not None]


def _shape(made: Any) -> str:
    if not isinstance(made, Allocation):
        return type(made).__name__
    return f"{len(made.anchor)} x {made.n_in}, {made.n_out} out" + ("" if made.mask is None else ", with padding")


def _stacked(images: Sequence[VisualTokens]) -> VisualTokens:
    if len(images) == 1:
        return images[0]
    first = images[0]
    parts = {
        name: torch.cat([getattr(image, name) for image in images])
        for name in ("features", "boxes", "aligned", "keys", "segment")
        if getattr(first, name) is not None
    }
    scores = {name: torch.cat([image.scores[name] for image in images]) for name in first.scores}
    return VisualTokens(**parts, scores=scores, grid=first.grid)
