"""LLaVA-NeXT: the whole picture, then its tiles without their padding, a newline token after each row of patches.

All tiles are one image with one budget. A newline is a token like others, with an empty box at the right edge of its
row and no attention of its own: what selects by attention drops newlines first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regard.eyes.encoder import before_last
from regard.vlm.family import Family, Layout, Run, cells, counted, side


class LlavaNext(Family):
    """model_type "llava_next"."""

    model_types = ("llava_next",)
    encoder_inputs = required = ("pixel_values", "image_sizes")

    def attention_layer(self, base: nn.Module) -> nn.Module:
        return before_last(base.vision_tower)  # pyright: ignore[reportArgumentType]

    def layouts(self, base: Any, inputs: Mapping[str, Any], runs: Sequence[Run]) -> list[Layout]:
        vision = base.config.vision_config
        edge = vision.image_size // vision.patch_size
        tiles = self._tiles(base, inputs)
        numbers = torch.cat([torch.arange(count) for count in tiles]).float()
        numbers = numbers[:, None, None].expand(-1, edge * edge, 1)
        return [_layout(packed.squeeze(1).long(), edge) for packed in self._packed(base, inputs, numbers, -1.0)]

    def arrange(self, base: Any, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        if base.config.vision_feature_select_strategy == "default":
            maps = maps[:, 1:]
        side(maps.shape[1], "LLaVA-NeXT")
        return torch.cat(self._packed(base, inputs, maps, 0.0))

    def positions(self, base: nn.Module, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
        return counted(mask)

    def _tiles(self, base: Any, inputs: Mapping[str, Any]) -> list[int]:
        """Tiles of each image, the whole picture counted."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        config = base.config
        return [
            image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
            for size in inputs["image_sizes"]
        ]

    def _packed(self, base: Any, inputs: Mapping[str, Any], values: Tensor, newline: float) -> list[Tensor]:
        """Values of all tiles' patches, (T, S, C), in the model's own order of tokens: (n, C) for each image."""
        strategy = base.config.vision_feature_select_strategy
        parts = values.split(self._tiles(base, inputs))
        end = values.new_full(values.shape[2:], newline)
        return base.pack_image_features(parts, inputs["image_sizes"], strategy, image_newline=end)[0]


def _layout(tile: Tensor, edge: int) -> Layout:
    """tile: (n,), which tile each token is of: 0 the whole picture, -1 a newline."""
    base = edge * edge
    ends = (tile[base:] == -1).nonzero().squeeze(1)
    h, w = len(ends), int(ends[0])
    rows = cells(h, w).view(h, w, 4)
    newline = rows[:, -1:].clone()
    newline[..., 0] = 1.0
    boxes = torch.cat((cells(edge, edge), torch.cat((rows, newline), dim=1).flatten(0, 1)))
    before = torch.arange(len(tile)) - (tile == -1).long()
    return Layout(boxes, segment=tile[before])
