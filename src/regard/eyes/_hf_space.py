"""The space that the patches of a two-tower model share with its text, for each kind of tower.

The models were trained on one vector an image; that patches are comparable to text is a by-product (MaskCLIP, Zhou et
al. 2022, arXiv:2112.01071). Its sign is not to be trusted: CLIP's patches are often less like the text where the object
is; `regard calibrate` measures it.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class TextSpace(nn.Module, ABC):
    """A text tower, and the way from its vision tower's patches to the text. padding: as the tower was trained."""

    padding: ClassVar[str]

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_model = model.text_model

    @property
    def longest(self) -> int:
        """Tokens of the longest text that it reads."""
        return self.text_model.config.max_position_embeddings

    @property
    @abstractmethod
    def width(self) -> int:
        """E of the shared space."""

    @abstractmethod
    def patches(self, tower: Any, last: Float[Tensor, "b n d"]) -> Float[Tensor, "b n e"]:
        """Patches of the vision tower's last hidden state, in the text's space."""

    @abstractmethod
    def text(self, ids: Int[Tensor, "m t"]) -> Float[Tensor, "m e"]:
        """Texts as one vector each."""


class ClipSpace(TextSpace):
    """Each patch is normed and projected as CLIP does the class token."""

    padding = "longest"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.visual_projection, self.text_projection = model.visual_projection, model.text_projection

    @property
    def width(self) -> int:
        return self.text_projection.out_features

    def patches(self, tower: Any, last: Float[Tensor, "b n d"]) -> Float[Tensor, "b n e"]:
        return self.visual_projection(tower.post_layernorm(last))

    def text(self, ids: Int[Tensor, "m t"]) -> Float[Tensor, "m e"]:
        return self.text_projection(self.text_model(input_ids=ids).pooler_output)


class SiglipSpace(TextSpace):
    """Each patch goes through SigLIP's pooling head as if it were the only one: attention to one patch is its value."""

    padding = "max_length"  # the last token is read, padding or not

    @property
    def width(self) -> int:
        return self.text_model.head.out_features

    def patches(self, tower: Any, last: Float[Tensor, "b n d"]) -> Float[Tensor, "b n e"]:
        head = tower.head
        weight, bias = (x.chunk(3)[2] for x in (head.attention.in_proj_weight, head.attention.in_proj_bias))
        value = head.attention.out_proj(F.linear(last, weight, bias))
        return value + head.mlp(head.layernorm(value))

    def text(self, ids: Int[Tensor, "m t"]) -> Float[Tensor, "m e"]:
        return self.text_model(input_ids=ids).pooler_output


_SPACES: dict[str, type[TextSpace]] = {"CLIPModel": ClipSpace, "SiglipModel": SiglipSpace, "Siglip2Model": SiglipSpace}


def space_of(model: Any) -> TextSpace | None:
    """The text space of a whole checkpoint, None where a model has none."""
    kind = _SPACES.get(type(model).__name__)
    if kind is None or (kind is SiglipSpace and not model.vision_model.use_head):
        return None
    return kind(model)
