"""How what an eye saw reaches a language model: in its prompt, or in its layers. One way a file."""

from typing import Any

from torch import nn

from regard.errors import ModelError
from regard.vlm.fusion.deep import Deep
from regard.vlm.fusion.early import Early
from regard.vlm.fusion.fusion import Fusion
from regard.vlm.fusion.late import Late

__all__ = ["Fusion", "load"]

KINDS: dict[str, type[Fusion]] = {kind.name: kind for kind in (Deep, Early, Late)}


def load(name: str, language_model: nn.Module, **arguments: Any) -> Fusion:
    """The fusion of this name for a language model. Raises ModelError where there is no such name or argument."""
    if name not in KINDS:
        raise ModelError(f"no fusion is named {name!r}: the names are {', '.join(sorted(KINDS))}")
    try:
        return KINDS[name](language_model, **arguments)
    except TypeError as error:
        raise ModelError(f"fusion {name}: {error}") from error
