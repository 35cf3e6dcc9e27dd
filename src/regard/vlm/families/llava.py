"""LLaVA (arXiv 2304.08485): one CLIP, SigLIP or Pixtral grid an image, projected."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regard.eyes.encoder import before_last
from regard.vlm.family import Family, Layout, Run, cells, counted, side


class Llava(Family):
    """model_type "llava", for any vision tower that it has, with one grid an image."""

    model_types = ("llava",)
    encoder_inputs = ("pixel_values", "image_sizes")

    def attention_layer(self, base: nn.Module) -> nn.Module:
        return before_last(base.vision_tower)  # pyright: ignore[reportArgumentType]

    def layouts(self, base: Any, inputs: Mapping[str, Any], runs: Sequence[Run]) -> list[Layout]:
        vision = base.config.vision_config
        if inputs.get("image_sizes") is not None:  # Pixtral: any size
            sizes = (torch.as_tensor(inputs["image_sizes"]) // vision.patch_size).tolist()
        else:
            sizes = [(vision.image_size // vision.patch_size,) * 2] * len(inputs["pixel_values"])
        if base.config.vision_feature_select_strategy == "full" and vision.model_type == "clip_vision_model":
            whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])  # the class token, before the grid
            return [Layout(torch.cat((whole, cells(h, w)))) for h, w in sizes]
        return [Layout(cells(h, w), grid=(1, h, w)) for h, w in sizes]

    def arrange(self, base: Any, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        if base.config.vision_feature_select_strategy == "default":
            maps = maps[:, 1:]
            side(maps.shape[1], "LLaVA")
        return maps.flatten(0, 1)

    def positions(self, base: nn.Module, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
        return counted(mask)
