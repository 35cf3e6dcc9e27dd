"""How many learned queries, and what they begin as: a Perceiver Resampler whose tokens must answer what is in a cell.

An image is 16 cells with one of 4 symbols each; a question names a cell, and reads the resampled tokens by
cross-attention. Chance is 1/4. Queries begin as N(0, 1) (open_flamingo), as N(0, 0.02) (BLIP-2), or as features of the
images: the mean of what is seen at as many places.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention.cross import CrossAttention
from regard.attention.resampler import PerceiverResampler
from regard.bench.claims.experiments._shared import SEEDS, Series, fit, less, percent

CELLS, SYMBOLS, DIM, HEADS = 16, 4, 32, 4
COUNTS = (1, 4, 16)
STARTS = ("N(0, 1)", "N(0, 0.02)", "vision features")


class Answerer(nn.Module):
    """A resampler of `count` queries, and a question that reads what it made."""

    def __init__(self, count: int) -> None:
        super().__init__()
        place, symbol = torch.randn(CELLS, DIM), torch.randn(SYMBOLS, DIM)
        self.register_buffer("place", place)
        self.register_buffer("symbol", symbol)
        self.resampler = PerceiverResampler(DIM, HEADS, count, 2, 2 * DIM)
        self.asked, self.read = nn.Embedding(CELLS, DIM), CrossAttention(DIM, HEADS)
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, SYMBOLS))

    def features(self, symbols: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(*symbols.shape, DIM, generator=generator)
        return self.place + self.symbol[symbols] + 0.1 * noise  # pyright: ignore

    def forward(self, features: Tensor, cells: Tensor) -> Tensor:
        asked = self.asked(cells)[:, None]
        return self.head((asked + self.read(asked, self.resampler(features)))[:, 0])


def batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Symbols of the cells, the cell that is asked for, and what is in it."""
    symbols = torch.randint(0, SYMBOLS, (count, CELLS), generator=generator)
    cells = torch.randint(0, CELLS, (count,), generator=generator)
    return symbols, cells, symbols.gather(1, cells[:, None])[:, 0]


def accuracy(count: int, start: str, seed: int, steps: int) -> float:
    """In percent, of 2000 new images after training."""
    torch.manual_seed(seed)
    generator, model = torch.Generator().manual_seed(seed), Answerer(count)
    with torch.no_grad():
        if start == "N(0, 0.02)":
            model.resampler.latents.mul_(0.02)
        elif start == "vision features":
            seen = model.features(batch(64, generator)[0], generator).mean(dim=0)
            model.resampler.latents.copy_(seen[torch.arange(count) * CELLS // count])

    def loss() -> Tensor:
        symbols, cells, answer = batch(64, generator)
        return F.cross_entropy(model(model.features(symbols, generator), cells), answer)

    fit(model.parameters(), loss, steps)
    symbols, cells, answer = batch(2000, generator)
    with torch.no_grad():
        return percent(model(model.features(symbols, generator), cells).argmax(dim=1) == answer)


def run(seeds: Sequence[int] = SEEDS, steps: int = 800, counts: Sequence[int] = COUNTS) -> list[Series]:
    """Accuracies by number of queries, and by what the middle number begins as."""
    by_count = {k: tuple(accuracy(k, STARTS[0], seed, steps) for seed in seeds) for k in counts}
    found = [Series(f"{k} learned queries of {CELLS} tokens: accuracy", "%", by_count[k]) for k in counts]
    most, middle = max(counts), sorted(counts)[len(counts) // 2]
    found.append(
        less("accuracy that the fewest queries lose to the most", "points", by_count[most], by_count[min(counts)])
    )
    same = less(f"accuracy that {middle} queries lose to {most}", "points", by_count[most], by_count[middle])
    starts = {STARTS[0]: by_count[middle]}
    starts |= {start: tuple(accuracy(middle, start, seed, steps) for seed in seeds) for start in STARTS[1:]}
    found += [same, *(Series(f"{middle} queries that begin as {name}: accuracy", "%", starts[name]) for name in STARTS)]
    for name in STARTS[:2]:
        what = f"vision features less {name} as a beginning: accuracy"
        found.append(less(what, "points", starts["vision features"], starts[name]))
    return found
