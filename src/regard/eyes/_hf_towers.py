"""The vision towers of Hugging Face, each read in its own way: where its patches lie, which of its states are asked.

Class tokens and registers come first in a sequence; Swin and ConvNeXt have stages, each of half the grid before.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.errors import ModelError, ShapeError
from regard.eyes.encoder import before_last, keys_of, received, watched
from regard.tokens import grid_boxes


@dataclass(frozen=True)
class Kind:
    """cls: a class token leads. resizable: other sizes of picture need to be asked for. flexible: NaFlex."""

    cls: bool = True
    resizable: bool = True
    flexible: bool = False


KINDS = {
    "CLIPVisionModel": Kind(),
    "SiglipVisionModel": Kind(cls=False),
    "Siglip2VisionModel": Kind(cls=False, resizable=False, flexible=True),
    "Blip2VisionModel": Kind(),
    "Dinov2Model": Kind(resizable=False),
    "Dinov2WithRegistersModel": Kind(resizable=False),
    "ViTModel": Kind(),
    "SwinModel": Kind(cls=False),
    "ConvNextModel": Kind(cls=False, resizable=False),
    "ConvNextV2Model": Kind(cls=False, resizable=False),
}
SUPPORTED = "CLIP, SigLIP, SigLIP 2, BLIP-2 (its EVA-CLIP), DINOv2 (with registers or not), ViT, Swin, ConvNeXt (V2)"


class Encoded(NamedTuple):
    """Patches only. features: (B, n, D) at the layer asked. last: (B, n, D'). maps: "attention" (B, n), "keys"."""

    features: Tensor
    last: Tensor
    maps: dict[str, Tensor]


class Tower(nn.Module):
    """A vision tower, its own or taken out of a whole model, read at one layer. Raises ModelError."""

    def __init__(self, model: Any, layer: int | None, attention: bool) -> None:
        super().__init__()
        tower = getattr(model, "vision_model", None) or getattr(model, "base_model", None)
        name = type(tower).__name__
        if name not in KINDS:
            raise ModelError(f"{type(model).__name__} is no vision model that can be an eye: take one of {SUPPORTED}")
        self.model: Any = tower
        self.kind = KINDS[name]
        self.config: Any = self.model.config
        self.swin, self.staged = name == "SwinModel", name == "SwinModel" or "ConvNext" in name
        self.layer, self.attention = layer, attention
        if getattr(self.config, "num_channels", 3) != 3:
            raise ModelError(f"expected an encoder of RGB pictures, got one of {self.config.num_channels} channels")
        if layer is not None and not -self.depth - 1 <= layer <= self.depth:
            raise ModelError(f"layer must be from {-self.depth - 1} to {self.depth}, got {layer}")
        if attention and self.staged:
            raise ModelError(f"{name} has no attention over the whole picture: leave attention=True away")

    @property
    def depth(self) -> int:
        """Layers, or stages."""
        return len(self.config.depths) if self.staged else self.config.num_hidden_layers

    @property
    def _state(self) -> int:
        """Which hidden state is read, 0 for the embeddings."""
        return self.depth if self.layer is None else self.layer % (self.depth + 1)

    @property
    def _halvings(self) -> int:
        """How often the grid is halved before the hidden state that is read."""
        if not self.staged:
            return 0
        return min(self._state, self.depth - 1) if self.swin else max(self._state - 1, 0)

    @property
    def width(self) -> int:
        """D of the features."""
        if not self.staged:
            return self.config.hidden_size
        return self.config.embed_dim * 2**self._halvings if self.swin else self.config.hidden_sizes[self._halvings]

    @property
    def stride(self) -> int:
        """Pixels of a token's side."""
        return self.config.patch_size * 2**self._halvings

    @property
    def _leading(self) -> int:
        """Class tokens and registers."""
        return int(self.kind.cls) + getattr(self.config, "num_register_tokens", 0)

    def grid(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens. shape: height and width in pixels, of NaFlex in patches."""
        if self.kind.flexible:
            return shape
        up = (self.stride - 1) if self.swin else 0  # Swin pads what is left over, the others do not see it
        return (shape[0] + up) // self.stride, (shape[1] + up) // self.stride

    def boxes(self, shape: tuple[int, int], part: Tensor) -> Float[Tensor, "n 4"]:
        """The part of the picture of each token, on `part`'s device. part: (4,), what the pixels show of it."""
        stride = 1 if self.kind.flexible else self.stride
        edges = []
        for cells, side, start, stop in zip(self.grid(shape)[::-1], shape[::-1], part[:2], part[2:], strict=True):
            steps = torch.arange(cells + 1, device=part.device) * stride / side
            edges.append((start + (stop - start) * steps).clamp(max=stop))
        return grid_boxes(*edges)[0]

    def forward(self, pixels: Tensor, shapes: list[tuple[int, int]]) -> Encoded:
        """pixels: (B, 3, H, W) of one shape, or (B, P, C) of NaFlex, with the shape of each. Raises ShapeError."""
        pixels = pixels.to(self.model.device, self.model.dtype)
        given: dict[str, Any] = {"output_hidden_states": self.layer is not None}
        mask = None
        if self.kind.flexible:
            grids = torch.tensor(shapes)  # transformers reads them one by one
            mask = (torch.arange(pixels.shape[1]) < grids.prod(dim=1, keepdim=True)).to(pixels.device)
            given |= {"pixel_attention_mask": mask.int(), "spatial_shapes": grids}
        else:
            self._check_room(shapes[0])
            if self.kind.resizable and shapes[0] != self._own_shape:
                given["interpolate_pos_encoding"] = True
        layer = before_last(self.model) if self.attention else None
        with windows_kept(self.model), nullcontext([]) if layer is None else watched(layer) as calls:
            out = self.model(pixel_values=pixels, **given)
        last = self._patches(out.last_hidden_state)
        features = last if self.layer is None else self._patches(out.hidden_states[self.layer])
        maps = {}
        if layer is not None:
            hidden, keys = calls[0][0], keys_of(layer, calls[0][0])
            seen = None if mask is None else mask[:, None, :, None] & mask[:, None, None]
            attention = received(layer, hidden, keys, {"attention_mask": seen}, self.kind.cls)[..., 0]
            maps = {"attention": attention[:, self._leading :], "keys": keys.float().mean(dim=2)[:, self._leading :]}
        return Encoded(features, last, maps)

    def _patches(self, state: Tensor) -> Float[Tensor, "b n d"]:
        return state.flatten(2).transpose(1, 2) if state.ndim == 4 else state[:, self._leading :]

    @property
    def _own_shape(self) -> tuple[int, int]:
        size = self.config.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def _check_room(self, shape: tuple[int, int]) -> None:
        """Raise ShapeError for less than a token, or less than a window: Swin of transformers fails there."""
        smallest = self.config.patch_size * (2 ** (self.depth - 1) if self.staged else 1)
        if self.swin:
            smallest = smallest * (self.config.window_size - 1) + 1
        if min(shape) < smallest:
            raise ShapeError(f"this encoder needs {smallest} pixels a side, got {shape[1]} x {shape[0]}: enlarge it")


@contextmanager
def windows_kept(model: nn.Module) -> Iterator[None]:
    """Swin of transformers shrinks its windows for a small picture, and leaves them so for the next: undone here."""
    layers: list[Any] = [module for module in model.modules() if type(module).__name__ == "SwinLayer"]
    before = [(layer.window_size, layer.shift_size) for layer in layers]
    try:
        yield
    finally:
        for layer, (window, shift) in zip(layers, before, strict=True):
            layer.window_size, layer.shift_size = window, shift
