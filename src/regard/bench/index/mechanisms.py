"""The mechanisms that look, by what they are right in and what they spend beside reading everything."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regard import cost
from regard.bench.index.entry import Entry, Figures, number, short

PLAIN = "self-attention"
_KNOWN = {  # module: its name in the cost model, how the accuracies call it, how the scaling does, how it is trained
    "recurrent": ("ram", "recurrent (RAM)", "recurrent (RAM)", "ram"),
    "gaze_vit": ("gaze", "gaze tokens", "gaze tokens", "gaze"),
    "foveated": ("foveater", "FoveaTer", "FoveaTer, never sure", "foveater"),
    "pervit": ("pervit", "peripheral (PerViT)", "peripheral (PerViT)", "pervit"),
    "cascade": ("cascade", "cascade", "cascade, no exit", "cascade"),
    "dynamicvit": ("dynamicvit", "DynamicViT", "DynamicViT", "dynamicvit"),
    "avit": ("avit", "A-ViT", "A-ViT, nothing halts", "avit"),
    "evit": ("evit", "EViT", "EViT", "evit"),
}


def entries(figures: Figures, docs: Path) -> list[Entry]:
    """One for each trained mechanism, and one for relevance realization's looks."""
    return [*(_entry(name, figures, docs) for name in _KNOWN), _looks(figures)]


def _entry(name: str, figures: Figures, docs: Path) -> Entry:
    model, called, scaled, trained = _KNOWN[name]
    found = cost.of(model)
    spent = f"{short(found['params'])} M parameters, {short(1e3 * found['macs'])} M multiply-accumulates at most"
    picture = f"mechanisms/{name}.png"
    return Entry(
        f"mechanism: {name.replace('_', ' ')}",
        f"regard.mechanisms.{name}",
        f"`regard train {trained}`, then `regard show`",
        f"{spent}, at {found['resolution']} pixels",
        _measured(scaled, figures),
        _when(called, figures),
        f"mechanisms.md#{name.replace('_', '-')}",
        (picture,) if (docs / picture).exists() else (),
    )


def _looks(figures: Figures) -> Entry:
    means = figures.notes("allocators").get("means", {})
    one, three = (_target(means.get(name)) for name in ("relevance", "relevance, three looks"))
    said, when = "not yet", "no measurement of ours says"
    if one is not None and three is not None:
        said = f"target {three:.3f} after three looks, {one:.3f} after one"
        better = "with one look" if one >= three else "with several looks"
        when = f"{better}, by what is left of the target at a tenth of the tokens"
    return Entry(
        "mechanism: relevance",
        "regard.mechanisms.relevance",
        "`RelevanceRealization` of `regard.mechanisms.relevance`",
        "an encoding of the image, and a decision for each look (see the allocator)",
        said,
        when,
        "relevance.md",
    )


def _target(scenes: Mapping[str, Any] | None) -> float | None:
    """The mean over kinds of scenes and seeds at a tenth of the tokens."""
    if scenes is None:
        return None
    return statistics.fmean(statistics.fmean(kind["target"]) for kind in scenes["10%"].values())


def _measured(scaled: str, figures: Figures) -> str:
    found = [
        f"time grows as n^{row['of time (95 %)']}, memory as n^{row['of peak memory (95 %)']} ({scaled})"
        for row in figures.table("matrix", "scaling")
        if row["mechanism"] == scaled
    ]
    for row in figures.table("matrix", "throughput"):
        if row["mechanism"] == scaled:
            last = list(row)[-1]  # batch 64 over 1
            found += [f"{row[last]} times the images a second at {last.partition(' over')[0]}"] if row[last] else []
    return "; ".join(found) or "not in the matrix"


def _when(called: str, figures: Figures) -> str:
    """Its best run of each task beside the best that reads everything and was measured with it."""
    rows, said = figures.table("matrix", "accuracy"), []
    for task in dict.fromkeys(row["task"] for row in rows if row["mechanism"] == called):
        own = [row for row in rows if row["mechanism"] == called and row["task"] == task]
        best = max(own, key=_right)
        every = [row for row in rows if (row["mechanism"], row["task"]) == (PLAIN, task)]
        plain = [row for row in every if row["from"] == best["from"]] or every
        unbeaten = ", unbeaten" if best["on the front"] else ""
        if plain:
            whole = max(plain, key=_right)
            points, share = _right(best) - _right(whole), _macs(best) / _macs(whole)
            said.append(f"{task}: {points:+.1f} points at {short(share)} of the multiply-accumulates{unbeaten}")
        else:
            said.append(f"{task}: {_right(best):.1f} % right, beside nothing that reads all{unbeaten}")
    return "; ".join(said) or "no measurement of ours says"


def _right(row: dict[str, str]) -> float:
    return number(row["accuracy, %"]) or 0.0


def _macs(row: dict[str, str]) -> float:
    return number(row["M MACs an image"]) or 1.0
