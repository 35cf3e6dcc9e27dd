"""The three forms of a row-stochastic (B, K, N) matrix: how K output tokens read N inputs.

Each is stored as sparsely as it can be and applied in O(edges x D): a selection gathers, a merge sums over the members
of each group, and only a dense mix multiplies matrices. A row that reads nothing is padding.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.errors import DataError, ShapeError


class Reading(ABC):
    """A row-stochastic matrix (B, K, N). `n_in` is N."""

    n_in: int

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(B, K)."""

    @property
    @abstractmethod
    def rows(self) -> Bool[Tensor, "b k"]:
        """True where a row reads something, (B, K)."""

    @abstractmethod
    def read(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b k d"]:
        """The matrix times x: (B, N, D) -> (B, K, D)."""

    @abstractmethod
    def spread(self, y: Float[Tensor, "b k d"]) -> Float[Tensor, "b n d"]:
        """The transposed matrix times y: (B, K, D) -> (B, N, D)."""

    @abstractmethod
    def matrix(self) -> Float[Tensor, "b k n"]:
        """Dense, for reading and tests."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON takes it; `reading_from` reads it back."""

    @abstractmethod
    def order(self, rows: Int[Tensor, "b k"]) -> "Reading":
        """The same reading with its rows in another order: row i becomes old row `rows[:, i]`."""

    @abstractmethod
    def images(self, rows: Int[Tensor, " r"]) -> "Reading":
        """The readings of a part of the batch."""


@dataclass(frozen=True, eq=False)
class Selected(Reading):
    """Each output is one input. index: (B, K), -1 for padding."""

    index: Int[Tensor, "b k"]
    n_in: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.index.shape[0], self.index.shape[1]

    @cached_property
    def rows(self) -> Bool[Tensor, "b k"]:
        return self.index >= 0

    @cached_property
    def _padded(self) -> bool:
        return not bool(self.rows.all())

    @cached_property
    def _flat(self) -> Int[Tensor, " bk"]:
        start = torch.arange(len(self.index), device=self.index.device)[:, None] * self.n_in
        return (self.index.clamp(min=0) + start).flatten()

    def read(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b k d"]:
        y = x.flatten(0, 1).index_select(0, self._flat).unflatten(0, self.shape)
        return y.masked_fill(~self.rows[..., None], 0) if self._padded else y

    def spread(self, y: Float[Tensor, "b k d"]) -> Float[Tensor, "b n d"]:
        if self._padded:
            y = y.masked_fill(~self.rows[..., None], 0)
        x = y.new_zeros(len(y) * self.n_in, y.shape[2])
        return x.index_add(0, self._flat, y.flatten(0, 1)).unflatten(0, (len(y), self.n_in))

    def matrix(self) -> Float[Tensor, "b k n"]:
        hot = F.one_hot(self.index.clamp(min=0), self.n_in).to(torch.float32)
        return hot.masked_fill(~self.rows[..., None], 0)

    def order(self, rows: Int[Tensor, "b k"]) -> "Selected":
        return Selected(self.index.gather(1, rows), self.n_in)

    def images(self, rows: Int[Tensor, " r"]) -> "Selected":
        return Selected(self.index[rows], self.n_in)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "select", "index": self.index.tolist()}

    def grouped(self) -> "Grouped":
        """The same reading as groups of one."""
        batch, k = self.shape
        row = torch.arange(k, device=self.index.device).expand(batch, k)
        group = torch.full((batch, self.n_in + 1), -1, device=self.index.device)
        group = group.scatter(1, torch.where(self.rows, self.index, self.n_in), row)[:, : self.n_in]
        return Grouped(group, (group >= 0).to(torch.float32), k)


@dataclass(frozen=True, eq=False)
class Grouped(Reading):
    """Each input goes to at most one output. group: (B, N), -1 where unread. weight: (B, N), sums to 1 in a group."""

    group: Int[Tensor, "b n"]
    weight: Float[Tensor, "b n"]
    n_out: int

    @property
    def n_in(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.group.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return self.group.shape[0], self.n_out

    @cached_property
    def _sizes(self) -> Int[Tensor, "b k"]:
        sizes = torch.zeros(self.shape[0], self.n_out + 1, dtype=torch.long, device=self.group.device)
        ones = torch.ones_like(self.group)
        return sizes.scatter_add(1, torch.where(self.group >= 0, self.group, self.n_out), ones)[:, : self.n_out]

    @cached_property
    def rows(self) -> Bool[Tensor, "b k"]:
        return self._sizes > 0

    @cached_property
    def _bags(self) -> tuple[Int[Tensor, " m"], Int[Tensor, " bk"]]:
        """The read inputs of the whole batch, group by group, and where each group starts."""
        batch = len(self.group)
        bag = self.group + torch.arange(batch, device=self.group.device)[:, None] * self.n_out
        members = (self.group >= 0).flatten().nonzero().squeeze(1)
        members = members[bag.flatten()[members].sort(stable=True).indices]
        starts = self._sizes.flatten().cumsum(0) - self._sizes.flatten()
        return members, starts

    def read(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b k d"]:
        members, starts = self._bags
        weight = self.weight.flatten()[members].to(x.dtype)
        y = F.embedding_bag(members, x.flatten(0, 1), starts, mode="sum", per_sample_weights=weight)
        return y.unflatten(0, self.shape)

    def spread(self, y: Float[Tensor, "b k d"]) -> Float[Tensor, "b n d"]:
        index = self.group.clamp(min=0)[..., None].expand(-1, -1, y.shape[2])
        x = y.gather(1, index) * self.weight[..., None].to(y.dtype)
        return x.masked_fill((self.group < 0)[..., None], 0)

    def matrix(self) -> Float[Tensor, "b k n"]:
        k = torch.arange(self.n_out, device=self.group.device)[:, None]
        return torch.where(self.group[:, None] == k, self.weight[:, None], 0)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "merge", "group": self.group.tolist(), "weight": plain(self.weight)}

    def order(self, rows: Int[Tensor, "b k"]) -> "Grouped":
        place = rows.argsort(dim=1)  # the inverse permutation
        group = torch.where(self.group >= 0, place.gather(1, self.group.clamp(min=0)), -1)
        return Grouped(group, self.weight, self.n_out)

    def images(self, rows: Int[Tensor, " r"]) -> "Grouped":
        return Grouped(self.group[rows], self.weight[rows], self.n_out)


@dataclass(frozen=True, eq=False)
class Mixed(Reading):
    """Each output reads any inputs. weights: (B, K, N), rows summing to 1, or to 0 for padding."""

    weights: Float[Tensor, "b k n"]

    @property
    def n_in(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.weights.shape[2]

    @property
    def shape(self) -> tuple[int, int]:
        return self.weights.shape[0], self.weights.shape[1]

    @cached_property
    def rows(self) -> Bool[Tensor, "b k"]:
        return (self.weights != 0).any(dim=2)

    @cached_property
    def _unread(self) -> Bool[Tensor, "b n"] | None:
        unread = (self.weights == 0).all(dim=1)
        return unread if bool(unread.any()) else None

    def read(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b k d"]:
        if self._unread is not None:  # 0 times inf is not 0
            x = x.masked_fill(self._unread[..., None], 0)
        return self.weights.to(x.dtype) @ x

    def spread(self, y: Float[Tensor, "b k d"]) -> Float[Tensor, "b n d"]:
        y = y.masked_fill(~self.rows[..., None], 0)
        return self.weights.to(y.dtype).transpose(1, 2) @ y

    def matrix(self) -> Float[Tensor, "b k n"]:
        return self.weights

    def to_dict(self) -> dict[str, Any]:
        weights = self.weights.detach()
        edges = weights.nonzero()
        values = plain(weights[tuple(edges.T)])
        return {"kind": "mix", "batch": len(weights), "edges": edges.tolist(), "values": values}

    def order(self, rows: Int[Tensor, "b k"]) -> "Mixed":
        return Mixed(self.weights.gather(1, rows[..., None].expand_as(self.weights)))

    def images(self, rows: Int[Tensor, " r"]) -> "Mixed":
        return Mixed(self.weights[rows])


def normalised(group: Tensor, n_out: int, weight: Tensor | None) -> Tensor:
    """Weights that sum to 1 in each group, and are 0 outside of any."""
    member = group >= 0
    if weight is None:
        weight = torch.ones(group.shape, device=group.device)
    elif weight.shape != group.shape or not weight.is_floating_point():
        got = f"{weight.dtype} {tuple(weight.shape)}"
        raise ShapeError(f"weight must be floats of shape {tuple(group.shape)}, got {got}")
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32)).masked_fill(~member, 0)
    slot = group.clamp(min=0)
    total = torch.zeros(len(group), n_out, dtype=weight.dtype, device=group.device).scatter_add(1, slot, weight)
    mine = total.gather(1, slot)
    if bool((~(weight >= 0) & member).any()) or bool((~((mine > 0) & mine.isfinite()) & member).any()):
        raise DataError("weight must be finite, >= 0 and not 0 for a whole group")
    return torch.where(member, weight / torch.where(member, mine, 1), 0)


def composed(first: Reading, second: Reading, weight: Float[Tensor, "b k"] | None = None) -> Reading:
    """The second reading of what the first gives: rows that sum to 1 again. weight: of each of the first's outputs."""
    if isinstance(first, Selected) and isinstance(second, Selected):
        index = first.index.gather(1, second.index.clamp(min=0))
        return Selected(torch.where(second.rows, index, -1), first.n_in)
    if isinstance(first, Mixed) or isinstance(second, Mixed):
        matrix = first.matrix()
        if weight is None:
            return Mixed(second.read(matrix))
        weights = second.read(matrix * weight[..., None])
        return Mixed(weights / weights.sum(dim=2, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny))
    one = first.grouped() if isinstance(first, Selected) else first
    two = second.grouped() if isinstance(second, Selected) else second
    assert isinstance(one, Grouped)
    assert isinstance(two, Grouped)
    slot = one.group.clamp(min=0)
    group = torch.where(one.group >= 0, two.group.gather(1, slot), -1)
    factor = two.weight if weight is None else two.weight * weight
    product = one.weight * factor.gather(1, slot)
    return Grouped(group, normalised(group, two.n_out, product), two.n_out)


def plain(values: Tensor) -> Any:
    """Floats with the nine digits that tell one float32 from another. values: (M,) or (B, M)."""
    if values.ndim == 2:
        return [plain(row) for row in values]
    return [float(f"{value:.9g}") for value in values.detach().tolist()]


def reading_from(data: dict[str, Any], n_in: int, n_out: int) -> Reading:
    """The reading that `to_dict` wrote. Raises KeyError, TypeError, IndexError or ValueError where it is none."""
    match data["kind"]:
        case "select":
            return Selected(_slots(data["index"], n_in), n_in)
        case "merge":
            return Grouped(_slots(data["group"], n_out), torch.tensor(data["weight"], dtype=torch.float32), n_out)
        case "mix":
            weights = torch.zeros(data["batch"], n_out, n_in)
            edges = torch.tensor(data["edges"], dtype=torch.long).reshape(-1, 3)
            weights[tuple(edges.T)] = torch.tensor(data["values"], dtype=torch.float32)
            return Mixed(weights)
        case other:
            raise ValueError(f"no reading is of the kind {other!r}")


def _slots(values: list, limit: int) -> Int[Tensor, "b m"]:
    slots = torch.tensor(values, dtype=torch.long)
    if slots.ndim != 2 or bool(((slots < -1) | (slots >= limit)).any()):
        raise ValueError(f"slots must lie in [-1, {limit})")
    return slots
