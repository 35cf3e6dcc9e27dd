"""Vision transformers of timm's names, with 1000 classes; DINOv2 (arXiv 2304.07193) without."""

from regard.cost.images import ImageModel
from regard.cost.vit import ViT

TINY, SMALL, BASE = (192, 12, 3), (384, 12, 6), (768, 12, 12)  # width, depth, heads
LARGE, HUGE = (1024, 24, 16), (1280, 32, 16)
DEIT_SMALL, DEIT_BASE = ViT(*SMALL, patch=16), ViT(*BASE, patch=16)


def named(vit: ViT, note: str = "") -> ImageModel:
    """A vision transformer at the resolution that its positions were made for."""
    left = vit.side % vit.patch
    unread = f"the last {left} pixels of {vit.side} are not read, as its convolution is not padded" if left else ""
    return ImageModel(vit, vit.side, vit.patch, f"as its patches are of {vit.patch}", note or unread)


MODELS = {
    "deit_tiny_patch16_224": named(ViT(*TINY, patch=16)),
    "deit_small_patch16_224": named(DEIT_SMALL),
    "vit_small_patch32_224": named(ViT(*SMALL, patch=32)),
    "vit_base_patch32_224": named(ViT(*BASE, patch=32)),
    "vit_base_patch16_224": named(DEIT_BASE),
    "vit_base_patch16_384": named(ViT(*BASE, patch=16, side=384)),
    "vit_base_patch8_224": named(ViT(*BASE, patch=8)),
    "vit_large_patch16_224": named(ViT(*LARGE, patch=16)),
    "vit_large_patch14_224": named(ViT(*LARGE, patch=14)),
    "vit_huge_patch14_224": named(ViT(*HUGE, patch=14)),
    "vit_small_patch14_dinov2_518": named(ViT(*SMALL, patch=14, side=518, out=0, layer_scale=True)),
    "vit_base_patch14_dinov2_518": named(ViT(*BASE, patch=14, side=518, out=0, layer_scale=True)),
    "vit_base_patch14_reg4_dinov2_518": named(
        ViT(*BASE, patch=14, side=518, out=0, layer_scale=True, registers=4),
    ),
}
