"""Hugging Face vision-language models with fewer visual tokens, nothing patched. One family of models a file.

A new family is one new file in `families/` with one `Family` in it and a line in `_FAMILIES`, or an entry point of the
group `regard.vlm` in another package: `model_type = "package.module:Class"`.
"""

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from regard.errors import ModelError
from regard.eyes.encoder import attention_layers, before_last
from regard.vlm.family import Family, Layout, Run, block_means, cells, counted

__all__ = [
    "Family",
    "Layout",
    "Run",
    "attention_layers",
    "before_last",
    "block_means",
    "catalogue",
    "cells",
    "counted",
    "family_of",
]

_FAMILIES = {  # a model's `config.model_type` and the file that knows it
    "idefics3": "idefics3",
    "internvl": "internvl",
    "llava": "llava",
    "llava_next": "llava_next",
    "paligemma": "paligemma",
    "qwen2_5_vl": "qwen2_vl",
    "qwen2_vl": "qwen2_vl",
    "qwen3_vl": "qwen3_vl",
    "smolvlm": "idefics3",
}


def catalogue() -> tuple[str, ...]:
    """The model types that can be shortened, in alphabetical order; none of their modules is imported."""
    return tuple(sorted({*_FAMILIES, *(entry.name for entry in entry_points(group="regard.vlm"))}))


def family_of(config: Any) -> Family:
    """What is known of models with this configuration. Raises ModelError where nothing is."""
    kind = getattr(config, "model_type", None)
    if kind in _FAMILIES:
        module = import_module(f"{__name__}.families.{_FAMILIES[kind]}")
        found = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        return next(v for v in found if issubclass(v, Family) and kind in v.model_types)()
    for entry in entry_points(group="regard.vlm"):
        if entry.name == kind:
            return entry.load()()
    raise ModelError(
        f"models of type {kind!r} are not known: known are {', '.join(catalogue())}; "
        "docs/add-a-family.md shows how to add one in about 50 lines"
    )
