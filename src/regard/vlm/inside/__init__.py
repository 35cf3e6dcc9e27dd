"""Image tokens dropped between the layers of the language model: `regard.inside`. A method is one file."""

from regard.vlm.inside.hooks import METHODS, Inside, inside
from regard.vlm.inside.pruner import Pruner

__all__ = ["METHODS", "Inside", "Pruner", "inside"]
