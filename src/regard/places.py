"""Where a token is and how large, as features: sines and cosines of its box's centre in octaves (arXiv 1706.03762)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

_OCTAVES = 6


class Places(nn.Module):
    """Where tokens are and how large, (B, N, 4) to (B, N, dim): a linear map of sines and cosines of their boxes'
    centres, in octaves, and the logarithms of their sides.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(4 * _OCTAVES + 4, dim)

    def forward(self, boxes: Float[Tensor, "b n 4"]) -> Float[Tensor, "b n d"]:
        """boxes: x0, y0, x1, y1 in [0, 1]."""
        boxes = boxes.to(torch.promote_types(self.map.weight.dtype, torch.float32))
        low, high = boxes[..., :2], boxes[..., 2:]
        centre = (low + high) / 2
        angles = centre[..., None] * torch.pi * 2.0 ** torch.arange(_OCTAVES, device=boxes.device)
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(2)
        known = torch.cat((waves, centre, (high - low).clamp(min=1e-3).log()), dim=-1)
        return self.map(known.to(self.map.weight.dtype))
