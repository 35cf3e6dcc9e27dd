"""Layers whose cost grows with N and not with N x N: linear attention, fast weights by the delta rule."""

from regard.cost.counted import Cost
from regard.cost.parts import linear, products


def linear_attention(n: int, dim: int, heads: int, causal: bool = False, bias: bool = True, chunk: int = 64) -> Cost:
    """LinearAttention: 4 n d^2 + 2 n d (d / h + 1/2); causal, in chunks of C, 2 n C d more. It caches a state."""
    head = dim // heads
    ends = linear(n, dim, 3 * dim, bias) + linear(n, dim, dim)
    state = Cost(cache=dim * head + dim)
    ends += Cost(saved=3 * n * dim, peak=9 * n * dim)  # features of queries and keys, and what is divided
    if not causal:
        return ends + products(head, n, head, heads) + products(n, head, head + 1, heads) + state
    size = max(min(chunk, n), 1)
    chunks = -(-n // size)
    within = products(size, head, size, heads * chunks) + products(size, size, head, heads * chunks)
    across = products(head, size, head, heads * chunks) + products(size, head, head + 1, heads * chunks)
    return ends + within + across + state


def delta_attention(
    n: int, dim: int, heads: int, bias: bool = True, chunk: int = 64, feature: str = "elu", nu: int = 1
) -> Cost:
    """DeltaAttention. The triangular system of a chunk takes C^2 / 2 of each of its columns; profilers leave it out."""
    head, size = dim // heads, max(min(chunk, n), 1)
    wide = head if feature == "elu" else 2 * nu * head
    chunks = -(-n // size)
    every = heads * chunks
    ends = linear(n, dim, 3 * dim, bias) + linear(n, dim, heads, bias) + linear(n, dim, dim)
    within = products(size, wide, size, 2 * every) + triangular(size, head + wide, every)
    states = products(wide, size, head + wide, every) + products(wide, wide, head, every)
    read = products(size, wide, head, 2 * every) + products(size, size, head, every)
    return ends + within + states + read + Cost(cache=heads * wide * head)


def triangular(size: int, columns: int, times: int = 1) -> Cost:
    """Solve so many triangular systems: n^2 / 2 a column; backward once more, and a product for the matrix."""
    macs = times * size * size * columns // 2
    return Cost(0, macs, 3 * macs, times * size * (size + columns), times * size * (size + 2 * columns))
