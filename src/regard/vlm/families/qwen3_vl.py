"""Qwen3-VL (arXiv 2511.21631): like Qwen2.5-VL without windows, and DeepStack: features of earlier encoder layers are
added to the first layers of the language model. They are shortened with the same Allocation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from regard.eyes.encoder import before_last
from regard.vlm.families.qwen2_vl import merged_grids, rope_positions
from regard.vlm.family import Family, Layout, Run


class Qwen3VL(Family):
    """model_type "qwen3_vl"."""

    model_types = ("qwen3_vl",)
    encoder_inputs = required = ("pixel_values", "image_grid_thw")
    any_size = True

    def attention_layer(self, base: Any) -> nn.Module:
        return before_last(base.visual)

    def layouts(self, base: Any, inputs: Mapping[str, Any], runs: Sequence[Run]) -> list[Layout]:
        return merged_grids(base, inputs)

    def arrange(self, base: Any, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        return maps.view(-1, base.visual.spatial_merge_size**2, maps.shape[-1]).mean(dim=1)

    def positions(self, base: Any, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
        return rope_positions(base, inputs, mask)
