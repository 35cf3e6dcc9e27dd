"""regard: spend a vision-language model's attention where the question is.

The public names are loaded when first used, so that `import regard` and `regard --help` stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from regard.allocation import Allocation, Attribution, TilePlan
    from regard.doctor.capture import capture
    from regard.errors import BudgetError, DataError, ImageError, ModelError, RegardError, ShapeError
    from regard.images import load_image
    from regard.looking import look
    from regard.record import Record
    from regard.tiling import tiles
    from regard.tokens import Question, VisualTokens
    from regard.vlm.ask import ask
    from regard.vlm.compose import VLM
    from regard.vlm.inside import inside
    from regard.vlm.shorten import shorten

_HOME = {
    "Allocation": "allocation",
    "Attribution": "allocation",
    "BudgetError": "errors",
    "DataError": "errors",
    "ImageError": "errors",
    "ModelError": "errors",
    "Question": "tokens",
    "Record": "record",
    "RegardError": "errors",
    "ShapeError": "errors",
    "TilePlan": "allocation",
    "VLM": "vlm.compose",
    "VisualTokens": "tokens",
    "ask": "vlm.ask",
    "capture": "doctor.capture",
    "inside": "vlm.inside",
    "load_image": "images",
    "look": "looking",
    "shorten": "vlm.shorten",
    "tiles": "tiling",
}

__all__ = [
    "VLM",
    "Allocation",
    "Attribution",
    "BudgetError",
    "DataError",
    "ImageError",
    "ModelError",
    "Question",
    "Record",
    "RegardError",
    "ShapeError",
    "TilePlan",
    "VisualTokens",
    "ask",
    "capture",
    "inside",
    "load_image",
    "look",
    "shorten",
    "tiles",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'regard' has no attribute {name!r}")
    return getattr(import_module(f"regard.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
