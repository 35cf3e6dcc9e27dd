"""Which columns of a prompt stay, row by row, padded again to the longest."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Columns:
    """index: (B, L'), the column that each new column was, -1 for padding."""

    index: Int[Tensor, "b k"]

    @classmethod
    def kept(cls, keep: Bool[Tensor, "b l"], pad_left: bool) -> "Columns":
        """The columns where `keep`, in their order."""
        counts = keep.sum(dim=1, keepdim=True)
        longest = int(counts.max())
        order = (~keep).int().argsort(dim=1, stable=True)[:, :longest]
        place = torch.arange(longest, device=keep.device).expand_as(order)
        if pad_left:
            place = place - (longest - counts)
        real = (place >= 0) & (place < counts)
        return cls(torch.where(real, order.gather(1, place.clamp(0, max(longest - 1, 0))), -1))

    @property
    def mask(self) -> Bool[Tensor, "b k"]:
        """(B, L'), True where a column is real."""
        return self.index >= 0

    def gather(self, x: Tensor, pad: int = 0) -> Tensor:
        """(..., B, L) -> (..., B, L'), `pad` where padded."""
        index = self.index.to(x.device)
        taken = x.gather(-1, index.clamp(min=0).expand(*x.shape[:-1], -1))
        return taken.masked_fill(index < 0, pad)


def last_real(mask: Tensor) -> Int[Tensor, " b"]:
    """The last real column of each prompt, -1 where it has none. mask: (B, L), true where a column is real."""
    return torch.where(mask.bool(), torch.arange(mask.shape[1], device=mask.device), -1).amax(dim=1)


def pads_left(mask: Bool[Tensor, "b l"]) -> bool:
    """Whether a prompt is padded on the left: also where it is not padded, as that is what generation needs."""
    return not bool((~mask[:, -1] & mask[:, 0]).any()) or bool((~mask[:, 0]).any())


def dense_ranks(positions: Tensor, mask: Bool[Tensor, "b l"]) -> Tensor:
    """Position values renumbered without gaps, prompt by prompt: as if what is missing had never been there.

    positions: (B, L) or (A, B, L); the axes of one prompt share the numbering, so that text stays the same on all.
    """
    ranks = torch.zeros_like(positions)
    for row, real in enumerate(mask):
        values = positions[..., row, real]
        ranks[..., row, real] = torch.unique(values, return_inverse=True)[1].to(values.dtype)
    return ranks
