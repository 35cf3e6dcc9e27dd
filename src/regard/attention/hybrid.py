"""The survey's hybrid: local self-attention in windows, and cross-attention to a few global latents.

    y = x + WindowAttention(LN(x))
    g = l + CrossAttention(LN(l), LN(y)),    l: M learned latents, which read all tokens
    z = y + CrossAttention(LN(y), g),    the tokens read the latents
    HybridBlock(x) = z + MLP(LN(z))

Every token hears of every other in one block at a cost of N (w^2 + 2 M), not N^2. Windows are Swin's (arXiv
2103.14030), latents Perceiver's (arXiv 2103.03206). No one paper prints this block: it is held to its parts, and they
to theirs.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.attention._base import Layer, check_input, checked_mask
from regard.attention._windows import Grid, check_grid
from regard.attention.cross import CrossAttention
from regard.attention.scaled import ACTIVATIONS
from regard.attention.window import WindowAttention
from regard.errors import ModelError, ShapeError


class HybridBlock(Layer):
    """A pre-norm block of windows and latents. latents: how many, at least 1. hidden: width of the MLP.

    window, shift: as for `SwinBlock`. activation: as for `TransformerBlock`. Raises ShapeError as
    `WindowAttention` and for no latents, ModelError for an unknown activation.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        hidden: int,
        latents: int = 8,
        shift: int = 0,
        activation: str = "gelu",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if latents < 1:
            raise ShapeError(f"latents must be at least 1, got {latents}")
        if activation not in ACTIVATIONS:
            raise ModelError(f"no activation is named {activation!r}: there are {', '.join(ACTIVATIONS)}")
        self.dim, self.activation = dim, activation
        self.window = WindowAttention(dim, heads, window, shift, shrink=True)
        self.gather, self.read = CrossAttention(dim, heads), CrossAttention(dim, heads)
        self.latents = nn.Parameter(torch.randn(latents, dim) * 0.02)
        self.norm1, self.norm2, self.norm3, self.latent_norm = (nn.LayerNorm(dim, eps=eps) for _ in range(4))
        self.widen, self.narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(
        self, x: Float[Tensor, "b n c"], grid: Grid, mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n c"]:
        """x: (B, h * w, D) in raster order. grid: (h, w). mask: (B, N), True = may be seen, by windows and latents.

        To a token whose window shows nothing the first attention adds nothing; where an image shows nothing at all its
        latents are not read either.
        """
        self._check(x, grid, mask)
        y = x + self.window(self.norm1(x), grid, mask)
        tokens, latents, heard = self._latents(y, mask)
        y = y + self.read(tokens, latents, heard)
        return y + self.narrow(ACTIVATIONS[self.activation](self.widen(self.norm3(y))))

    def weights(
        self,
        x: Float[Tensor, "b n c"],
        grid: Grid,
        mask: Bool[Tensor, "b n"] | None = None,
        part: Literal["window", "gather", "read"] = "window",
    ) -> Float[Tensor, "b h q k"]:
        """Of one part: "window" (B, H, N, N), as `WindowAttention.weights`; "gather", what the latents read of the
        tokens, (B, H, M, N); "read", what the tokens read of the latents, (B, H, N, M). Raises ShapeError for another.
        """
        if part not in ("window", "gather", "read"):
            raise ShapeError(f"part must be 'window', 'gather' or 'read', got {part!r}")
        self._check(x, grid, mask)
        if part == "window":
            return self.window.weights(self.norm1(x), grid, mask)
        y = x + self.window(self.norm1(x), grid, mask)
        tokens, latents, heard = self._latents(y, mask)
        if part == "read":
            return self.read.weights(tokens, latents, heard)
        return self.gather.weights(self._asking(len(x)), tokens, mask)

    def _check(self, x: Tensor, grid: Grid, mask: Tensor | None) -> None:
        check_input("x", x, self.dim)
        check_grid(grid, x.shape[1])
        checked_mask(mask, len(x), x.shape[1], x.shape[1])
        if mask is not None and mask.ndim != 2:
            raise ShapeError(f"mask must be of shape {(len(x), x.shape[1])}: latents too see by it; got {mask.shape}")

    def _asking(self, batch: int) -> Float[Tensor, "b m c"]:
        return self.latent_norm(self.latents).expand(batch, -1, -1)

    def _latents(self, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The tokens as they read, what the latents became, and which latents may be read."""
        tokens = self.norm2(y)
        latents = self.latents + self.gather(self._asking(len(y)), tokens, mask)
        heard = None if mask is None else mask.any(dim=1, keepdim=True).expand(-1, len(self.latents))
        return tokens, latents, heard
