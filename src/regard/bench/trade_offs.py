"""What the survey says of mechanisms beside their accuracy: large scenes, full ones, the slowest answers, unseen names.

Tables that `regard bench mechanisms` writes beside its own, of `BUDGET` tokens or as many as a bridge can give. A scene
is full where the things that are asked about fill more of it than of the median scene.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from regard.bench.mechanisms import Asking, amounts, asking, first_word
from regard.bench.tasks.asked.wording import KINDS
from regard.bench.tasks.seen import Sights
from regard.vlm.pocket import MECHANISMS, Pocket

BUDGET = 64  # tokens
ASKED = 100  # questions, one after the other


def by_scene(found: Asking, sights: Sights) -> dict[str, Any]:
    """The percent that is right by the size of the scene, and of scenes that are full and not."""
    filled = np.array([float(scene.covered.amax(dim=0).mean()) for scene in sights.scenes])
    tokens = np.array([len(scene.features) for scene in sights.scenes])[found.scenes]
    full = (filled > np.median(filled))[found.scenes]
    groups = {f"of {count} tokens": tokens == count for count in np.unique(tokens)}
    groups |= {"full": full, "not full": ~full}
    rows = []
    for name, budget in {name: budget for name, budget in found.right if (budget or 0) <= BUDGET}.items():
        right = found.right[name, budget]
        rows.append([name, str(budget or "all"), *(f"{100 * right[of].mean():.1f}" for of in groups.values())])
    return {"columns": ["mechanism", "tokens", *groups], "rows": rows}


def slowest(model: Pocket, sights: Sights, count: int = ASKED) -> dict[str, Any]:
    """Milliseconds to the first word of questions about scenes of all sizes, one at a time: the median, and the 95th
    percentile, alone and over the median.
    """
    places = [place for side in sights.sides() for place in side]
    chosen = [places[turn] for turn in np.linspace(0, len(places) - 1, count).round().astype(int)]
    rows = []
    for name in MECHANISMS:
        vlm, (budget,), spent = model.vlm(name).eval(), amounts(model, name, (BUDGET,)), []
        for turn, place in enumerate([chosen[0], *chosen]):  # the first to warm up
            answer = first_word(vlm, sights.batch([place]), budget)
            start = time.perf_counter()
            answer()
            spent += [1e3 * (time.perf_counter() - start)] if turn else []
        middle, late = np.percentile(spent, (50, 95))
        rows.append([name, str(budget or "all"), f"{middle:.1f}", f"{late:.1f}", f"{late / middle:.2f}"])
    return {"columns": ["mechanism", "tokens", "ms, median", "ms, 95 %", "95 % / median"], "rows": rows}


def unseen(model: Pocket, sights: Sights, told: Callable[[str], None]) -> dict[str, Any]:
    """The percent that is right, by kind, of scenes of things whose names no training had."""
    found = asking(model, sights, budgets=(BUDGET,), told=told)
    there, rows = [kind for kind in KINDS if kind in found.kinds], []
    for name, budget in found.right:
        ranges = [found.interval(found.right[name, budget], (kind,)) for kind in there]
        rates = [f"{found.rate(name, budget, (kind,)):.1f}" for kind in there]
        told_of = [f"{rate} ({low:.1f} to {high:.1f})" for rate, (low, high) in zip(rates, ranges, strict=True)]
        rows.append([name, str(budget or "all"), *told_of])
    return {"columns": ["right, % (95 %)", "tokens", *there], "rows": rows}
