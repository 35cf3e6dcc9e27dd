"""What layers are made of: products, norms, activations, each with its cost for so many rows (tokens).

Norms, activations, softmax, additions and rotations have memory here and no multiply-accumulates, as in profilers.
"""

from regard.cost.counted import Cost


def linear(rows: int, into: int, out: int, bias: bool = True) -> Cost:
    """X W + b of (rows, into)."""
    macs = rows * into * out
    return Cost(into * out + bias * out, macs, 2 * macs, rows * into, rows * (into + out))


def parameters(count: int) -> Cost:
    """That are added or looked up: positions, tokens, words."""
    return Cost(count)


def norm(rows: int, dim: int, bias: bool = True) -> Cost:
    """LayerNorm, or without a bias RMSNorm, which keeps what it divides and what it multiplies."""
    return Cost(dim + bias * dim, saved=(2 - bias) * rows * dim, peak=2 * rows * dim)


def activation(rows: int, dim: int) -> Cost:
    """One function of each number, such as GELU."""
    return Cost(saved=rows * dim, peak=2 * rows * dim)


def attention(
    queries: int, keys: int, heads: int, head: int, value: int | None = None, kv_heads: int | None = None
) -> Cost:
    """softmax(Q K') V by a fused kernel. head, value: widths of a head. kv_heads: as heads by default."""
    value, kv_heads = head if value is None else value, heads if kv_heads is None else kv_heads
    macs = queries * keys * heads * (head + value)
    read = queries * heads * head + keys * kv_heads * (head + value)
    return Cost(0, macs, 2 * macs, read, read + queries * heads * value)


def products(rows: int, inner: int, columns: int, times: int = 1) -> Cost:
    """(rows, inner) @ (inner, columns), neither a parameter; so many of them."""
    macs = times * rows * inner * columns
    read = times * (rows * inner + inner * columns)
    return Cost(0, macs, 2 * macs, read, read + times * rows * columns)


def convolution(
    cells: int, into: int, out: int, kernel: int, groups: int = 1, bias: bool = True, before: int | None = None
) -> Cost:
    """A square kernel. cells: of the output; before: of the input, as many by default."""
    before = cells if before is None else before
    weights = out * (into // groups) * kernel**2
    macs = cells * weights
    return Cost(weights + bias * out, macs, 2 * macs, before * into, before * into + cells * out)


def of_data(layer: Cost) -> Cost:
    """A layer whose input needs no gradient, as pixels do not: only its parameters have one."""
    return Cost(layer.params, layer.macs, layer.backward // 2, layer.saved, layer.peak)


def patches(cells: int, channels: int, dim: int, patch: int, bias: bool = True) -> Cost:
    """The embedding of patches of pixels."""
    return of_data(convolution(cells, channels, dim, patch, bias=bias, before=cells * patch**2))
