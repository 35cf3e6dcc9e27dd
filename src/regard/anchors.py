"""The input slot that each output of a merge or a mix stands at: unique in its image, ties to the lower slot."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.errors import ShapeError


def nearest_member(
    group: Int[Tensor, "b n"], weight: Float[Tensor, "b n"], n_out: int, places: Float[Tensor, "b n p"]
) -> Int[Tensor, "b {n_out}"]:
    """The member of each group nearest to the group's weighted centre; N for an empty group.

    Distances are compared to a billionth of the unit, so that rounding does not choose among equals.
    """
    batch, n = group.shape
    slot = torch.where(group >= 0, group, n_out)
    index = slot[..., None].expand_as(places)
    weight = weight.to(places.dtype)
    centre = places.new_zeros(batch, n_out + 1, places.shape[2])
    centre = centre.scatter_add(1, index, places * weight[..., None])
    total = weight.new_zeros(batch, n_out + 1).scatter_add(1, slot, weight)  # 1, to the rounding of the weights
    centre = centre / torch.where(total > 0, total, 1)[..., None]
    distance = (places - centre.gather(1, index)).square().sum(dim=2)
    distance = (distance * 1e9).round()
    least = torch.full_like(centre[..., 0], torch.inf).scatter_reduce(1, slot, distance, "amin")
    slots = torch.arange(n, device=group.device).expand(batch, n)
    candidate = torch.where(distance == least.gather(1, slot), slots, n)
    first = torch.full((batch, n_out + 1), n, device=group.device)
    return first.scatter_reduce(1, slot, candidate, "amin")[:, :n_out]


def strongest_free(weights: Float[Tensor, "b k n"], rows: Bool[Tensor, "b k"]) -> Int[Tensor, "b k"]:
    """The slot that each row reads most among those that no stronger row stands at; N for a padded row.

    Rows propose their best free slot, the strongest proposal (then the lower row) wins it, until all stand somewhere.
    Raises ShapeError where an image has more rows than slots that are read.
    """
    batch, k, n = weights.shape
    free = (weights != 0).any(dim=1)
    if bool((rows.sum(dim=1) > free.sum(dim=1)).any()):
        raise ShapeError("an image has more outputs than inputs that they read: each output needs a slot of its own")
    anchor = torch.full((batch, k), n, device=weights.device)
    waiting = rows.clone()
    wish = weights.masked_fill(~free[:, None], -1).argsort(dim=2, descending=True, stable=True)
    turn = torch.zeros(batch, k, 1, dtype=torch.long, device=weights.device)  # how far down its wishes each row is
    taken = torch.zeros(batch, n + 1, dtype=torch.bool, device=weights.device)
    while bool(waiting.any()):
        slot = wish.gather(2, turn).squeeze(2)
        while bool((blocked := taken.gather(1, slot) & waiting).any()):
            turn = turn + blocked[..., None].long()
            slot = wish.gather(2, turn).squeeze(2)
        strength = weights.gather(2, slot[..., None]).squeeze(2).masked_fill(~waiting, -2)
        rank = strength.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        slot = torch.where(waiting, slot, n)
        best = torch.full((batch, n + 1), k, device=weights.device).scatter_reduce(1, slot, rank, "amin")
        won = waiting & (best.gather(1, slot) == rank)
        anchor = torch.where(won, slot, anchor)
        taken = taken.scatter(1, torch.where(won, slot, n), True)
        waiting = waiting & ~won
    return anchor
