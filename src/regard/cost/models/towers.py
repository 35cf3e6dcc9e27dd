"""Towers of CLIP (arXiv 2103.00020), SigLIP (2303.15343) and EVA-CLIP (2303.15389), with projection or pooling."""

from dataclasses import dataclass, replace

from regard.cost.asked import Asked, Facts
from regard.cost.models.classifiers import BASE, HUGE, named
from regard.cost.vit import TextTower, ViT


@dataclass(frozen=True)
class Text:
    """A tower that reads texts, all padded to one length."""

    tower: TextTower

    applies = frozenset()

    def facts(self, asked: Asked) -> Facts:
        facts = Facts()
        facts.add_cost(self.tower.cost(), asked.batch, self.tower.context)
        facts.notes.append(f"of {self.tower.context} tokens, to which every text is padded")
        return facts


CLIP_B = ViT(*BASE, patch=32, out=512, out_bias=False, patch_bias=False, pre_norm=True)
CLIP_L = replace(CLIP_B, dim=1024, depth=24, heads=16, patch=14, out=768)
CLIP_L_336 = replace(CLIP_L, side=336)
EVA_G = ViT(1408, 40, 16, patch=14, hidden=6144, out=1024, bias="qv")
SO400M = ViT(1152, 27, 16, patch=14, hidden=4304, class_token=False, pool="query", out=0)

MODELS = {
    "siglip_base_patch16_224_vision": named(ViT(*BASE, patch=16, class_token=False, pool="query", out=0)),
    "siglip_so400m_patch14_224_vision": named(SO400M),
    "siglip_so400m_patch14_384_vision": named(replace(SO400M, side=384)),
    "clip_vit_b_32_vision": named(CLIP_B),
    "clip_vit_b_16_vision": named(replace(CLIP_B, patch=16)),
    "clip_vit_l_14_vision": named(CLIP_L),
    "clip_vit_l_14_336_vision": named(CLIP_L_336),
    "clip_vit_h_14_vision": named(
        ViT(*HUGE, patch=14, out=1024, out_bias=False, patch_bias=False, pre_norm=True),
    ),
    "eva01_clip_vit_g_14_vision": named(EVA_G),
    "clip_vit_b_32_text": Text(TextTower(512, 12, 8, 512)),
    "clip_vit_b_16_text": Text(TextTower(512, 12, 8, 512)),
    "clip_vit_l_14_text": Text(TextTower(768, 12, 12, 768)),
    "clip_vit_l_14_336_text": Text(TextTower(768, 12, 12, 768)),
    "clip_vit_h_14_text": Text(TextTower(1024, 24, 16, 1024)),
}
