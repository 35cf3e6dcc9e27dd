"""How the peak of memory grows: attention whose scores are written out and fused, cross-attention, RAM."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from regard.attention._base import attend, attention_weights, split
from regard.bench.claims.experiments._shared import Series
from regard.bench.shorten import peak
from regard.mechanisms.recurrent import RecurrentAttention, noise

DIM, HEADS = 64, 4


def exponent(sizes: Sequence[int], work: Callable[[int], Callable[[], object]]) -> float:
    """Of the peak over the sizes, by least squares of the logarithms."""
    peaks = [peak(work(size)) for size in sizes]
    return float(np.polyfit(np.log(sizes), np.log(peaks), 1)[0])


def run(sizes: Sequence[int] = (1024, 2048, 4096), glimpses: Sequence[int] = (8, 16, 32, 64)) -> list[Series]:
    """Exponents of the peak. No gradients, except where it says so."""
    torch.manual_seed(0)

    def attention(queries: int, keys: int, fused: bool) -> Callable[[], object]:
        q, k = (split(torch.randn(1, count, DIM), HEADS) for count in (queries, keys))
        return lambda: attend(q, k, k) if fused else attention_weights(q, k) @ k

    model = RecurrentAttention()
    images = torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8)

    def ram(count: int) -> Callable[[], object]:
        def look() -> object:
            model.glimpses = count
            return model(images, draws)

        draws = noise(8, count)
        return look

    with torch.no_grad():
        found = {
            "self-attention, scores written out": exponent(sizes, lambda n: attention(n, n, False)),
            "self-attention, fused kernel": exponent(sizes, lambda n: attention(n, n, True)),
            "cross-attention in image tokens, scores written out": exponent(sizes, lambda n: attention(256, n, False)),
            "cross-attention in text tokens, scores written out": exponent(sizes, lambda n: attention(n, 256, False)),
            "cross-attention in image tokens, fused kernel": exponent(sizes, lambda n: attention(256, n, True)),
            "64 learned queries in image tokens, scores written out": exponent(
                sizes, lambda n: attention(64, n, False)
            ),
            "RAM in glimpses": exponent(glimpses, ram),
        }
    found["RAM in glimpses, for training"] = exponent(glimpses, ram)
    return [Series(f"peak memory, {name}", "exponent", (value,)) for name, value in found.items()]
