"""How what an eye saw reaches a language model: in its prompt, or in its layers. One way a file."""

from typing import Any

from torch import nn

from regard.errors import ModelError
from regard.vlm.fusion.deep import Deep
from regard.vlm.fusion.early import Early
from regard.vlm.fusion.fusion import Fusion
from regard.vlm.fusion.late import Late
from regard.vlm.parts import all_arguments

__all__ = ["Fusion", "complete", "load"]

KINDS: dict[str, type[Fusion]] = {kind.name: kind for kind in (Deep, Early, Late)}


def load(name: str, language_model: nn.Module, /, **arguments: Any) -> Fusion:
    """The fusion of this name for a language model. Raises ModelError where there is no such name or argument."""
    whole = complete(name, **arguments)
    try:
        return KINDS[name](language_model, **whole)
    except TypeError as error:
        raise ModelError(f"fusion {name}: {error}") from error


def complete(name: str, /, **arguments: Any) -> dict[str, Any]:
    """All arguments of the fusion of this name: those given, and the defaults of the others. Raises as `load`."""
    if name not in KINDS:
        raise ModelError(f"no fusion is named {name!r}: the names are {', '.join(sorted(KINDS))}")
    return all_arguments(f"fusion {name}", KINDS[name], 1, arguments)
