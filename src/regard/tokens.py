"""The two nouns that every decision is made from: what left an eye, and what was asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.errors import ShapeError


def _expect(name: str, value: Tensor | None, *shape: int | None) -> None:
    """Raise ShapeError unless `value` is absent or has `shape` (None: any size)."""
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise ShapeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, value.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ShapeError(f"{name} must have shape ({wanted}), got {tuple(value.shape)}")


def grid_boxes(x: Float[Tensor, " w1"], y: Float[Tensor, " h1"]) -> Float[Tensor, "1 n 4"]:
    """The boxes of a grid's cells in raster order. x: (w + 1,) and y: (h + 1,), the edges of its columns and rows."""
    h, w = len(y) - 1, len(x) - 1
    edges = (x[:-1].expand(h, w), y[:-1, None].expand(h, w), x[1:].expand(h, w), y[1:, None].expand(h, w))
    return torch.stack(edges, dim=-1).reshape(1, h * w, 4)


@dataclass(frozen=True, eq=False)
class Question:
    """A question in the space of the tokens' `aligned` features.

    features: (B, T, E) in the space of `VisualTokens.aligned`, or of `features` where there is no `aligned`.
    mask: (B, T), True where a question token is real. text: the words, for records and pictures.
    reference: (M, E), other questions in the same space, the same for the whole batch: what is asked for on average,
    to tell what this question asks for.
    """

    features: Float[Tensor, "b t e"]
    mask: Bool[Tensor, "b t"] | None = None
    text: str | None = None
    reference: Float[Tensor, "m e"] | None = None

    def __post_init__(self) -> None:
        _expect("question features", self.features, None, None, None)
        _expect("reference questions", self.reference, None, self.features.shape[2])
        _expect("question mask", self.mask, *self.features.shape[:2])
        if self.mask is not None and (self.mask.dtype != torch.bool or not bool(self.mask.any(dim=1).all())):
            raise ShapeError("question mask must be of dtype bool (True = real), with a real token in each question")

    def mean(self) -> Float[Tensor, "b e"]:
        """The average over the question's real tokens, (B, E)."""
        if self.mask is None:
            return self.features.mean(dim=1)
        kept = self.features.masked_fill(~self.mask[..., None], 0).sum(dim=1)
        return kept / self.mask.sum(dim=1, keepdim=True).to(kept.dtype)

    def to(self, device: torch.device) -> "Question":
        """The same questions on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        reference = None if self.reference is None else self.reference.to(device)
        return replace(self, features=self.features.to(device), mask=mask, reference=reference)

    def images(self, rows: Int[Tensor, " r"]) -> "Question":
        """The same questions for a part of the batch."""
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, features=self.features[rows], mask=mask)


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """What leaves an eye.

    features: (B, N, D), what goes on to the language model. boxes: (B, N, 4), x0, y0, x1, y1 in [0, 1]: the part of
    the image that each token stands for. mask: (B, N), True = real. aligned: (B, N, E), the same tokens in the
    question's space. keys: (B, N, C). scores: named (B, N) maps that an encoder gives, such as "attention".
    grid: (T, H, W) when the tokens are one, in raster order. segment: (B, N), which tile or frame.
    """

    features: Float[Tensor, "b n d"]
    boxes: Float[Tensor, "b n 4"]
    mask: Bool[Tensor, "b n"] | None = None
    aligned: Float[Tensor, "b n e"] | None = None
    keys: Float[Tensor, "b n c"] | None = None
    scores: Mapping[str, Float[Tensor, "b n"]] = field(default_factory=dict)
    grid: tuple[int, int, int] | None = None
    segment: Int[Tensor, "b n"] | None = None

    def __post_init__(self) -> None:
        _expect("features", self.features, None, None, None)
        batch, n, _ = self.features.shape
        _expect("boxes", self.boxes, batch, n, 4)
        _expect("mask", self.mask, batch, n)
        _expect("aligned", self.aligned, batch, n, None)
        _expect("keys", self.keys, batch, n, None)
        _expect("segment", self.segment, batch, n)
        for name, score in self.scores.items():
            _expect(f"scores[{name!r}]", score, batch, n)
        if self.mask is not None and self.mask.dtype != torch.bool:
            raise ShapeError(f"mask must be of dtype bool (True = real), got {self.mask.dtype}")
        if self.grid is not None and (len(self.grid) != 3 or self.grid[0] * self.grid[1] * self.grid[2] != n):
            raise ShapeError(f"grid (T, H, W) must multiply to the {n} tokens, got {self.grid}")

    @classmethod
    def from_grid(cls, features: Tensor, grid: Sequence[int], **optional) -> "VisualTokens":
        """Tokens on one h x w grid in raster order that covers the image.

        features: (B, h*w, D). grid: (h, w). optional: any other field but `boxes` and `grid`.
        Raises ShapeError where h*w is not N.
        """
        if len(grid) != 2:
            raise ShapeError(f"grid must be (h, w), got {tuple(grid)}")
        h, w = grid
        _expect("features", features, None, h * w, None)
        dtype = features.dtype if features.dtype == torch.float64 else torch.float32
        y = torch.arange(h + 1, device=features.device, dtype=dtype) / h
        x = torch.arange(w + 1, device=features.device, dtype=dtype) / w
        return cls(features, grid_boxes(x, y).expand(len(features), -1, -1), grid=(1, h, w), **optional)

    @property
    def valid(self) -> Bool[Tensor, "b n"]:
        """(B, N), True where a token is real, mask or no mask."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.features.shape[:2], dtype=torch.bool, device=self.features.device)

    def relevance(self, question: Question) -> Float[Tensor, "b n"]:
        """Inner product of each token with the question, averaged over the question's tokens: (B, N).

        Taken on `aligned`, on `features` where there is no `aligned`. Raises ShapeError where the spaces differ.
        """
        space, name = (self.features, "features") if self.aligned is None else (self.aligned, "aligned")
        _expect("question features", question.features, len(space), None, None)
        if question.features.shape[2] != space.shape[2]:
            raise ShapeError(
                f"the question has {question.features.shape[2]} dimensions and the tokens' {name} {space.shape[2]}: "
                "ask with the eye that looked"
            )
        dtype = torch.promote_types(space.dtype, torch.float32)
        # not a matrix product, whose rounding depends on a token's place and on the batch
        return (space.to(dtype) * question.mean().to(dtype)[:, None]).sum(dim=2)

    def to(self, device: torch.device) -> "VisualTokens":
        """The same tokens on another device."""
        return self._each(lambda value: value.to(device))

    def images(self, rows: Int[Tensor, " r"]) -> "VisualTokens":
        """The tokens of a part of the batch."""
        return self._each(lambda value: value[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "VisualTokens":
        """With every tensor changed."""
        whole = {f.name: getattr(self, f.name) for f in fields(self)}
        parts = {name: change(value) for name, value in whole.items() if isinstance(value, Tensor)}
        return replace(self, **parts, scores={name: change(score) for name, score in self.scores.items()})
