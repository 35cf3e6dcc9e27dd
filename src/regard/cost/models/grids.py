"""Swin (arXiv 2103.14030) and ConvNeXt (arXiv 2201.03545) of timm's names, with 1000 classes."""

from regard.cost.convnext import ConvNeXt
from regard.cost.images import ImageModel
from regard.cost.swin import Swin

TINY, DEEP = (2, 2, 6, 2), (2, 2, 18, 2)  # depths


def _swin(side: int, dim: int, depths: tuple[int, ...], heads: int, window: int) -> ImageModel:
    """heads: of the first stage, twice as many in each next."""
    model = Swin(dim, depths, tuple(heads * 2**stage for stage in range(4)), window)
    note = "a grid that its windows do not divide is padded, and the padding computed"
    return ImageModel(model, side, 4, "as its patches are of 4 (windows and odd grids are padded)", note)


def _convnext(dim: int, depth: int, side: int = 224) -> ImageModel:
    """depth: of the third stage."""
    model = ConvNeXt(tuple(dim * 2**stage for stage in range(4)), (3, 3, depth, 3))
    return ImageModel(model, side, model.patch, f"as it pools by {model.patch} in all")


MODELS = {
    "swin_tiny_patch4_window7_224": _swin(224, 96, TINY, 3, 7),
    "swin_small_patch4_window7_224": _swin(224, 96, DEEP, 3, 7),
    "swin_base_patch4_window7_224": _swin(224, 128, DEEP, 4, 7),
    "swin_base_patch4_window12_384": _swin(384, 128, DEEP, 4, 12),
    "swin_large_patch4_window7_224": _swin(224, 192, DEEP, 6, 7),
    "swin_large_patch4_window12_384": _swin(384, 192, DEEP, 6, 12),
    "convnext_tiny_224": _convnext(96, 9),
    "convnext_small_224": _convnext(96, 27),
    "convnext_base_224": _convnext(128, 27),
    "convnext_base_384": _convnext(128, 27, 384),
    "convnext_large_224": _convnext(192, 27),
}
