"""Which rows of attention are asked for, call by call of the language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regard.errors import DataError
from regard.vlm.prompt import special_ids

NAMED = ("last", "question", "answer", "mean", "all")
UNLEARNED = -100
Queries = str | int | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a language model. past: columns that it has read before. real: (B, Q), of those that it reads now.

    ids: (B, Q) where they are known. image: (B, Q), tokens of images among them, and what stands
    before an image, where that is known. labels: (B, Q).
    """

    past: int
    real: Bool[Tensor, "b q"]
    ids: Int[Tensor, "b q"] | None = None
    image: Bool[Tensor, "b q"] | None = None
    labels: Int[Tensor, "b q"] | None = None

    @property
    def total(self) -> int:
        """Columns that are read when the call ends."""
        return self.past + self.real.shape[1]


def checked(queries: Queries | None, part: str) -> Queries:
    """Raises DataError for what asks for no rows."""
    if queries is None:
        return "last" if part in ("language", "cross") else "all" if part.startswith("qformer") else "mean"
    if isinstance(queries, str):
        if queries not in NAMED:
            raise DataError(f"queries must be columns or one of {', '.join(NAMED)}, got {queries!r}")
        if queries in ("last", "question", "answer") and part not in ("language", "cross"):
            raise DataError(f"the part {part!r} reads no text: ask for the queries 'mean', 'all' or columns")
        return queries
    whole = torch.as_tensor(queries)
    if whole.is_floating_point() or whole.dtype == torch.bool or whole.ndim > 2 or not whole.numel():
        raise DataError(f"queries must be whole numbers, (R,) or (B, R), got {whole.dtype} {tuple(whole.shape)}")
    return whole.reshape(-1, whole.shape[-1] if whole.ndim else 1)


def rows_of(queries: Queries, step: Step, config: Any) -> Int[Tensor, "b r"] | None:
    """The queries of this call that are asked for, as numbers within it, -1 for none; None where there are none at all.

    config: of the model, to know which ids are no words. Raises DataError where a name asks for what is not known.
    """
    if isinstance(queries, Tensor):
        return _columns(queries, step)
    if queries == "all":
        return _numbers(step.real)
    if queries == "question":
        return _numbers(_question(step, config))
    if queries == "answer" and step.labels is not None:
        follows = torch.nn.functional.pad(step.labels[:, 1:] != UNLEARNED, (0, 1))
        return _numbers(follows & step.real)
    place = torch.arange(step.real.shape[1], device=step.real.device)
    return torch.where(step.real, place, -1).amax(dim=1, keepdim=True)


def _columns(queries: Tensor, step: Step) -> Tensor | None:
    batch, length = step.real.shape
    if len(queries) not in (1, batch):
        raise DataError(f"queries of {len(queries)} prompts are asked for, and {batch} are read: give (R,) or (B, R)")
    if step.past == 0 and int(queries.min()) < -length:
        raise DataError(f"there is no column {int(queries.min())}: the prompt has {length}")
    wanted = queries.to(step.real.device).expand(batch, -1)
    wanted = torch.where(wanted < 0, wanted + length, wanted) - step.past if step.past == 0 else wanted - step.past
    here = (wanted >= 0) & (wanted < length)
    here &= step.real.gather(1, wanted.clamp(0, length - 1))  # padding asks for nothing
    return torch.where(here, wanted, -1) if bool(here.any()) else None


def _question(step: Step, config: Any) -> Bool[Tensor, "b q"]:
    """Words after the last image of each prompt; all its words where it has none; nothing after the prompt."""
    if step.past:
        return torch.zeros_like(step.real)
    if step.image is None and step.ids is None:
        raise DataError("where the question is cannot be seen without input_ids: give queries as columns")
    words = step.real
    if step.ids is not None:
        known = torch.tensor(sorted(special_ids(config)), device=step.ids.device)
        words = words & ~torch.isin(step.ids, known)
    if step.image is None:
        return words
    after = step.image.flip(1).cumsum(dim=1).flip(1) == 0
    return words & after


def _numbers(asked: Bool[Tensor, "b q"]) -> Tensor | None:
    """Where it is True, (B, R), padded with -1 at the end."""
    counts = asked.sum(dim=1)
    most = int(counts.max())
    if not most:
        return None
    order = (~asked).int().argsort(dim=1, stable=True)[:, :most]
    return torch.where(torch.arange(most, device=asked.device) < counts[:, None], order, -1)
