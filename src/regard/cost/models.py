"""The models that have a name, as data, in groups. Sizes are those of the sources that docs/cost.md names."""

from dataclasses import replace
from functools import cache

from regard.cost import kinds, language
from regard.cost.allocators import DECIDING
from regard.cost.asked import Named
from regard.cost.convnext import ConvNeXt
from regard.cost.kinds import ImageModel
from regard.cost.mechanisms import RAM, Cascade, FoveaTer, Gaze
from regard.cost.perceiver import PerceiverClassifier
from regard.cost.pervit import PerViT
from regard.cost.pruned import DynamicViT, EViT
from regard.cost.qformer import QFormer
from regard.cost.shapes import LAYERS
from regard.cost.swin import Swin
from regard.cost.vit import TextTower, ViT
from regard.cost.vlm import VISUALS_1_6, Decoder, LLaVA

TINY, SMALL, BASE = (192, 12, 3), (384, 12, 6), (768, 12, 12)  # width, depth, heads
LARGE, HUGE = (1024, 24, 16), (1280, 32, 16)
DEIT_TINY, DEIT_SMALL, DEIT_BASE = (ViT(*size, patch=16) for size in (TINY, SMALL, BASE))

CLASSIFIERS = {
    "deit_tiny_patch16_224": DEIT_TINY,
    "deit_small_patch16_224": DEIT_SMALL,
    "vit_small_patch32_224": ViT(*SMALL, patch=32),
    "vit_base_patch32_224": ViT(*BASE, patch=32),
    "vit_base_patch16_224": DEIT_BASE,
    "vit_base_patch16_384": ViT(*BASE, patch=16, side=384),
    "vit_base_patch8_224": ViT(*BASE, patch=8),
    "vit_large_patch16_224": ViT(*LARGE, patch=16),
    "vit_large_patch14_224": ViT(*LARGE, patch=14),
    "vit_huge_patch14_224": ViT(*HUGE, patch=14),
}
DINO = {
    "vit_small_patch14_dinov2_518": ViT(*SMALL, patch=14, side=518, out=0, layer_scale=True),
    "vit_base_patch14_dinov2_518": ViT(*BASE, patch=14, side=518, out=0, layer_scale=True),
    "vit_base_patch14_reg4_dinov2_518": ViT(*BASE, patch=14, side=518, out=0, layer_scale=True, registers=4),
}
SWIN = {
    "swin_tiny_patch4_window7_224": Swin(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin_small_patch4_window7_224": Swin(96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "swin_base_patch4_window7_224": Swin(128, (2, 2, 18, 2), (4, 8, 16, 32), 7),
    "swin_base_patch4_window12_384": Swin(128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "swin_large_patch4_window7_224": Swin(192, (2, 2, 18, 2), (6, 12, 24, 48), 7),
    "swin_large_patch4_window12_384": Swin(192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}
CONVNEXT_BASE = ConvNeXt((128, 256, 512, 1024), (3, 3, 27, 3))
CONVNEXT = {
    "convnext_tiny_224": ConvNeXt((96, 192, 384, 768), (3, 3, 9, 3)),
    "convnext_small_224": ConvNeXt((96, 192, 384, 768), (3, 3, 27, 3)),
    "convnext_base_224": CONVNEXT_BASE,
    "convnext_base_384": CONVNEXT_BASE,
    "convnext_large_224": ConvNeXt((192, 384, 768, 1536), (3, 3, 27, 3)),
}
SO400M = ViT(1152, 27, 16, patch=14, hidden=4304, class_token=False, pool="query", out=0)
CLIP = ViT(*BASE, patch=32, out=512, out_bias=False, patch_bias=False, pre_norm=True)
EVA_G = ViT(1408, 40, 16, patch=14, hidden=6144, out=1024, bias="qv")
TOWERS = {
    "siglip_base_patch16_224_vision": ViT(*BASE, patch=16, class_token=False, pool="query", out=0),
    "siglip_so400m_patch14_224_vision": SO400M,
    "siglip_so400m_patch14_384_vision": replace(SO400M, side=384),
    "clip_vit_b_32_vision": CLIP,
    "clip_vit_b_16_vision": replace(CLIP, patch=16),
    "clip_vit_l_14_vision": replace(CLIP, dim=1024, depth=24, heads=16, patch=14, out=768),
    "clip_vit_l_14_336_vision": replace(CLIP, dim=1024, depth=24, heads=16, patch=14, out=768, side=336),
    "clip_vit_h_14_vision": ViT(*HUGE, patch=14, out=1024, out_bias=False, patch_bias=False, pre_norm=True),
    "eva01_clip_vit_g_14_vision": EVA_G,
}
TEXTS = {
    "clip_vit_b_32_text": TextTower(512, 12, 8, 512),
    "clip_vit_b_16_text": TextTower(512, 12, 8, 512),
    "clip_vit_l_14_text": TextTower(768, 12, 12, 768),
    "clip_vit_l_14_336_text": TextTower(768, 12, 12, 768),
    "clip_vit_h_14_text": TextTower(1024, 24, 16, 1024),
}
CLIP_L, CLIP_L_336 = TOWERS["clip_vit_l_14_vision"], TOWERS["clip_vit_l_14_336_vision"]
FORMER_G = QFormer(text=True, vocabulary=30523)  # BERT's words, and one that begins a decoded text
FORMER_L = replace(FORMER_G, encoder_dim=1024)
BLIP2 = {
    "blip2_qformer": kinds.Bootstrapped(FORMER_G, EVA_G),
    "blip2_vit_l_opt_2.7b": kinds.Bootstrapped(FORMER_L, CLIP_L, 2560),
    "blip2_vit_g_opt_2.7b": kinds.Bootstrapped(FORMER_G, EVA_G, 2560),
    "blip2_vit_g_opt_6.7b": kinds.Bootstrapped(FORMER_G, EVA_G, 4096),
    "blip2_vit_l_t5_xl": kinds.Bootstrapped(FORMER_L, CLIP_L, 2048),
    "blip2_vit_g_t5_xl": kinds.Bootstrapped(FORMER_G, EVA_G, 2048),
    "blip2_vit_g_t5_xxl": kinds.Bootstrapped(FORMER_G, EVA_G, 4096),
}


def _stages(*widths: int) -> tuple[int, ...]:
    return tuple(width for width, depth in zip(widths, (2, 2, 6, 2), strict=True) for _ in range(depth))


PERVIT = {
    "pervit_tiny_224": PerViT(_stages(128, 192, 224, 280), (48, 64, 96, 128), 4),
    "pervit_small_224": PerViT(_stages(272, 320, 368, 464), (64, 128, 192, 272), 8),
    "pervit_medium_224": PerViT(_stages(312, 468, 540, 684), (64, 192, 256, 312), 12),
}
PRUNED = {
    "dynamicvit_deit_256_keep0.7": DynamicViT(ViT(256, 12, 4, patch=16), 0.7),
    "dynamicvit_deit_small_keep0.7": DynamicViT(DEIT_SMALL, 0.7),
    "dynamicvit_deit_base_keep0.7": DynamicViT(DEIT_BASE, 0.7),
    **{f"evit_deit_small_keep{keep}": EViT(DEIT_SMALL, keep) for keep in (0.9, 0.8, 0.7, 0.6, 0.5)},
}
GAZE = Gaze()
VLMS = {
    "llava_1.5_7b": LLaVA(CLIP_L_336, language.VICUNA_7B, (576,)),
    "llava_1.5_13b": LLaVA(CLIP_L_336, language.VICUNA_13B, (576,)),
    "llava_1.6_7b": LLaVA(CLIP_L_336, language.VICUNA_7B, VISUALS_1_6, tiles=5),
    "llava_1.5_7b_projector": kinds.Projector(576, 1024, 4096),
    "cogvlm_17b_visual_expert": kinds.Experts(32, 4096, 11008),
    "giava_tokens": kinds.Counted(GAZE.count, GAZE.uniform, "20 tokens about a gaze where 324 would read all"),
}
DECODERS = {
    "vicuna_7b": Decoder(language.VICUNA_7B),
    "vicuna_13b": Decoder(language.VICUNA_13B),
    "qwen2.5_3b": Decoder(language.QWEN2_5_3B),
    "qwen2.5_7b": Decoder(language.QWEN2_5_7B),
}
MECHANISMS = {
    "ram": ImageModel(RAM(), 28, 1, "whole pixels", "one run; look() averages ten"),
    "gaze": ImageModel(GAZE, 288, 1, "whole pixels", "macs_least: with a gaze that is given"),
    "foveater": ImageModel(FoveaTer(), 96, 1, "whole pixels", "five fixations; macs_least: one"),
    "pervit": ImageModel(PerViT((64,) * 4, (32, 64), 4, 10, 1, shared=False), 28, 4),
    "cascade": ImageModel(Cascade(), 32, 8, "which patches of the coarser stage divide", "macs_least: of the first stage"),
    "vit": ImageModel(DEIT_SMALL),
    "avit": ImageModel(DEIT_SMALL, note="at most: how many tokens halt depends on the image"),
    "dynamicvit": ImageModel(DynamicViT(DEIT_SMALL, 0.7)),
    "evit": ImageModel(EViT(DEIT_SMALL, 0.7)),
}
LEAST = (("macs_least", lambda model, side: model.least(side)),)


@cache
def groups() -> dict[str, dict[str, Named]]:
    """All that has a name, by group."""
    vits = {name: _vit(model) for name, model in CLASSIFIERS.items()}
    vits |= {name: _vit(model) for name, model in DINO.items()}
    swins = {name: ImageModel(model, int(name[-3:]), 4, SWIN_RULE, SWIN_NOTE) for name, model in SWIN.items()}
    convs = {name: ImageModel(model, int(name[-3:]), 32, CONV_RULE) for name, model in CONVNEXT.items()}
    towers = {name: _vit(model) for name, model in TOWERS.items()}
    pruned = {name: ImageModel(model) for name, model in PRUNED.items()}
    pervits = {name: ImageModel(model, note=PERVIT_NOTE) for name, model in PERVIT.items()}
    mechanisms = {
        name: replace(one, extra=LEAST) if hasattr(one.model, "least") else one for name, one in MECHANISMS.items()
    }
    return {
        "image classifiers and encoders": vits | swins | convs,
        "towers of CLIP, SigLIP and EVA": towers | {name: kinds.Text(tower) for name, tower in TEXTS.items()},
        "BLIP-2": BLIP2,
        "Perceiver and PerViT": {"perceiver_imagenet": PERCEIVER, **pervits},
        "transformers that drop tokens": pruned,
        "vision-language models and their parts": VLMS,
        "language models": DECODERS,
        "mechanisms": mechanisms,
        "allocators": {name: kinds.Chooser(name) for name in DECIDING},
        "layers": {name: kinds.Layer(cost) for name, cost in LAYERS.items()},
    }


SWIN_RULE = "which its patches divide (windows and odd grids are padded)"
SWIN_NOTE = "a grid that windows do not divide is padded, and the padding computed"
CONV_RULE = "by which it pools"
PERVIT_NOTE = "published: MACs without the two products of attention; positions are known; exact: with them"
PERCEIVER = ImageModel(PerceiverClassifier(), 224, 1, "whole pixels", "every pixel is a token; 8 readings")


def _vit(model: ViT) -> ImageModel:
    left = model.side % model.patch
    note = f"the last {left} pixels of {model.side} are not read, as its convolution is not padded" if left else ""
    return ImageModel(model, model.side, model.patch, f"as its patches are of {model.patch}", note)
