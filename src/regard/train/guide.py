"""Attention that learns from a box where to go."""

import torch
from jaxtyping import Float
from torch import Tensor

GUIDE = 0.3  # weight of the loss beside the cross-entropy


def overlapping(tokens: Float[Tensor, "b n 4"], boxes: Float[Tensor, "b 4"]) -> Float[Tensor, "b n"]:
    """1 for a token that shares some of the box, else 0."""
    first, last = torch.maximum(tokens[..., :2], boxes[:, None, :2]), torch.minimum(tokens[..., 2:], boxes[:, None, 2:])
    return (first < last).all(dim=-1).float()


def drawn(attention: Float[Tensor, "b n"], target: Float[Tensor, "b n"]) -> Float[Tensor, ""]:
    """- log of the attention on the target."""
    return -((attention * target).sum(dim=1) + 1e-4).log().mean()
