"""PerViT (arXiv 2206.06801) and Perceiver (arXiv 2103.03206), as their authors made them for ImageNet."""

from regard.cost.images import ImageModel
from regard.cost.perceiver import PerceiverClassifier
from regard.cost.pervit import PerViT


def _pervit(widths: tuple[int, ...], stem: tuple[int, ...], heads: int) -> ImageModel:
    """widths: of four stages of 2, 2, 6 and 2 blocks."""
    dims = tuple(width for width, depth in zip(widths, (2, 2, 6, 2), strict=True) for _ in range(depth))
    model = PerViT(dims, stem, heads)
    note = "published: MACs without the two products of attention; positions are known; exact: with the products"
    return ImageModel(model, note=note, published=model.without_products())


MODELS = {
    "perceiver_imagenet": ImageModel(PerceiverClassifier(), 224, 1, "whole pixels", "8 readings of all pixels"),
    "pervit_tiny_224": _pervit((128, 192, 224, 280), (48, 64, 96, 128), 4),
    "pervit_small_224": _pervit((272, 320, 368, 464), (64, 128, 192, 272), 8),
    "pervit_medium_224": _pervit((312, 468, 540, 684), (64, 192, 256, 312), 12),
}
