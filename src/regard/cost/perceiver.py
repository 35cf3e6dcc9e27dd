"""Perceiver (arXiv 2103.03206, and IO, 2107.14795): latents that read inputs, once or again and again."""

from dataclasses import dataclass

from regard.cost.counted import Cost
from regard.cost.layers import cross_attention, mlp, pre_norm
from regard.cost.parts import linear, norm, parameters


def perceiver(
    inputs: int,
    dim: int,
    input_dim: int,
    latents: int,
    heads: int,
    layers: int,
    repeats: int = 1,
    *,
    hidden: int | None = None,
    qk_dim: int | None = None,
    cross_heads: int | None = None,
    cross_hidden: int | None = None,
    cross_qk_dim: int | None = None,
    cross_v_dim: int | None = None,
    cross: int = 1,
) -> Cost:
    """Perceiver: one reading, then `layers` that are repeated. cross: readings, of which the first has parameters of
    its own and the others share theirs (the first paper's); ours, as IO's, reads once.
    """
    read = _read(inputs, dim, input_dim, latents, cross_heads or heads, cross_hidden or dim, cross_qk_dim, cross_v_dim)
    wide = hidden or dim
    thought = cross_attention(latents, latents, dim, heads, qk_dim=qk_dim, v_dim=dim)
    think = pre_norm(latents, dim, thought, mlp(latents, dim, wide)).beside(2 * inputs * input_dim)
    reads = read + read.again(cross - 1) if cross > 1 else read
    cost = parameters(latents * dim) + reads + (think * layers).again(repeats)
    return cost + Cost(cache=-cost.cache)


def _read(
    inputs: int,
    dim: int,
    input_dim: int,
    latents: int,
    heads: int,
    hidden: int,
    qk_dim: int | None,
    v_dim: int | None,
) -> Cost:
    read = norm(latents, dim) + norm(inputs, input_dim)
    read += cross_attention(latents, inputs, dim, heads, input_dim, qk_dim or input_dim, v_dim)
    fed = norm(latents, dim) + mlp(latents, dim, hidden)
    return read.beside(latents * dim + inputs * input_dim) + fed.beside(2 * latents * dim + 2 * inputs * input_dim)


@dataclass(frozen=True)
class PerceiverClassifier:
    """The first paper's for ImageNet: every pixel with Fourier features of `bands` frequencies for each of two axes.

    cross readings alternate with blocks of `layers` layers; a linear layer reads the mean of the latents.
    """

    dim: int = 1024
    latents: int = 512
    heads: int = 8
    layers: int = 6
    cross: int = 8
    bands: int = 64
    classes: int = 1000

    def tokens(self, side: int) -> int:
        """Pixels that the latents read."""
        return side**2

    def cost(self, side: int) -> Cost:
        """Of an image of side x side pixels."""
        width = 3 + 2 * (2 * self.bands + 1)
        sizes = (self.dim, width, self.latents, self.heads, self.layers, self.cross)
        cost = perceiver(self.tokens(side), *sizes, cross_heads=1, cross=self.cross)
        return cost + linear(1, self.dim, self.classes)
