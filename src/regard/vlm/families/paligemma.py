"""PaliGemma (arXiv 2407.07726) and PaliGemma 2 (arXiv 2412.03555): one SigLIP grid an image, a prefix that attends
both ways.

`generate` adds 1 to positions itself, as the model was trained; a plain `forward` with positions does not. Rotary
attention sees only differences, so the two agree to rounding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from regard.eyes.encoder import before_last
from regard.vlm.family import Family, Layout, Run, cells, counted


class PaliGemma(Family):
    """model_type "paligemma"."""

    model_types = ("paligemma",)

    def attention_layer(self, base: nn.Module) -> nn.Module:
        return before_last(base.vision_tower)  # pyright: ignore[reportArgumentType]

    def layouts(self, base: Any, inputs: Mapping[str, Any], runs: Sequence[Run]) -> list[Layout]:
        vision = base.config.vision_config
        edge = vision.image_size // vision.patch_size
        return [Layout(cells(edge, edge), grid=(1, edge, edge)) for _ in inputs["pixel_values"]]

    def arrange(self, base: nn.Module, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        return maps.flatten(0, 1)

    def positions(self, base: nn.Module, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
        return counted(mask)
