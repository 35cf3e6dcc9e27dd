"""When is relevance realization worth it? `regard bench allocators` (twenty minutes; the packages' photos are fetched).

Scenes of which it is known where the things are that a question needs (regard.bench.tasks.scenes), seen by the embedded
eye; every allocator spends the same budget. Four measures, each at most 1:
- on target: the tokens spent on a patch of the target, on average; 1 is full resolution.
- target: what of the target's detail can be rebuilt, 1 - squared error / squared distance from the image's mean, of
  features; a patch that is not read is rebuilt from the nearest token that is kept. The mean over a scene's targets.
- least: the same of the target that is seen worst, which is what counting and comparing depend on.
- whole: the same of the whole image.
Settings were chosen on the half "tune" of names and photos; the half "report" is what is shown. Differences to
relevance are paired over scenes, with bootstrap intervals of 95 %.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from regard.allocate import load
from regard.allocation import Allocation
from regard.bench import ablations
from regard.bench.ablations import Decide
from regard.bench.tasks.scenes import KINDS, SIDE, Scene, scene
from regard.eyes import Eye
from regard.record import STATES
from regard.relevance.gaze import by_likeness, gaze
from regard.relevance.realized import Measured
from regard.relevance.realizer import Realizer
from regard.tokens import Question, VisualTokens

BUDGETS = (0.05, 0.1, 0.25, 0.5)
MEASURES = ("on target", "target", "least", "whole")
SIMPLE = ("random", "grid", "pool", "top", "divprune", "cdpruner", "holov")
ON_THE_FIELD: dict[str, Decide] = {
    "top-k on the field": ablations.top_of_field,
    "half even, half top-k": ablations.half_coverage,
    "two levels on the field": ablations.two_levels,
    "saliency quadtree": ablations.saliency_quadtree,
}


@dataclass
class Cells:
    """Every measure of every scene. values[method][budget]: (scenes, 4). kinds, names, seeds: of the scenes. states:
    (scenes, 3), what the tensions were driven to at a tenth of the tokens.
    """

    values: dict[str, dict[float, list[list[float]]]] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    states: list[list[float]] = field(default_factory=list)

    def array(self, method: str, budget: float, measure: str, kind: str | None = None) -> np.ndarray:
        """One measure of each scene, of one kind or of all, (scenes,)."""
        chosen = np.array([kind in (None, each) for each in self.kinds])
        return np.array(self.values[method][budget])[chosen, MEASURES.index(measure)]


def run(
    eye: Eye,
    half: str,
    scenes: int,
    seeds: int,
    budgets: Sequence[float] = BUDGETS,
    progress: Callable[[int, int], None] = lambda done, of: None,
    kinds: Sequence[str] = KINDS,
) -> Cells:
    """Measure `scenes` scenes of each kind for each of `seeds` seeds. progress: told how many are done, and of how
    many.

    Scenes of one seed are numbered from seed x scenes on, so that no two are the same.
    """
    cells, asked = Cells(), {}
    total = len(kinds) * scenes * seeds
    for number in range(total):
        kind, place = kinds[number % len(kinds)], number // len(kinds)
        shown = scene(kind, place, half)
        tokens = with_attention(eye.look(shown.image))
        question = asked.setdefault(shown.question, eye.ask(shown.question))
        cover = covered(shown, tokens)
        cells.kinds.append(kind)
        cells.names.append(shown.name)
        cells.seeds.append(place // scenes)
        measured = _measured(tokens, question)
        cells.states.append(Realizer().decide(measured, _count(0.1, tokens)).balance.states[0].tolist())
        for method, decide in methods(tokens, question).items():
            by_budget = cells.values.setdefault(method, {budget: [] for budget in budgets})
            for budget in budgets:
                allocation = decide(measured, _count(budget, tokens))
                by_budget[budget].append(measures(allocation, tokens, cover))
        progress(number + 1, total)
    return cells


def methods(tokens: VisualTokens, question: Question) -> dict[str, Decide]:
    """Every allocator, by name, as it decides about these tokens; `relevance` first."""
    realizer = Realizer()

    def plain(name: str, measured: Measured, budget: int) -> Allocation:
        return load(name).allocate(tokens, question, budget)

    def looked(measured: Measured, budget: int) -> Allocation:
        return gaze(realizer, tokens, question, budget, by_likeness(realizer, tokens)).allocation

    found: dict[str, Decide] = {"relevance": ablations.realized(realizer), "relevance, three looks": looked}
    found |= {name: partial(plain, name) for name in SIMPLE}
    return found | ON_THE_FIELD | ablations.components()


def measures(allocation: Allocation, tokens: VisualTokens, cover: Tensor) -> list[float]:
    """On target, target, least and whole, of one image. cover: (T, N), the part of each token that a target covers."""
    spent, x = allocation.spent()[0], tokens.features[0]
    kept = allocation.apply(tokens)
    back = allocation.restore(kept.features)[0]
    unread = spent == 0
    if bool(unread.any()):
        middle = tokens.boxes[0].unflatten(1, (2, 2)).mean(dim=1)
        nearest = torch.cdist(middle[unread], kept.boxes[0].unflatten(1, (2, 2)).mean(dim=1)).argmin(dim=1)
        back[unread] = kept.features[0, nearest]
    error, size = (x - back).square().sum(dim=1), (x - x.mean(dim=0)).square().sum(dim=1)
    rebuilt = 1 - (cover * error).sum(dim=1) / (cover * size).sum(dim=1).clamp(min=1e-9)
    whole = 1 - error.sum() / size.sum().clamp(min=1e-9)
    on = (cover * spent).sum() / cover.sum()
    return [float(on), float(rebuilt.mean()), float(rebuilt.min()), float(whole)]


def covered(shown: Scene, tokens: VisualTokens) -> Tensor:
    """The part of each token that each target covers, (T, N)."""
    assert tokens.grid is not None
    _, h, w = tokens.grid
    masks = torch.from_numpy(shown.targets).float()
    return masks.unflatten(1, (h, SIDE // h)).unflatten(3, (w, SIDE // w)).mean(dim=(2, 4)).flatten(1)


def with_attention(tokens: VisualTokens) -> VisualTokens:
    """The embedded eye has no attention: a token's share of the activation energy stands in for it, for HoloV."""
    energy = tokens.features.square().sum(dim=2)
    return replace(tokens, scores={"attention": energy / energy.sum(dim=1, keepdim=True)})


@torch.no_grad()
def _measured(tokens: VisualTokens, question: Question) -> Measured:
    return Realizer().measure(tokens, question)


def _count(budget: float, tokens: VisualTokens) -> int:
    return max(1, round(budget * tokens.features.shape[1]))


def mean_states(cells: Cells) -> dict[str, dict[str, float]]:
    """What each tension was driven to, by kind of scene."""
    states, kinds = np.array(cells.states), np.array(cells.kinds)
    return {
        kind: {name: round(float(states[kinds == kind, i].mean()), 3) for i, name in enumerate(STATES)}
        for kind in dict.fromkeys(cells.kinds)
    }
