"""Idefics3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299): rows and columns of tiles, then the whole picture.

The rows and columns are not among the model's inputs; they are read from the prompt, where every tile has two tokens
before it and the last of a row one more after it, and the whole picture has a token of its own before it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regard.errors import DataError
from regard.vlm._family import Family, Layout, Run, block_means, cells, counted, side
from regard.vlm.encoder import before_last


class Idefics3(Family):
    """model_type "idefics3" and "smolvlm"."""

    model_types = ("idefics3", "smolvlm")
    encoder_inputs = ("pixel_values", "pixel_attention_mask")
    listed_by = "prompt"

    def attention_layer(self, base: nn.Module) -> nn.Module:
        return before_last(base.vision_model)  # pyright: ignore[reportArgumentType]

    def layouts(self, base: Any, inputs: Mapping[str, Any], runs: Sequence[Run]) -> list[Layout]:
        vision = base.config.vision_config
        edge = vision.image_size // vision.patch_size // base.config.scale_factor
        if any(run.stop - run.start != edge * edge for run in runs):
            raise DataError(f"every tile must have {edge * edge} image tokens together: take the processor's prompt")
        return [_layout(tiles, edge) for tiles in pictures(inputs["input_ids"], runs)]

    def arrange(self, base: Any, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        side(maps.shape[1], "Idefics3")
        return block_means(maps, base.config.scale_factor).flatten(0, 1)

    def positions(self, base: nn.Module, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
        return counted(mask)


def pictures(input_ids: Tensor, runs: Sequence[Run]) -> list[list[list[Run]]]:
    """The tiles of each image by rows, the whole picture a last row of its own.

    The last run of a prompt is always a whole picture, so the token before it marks every whole picture.
    """
    ids = input_ids.tolist()
    before = [ids[run.row][run.start - 1] if run.start else None for run in runs]
    last = {run.row: mark for run, mark in zip(runs, before, strict=True)}
    images: list[list[list[Run]]] = []
    rows: list[list[Run]] = []
    previous = None
    for run, mark in zip(runs, before, strict=True):
        new_row = previous is None or run.row != previous.row or run.start - previous.stop > 2
        if new_row or mark == last[run.row]:
            rows.append([])
        rows[-1].append(run)
        previous = run
        if mark == last[run.row]:
            images.append(rows)
            rows = []
    return images


def _layout(rows: list[list[Run]], edge: int) -> Layout:
    *tiled, _ = rows
    h, w = len(tiled), len(tiled[0]) if tiled else 0
    if any(len(row) != w for row in tiled):
        raise DataError("the tiles of an image are no grid of rows and columns: take the processor's prompt")
    boxes = [cells(edge, edge, (x / w, y / h, (x + 1) / w, (y + 1) / h)) for y in range(h) for x in range(w)]
    numbers = torch.tensor([*range(1, h * w + 1), 0]).repeat_interleave(edge * edge)
    whole = cells(edge, edge)
    if not tiled:
        return Layout(whole, grid=(1, edge, edge))
    return Layout(torch.cat((*boxes, whole)), segment=numbers)
