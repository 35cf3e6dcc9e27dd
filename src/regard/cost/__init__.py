"""The analytic cost model, pure Python: what a layer, a mechanism, an allocator or a model costs, without building it.

of("llava_1.5_7b", tokens=128)["prefill_tflops"]
Answer of any name in `names()`: parameters, MACs, FLOPs, memory, KV cache, tokens
regard.cost.layers, .vit, .swin ...: functions and dataclasses for sizes of one's own, each a `Cost`
"""

from regard.cost.asked import CONVENTIONS, Answer, Asked, Convention
from regard.cost.counted import Cost
from regard.cost.models import GROUPS, found, table
from regard.errors import BudgetError, ModelError, ShapeError

__all__ = ["CONVENTIONS", "Answer", "Cost", "names", "of"]


def names() -> dict[str, tuple[str, ...]]:
    """All names, by group."""
    return {group: tuple(table(group)) for group in GROUPS}


LARGEST = 10**9  # of what can be asked


def of(
    name: str,
    resolution: int | None = None,
    batch: int = 1,
    tokens: int | None = None,
    text: int | None = None,
    layer: int | None = None,
    convention: Convention = "published",
) -> Answer:
    """What a named thing costs, for one image or prompt, or for a batch of them.

    resolution: pixels of a side of the image, by default the model's own. tokens: visual tokens that are kept. text:
    tokens of the prompt's text. layer: the language model's first that reads the kept tokens alone (FastV), by default
    0. convention: how the source counts ("published"), every product ("exact"), or DivPrune's two matrices
    ("divprune").

    Raises ModelError for a name that is not known or an option that it does not have, ShapeError for a resolution that
    it cannot read, BudgetError for more tokens than there are.
    """
    name = _known(name)
    known = found(name)
    assert known is not None
    for what, value in {"batch": batch, "resolution": resolution, "tokens": tokens, "text": text}.items():
        whole = value is None or (isinstance(value, int) and not isinstance(value, bool))
        if value is not None and not (whole and 1 <= value <= LARGEST):
            kind = BudgetError if what == "tokens" else ShapeError
            got = repr(value) if len(repr(value)) < 20 else f"one of {len(repr(value))} characters"
            raise kind(f"{what} must be a whole number from 1 to {LARGEST:,}, got {got}")
    if convention not in CONVENTIONS:
        raise ModelError(f"no convention is named {convention!r}: there are {', '.join(CONVENTIONS)}")
    options = {"resolution": resolution, "tokens": tokens, "text": text, "layer": layer}
    asked = {what for what, value in options.items() if value is not None} | ({convention} & {"divprune"})
    for what in sorted(asked - known.applies):
        takes = ", ".join(sorted({*options, "divprune"} & known.applies)) or "none but batch"
        raise ModelError(f"{what} does not apply to {name}: of these options it takes {takes}")
    facts = known.facts(Asked(resolution, batch, tokens, text, layer, convention))
    facts.values["batch"], facts.units["batch"] = batch, "images or prompts"
    facts.notes.insert(0, f"{convention}: {CONVENTIONS[convention]}; memory in half precision, attention fused")
    return Answer(name, facts.values, facts.units, tuple(facts.notes))


def _known(name: str) -> str:
    """The name in its own letters. Raises ModelError where there is none."""
    if found(name) is not None:
        return name
    from difflib import get_close_matches

    every = {each.lower(): each for group in names().values() for each in group}
    if name.lower() in every:
        return every[name.lower()]
    near = [every[one] for one in get_close_matches(name.lower(), every, n=3, cutoff=0.5)]
    hint = f"did you mean {', '.join(near)}?" if near else "regard cost lists all"
    raise ModelError(f"no model, mechanism, allocator or layer is named {name!r}: {hint}")
