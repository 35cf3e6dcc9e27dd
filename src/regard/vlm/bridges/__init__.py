"""The mechanisms that stand between an eye and a language model, one a file, and the allocators by their names."""

from typing import Any

from regard.allocate import catalogue as allocators
from regard.errors import ModelError, first_line
from regard.vlm.bridges.bridge import Bridge, Bridged, bridged_together
from regard.vlm.bridges.cascade import CascadeBridge
from regard.vlm.bridges.projector import Projector
from regard.vlm.bridges.qformer import QueryBridge
from regard.vlm.bridges.recurrent import RecurrentBridge
from regard.vlm.bridges.resampler import ResamplerBridge
from regard.vlm.parts import all_arguments

__all__ = ["Bridge", "Bridged", "bridged_together", "catalogue", "complete", "load"]

KINDS: dict[str, type[Bridge]] = {
    kind.name: kind for kind in (CascadeBridge, Projector, QueryBridge, RecurrentBridge, ResamplerBridge)
}
ALL = "all"  # every token, by an MLP each


def catalogue() -> tuple[str, ...]:
    """The names of all mechanisms: `all`, those that make new tokens, and every allocator."""
    return (ALL, *sorted(KINDS.keys() - {Projector.name}), *allocators())


def load(name: str, width: int, dim: int, /, **arguments: Any) -> Bridge:
    """The bridge of this name, from features of `width` to a language model of `dim`.

    Raises ModelError where there is no such name or argument.
    """
    whole = complete(name, **arguments)
    try:
        return KINDS.get(name, Projector)(width, dim, **whole)
    except TypeError as error:
        raise ModelError(f"mechanism {name}: {first_line(error)}") from error


def complete(name: str, /, **arguments: Any) -> dict[str, Any]:
    """All arguments of the bridge of this name but the widths: those given, and the defaults of the others.

    Raises ModelError as `load`.
    """
    if name not in catalogue():
        raise ModelError(f"no mechanism is named {name!r}: the names are {', '.join(catalogue())}")
    kind = KINDS.get(name, Projector)
    if kind is Projector:
        arguments = {"allocator": None if name == ALL else name, **arguments}
    return all_arguments(f"mechanism {name}", kind, 2, arguments)
