"""Idefics3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299): rows and columns of tiles, then the whole picture.

The rows and columns are not among the model's inputs; they are read from the prompt, where a mark stands before every
tile, something more between two rows, and another mark before the whole picture.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from regard.errors import DataError
from regard.eyes.encoder import before_last
from regard.vlm.family import Family, Layout, Run, block_means, counted, side, tiled


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
        if inputs["pixel_values"].ndim != 5 or len(inputs["pixel_values"]) != len(inputs["input_ids"]):
            got = tuple(inputs["pixel_values"].shape)
            raise DataError(f"pixel_values must be (prompts, tiles, 3, H, W), one row for each prompt, got {got}")
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

    A tile follows a token that says an image is near, and a mark of one token or several (`<row_1_col_2>`). Both are
    known from the end of the prompt: that token comes once more after a whole picture, and the last run is always one.
    """
    ids = input_ids.tolist()
    images: list[list[list[Run]]] = []
    rows: list[list[Run]] = []
    previous = None
    last = {run.row: run for run in runs}
    for run in runs:
        row, end = ids[run.row], last[run.row]
        near = row[end.stop] if end.stop < len(row) else None
        start, whole = _mark(row, run, near), _mark(row, end, near)
        if previous is None or previous.row != run.row or start > previous.stop:
            rows.append([])
        is_whole = row[start : run.start] == row[whole : end.start]
        if is_whole and rows[-1]:
            rows.append([])
        rows[-1].append(run)
        previous = run
        if is_whole:
            images.append(rows)
            rows, previous = [], None
    return images


def _mark(row: list[int], run: Run, near: int | None) -> int:
    """Where the mark before a run begins: at the last token that says an image is near."""
    start = run.start - 1
    while start >= 0 and row[start] != near:
        start -= 1
    if start < 0:
        raise DataError("the image tokens are not marked as tiles and whole pictures: take the processor's prompt")
    return start


def _layout(rows: list[list[Run]], edge: int) -> Layout:
    *tiles, _ = rows
    h, w = len(tiles), len(tiles[0]) if tiles else 0
    if any(len(row) != w for row in tiles):
        raise DataError("the tiles of an image are no grid of rows and columns: take the processor's prompt")
    return tiled(h, w, edge)
