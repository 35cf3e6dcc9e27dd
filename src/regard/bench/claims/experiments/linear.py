"""What linear attention costs in accuracy: beside softmax of equal size, where one token must be found, and where not.

Sharp: 24 pairs of a key and a value, all keys different, and a key that asks for its value. Diffuse: which of four
values is the most frequent among the tokens. Two blocks, 32 wide, of two heads; chance is 1/16 and 1/4.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention.linear import LinearAttention
from regard.attention.scaled import MultiHeadAttention
from regard.bench.claims.experiments._shared import SEEDS, Series, fit, less, percent

PAIRS, KEYS, VALUES, KINDS, DIM, HEADS = 24, 48, 16, 4, 32, 2
LAYERS = {"softmax": MultiHeadAttention, "linear": LinearAttention}
Batch = tuple[Tensor, Tensor, Tensor]  # keys (B, N), values (B, N), answers (B,); the last token asks


class Block(nn.Module):
    """Pre-norm, around an attention."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.norms = attention, nn.ModuleList(nn.LayerNorm(DIM) for _ in range(2))
        self.feed = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.feed(self.norms[1](x))


class Reader(nn.Module):
    """Two blocks over the sum of a key's and a value's embedding; the answer is read from the last token."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.keys, self.values = nn.Embedding(KEYS + 1, DIM), nn.Embedding(VALUES + 1, DIM)
        self.blocks = nn.Sequential(*(Block(LAYERS[kind](DIM, HEADS)) for _ in range(2)))
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, VALUES))

    def forward(self, keys: Tensor, values: Tensor) -> Tensor:
        return self.head(self.blocks(self.keys(keys) + self.values(values))[:, -1])


def sharp(count: int, generator: torch.Generator) -> Batch:
    keys = torch.rand(count, KEYS, generator=generator).argsort(dim=1)[:, :PAIRS]
    values = torch.randint(0, VALUES, (count, PAIRS), generator=generator)
    asked = torch.randint(0, PAIRS, (count, 1), generator=generator)
    blank = torch.full((count, 1), VALUES)
    answer = values.gather(1, asked)[:, 0]
    return torch.cat((keys, keys.gather(1, asked)), 1), torch.cat((values, blank), 1), answer


def diffuse(count: int, generator: torch.Generator) -> Batch:
    chance = torch.rand(count, KINDS, generator=generator)
    values = torch.multinomial(chance, PAIRS, replacement=True, generator=generator)
    answer = F.one_hot(values, KINDS).sum(dim=1).argmax(dim=1)
    ends = torch.full((count, 1), KEYS), torch.full((count, 1), VALUES)
    keys = torch.full((count, PAIRS), KEYS)
    return torch.cat((keys, ends[0]), 1), torch.cat((values, ends[1]), 1), answer


def accuracy(task, kind: str, seed: int, steps: int) -> float:
    """In percent, of 2000 new ones after training."""
    torch.manual_seed(seed)
    generator, model = torch.Generator().manual_seed(seed), Reader(kind)

    def loss() -> Tensor:
        keys, values, answer = task(64, generator)
        return F.cross_entropy(model(keys, values), answer)

    fit(model.parameters(), loss, steps)
    keys, values, answer = task(2000, generator)
    with torch.no_grad():
        return percent(model(keys, values).argmax(dim=1) == answer)


def run(seeds: Sequence[int] = SEEDS, steps: int = 800) -> list[Series]:
    """Accuracies and what linear attention loses."""
    found = []
    for name, task in (("sharp retrieval", sharp), ("diffuse counting", diffuse)):
        right = {kind: tuple(accuracy(task, kind, seed, steps) for seed in seeds) for kind in LAYERS}
        found += [Series(f"{name}: accuracy of {kind} attention", "%", right[kind]) for kind in LAYERS]
        found.append(less(f"{name}: accuracy that linear attention loses", "points", right["softmax"], right["linear"]))
    return found
