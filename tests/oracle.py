"""The untouched model, seeing all tokens but with some masked out of attention: what shortening has to equal."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tiny_vlms import IMAGE


def positions_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Position ids of the whole prompt, counted here: (B, L) or (3, B, L)."""
    mask = inputs["attention_mask"]
    if "image_grid_thw" in inputs:
        base = model.model
        return base.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=mask,
        )[0]
    return (mask.cumsum(dim=1) - 1).clamp(min=0) * mask


def kept_columns(inputs: dict[str, Tensor], allocations: Sequence, rows: Sequence[int]) -> Tensor:
    """(B, L), True for text and for the anchors of each image's allocation, found image by image."""
    ids = inputs["input_ids"]
    keep = inputs["attention_mask"].bool() & (ids != IMAGE)
    done = [0] * len(ids)
    for allocation, row in zip(allocations, rows, strict=True):
        columns = (ids[row] == IMAGE).nonzero().squeeze(1)[done[row] : done[row] + allocation.n_in]
        keep[row, columns[allocation.anchor[0]]] = True
        done[row] += allocation.n_in
    return keep


def features_of(model: Any, inputs: dict[str, Tensor]) -> dict:
    """The images, encoded by the model's own function."""
    names = ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask")
    given = {name: inputs[name] for name in names if name in inputs}
    return {"image": model.model.get_image_features(**given, return_dict=True)}


def merged(encoded: dict, allocations: Sequence) -> dict:
    """The same features, with each anchor's row holding what its allocation reads, on every level."""
    output = encoded["image"]
    output.pooler_output = _merged(output.pooler_output, allocations)
    if output.get("deepstack_features"):
        output.deepstack_features = [_merged(level, allocations) for level in output.deepstack_features]
    return encoded


def _merged(features, allocations: Sequence):
    flat = features.flatten(0, 1) if isinstance(features, Tensor) else torch.cat(list(features))
    parts = []
    for part, allocation in zip(flat.split([a.n_in for a in allocations]), allocations, strict=True):
        gain = 1 if allocation.gain is None else allocation.gain[0, :, None]
        rows = (allocation.matrix()[0].to(part.dtype) @ part) * gain
        part = part.clone()
        part[allocation.anchor[0]] = rows
        parts.append(part)
    flat = torch.cat(parts)
    if isinstance(features, Tensor):
        return flat.view(features.shape)
    return list(flat.split([len(part) for part in features]))


@torch.no_grad()
def logits(model: Any, inputs: dict, keep: Tensor, positions: Tensor, encoded: dict | None = None) -> Tensor:
    """(B, L, V) of the untouched model with everything but `keep` masked out of attention."""
    given = {**inputs, "attention_mask": keep.long(), "position_ids": positions}
    if encoded is not None:
        given = {name: given[name] for name in given if name not in ("pixel_values", "image_sizes")}
        given = {name: given[name] for name in given if name not in ("pixel_attention_mask", "image_grid_thw")}
        given["mm_encoder_outputs"] = dict(encoded)
    return model(**given, use_cache=False).logits


def greedy(model: Any, inputs: dict, keep: Tensor, positions: Tensor, steps: int, banned: list[int]) -> Tensor:
    """(B, steps) tokens, chosen one by one with the whole prompt read anew for each; left-padded prompts only."""
    inputs, chosen = dict(inputs), []
    for _ in range(steps):
        scores = logits(model, inputs, keep, positions)[:, -1]
        scores[:, banned] = -torch.inf
        chosen.append(scores.argmax(dim=1, keepdim=True))
        one = torch.ones_like(chosen[-1])
        inputs["input_ids"] = torch.cat((inputs["input_ids"], chosen[-1]), dim=1)
        keep = torch.cat((keep, one.bool()), dim=1)
        positions = torch.cat((positions, positions.amax(dim=-1, keepdim=True) + 1), dim=-1)
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.cat((inputs["mm_token_type_ids"], 0 * one.int()), dim=1)
        if "token_type_ids" in inputs:  # 1: what is generated is seen by what comes after it only
            inputs["token_type_ids"] = torch.cat((inputs["token_type_ids"], one), dim=1)
    return torch.cat(chosen, dim=1)
