"""Qwen2-VL (arXiv 2409.12191) and Qwen2.5-VL (arXiv 2502.13923): any size, 2 x 2 patches a token, M-RoPE.

Qwen2.5's encoder attends within windows in most layers; attention is read from its last layer that sees all, as what
a token receives within its window cannot be compared across windows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regard.errors import DataError
from regard.eyes.encoder import attention_layers, before_last
from regard.vlm.family import Family, Layout, Run, cells


class Qwen2VL(Family):
    """model_type "qwen2_vl" and "qwen2_5_vl"."""

    model_types = ("qwen2_vl", "qwen2_5_vl")
    encoder_inputs = required = ("pixel_values", "image_grid_thw")
    any_size = True

    def attention_layer(self, base: Any) -> nn.Module:
        whole = getattr(base.config.vision_config, "fullatt_block_indexes", None)
        return attention_layers(base.visual)[whole[-1]] if whole else before_last(base.visual)

    def layouts(self, base: Any, inputs: Mapping[str, Any], runs: Sequence[Run]) -> list[Layout]:
        return merged_grids(base, inputs)

    def arrange(self, base: Any, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        unit = base.visual.spatial_merge_size**2
        merged = maps.view(-1, unit, maps.shape[-1]).mean(dim=1)
        if base.config.model_type != "qwen2_5_vl":
            return merged
        from transformers.vision_utils import get_vision_window_index

        visual = base.visual
        order = get_vision_window_index(
            inputs["image_grid_thw"], visual.spatial_merge_size, visual.window_size, visual.patch_size
        )[0]
        return merged[order.to(merged.device).argsort()]

    def positions(self, base: Any, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
        return rope_positions(base, inputs, mask)


def merged_grids(base: Any, inputs: Mapping[str, Any]) -> list[Layout]:
    """A grid of merged patches for each image (T frames, seen one after the other)."""
    merge = base.visual.spatial_merge_size
    layouts = []
    for t, h, w in inputs["image_grid_thw"].tolist():
        boxes = cells(h // merge, w // merge).repeat(t, 1)
        frames = torch.arange(t).repeat_interleave(len(boxes) // t)
        layouts.append(Layout(boxes, (t, h // merge, w // merge), frames if t > 1 else None))
    return layouts


def rope_positions(base: Any, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
    """(3, B, L): time, height and width, as the model itself counts them on the whole prompt."""
    if inputs.get("mm_token_type_ids") is None:
        raise DataError(
            "the inputs have no mm_token_type_ids, which M-RoPE positions are counted from: take them from the "
            "processor, or set inputs['mm_token_type_ids'] = (inputs['input_ids'] == model.config.image_token_id).int()"
        )
    return base.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=mask.long(),
    )[0]
