"""Bridges, fusions and pruners: what stands between an eye and a language model, or works within it."""

import math
from collections.abc import Mapping

from regard.bench.index.entry import Entry, Figures, listed, number, short
from regard.bench.tasks.asked import wording
from regard.cost.language import QWEN2_5_7B, spread
from regard.vlm.bridges import ALL, KINDS, Projector, load
from regard.vlm.fusion import KINDS as FUSIONS
from regard.vlm.inside import METHODS

TOKENS, TEXT, VISUAL = "64", 64, 576  # of the pocket model's comparison; of a prompt
_WIDTHS = 512, 192  # of the pocket model's eye and decoder
_PRUNED = {"fastv": [(2, 0.5)], "pyramiddrop": [(0.25, 0.5), (0.5, 0.25), (0.75, 0.125)]}  # their defaults


def bridges(figures: Figures) -> list[Entry]:
    """The bridges that are no allocators: these have entries of their own."""
    found = {ALL: Projector, **{name: kind for name, kind in KINDS.items() if kind is not Projector}}
    rates = _rates(figures)
    questions = figures.notes("mechanisms" if figures.rows("mechanisms") else "pocket").get("questions", 0)
    costs = {
        row["mechanism"]: row for row in figures.table("mechanisms", "mechanisms") if row["tokens"] in (TOKENS, "all")
    }
    return [
        Entry(
            f"bridge: {name}",
            kind.__module__,
            f'`regard.VLM(eye, "{name}", language_model)`, or `bridge.name = "{name}"` in a file of `regard train`',
            _cost(name, costs.get(name)),
            _answers(name, rates, questions),
            _best(name, rates, questions),
            "train.md",
        )
        for name, kind in found.items()
    ]


def _rates(figures: Figures) -> dict[str, dict[str, float]]:
    """Percent right by mechanism and kind of question: of scenes to test with, until then of those to validate with."""
    tested = [row for row in figures.table("mechanisms", "mechanisms") if row["tokens"] in (TOKENS, "all")]
    whole = {name.partition(":")[0]: value for name, value in figures.rows("pocket").items()}
    rates: dict[str, dict[str, float]] = {}
    for row in tested or figures.table("pocket", "kinds"):
        name = row.get("mechanism") or row["right, %"]
        kinds = {kind: number(text) for kind, text in row.items() if kind in _kinds(row)}
        every = number(row["right, % (95 %)"]) if tested else whole.get(name)
        rates[name] = {"all": every or 0.0, **{kind: value or 0.0 for kind, value in kinds.items()}}
    return rates


def _kinds(row: Mapping[str, str]) -> list[str]:
    return [kind for kind in wording.KINDS if kind in row]


def _cost(name: str, row: Mapping[str, str] | None) -> str:
    bridge = load(name, *_WIDTHS)
    held = sum(value.numel() for value in bridge.parameters()) / 1e3
    said = f"{short(held)} k parameters from {_WIDTHS[0]} features to {_WIDTHS[1]}"
    if row is None:
        return f"{said}; its time is not measured yet (`regard bench mechanisms`)"
    return f"{said}; {row['M MACs']} M multiply-accumulates and {row['ms alone']} ms to the pocket model's first word"


def _noise(rate: float, questions: int) -> float:
    """Half of the interval of 95 % of a rate, in points."""
    return 196 * math.sqrt(rate / 100 * (1 - rate / 100) / questions) if questions else math.inf


def _answers(name: str, rates: Mapping[str, Mapping[str, float]], questions: int) -> str:
    if name not in rates:
        return "not yet"
    rate = rates[name]["all"]
    order = sorted(rates, key=lambda one: -rates[one]["all"])
    through = "all tokens" if name == ALL else f"{TOKENS} tokens"
    interval = f" (± {_noise(rate, questions):.1f})" if questions else ""
    place = f"{order.index(name) + 1} of {len(order)}"
    return f"{rate:.1f} %{interval} of the pocket model's questions right through {through}, {place}"


def _best(name: str, rates: Mapping[str, Mapping[str, float]], questions: int) -> str:
    if name not in rates:
        return "no measurement of ours says"
    first = [kind for kind in rates[name] if kind != "all" and _ahead(name, kind, rates, questions)]
    top = max(rates, key=lambda one: rates[one]["all"])
    apart = rates[top]["all"] - rates[name]["all"]
    noise = math.hypot(*(_noise(rates[one]["all"], questions) for one in (top, name)))
    if top == name:
        said = "first of all over all questions"
    elif apart <= noise:
        said = f"over all questions no worse than the best (`{top}`, {rates[top]['all']:.1f} %) beyond chance"
    else:
        said = f"not for these questions: `{top}` answers {apart:.1f} points more of them"
    return said + (f"; ahead in {listed(first)}" if first else "") + "; the pocket model was trained briefly"


def _ahead(name: str, kind: str, rates: Mapping[str, Mapping[str, float]], questions: int) -> bool:
    """Whether it is first in a kind of question, and above the others' mean by more than chance."""
    others = [rates[one][kind] for one in rates if one != name]
    own, mean = rates[name][kind], sum(others) / max(len(others), 1)
    each = questions // max(len(rates[name]) - 1, 1)
    return bool(others) and own > max(others) and own - mean > _noise(max(own, mean), each)


def fusions(figures: Figures) -> list[Entry]:
    """How tokens reach a language model."""
    return [
        Entry(
            f"fusion: {name}",
            kind.__module__,
            f'`regard.VLM(..., fusion="{name}")`',
            _parameters(name),
            _placed(figures) if name == "late" else "not compared with the others on one task",
            _where(figures) if name == "late" else _fit(name),
            "train.md",
        )
        for name, kind in sorted(FUSIONS.items())
    ]


def _parameters(name: str) -> str:
    ratio = QWEN2_5_7B.prefill_macs(VISUAL + TEXT) / QWEN2_5_7B.prefill_macs(TEXT)
    prompt = f"{VISUAL} visual tokens make the prefill of {TEXT} words {ratio:.1f} times as long ({QWEN2_5_7B.name})"
    if name == "early":
        return f"no parameters; {prompt}"
    if name == "late":
        return f"cross-attention and a feed-forward for each layer that is chosen; the prompt stays {TEXT} tokens"
    return f"each linear map of the language model once more; {prompt}"


def _placed(figures: Figures) -> str:
    rows = figures.rows("claims")
    named = {where: rows.get(f"cross-attention {where}: accuracy") for where in ("early", "late", "throughout", "all")}
    found = [f"{where} {value:.1f} %" for where, value in named.items() if value is not None]
    said = "layers that read the image, and what is right on the task of `regard claims`"
    return f"{said}: {', '.join(found)}" if found else "not yet"


def _where(figures: Figures) -> str:
    rows = figures.rows("claims")
    named = {where: rows.get(f"cross-attention {where}: accuracy") for where in ("early", "late", "throughout", "all")}
    known = {where: value for where, value in named.items() if value is not None}
    if not known:
        return "no measurement of ours says"
    best = max(known, key=lambda where: known[where])
    first = f"first of {len(known)} places on the task of `regard claims`"
    return f"where the prompt must stay short, before the layers called `{best}`: {first}"


def _fit(name: str) -> str:
    if name != "early":
        return "no measurement of ours says"
    left = QWEN2_5_7B.prefill_macs(64 + TEXT) / QWEN2_5_7B.prefill_macs(VISUAL + TEXT)
    said = f"with 64 of {VISUAL} tokens the prefill is {left:.0%} of the whole"
    return f"where the language model is to stay as it is: {said}"


def pruners() -> list[Entry]:
    """What drops tokens between the layers, by the cost model; no result says what they keep."""
    model = QWEN2_5_7B
    whole = model.prefill_macs_of_layers(spread(VISUAL, TEXT, model.layers))
    found = []
    for name in METHODS:
        stages = [(at if at >= 1 else round(at * model.layers), round(keep * VISUAL)) for at, keep in _PRUNED[name]]
        layers = spread(VISUAL, TEXT, model.layers, [(int(at), kept) for at, kept in stages])
        average = round(sum(layers) / len(layers)) - TEXT
        share = model.prefill_macs_of_layers(layers) / whole
        before = model.prefill_macs_of_layers(spread(average, TEXT, model.layers)) / whole
        found.append(
            Entry(
                f"inside: {name}",
                f"regard.vlm.inside.{name}",
                f'`with regard.inside(model, "{name}"):`',
                f"{share:.0%} of the prefill of {model.name} with {VISUAL} visual tokens; {average} a layer on average",
                "no result of ours says what its answers lose",
                f"where the language model itself must say what matters; shortening to {average} tokens before it "
                f"takes {before:.0%} and holds fewer at the peak",
                "inside.md",
            )
        )
    return found
