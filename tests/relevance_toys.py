"""Random tokens and questions for the tests of relevance realization."""

import math

import torch

from regard import Question, VisualTokens

GRIDS = [(1, 5, 7), (1, 7, 3), (2, 3, 5), (1, 1, 11), (1, 11, 1), (1, 1, 1)]


def drawn(
    seed: int, grid: tuple[int, int, int], masked: bool = False, d: int = 3, batch: int = 2, kept: float = 0.75
) -> VisualTokens:
    """Normal features in float64; what is masked is not finite. At least one token is real."""
    generator = torch.Generator().manual_seed(seed)
    n = math.prod(grid)
    mask = torch.rand(batch, n, generator=generator) < kept
    mask[:, int(torch.randint(n, (1,), generator=generator))] = True
    x = torch.randn(batch, n, d, generator=generator, dtype=torch.float64)
    if masked:
        x[~mask] = torch.nan
    h, w = grid[0] * grid[1], grid[2]
    tokens = VisualTokens.from_grid(x, (h, w), mask=mask if masked else None)
    return VisualTokens(x, tokens.boxes, mask=tokens.mask, grid=grid)


def asking(seed: int, d: int, words: int = 3, masked: bool = False, references: int = 5, batch: int = 2) -> Question:
    """Normal words in float64; the last two of the last question are masked and not finite."""
    generator = torch.Generator().manual_seed(seed + 1)
    features = torch.randn(batch, words, d, generator=generator, dtype=torch.float64)
    mask = torch.ones(batch, words, dtype=torch.bool)
    mask[-1, max(words - 2, 1) :] = False
    bank = torch.randn(references, d, generator=generator, dtype=torch.float64) if references else None
    if masked:
        features[~mask] = torch.nan
    return Question(features, mask if masked else None, reference=bank)
