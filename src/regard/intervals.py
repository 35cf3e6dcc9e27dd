"""Intervals of what was measured: of a mean by the bootstrap, of a slope by Student's t. NumPy alone."""

from collections.abc import Sequence

import numpy as np

_AT_ONCE = 4_000_000  # values that are drawn together
_STEPS = 400_001


def interval(
    differences: np.ndarray, seed: int = 0, draws: int = 10_000, groups: np.ndarray | None = None
) -> tuple[float, float]:
    """The bootstrap 95 % interval of the mean of paired differences, (N,): percentiles of the means of `draws`
    resamples (Efron 1979). groups: (N,), whose differences hang together, as questions about one image do: groups are
    drawn again, whole.
    """
    if groups is None:
        sums, sizes = differences, np.ones(len(differences))
    else:
        _, place = np.unique(groups, return_inverse=True)
        sums, sizes = np.bincount(place, weights=differences), np.bincount(place)
    rng, count = np.random.default_rng(seed), len(sums)
    rows = max(1, _AT_ONCE // count)
    drawn = (rng.integers(0, count, (min(rows, draws - start), count)) for start in range(0, draws, rows))
    means = np.concatenate([sums[some].mean(axis=1) / sizes[some].mean(axis=1) for some in drawn])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def slope(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """The slope of y over x by least squares, and its 95 % interval by Student's t of N - 2 degrees of freedom.

    x must have three values or more, not all the same.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    apart = x - x.mean()
    spread, freedom = float(apart @ apart), len(x) - 2
    assert freedom >= 1
    assert spread > 0
    found = float(apart @ y) / spread
    left = y - y.mean() - found * apart
    reach = student(freedom) * (float(left @ left) / freedom / spread) ** 0.5
    return found, found - reach, found + reach


def student(freedom: int, probability: float = 0.975) -> float:
    """The quantile of Student's t, for 1 degree of freedom or more.

    With t = sqrt(n) tan(a) its density is proportional to cos(a)^(n - 1), which is summed over a.
    """
    angle = np.linspace(-np.pi / 2, np.pi / 2, _STEPS)
    density = np.cos(angle).clip(min=0) ** (freedom - 1)
    total = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2)))
    return float(freedom**0.5 * np.tan(np.interp(probability * total[-1], total, angle)))
