"""ConvNeXt's block (Liu et al., arXiv 2201.03545): what a convolution puts in the place of windows of attention.

    ConvNeXtBlock(x) = x + s * W_2 gelu(W_1 LN(conv(x))),    conv: depthwise, 7 x 7, zeros outside the grid

Ours differs in form only: tokens (B, h * w, D) and the grid, not maps (B, D, h, w); so the channels lie side by side
throughout, and nothing is turned round. It has no attention to show: no `weights`.
"""

from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from regard.attention._base import check_input
from regard.attention._windows import Grid, check_grid
from regard.attention.scaled import ACTIVATIONS, NAMES, copy_into
from regard.errors import ModelError, ShapeError


class ConvNeXtBlock(nn.Module, PyTorchModelHubMixin):
    """A depthwise convolution and a wide MLP around tokens on a grid.

    kernel: side of the convolution, odd. hidden: width of the MLP, 4 * dim by default. layer_scale: what the learned
    factors s start from, 0 for none. activation: "gelu", "gelu_tanh", "quick_gelu" or "relu". Raises ShapeError for an
    even kernel, ModelError for an unknown activation.
    """

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        kernel: int = 7,
        layer_scale: float = 1e-6,
        activation: str = "gelu",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ShapeError(f"kernel must be odd and at least 1, got {kernel}")
        if activation not in ACTIVATIONS:
            raise ModelError(f"no activation is named {activation!r}: there are {', '.join(ACTIVATIONS)}")
        hidden = 4 * dim if hidden is None else hidden
        self.dim, self.activation = dim, activation
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.conv.to(memory_format=torch.channels_last)  # pyright: ignore  (or one image alone is turned round)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.widen, self.narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.scale = nn.Parameter(torch.full((dim,), float(layer_scale))) if layer_scale else None

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        """x: (B, h * w, D) in raster order. grid: (h, w). Raises ShapeError for another width, or where the grid does
        not hold the tokens.
        """
        check_input("x", x, self.dim)
        check_grid(grid, x.shape[1])
        y = self.conv(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
        y = self.narrow(ACTIVATIONS[self.activation](self.widen(self.norm(y))))
        return x + y if self.scale is None else torch.addcmul(x, y, self.scale)

    @classmethod
    def from_transformers(cls, module: Any) -> "ConvNeXtBlock":
        """From `ConvNextLayer`. Raises ModelError for ConvNeXt V2's, which is another block, or another module."""
        if not hasattr(module, "layer_scale_parameter"):
            raise ModelError(f"{type(module).__name__} has no layer_scale_parameter: it is not ConvNeXt's layer")
        scale, hidden = module.layer_scale_parameter, module.pwconv1.out_features
        block = cls(
            module.dwconv.in_channels,
            hidden,
            kernel=module.dwconv.kernel_size[0],
            layer_scale=0.0 if scale is None else 1.0,
            activation=_activation(module.act),
            eps=module.layernorm.eps,
        ).to(module.dwconv.weight)
        pairs = ((block.conv, module.dwconv), (block.norm, module.layernorm), (block.widen, module.pwconv1))
        for mine, theirs in (*pairs, (block.narrow, module.pwconv2)):
            copy_into(mine, theirs.weight, theirs.bias)
        if block.scale is not None and scale is not None:
            block.scale.data.copy_(scale)
        return block


def _activation(act: nn.Module) -> str:
    """The name of a module of transformers.activations, found by what it does."""
    from transformers.activations import ACT2FN  # what is lifted comes from there

    probe = torch.linspace(-3, 3, 7)
    for theirs, ours in NAMES.items():
        if type(ACT2FN[theirs]) is type(act) and torch.equal(ACT2FN[theirs](probe), act(probe)):
            return ours
    raise ModelError(f"no activation is known that is {type(act).__name__}: there are {', '.join(ACTIVATIONS)}")
