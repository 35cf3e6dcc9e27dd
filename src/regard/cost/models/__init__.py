"""What has a name, as data: a table in each file, which is read when a name is looked for and not before."""

from importlib import import_module

from regard.cost.asked import Named

GROUPS = {
    "image classifiers and encoders": "classifiers",
    "towers of CLIP, SigLIP and EVA": "towers",
    "vision-language models and their parts": "vlms",
    "language models": "decoders",
    "allocators": "allocators",
    "mechanisms": "mechanisms",
    "BLIP-2": "blip2",
    "transformers that drop tokens": "pruned",
    "Perceiver and PerViT": "pervits",
    "Swin and ConvNeXt": "grids",
    "layers": "layers",
}


def table(group: str) -> dict[str, Named]:
    """What has a name in a group."""
    return import_module(f"{__name__}.{GROUPS[group]}").MODELS


def found(name: str) -> Named | None:
    """What has this name."""
    return next((table(group)[name] for group in GROUPS if name in table(group)), None)
