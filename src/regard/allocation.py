"""How each output token reads the inputs: the one thing that every way of spending a token budget returns.

An `Allocation` is a row-stochastic (B, K, N) matrix, stored sparsely, with an input slot that each output stands at.
Deciding (an allocator) is separate from applying (here): selecting gathers, merging scatters, mixing multiplies.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.anchors import nearest_member, strongest_free
from regard.errors import DataError, ShapeError
from regard.reading import Grouped, Mixed, Reading, Selected, composed, normalised, plain, reading_from
from regard.tokens import VisualTokens

Readable = TypeVar("Readable", VisualTokens, Tensor)


@dataclass(frozen=True, eq=False)
class Allocation:
    """A reading of N input tokens by K output tokens, ordered by anchor. Made by `select`, `merge`, `mix`, `identity`.

    anchor: (B, K), the input slot each output stands at (0 where padded). mask: (B, K), True = real; None: all are.
    gain: (B, K) > 0, by how much to multiply a row where a published rule adds instead of averaging; None: by nothing.
    is_identity: every input is kept in its own place, padding included, and `apply` returns its argument itself.
    """

    reading: Reading
    anchor: Int[Tensor, "b k"]
    gain: Float[Tensor, "b k"] | None = None
    mask: Bool[Tensor, "b k"] | None = None
    is_identity: bool = False

    @classmethod
    def _ordered(cls, reading: Reading, anchor: Tensor, gain: Tensor | None) -> "Allocation":
        """Put the rows in the order of their anchors, padding last."""
        rows = reading.rows
        if gain is not None and gain.shape != anchor.shape:
            raise ShapeError(f"gain must have shape (B, K) = {tuple(anchor.shape)}, got {tuple(gain.shape)}")
        if gain is not None and not bool(((gain > 0) & gain.isfinite())[rows].all()):
            raise DataError("gain must be finite and over 0 wherever a row is real")
        order = torch.where(rows, anchor, reading.n_in).argsort(dim=1, stable=True)
        rows = rows.gather(1, order)
        anchor = anchor.gather(1, order).masked_fill(~rows, 0)
        twice = (anchor[:, 1:] == anchor[:, :-1]) & rows[:, 1:]
        if bool(twice.any()):
            slot = int(anchor[:, 1:][twice][0])
            raise ShapeError(f"input slot {slot} anchors two outputs of one image: each needs a slot of its own")
        return cls(
            reading.order(order),
            anchor,
            None if gain is None else gain.gather(1, order),
            None if bool(rows.all()) else rows,
        )

    @classmethod
    def select(cls, index: Tensor, n_in: int, *, gain: Tensor | None = None) -> "Allocation":
        """Keep inputs as they are. index: (B, K) slots in any order, -1 for padding; gain: (B, K) in that order.

        Raises ShapeError where an index is out of range or comes twice in an image.
        """
        if index.ndim != 2 or index.is_floating_point() or index.dtype == torch.bool:
            raise ShapeError(f"index must be whole numbers of shape (B, K), got {index.dtype} {tuple(index.shape)}")
        index = index.long()
        if bool(((index < -1) | (index >= n_in)).any()):
            raise ShapeError(f"index must lie in [-1, {n_in}), got {int(index.min())} to {int(index.max())}")
        return cls._ordered(Selected(index, n_in), index, gain)

    @classmethod
    def merge(
        cls,
        group: Tensor,
        n_out: int,
        weight: Tensor | None = None,
        *,
        boxes: Tensor | None = None,
        gain: Tensor | None = None,
    ) -> "Allocation":
        """Average the members of each group. group: (B, N) in [-1, n_out), -1 for a dropped input.

        weight: (B, N) >= 0, normalised within each group here; None: equal. boxes: (B, N, 4): an output is anchored at
        the member nearest to the weighted centre of its members' boxes (without boxes: of their slots). A group
        without members is padding. Raises ShapeError for groups out of range, DataError for weights that cannot
        be normalised.
        """
        if group.ndim != 2 or group.is_floating_point() or group.dtype == torch.bool:
            raise ShapeError(f"group must be whole numbers of shape (B, N), got {group.dtype} {tuple(group.shape)}")
        group = group.long()
        if bool(((group < -1) | (group >= n_out)).any()):
            raise ShapeError(f"group must lie in [-1, {n_out}), got {int(group.min())} to {int(group.max())}")
        weight = normalised(group, n_out, weight)
        group = torch.where(weight.detach() > 0, group, -1)  # what has no weight is not read
        if boxes is None:
            places = torch.arange(group.shape[1], device=group.device, dtype=torch.float64).expand_as(group)[..., None]
        elif boxes.shape != (*group.shape, 4) or not bool(boxes[group >= 0].isfinite().all()):
            raise ShapeError(f"boxes must be finite and of shape {(*group.shape, 4)}, got {tuple(boxes.shape)}")
        else:
            places = (boxes[..., :2] + boxes[..., 2:]).double() / 2
        reading = Grouped(group, weight, n_out)
        return cls._ordered(reading, nearest_member(group, weight.detach(), n_out, places), gain)

    @classmethod
    def mix(cls, weights: Tensor, *, anchor: Tensor | None = None, gain: Tensor | None = None) -> "Allocation":
        """Any row-stochastic reading. weights: (B, K, N) >= 0 with rows that sum to 1, or to 0 for padding; half
        precision is brought to float32 and to sums of 1.

        anchor: (B, K); by default the slot that a row reads most, among those no stronger row stands at.
        Raises ShapeError for wrong shapes and DataError for rows that do not sum to 1: put a scale into `gain`.
        """
        if weights.ndim != 3 or not weights.is_floating_point():
            raise ShapeError(f"weights must be floats of shape (B, K, N), got {weights.dtype} {tuple(weights.shape)}")
        half = weights.dtype.itemsize == 2
        weights = weights.float() if half else weights
        fixed = weights.detach()
        total = fixed.sum(dim=2)
        good = ((total - 1).abs() <= (1e-2 if half else 1e-3)) | (fixed == 0).all(dim=2)
        if not bool(good.all()) or bool((fixed < 0).any()):
            raise DataError(
                "each row of weights must be >= 0 and sum to 1 (or be 0 for padding), "
                f"got minimum {float(fixed.min()):.4g} and sums {float(total.min()):.4g} to {float(total.max()):.4g}: "
                "normalise, and put a scale into gain"
            )
        if half:
            weights = weights / torch.where(total == 0, 1, total)[..., None]
        reading = Mixed(weights)
        if anchor is None:
            anchor = strongest_free(fixed, reading.rows)
        elif anchor.shape != reading.shape or bool(((anchor < 0) | (anchor >= reading.n_in)).any()):
            raise ShapeError(f"anchor must be slots in [0, {reading.n_in}) of shape {reading.shape}")
        return cls._ordered(reading, anchor.long(), gain)

    @classmethod
    def identity(
        cls, batch: int, n: int, mask: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> "Allocation":
        """Keep all n tokens where they are, padding included. mask: (B, n) of the tokens that it will be applied to."""
        slots = torch.arange(n, device=mask.device if mask is not None else device).expand(batch, n)
        if mask is None:
            return cls(Selected(slots, n), slots, is_identity=True)
        return cls(Selected(torch.where(mask, slots, -1), n), torch.where(mask, slots, 0), None, mask, is_identity=True)

    @property
    def n_in(self) -> int:
        """How many tokens it reads, padding among them."""
        return self.reading.n_in

    @property
    def n_out(self) -> int:
        """How many tokens it makes, padding among them."""
        return self.reading.shape[1]

    @property
    def valid(self) -> Bool[Tensor, "b k"]:
        """(B, K), True where an output is real, mask or no mask."""
        return torch.ones_like(self.anchor, dtype=torch.bool) if self.mask is None else self.mask

    def images(self, rows: Int[Tensor, " r"]) -> "Allocation":
        """The readings of a part of the batch."""
        gain, mask = (None if x is None else x[rows] for x in (self.gain, self.mask))
        return replace(self, reading=self.reading.images(rows), anchor=self.anchor[rows], gain=gain, mask=mask)

    def apply(self, tokens: Readable) -> Readable:
        """Read the tokens: (B, N, D) -> (B, K, D), or all that belongs to VisualTokens at once.

        A tensor ((B, N, D) or (B, N), features or a deeper level of them) is multiplied by `gain`; of VisualTokens only
        `features` are. Boxes are read like features (a merged token's box is the mean of its members'), `segment` is
        the anchor's, and there is no `grid` any more. Padded rows are 0, except that an identity returns its
        argument. Autograd flows to features and weights (once, not twice, through a merge).
        """
        if isinstance(tokens, VisualTokens):
            return self._apply_tokens(tokens)
        x = tokens
        if x.ndim not in (2, 3) or x.shape[0] != self.anchor.shape[0] or x.shape[1] != self.n_in:
            raise ShapeError(
                f"this allocation reads (B, N) = ({self.anchor.shape[0]}, {self.n_in}) tokens, got {tuple(x.shape)}"
            )
        if self.is_identity and self.gain is None:
            return x
        y = self._read(x)
        if self.gain is None:
            return y
        return y * (self.gain if y.ndim == 2 else self.gain[..., None]).to(y.dtype)

    def _read(self, x: Tensor) -> Tensor:
        return self.reading.read(x) if x.ndim == 3 else self.reading.read(x[..., None]).squeeze(-1)

    def _apply_tokens(self, tokens: VisualTokens) -> VisualTokens:
        features = self.apply(tokens.features)
        if features is tokens.features:
            return tokens
        return replace(
            tokens,
            features=features,
            boxes=self._read(tokens.boxes),
            mask=self.mask,
            aligned=None if tokens.aligned is None else self._read(tokens.aligned),
            keys=None if tokens.keys is None else self._read(tokens.keys),
            scores={name: self._read(score) for name, score in tokens.scores.items()},
            grid=None,
            segment=None if tokens.segment is None else tokens.segment.gather(1, self.anchor),
        )

    def then(self, later: "Allocation") -> "Allocation":
        """Both readings in one: `a.then(b).apply(x)` is `b.apply(a.apply(x))`, from b's outputs to a's inputs."""
        if later.n_in != self.n_out:
            raise ShapeError(f"the later allocation reads {later.n_in} tokens, this one gives {self.n_out}")
        gain = later.gain
        if self.gain is not None:
            through = later.reading.read(self.gain[..., None]).squeeze(-1)
            gain = through if gain is None else gain * through
        reading = composed(self.reading, later.reading, self.gain)
        rows = reading.rows  # what reads only padding is padding
        anchor = self.anchor.gather(1, later.anchor).masked_fill(~rows, 0)
        both = self.is_identity and later.is_identity
        return type(self)(reading, anchor, gain, None if bool(rows.all()) else rows, both)

    def spent(self) -> Float[Tensor, "b n"]:
        """Tokens spent on each input, (B, N): the heat map. Sums to the number of real outputs."""
        ones = self.reading.rows.to(torch.float32)[..., None]
        return self.reading.spread(ones).squeeze(-1)

    def restore(self, features: Tensor) -> Tensor:
        """Outputs back onto the inputs, (B, K, D) -> (B, N, D): each input gets the mean of the outputs that read it,
        by how much they do, and 0 where none does.
        """
        if features.ndim != 3 or features.shape[:2] != self.anchor.shape:
            raise ShapeError(f"features must have shape {(*self.anchor.shape, 'D')}, got {tuple(features.shape)}")
        spent = self.spent()[..., None].to(features.dtype)
        return self.reading.spread(features) / torch.where(spent > 0, spent, 1)

    def matrix(self) -> Float[Tensor, "b k n"]:
        """The dense (B, K, N) matrix, rows summing to 1 (padded rows to 0), without the gain."""
        return self.reading.matrix()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON takes it."""
        data: dict[str, Any] = {"n_in": self.n_in, "n_out": self.n_out, "anchor": self.anchor.tolist()}
        data |= self.reading.to_dict()
        data |= {"identity": True} if self.is_identity else {}
        return data | ({} if self.gain is None else {"gain": plain(self.gain)})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Allocation":
        """The Allocation that `to_dict` wrote. Raises DataError where the data is not one."""
        try:
            n_in, n_out = int(data["n_in"]), int(data["n_out"])
            anchor = torch.tensor(data["anchor"], dtype=torch.long)
            gain = torch.tensor(data["gain"]) if "gain" in data else None
            reading = reading_from(data, n_in, n_out)
            if (
                anchor.shape != reading.shape
                or reading.shape[1] != n_out
                or bool(((anchor < 0) | (anchor >= n_in)).any())
            ):
                raise ValueError("anchors out of range")
        except (KeyError, TypeError, IndexError, ValueError, RuntimeError) as error:
            raise DataError(f"not an allocation as to_dict writes it: {error!r}") from error
        rows = reading.rows
        return cls(reading, anchor, gain, None if bool(rows.all()) else rows, bool(data.get("identity", False)))


@dataclass(frozen=True, eq=False)
class Attribution:
    """Where each token looked, for a mechanism that computes new features (Q-Former, resampler, glimpses).

    weights: (B, K, N), rows summing to 1, or to 0 for padding. Only for reading: there is nothing to apply.
    """

    weights: Float[Tensor, "b k n"]

    def matrix(self) -> Float[Tensor, "b k n"]:
        """(B, K, N), the weights."""
        return self.weights

    def spent(self) -> Float[Tensor, "b n"]:
        """Tokens that looked at each input, (B, N)."""
        return self.weights.sum(dim=1)


@dataclass(frozen=True, eq=False)
class TilePlan:
    """What no reading can do: encode these parts of the image again. An eye carries it out.

    boxes: (B, R, 4), x0, y0, x1, y1 in [0, 1]. counts: (B, R), tokens for each tile, 0 for none.
    """

    boxes: Float[Tensor, "b r 4"]
    counts: Int[Tensor, "b r"]

    def __post_init__(self) -> None:
        if self.boxes.ndim != 3 or self.boxes.shape[2] != 4 or self.counts.shape != self.boxes.shape[:2]:
            raise ShapeError(
                "boxes must be (B, R, 4) and counts (B, R), "
                f"got {tuple(self.boxes.shape)} and {tuple(self.counts.shape)}"
            )
        if bool((self.counts < 0).any()):
            raise ShapeError(f"counts must be >= 0, got {int(self.counts.min())}")
