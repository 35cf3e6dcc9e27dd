"""InternVL (arXiv 2312.14238, 2504.10479): tiles of one size, pixel-shuffled, and a thumbnail last.

How the tiles lie is not among the model's inputs: it is the arrangement of rows and columns whose picture is most like
the thumbnail.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.errors import DataError
from regard.eyes.encoder import before_last
from regard.vlm.family import Family, Layout, Run, block_means, counted, tiled

PROBE = 32  # pixels of a side at which arrangements are compared


class InternVL(Family):
    """model_type "internvl"."""

    model_types = ("internvl",)

    def attention_layer(self, base: nn.Module) -> nn.Module:
        return before_last(base.vision_tower)  # pyright: ignore[reportArgumentType]

    def layouts(self, base: Any, inputs: Mapping[str, Any], runs: Sequence[Run]) -> list[Layout]:
        vision = base.config.vision_config
        edge = int(vision.image_size[0] // vision.patch_size[0] * base.config.downsample_ratio)
        counts = [(run.stop - run.start) / edge**2 for run in runs]
        if any(count % 1 for count in counts) or sum(counts) != len(inputs["pixel_values"]):
            raise DataError(
                f"the image tokens of a picture must be a multiple of {edge**2} together, and as many tiles as there "
                f"are ({len(inputs['pixel_values'])}): take the processor's prompt"
            )
        return [_layout(tiles, edge) for tiles in inputs["pixel_values"].split([int(count) for count in counts])]

    def arrange(self, base: Any, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        if base.config.vision_feature_select_strategy == "default":
            maps = maps[:, 1:]
        return block_means(maps, round(1 / base.config.downsample_ratio)).flatten(0, 1)

    def positions(self, base: nn.Module, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
        return counted(mask)


def _layout(tiles: Tensor, edge: int) -> Layout:
    """tiles: (T, 3, H, W), the last the thumbnail of all others where there is more than one."""
    h, w = arrangement(tiles[:-1], tiles[-1]) if len(tiles) > 1 else (0, 0)
    return tiled(h, w, edge)


@torch.no_grad()
def arrangement(tiles: Tensor, thumbnail: Tensor) -> tuple[int, int]:
    """Rows and columns in which the tiles, (T, 3, H, W), look most like the thumbnail, (3, H, W)."""
    count = len(tiles)
    want = F.adaptive_avg_pool2d(thumbnail.float(), PROBE)
    best, least = (1, count), torch.inf
    for h in (h for h in range(1, count + 1) if count % h == 0):
        w = count // h
        picture = tiles.float().unflatten(0, (h, w)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
        difference = float((F.adaptive_avg_pool2d(picture, PROBE) - want).square().mean())
        if difference < least:
            best, least = (h, w), difference
    return best
