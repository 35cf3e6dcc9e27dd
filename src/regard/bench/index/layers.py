"""Attention layers, by time and memory beside dense attention, and by the cost model where they were not timed."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import regard.attention
from regard import cost
from regard.bench.index.entry import Entry, Figures, listed, number, short
from regard.errors import RegardError

DENSE, SIDES = "self-attention", (224, 448, 672, 896, 1344)
_MATRIX = {  # what the matrix calls a module's layer
    "cross": "cross-attention",
    "linear": "linear",
    "peripheral": "peripheral (PerViT)",
    "qformer": "Q-Former",
    "resampler": "resampler",
    "window": "windowed (Swin)",
}
_BESIDE = {"SwinTransformer": "VisionTransformer", "Perceiver": "TransformerBlock"}  # what is as much of a whole
_ROWS = {  # how the rows of results/layers.json begin
    "block_sparse": "BigBird, ",
    "delta": "delta rule",
    "linear": "linear attention",
    "sliding": "sliding window",
}
_REFERENCES = {
    "scaled": "CLIP L/14 block",
    "vision": "ViT-B/16",
    "window": "Swin-T stage 1",
    "qformer": "Q-Former base",
    "resampler": "Perceiver Resampler",
    "sliding": "Longformer base attention",
    "block_sparse": "BigBird attention",
}


def entries(figures: Figures, docs: Path) -> list[Entry]:
    """One for each module of regard.attention with a layer that the cost model knows; the others have their parts."""
    return [_entry(name, kinds, figures, docs) for name, kinds in modules().items()]


def modules() -> dict[str, list[str]]:
    """The layers by the modules that define them."""
    found: dict[str, list[str]] = {}
    for module in iter_modules(regard.attention.__path__):
        if not module.name.startswith("_"):
            defined = vars(import_module(f"regard.attention.{module.name}"))
            kinds = [kind for kind in cost.names()["layers"] if kind in defined]
            own = [kind for kind in kinds if defined[kind].__module__ == f"regard.attention.{module.name}"]
            found |= {module.name: own} if own else {}
    return found


def _entry(name: str, kinds: list[str], figures: Figures, docs: Path) -> Entry:
    pictures = [f"attention/{kind}.png" for kind in kinds if (docs / "attention" / f"{kind}.png").exists()]
    return Entry(
        f"layer: {name.replace('_', ' ')}",
        f"regard.attention.{name}",
        f"{listed([f'`{kind}`' for kind in kinds])} of `regard.attention.{name}`",
        "; ".join(_cost(kind) for kind in kinds[:2]),
        _measured(name, figures),
        _when(name, kinds, figures),
        f"attention.md#{name.replace('_', '-')}" if pictures else "api/attention.md",
        tuple(pictures[:2]),
    )


def _cost(kind: str) -> str:
    found = cost.of(kind)
    spent = f"{short(found['params'])} M parameters, {short(found['macs'])} G multiply-accumulates"
    return f"`{kind}` {spent} at ViT-B/16's sizes"


def _measured(name: str, figures: Figures) -> str:
    rows, found = figures.rows("layers"), []
    for row, value in rows.items():
        if row.startswith(_REFERENCES.get(name, "\0")) and ", forward (" in row:
            found.append(
                f"{short(value)} of the time of the reference implementation ({row.partition(', forward')[0]})"
            )
        if row.startswith(_ROWS.get(name, "\0")):
            what = row.partition("/ ")[2]
            found.append(f"{short(value)} of {what}" if what else f"time grows as n^{value:.2f}")
    scaling = {row["mechanism"]: row for row in figures.table("matrix", "scaling")}
    if name in _MATRIX and _MATRIX[name] in scaling:
        row = scaling[_MATRIX[name]]
        found.append(
            f"in the matrix time grows as n^{row['of time (95 %)']}, memory as n^{row['of peak memory (95 %)']}"
        )
    return "; ".join(found) or "equal to its reference, outputs and gradients; not timed"


def _when(name: str, kinds: list[str], figures: Figures) -> str:
    dense = [
        value
        for row, value in figures.rows("layers").items()
        if row.startswith(_ROWS.get(name, "\0")) and "/ dense" in row
    ]
    times = {row["mechanism"]: row for row in figures.table("matrix", "time")}
    if dense:
        verdict = "for sequences of thousands of tokens" if dense[0] < 0.9 else "not for its speed"
        return f"{verdict}: {short(dense[0])} of the time of dense attention at 4096 tokens"
    if name in _MATRIX and _MATRIX[name] in times and DENSE in times:
        return _crossed(times[_MATRIX[name]], times[DENSE])
    if name in ("scaled", "vision"):
        return "the yardstick: the others are measured beside it"
    return _by_formula(kinds)


def _crossed(own: dict[str, str], dense: dict[str, str]) -> str:
    """From which size on it is quicker than dense attention."""
    ratios = {}
    for side in SIDES:
        pair = [number(row.get(f"{side} px, batch 1", "")) for row in (own, dense)]
        if pair[0] is not None and pair[1]:
            ratios[side] = pair[0] / pair[1]
    if not ratios:
        return "no measurement of ours says"
    last = max(ratios)
    quicker = [side for side in ratios if all(ratios[other] < 1 for other in ratios if other >= side)]
    at = f"{short(ratios[last])} of the time of self-attention at {last} pixels"
    return f"from {min(quicker)} pixels on ({at})" if quicker else f"not for its speed: {at}"


def _by_formula(kinds: list[str]) -> str:
    """By multiply-accumulates beside those of dense attention, of a block beside a block."""
    name = next((kind for kind in kinds if not kind.endswith("Block")), kinds[0])
    beside = _BESIDE.get(name, "TransformerBlock" if name.endswith("Block") else "MultiHeadAttention")
    ratios = {}
    for side in (224, 1344):
        try:
            ratios[side] = cost.of(name, resolution=side)["macs"] / cost.of(beside, resolution=side)["macs"]
        except RegardError:
            return "no measurement of ours says"
    said = " and ".join(f"{short(ratio)} times at {side} pixels" for side, ratio in ratios.items())
    verdict = "for large images, by the cost model" if ratios[1344] < 0.9 else "for what it can do, not for its cost"
    return f"{verdict}: `{name}` takes {said} the multiply-accumulates of `{beside}`"
