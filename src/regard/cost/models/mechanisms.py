"""The mechanisms of `regard.mechanisms` with their defaults; those around a vision transformer, around DeiT-S."""

from regard.cost.images import ImageModel, OfImages
from regard.cost.mechanisms import RAM, Cascade, FoveaTer, Gaze
from regard.cost.models.classifiers import DEIT_SMALL
from regard.cost.pervit import PerViT
from regard.cost.pruned import DynamicViT, EViT


def _any_size(model: OfImages, side: int, note: str) -> ImageModel:
    return ImageModel(model, side, 1, "whole pixels", note, least=lambda model, side: model.least(side))


MODELS = {
    "ram": ImageModel(
        RAM(), 28, 1, "whole pixels", "one run of six glimpses, whatever the image's size; look() runs ten"
    ),
    "gaze": _any_size(Gaze(), 288, "macs_least: with a gaze that is given"),
    "foveater": _any_size(FoveaTer(), 96, "all five fixations; macs_least: one"),
    "pervit": ImageModel(PerViT((64,) * 4, (32, 64), 4, 10, 1, shared=False), 28, 4, note="positions are known"),
    "cascade": ImageModel(
        Cascade(),
        32,
        8,
        "which the patches of the coarser stage divide",
        "both stages; macs_least: the first",
        least=lambda model, side: model.least(side),
    ),
    "vit": ImageModel(DEIT_SMALL),
    "avit": ImageModel(DEIT_SMALL, note="at most: which tokens halt, and where, depends on the image"),
    "dynamicvit": ImageModel(DynamicViT(DEIT_SMALL, 0.7)),
    "evit": ImageModel(EViT(DEIT_SMALL, 0.7)),
}
