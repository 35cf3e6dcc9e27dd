"""What deciding costs: the products of matrices of each allocator of `regard.allocate`, for N tokens, K of them kept.

tokens: N. budget: K. width: of features, keys and the question's space. words: of the question. Sorting, sums and
comparisons are no multiply-accumulates; an allocator without products costs none. Applying an allocation multiplies
no matrices: selecting gathers, merging scatters, and only PruMerge's dense rows are a product, (K, N) x (N, D).
"""

from collections.abc import Callable
from math import ceil, isqrt

Deciding = Callable[[int, int, int, int], int]


def nothing(tokens: int, budget: int, width: int, words: int) -> int:
    """Ranks what is given, or draws."""
    return 0


def divprune(tokens: int, budget: int, width: int, words: int) -> int:
    """Every pair's cosine. (On a CPU more than 1024 tokens are compared once, not twice: 0.6 of it.)"""
    return tokens**2 * width


def cdpruner(tokens: int, budget: int, width: int, words: int) -> int:
    """The kernel, and a column of its Cholesky factor for each token kept. (Of more than 1024 tokens those rows of the
    kernel alone that the choice asks for.)
    """
    return tokens**2 * width + tokens * budget * (budget - 1) // 2


def visionzip(tokens: int, budget: int, width: int, words: int, dominant: float = 54 / 64) -> int:
    """Keys with those of the contextual tokens."""
    return tokens * (budget - round(budget * dominant)) * width


def prumerge(tokens: int, budget: int, width: int, words: int) -> int:
    """Keys of the kept with all."""
    return (budget - 1) * tokens * width


def holov(tokens: int, budget: int, width: int, words: int, crops: int = 16) -> int:
    """Cosines within each crop, padded to the largest."""
    return crops * ceil(tokens / crops) ** 2 * width


def tome(tokens: int, budget: int, width: int, words: int) -> int:
    """Keys at even places with those at odd ones, in as many rounds as it takes."""
    left, total = tokens, 0
    while left > budget:
        total += (left - left // 2) * (left // 2) * width
        left -= min(left - budget, left // 2)
    return total


def relevance(tokens: int, budget: int, width: int, words: int) -> int:
    """Content with each word of the question and the mean of the reference questions, features with their eight
    neighbours, the splits of a quadtree, and blurs of a square grid by two products each: two of features and three of
    one channel.
    """
    side = isqrt(tokens)
    return tokens * (words + 1 + 8) * width + splits(side) * width + 2 * side**3 * (2 * width + 3)


def fovea(tokens: int, budget: int, width: int, words: int) -> int:
    """The splits of a quadtree of acuity, one channel."""
    return splits(isqrt(tokens))


def splits(side: int) -> int:
    """Of a quadtree over a square grid, for each channel: at each node six differences of its four quarters."""
    lengths, nodes = [side], 0  # of a level's nodes along an axis
    while max(lengths) > 1:
        nodes += len(lengths) ** 2 - lengths.count(1) ** 2
        lengths = [part for length in lengths for part in (length - length // 2, length // 2) if part]
    return 24 * nodes


DECIDING: dict[str, Deciding] = {
    "cdpruner": cdpruner,
    "divprune": divprune,
    "fastervlm": nothing,
    "fovea": fovea,
    "grid": nothing,
    "holov": holov,
    "pool": nothing,
    "prumerge": prumerge,
    "random": nothing,
    "relevance": relevance,
    "tome": tome,
    "top": nothing,
    "visionzip": visionzip,
    "vispruner": divprune,
}
