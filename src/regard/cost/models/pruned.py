"""DynamicViT (arXiv 2106.02034) and EViT (arXiv 2202.07800) as their authors published them."""

from regard.cost.images import ImageModel
from regard.cost.models.classifiers import DEIT_BASE, DEIT_SMALL
from regard.cost.pruned import DynamicViT, EViT
from regard.cost.vit import ViT

MODELS = {
    "dynamicvit_deit_256_keep0.7": ImageModel(DynamicViT(ViT(256, 12, 4, patch=16), 0.7)),
    "dynamicvit_deit_small_keep0.7": ImageModel(DynamicViT(DEIT_SMALL, 0.7)),
    "dynamicvit_deit_base_keep0.7": ImageModel(DynamicViT(DEIT_BASE, 0.7)),
    **{f"evit_deit_small_keep{keep}": ImageModel(EViT(DEIT_SMALL, keep)) for keep in (0.9, 0.8, 0.7, 0.6, 0.5)},
}
