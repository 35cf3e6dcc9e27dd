"""Inner products of tokens with one another: all of them, each pair once, or rows as a greedy choice asks for them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ALL_AT_ONCE = 1024  # inputs; up to so many, one matrix product is faster
_BLOCKS = 5  # of rows
_TOGETHER = 64  # rows: one costs nearly as much as these


def every_pair(x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n n"]:
    """X xᵀ. Of many tokens on a CPU, where arithmetic takes the time, one half is computed and copied to the other."""
    n = x.shape[1]
    if n <= _ALL_AT_ONCE or x.device.type != "cpu":
        return x @ x.transpose(1, 2)
    whole = x.new_empty(len(x), n, n)
    for start in range(0, n, n // _BLOCKS):
        stop = min(start + n // _BLOCKS, n)
        whole[:, start:stop, start:] = x[:, start:stop] @ x[:, start:].transpose(1, 2)
        whole[:, stop:, start:stop] = whole[:, start:stop, stop:].transpose(1, 2)
    return whole


class LazyRows:
    """The rows of x xᵀ, (B, N, N). x: (B, N, D)."""

    def __init__(self, x: Float[Tensor, "b n d"]) -> None:
        batch, n, _ = x.shape
        self._x = x
        if n <= _ALL_AT_ONCE:
            self._known = x @ x.transpose(1, 2)
            self._place = torch.arange(n, device=x.device).expand(batch, n)
            self._count = n
        else:
            self._known = x.new_empty(batch, 4 * _TOGETHER, n)  # doubled when it is full
            self._place = torch.full((batch, n), -1, device=x.device)  # of each row among the known ones
            self._count = 0

    def at(self, slot: Int[Tensor, " b"], hope: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """One row for each image. hope: the larger, the likelier a row is asked for soon; never +inf."""
        place = self._place.gather(1, slot[:, None]).squeeze(1)
        if self._count < self._known.shape[2] and bool((place < 0).any()):
            self._learn(slot, hope)
            place = self._place.gather(1, slot[:, None]).squeeze(1)
        first = torch.arange(len(place), device=place.device) * self._known.shape[1]
        return self._known.flatten(0, 1).index_select(0, first + place)

    def _learn(self, slot: Int[Tensor, " b"], hope: Float[Tensor, "b n"]) -> None:
        """Compute the rows that are likeliest to be asked for, and this one."""
        more = min(_TOGETHER, self._known.shape[2] - self._count)
        if self._count + more > self._known.shape[1]:
            self._known = torch.cat((self._known, torch.empty_like(self._known)), dim=1)
        hope = hope.masked_fill(self._place >= 0, -torch.inf)
        new = self._place.gather(1, slot[:, None]) < 0
        hope = torch.where(new, hope.scatter(1, slot[:, None], torch.inf), hope)
        slots = hope.topk(more, dim=1).indices
        chosen = self._x.gather(1, slots[..., None].expand(-1, -1, self._x.shape[2]))
        rows = slice(self._count, self._count + more)
        self._known[:, rows] = chosen @ self._x.transpose(1, 2)
        self._place.scatter_(1, slots, torch.arange(rows.start, rows.stop, device=slots.device).expand_as(slots))
        self._count += more
