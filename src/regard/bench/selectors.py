"""What every allocator takes to decide, and two against plain loops of their authors' rules, in one run.

`python -m regard.bench.selectors` (part of `make bench`).
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from regard import Question, VisualTokens
from regard.allocate import catalogue, load
from regard.bench.results import Row, medians, provenance, publish

N, K, D = 2880, 288, 1024


def main() -> None:
    """Time both, see that they keep the same tokens, and write results/selectors.json."""
    made = provenance()
    torch.manual_seed(0)
    rows = [*_against_loops(), *_decide(N, K, D, (48, 60)), *_decide(576, 144, 576, (24, 24))]
    publish("selectors", "python -m regard.bench.selectors", rows, made, seed=0)


def _random(n: int, d: int, grid: tuple[int, int]) -> tuple[VisualTokens, Question]:
    """Random tokens with all that any allocator needs."""
    attention = torch.rand(1, n)
    tokens = VisualTokens.from_grid(
        torch.randn(1, n, d), grid, keys=torch.randn(1, n, d), scores={"attention": attention}
    )
    return tokens, Question(torch.randn(1, 7, d))


def _against_loops() -> list[Row]:
    tokens, question = _random(N, D, (48, 60))
    x, relevance = tokens.features[0], tokens.relevance(question)[0]
    divprune, cdpruner = load("divprune"), load("cdpruner")
    work = {
        "divprune": lambda: divprune.allocate(tokens, None, K).anchor[0].tolist(),
        "divprune in loops": lambda: looped_divprune(x, K),
        "cdpruner": lambda: cdpruner.allocate(tokens, question, K).anchor[0].tolist(),
        "cdpruner in loops": lambda: looped_cdpruner(x, relevance, K),
    }
    seconds = medians(work, rounds=11)
    rows = []
    for name in ("divprune", "cdpruner"):
        loops = f"{name} in loops"
        if work[name]() != sorted(work[loops]()):
            raise SystemExit(f"{name} and the loops of its rule keep different tokens")
        rows.append(Row(f"{name} in plain loops, N={N}, K={K}, D={D}", seconds[loops] * 1e3, "ms"))
        rows.append(Row(f"{name}, plain loops / ours", seconds[loops] / seconds[name], "ratio", ">= 3"))
    return rows


def _decide(n: int, k: int, d: int, grid: tuple[int, int]) -> list[Row]:
    tokens, question = _random(n, d, grid)
    allocators = {name: load(name) for name in catalogue()}
    work: dict[str, Callable[[], object]] = {
        name: partial(a.allocate, tokens, question, k) for name, a in allocators.items()
    }
    seconds = medians(work, rounds=7)
    return [Row(f"{name}, N={n}, K={k}, D={d}", seconds[name] * 1e3, "ms") for name in work]


def looped_divprune(x: Tensor, k: int) -> list[int]:
    """Farthest-point selection as it reads: each step asks every kept token for its distances. x: (N, D)."""
    x = F.normalize(x, dim=1)
    distance = 1 - x @ x.T
    kept = [int(distance.topk(2, dim=0, largest=False).values[1].argmax())]
    while len(kept) < k:
        kept.append(int(distance.index_select(0, torch.tensor(kept)).min(dim=0).values.argmax()))
    return kept


def looped_cdpruner(x: Tensor, relevance: Tensor, k: int) -> list[int]:
    """Greedy MAP inference as it reads: each step takes every earlier factor from the row. x: (N, D)."""
    x = F.normalize(x, dim=1)
    relevance = 1e-6 + (1 - 1e-6) * (relevance - relevance.min()) / (relevance.max() - relevance.min())
    kernel = relevance[:, None] * (x @ x.T) * relevance
    left, factors, kept = kernel.diagonal().clone(), [], []
    for _ in range(k):
        pick = int(left.argmax())
        row = kernel[pick].clone()
        for factor in factors:
            row -= factor[pick] * factor
        factors.append(row / left[pick].sqrt())
        left -= factors[-1] ** 2
        left[pick] = -torch.inf
        kept.append(pick)
    return kept


if __name__ == "__main__":
    main()
