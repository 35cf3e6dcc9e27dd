"""Vision transformers that read fewer and fewer patches: DynamicViT, A-ViT and EViT, around one that was trained."""

from typing import Any, Literal

import torch

from regard.attention.vision import VisionTransformer
from regard.errors import ModelError
from regard.mechanisms.avit import AViT
from regard.mechanisms.dynamicvit import DynamicViT
from regard.mechanisms.evit import EViT
from regard.mechanisms.vit import StaticViT, ViTLooker

Kind = Literal["vit", "dynamicvit", "avit", "evit"]
KINDS: dict[str, type[ViTLooker]] = {one.name: one for one in (StaticViT, DynamicViT, AViT, EViT)}


def wrap(model: Any, kind: Kind, **arguments: Any) -> ViTLooker:
    """A classifier of this kind around a vision transformer, whose weights it shares where it is ours.

    model: a `VisionTransformer` or another of these classifiers, or ViTModel or ViTForImageClassification of
    transformers, whose weights are copied. A head that it has is copied, and gives the number of classes. arguments: of
    the kind's class. Raises ModelError for another model or kind.
    """
    if kind not in KINDS:
        raise ModelError(f"no such kind {kind!r}: choose from {', '.join(KINDS)}")
    vision, head = _parts(model)
    if head is not None:
        given = arguments.setdefault("classes", head.out_features)
        if given != head.out_features:
            raise ModelError(f"the model's head has {head.out_features} classes, got classes={given}: leave it out")
    looker = KINDS[kind](vision, **arguments).to(vision.patches.weight)
    if head is not None:
        with torch.no_grad():
            looker.head.weight.copy_(head.weight)
            looker.head.bias.copy_(head.bias)
    return looker.train(model.training)


def _parts(model: Any) -> tuple[VisionTransformer, Any]:
    """The vision transformer of a model, and its head or None."""
    if isinstance(model, VisionTransformer):
        return model, None
    if isinstance(model, ViTLooker):
        return model.vision, model.head
    if getattr(getattr(model, "config", None), "model_type", None) != "vit":
        known = "a VisionTransformer, one of these classifiers, ViTModel or ViTForImageClassification"
        raise ModelError(f"expected {known}, got {type(model).__name__}")
    head = getattr(model, "classifier", None)
    return VisionTransformer.from_transformers(getattr(model, "vit", model)), head if hasattr(head, "weight") else None
