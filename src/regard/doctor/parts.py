"""Which modules of a model are attention, and what each is for."""

from dataclasses import dataclass

from torch import nn

from regard.errors import ModelError

PARTS = ("language", "vision", "cross", "qformer", "qformer-self", "bridge")
# the maps that an attention module makes queries and keys by, under the names that they go by
_MAPS = (
    *({"q_proj", "k_proj"}, {"query", "key"}, {"q", "k"}, {"q", "kv"}, {"query", "kv"}),
    *({name} for name in ("qkv", "c_attn", "query_key_value", "qkv_proj", "Wqkv", "q_b_proj", "kv_b_proj")),
)
_OUT = ("o_proj", "out_proj", "dense", "c_proj", "proj", "out", "wo")
_VISION = ("vision", "visual", "image", "eye", "tower")
_BRIDGES = ("bridge", "connector", "resampler", "perceiver", "multi_modal_projector")


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """A module that attends. number: of its layer among those of its part. name: its path in the model."""

    number: int
    name: str
    part: str
    module: nn.Module


def attention_layers(model: nn.Module, part: str) -> list[AttentionLayer]:
    """The attention modules of a part of a model, by number.

    part: "language" (self-attention of the language model), "vision" (of the vision encoder), "cross" (text that reads
    images), "qformer" (learned queries that read images), "qformer-self", or "bridge" (of a resampler). The number is
    that of the layer in its list, or where a part has several lists, the place among all. Raises ModelError for another
    part, or where the model has none of it.
    """
    if part not in PARTS:
        raise ModelError(f"no part is named {part!r}: there are {', '.join(PARTS)}")
    every = [(name, module) for name, module in model.named_modules() if _attends(module)]
    found = [(name, module) for name, module in every if _part(name, module) == part]
    if not found:
        known = sorted({_part(name, module) for name, module in every})
        there = f"it has {', '.join(known)}" if known else "no module of it projects queries and keys"
        raise ModelError(f"{type(model).__name__} has no attention of the part {part!r} that is known: {there}")
    numbers = [_number(name) for name, _ in found]
    if None in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(len(found)))
    layers = [AttentionLayer(int(n or 0), name, part, m) for n, (name, m) in zip(numbers, found, strict=True)]
    return sorted(layers, key=lambda layer: layer.number)


def chosen(layers: list[AttentionLayer], wanted: int | list[int] | None) -> list[AttentionLayer]:
    """Those of these numbers, negative ones from the end, all for None. Raises ModelError for one that is not there."""
    if wanted is None:
        return layers
    known = {layer.number: layer for layer in layers}
    found = []
    for number in [wanted] if isinstance(wanted, int) else list(wanted):
        if isinstance(number, bool) or not isinstance(number, int):
            raise ModelError(f"layers must be whole numbers, got {number!r}")
        if number not in known and not -len(layers) <= number < 0:
            raise ModelError(f"there is no layer {number}: the part {layers[0].part!r} has {_listed(sorted(known))}")
        found.append(layers[number] if number < 0 else known[number])
    if not found:
        raise ModelError("layers is empty: name one or more, or leave it out for all")
    return sorted(set(found), key=lambda layer: layer.number)


def output_map(module: nn.Module) -> nn.Module | None:
    """What puts the heads of an attention module together; None where none of the names it goes by is there."""
    return next((child for name in _OUT if isinstance(child := getattr(module, name, None), nn.Module)), None)


def _listed(numbers: list[int]) -> str:
    whole = numbers == list(range(len(numbers)))
    return f"layers 0 to {len(numbers) - 1}" if whole else f"layers {', '.join(map(str, numbers))}"


def _attends(module: nn.Module) -> bool:
    names = {name for name, _ in module.named_children()}
    return any(maps <= names for maps in _MAPS)


def _part(name: str, module: nn.Module) -> str:
    pieces = name.lower().split(".")
    cross = any("cross" in piece for piece in pieces)
    if any(piece in ("qformer", "former") for piece in pieces) or "QFormer" in type(module).__name__:
        return "qformer" if cross else "qformer-self"
    if any(piece.startswith(_BRIDGES) for piece in pieces):
        return "bridge"
    if any(piece.startswith(_VISION) for piece in pieces):
        return "vision"
    return "cross" if cross or "fusion" in pieces else "language"


def _number(name: str) -> int | None:
    return next((int(piece) for piece in name.split(".") if piece.isdecimal()), None)
