"""Layers that compare some pairs of tokens: Longformer's windows, BigBird's blocks, the best keys, the hybrid."""

from regard.cost.counted import Cost
from regard.cost.layers import cross_attention, mlp
from regard.cost.parts import attention, linear, norm, parameters
from regard.cost.swin import window_attention

SMALLEST = 64  # queries of a block of `SlidingWindowAttention`


def sliding_window_attention(
    n: int, dim: int, heads: int, window: int, globals_: int = 0, bias: bool = True, project: bool = True
) -> Cost:
    """SlidingWindowAttention (Longformer). Each block of queries, at least 64, sees itself and half a window to both
    sides, and the global tokens, which see all by projections of their own.
    """
    half, head = min(window // 2, n), dim // heads
    size = min(max(half, SMALLEST), max(n, 1))
    blocks = -(-n // size)
    cost = linear(n, dim, 3 * dim, bias)
    cost += attention(size, size + 2 * half + globals_, heads, head).batch(blocks)
    cost += parameters(_weights(dim, 3, bias)) + _global(n, dim, heads, globals_, bias)
    return cost + linear(n, dim, dim) if project else cost


def _global(n: int, dim: int, heads: int, count: int, bias: bool) -> Cost:
    """What global tokens add; few of them are carried to the space of the tokens. Without parameters."""
    if not count:
        return Cost()
    asked = linear(count, dim, dim)
    if count < dim // heads:
        read = asked + linear(count, dim, dim) * 2 + attention(count * heads, n, 1, dim)
    else:
        read = asked + linear(n, dim, 2 * dim) + attention(count, n, heads, dim // heads)
    return Cost(0, read.macs, read.backward, read.saved, read.peak)


def _weights(dim: int, times: int, bias: bool) -> int:
    return times * (dim * dim + bias * dim)


def block_sparse_attention(
    n: int, dim: int, heads: int, block: int = 64, random: int = 3, bias: bool = True, project: bool = True
) -> Cost:
    """BlockSparseAttention (BigBird). The first and the last block see all, the others five blocks and random ones."""
    count, head = -(-n // block), dim // heads
    ends = attention(min(count, 2) * block, count * block, heads, head)
    middle = attention(block, (5 + random) * block, heads, head).batch(max(count - 2, 0))
    cost = linear(n, dim, 3 * dim, bias) + ends + middle
    return cost + linear(n, dim, dim) if project else cost


def top_k_attention(n: int, dim: int, heads: int, k: int, bias: bool = True) -> Cost:
    """TopKAttention: dense attention, and the scores once more to choose by, without gradients."""
    chosen = Cost(macs=n * n * dim, peak=2 * n * n * heads) if k < n else Cost()
    return linear(n, dim, 3 * dim, bias) + chosen + attention(n, n, heads, dim // heads) + linear(n, dim, dim)


def hybrid_block(
    grid: tuple[int, int], dim: int, heads: int, window: int, hidden: int, latents: int = 8, shift: int = 0
) -> Cost:
    """HybridBlock: windows, then latents that read all tokens and are read by them."""
    n = grid[0] * grid[1]
    local = norm(n, dim) + window_attention(grid, dim, heads, window, shifted=shift > 0)
    gathered = norm(n, dim) + norm(latents, dim) + cross_attention(latents, n, dim, heads)
    heard = cross_attention(n, latents, dim, heads)
    cost = local + parameters(latents * dim) + gathered + heard + norm(n, dim) + mlp(n, dim, hidden)
    return cost.beside(n * dim) + Cost(cache=-cost.cache)
