"""The models whose times and memory advice is about, as the cost model knows them."""

from dataclasses import dataclass
from functools import cached_property

from regard.cost.counted import Cost
from regard.cost.language import VICUNA_7B, VICUNA_13B, LanguageModel
from regard.cost.models.towers import CLIP_L_336
from regard.cost.vit import ViT
from regard.cost.vlm import mlp_projector


@dataclass(frozen=True)
class Model:
    """An encoder, which reads images in windows of its side, and the language model that reads its tokens."""

    said: str
    vision: ViT
    language: LanguageModel

    @cached_property
    def window(self) -> int:
        """Visual tokens of a window."""
        return self.vision.patches(self.vision.side)

    @cached_property
    def encoder(self) -> Cost:
        """Of a window, with the projector."""
        projector = mlp_projector(self.window, self.vision.dim, self.language.hidden)
        return self.vision.cost(self.vision.side) + projector

    @property
    def params(self) -> int:
        return self.encoder.params + self.language.params


_CLIP_B = ViT(768, 12, 12, patch=14, side=336, out=0, patch_bias=False, pre_norm=True)
_SMOLLM2 = LanguageModel(
    "smollm2-135m", 30, hidden=576, heads=9, kv_heads=3, feed_forward=1536, vocabulary=49152, tied=True
)
MODELS = {
    "smollm2_135m": Model("LLaVA of CLIP-B/14 at 336 px and SmolLM2-135M, which was measured", _CLIP_B, _SMOLLM2),
    "llava_1.5_7b": Model("LLaVA-1.5 7B", CLIP_L_336, VICUNA_7B),
    "llava_1.5_13b": Model("LLaVA-1.5 13B", CLIP_L_336, VICUNA_13B),
}
MEASURED = "smollm2_135m"
