"""Allocators, by what of scenes is left through them, and by the time they take to decide."""

import statistics
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from regard import cost
from regard.allocate import catalogue, load
from regard.bench.index.entry import Entry, Figures, listed, short

Scenes = Mapping[str, Any]  # by name: kind of scene -> measure -> a value for each seed
SHARE = "10%"  # of the tokens, at which they are compared
MEASURES = {
    "target": "what is asked about must be told from what is left",
    "whole": "the whole image must be told from what is left",
    "on target": "tokens must stay as they are, on what is asked about",
}


def entries(figures: Figures) -> list[Entry]:
    """One for each allocator of the package."""
    own = [name for name in catalogue() if find_spec(f"regard.allocate.{name}")]
    means = {name: one[SHARE] for name, one in figures.notes("allocators").get("means", {}).items()}
    scenes = {name: means[name] for name in own if name in means}
    others = {name: one for name, one in means.items() if name not in own and not name.startswith("relevance")}
    return [_entry(name, figures, scenes, others) for name in own]


def _entry(name: str, figures: Figures, scenes: Scenes, others: Scenes) -> Entry:
    timed = {key: value for key, value in figures.rows("selectors").items() if key.startswith(f"{name}, N=")}
    times = [f"{short(value)} ms of {key.partition('N=')[2].partition(',')[0]} tokens" for key, value in timed.items()]
    macs = 1e3 * cost.of(name)["macs"]
    spent = f"{short(macs)} M multiply-accumulates to decide about 576 tokens of 1024 features"
    return Entry(
        name,
        f"regard.allocate.{name}",
        f'`load("{name}")` of `regard.allocate`; needs {_needs(name)}',
        "; ".join([spent if macs else "no multiply-accumulates", *times]),
        _measured(name, scenes),
        _when(name, scenes, others),
        "relevance.md" if name == "relevance" else f"selectors.md#{_anchor(name)}",
        (f"selectors/{name}.jpg",),
    )


def _anchor(name: str) -> str:
    return "random-grid-pool" if name in ("random", "grid", "pool") else name


def _needs(name: str) -> str:
    allocator = load(name)
    wants = [*allocator.needs, *(f"({use})" for use in allocator.uses)]
    return ", ".join(f"`{want}`" for want in wants) or "nothing but features"


def _mean(scenes: Mapping[str, Any], measure: str, kind: str | None = None) -> float:
    """Over the kinds of scenes, or of one of them, and over seeds."""
    kinds = [kind] if kind else list(scenes)
    return statistics.fmean(statistics.fmean(scenes[one][measure]) for one in kinds)


def _attended(name: str) -> bool:
    return any(need == "keys" or need.startswith("scores:") for need in load(name).needs)


def _measured(name: str, scenes: Scenes) -> str:
    if name not in scenes:
        why = ": the embedded eye, which looks at them, has no attention and no keys" if _attended(name) else " yet"
        return f"not on scenes{why}"
    found = []
    for measure in MEASURES:
        order = sorted(scenes, key=lambda one: -_mean(scenes[one], measure))
        found.append(f"{measure} {_mean(scenes[name], measure):.3f} ({order.index(name) + 1} of {len(order)})")
    through = f"through {SHARE.replace('%', ' %')} of the tokens, mean of {len(scenes[name])} kinds of scenes"
    stand_in = "; the eye's activation energy stood in for attention" if _attended(name) else ""
    return f"{through}: {', '.join(found)}{stand_in}"


def _when(name: str, scenes: Scenes, others: Scenes) -> str:
    if name not in scenes:
        return "no measurement of ours says: compare it on your questions" + (
            ", behind an encoder with attention" if _attended(name) else ""
        )
    found = []
    for measure, said in MEASURES.items():
        best = [kind for kind in scenes[name] if name == max(scenes, key=lambda one: _mean(scenes[one], measure, kind))]
        if best:
            where = "every kind of scene" if len(best) == len(scenes[name]) else listed(best)
            found.append(f"where {said}: best of {len(scenes)} on {where}{_but(scenes[name], measure, others)}")
    return "; ".join(found) if found else _instead(name, scenes)


def _but(own: Mapping[str, Any], measure: str, others: Scenes) -> str:
    """A simple rule that is no allocator of the catalogue, where it is better still."""
    best = max(others, key=lambda one: _mean(others[one], measure), default=None)
    if best is None or _mean(others[best], measure) <= _mean(own, measure):
        return ""
    return f" (but of the simple rules beside it, the {best} has {_mean(others[best], measure):.3f})"


def _instead(name: str, scenes: Scenes) -> str:
    """What is better, by each measure, where nothing speaks for it."""
    better: dict[str, list[str]] = {}
    for measure in MEASURES:
        best = max(scenes, key=lambda one: _mean(scenes[one], measure))
        pair = f"{_mean(scenes[best], measure):.3f} to {_mean(scenes[name], measure):.3f}"
        better.setdefault(best, []).append(f"{measure} {pair}")
    said = listed([f"`{one}` ({', '.join(of)})" for one, of in better.items()])
    return f"as a baseline, as it is first on no kind of scene; better are {said}"
