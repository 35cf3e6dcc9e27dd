"""Deep fusion (CogVLM, arXiv 2311.03079): in every layer, weights of their own for the images' tokens.

    y_i = W_e(i) x_i,    e(i) = vision for tokens of images, language for the others,    of every linear map of a layer

Each visual expert begins as a copy of the language model's, and where no image is, the language model is as it was, bit
for bit. The last token of an image goes to the language expert, and those inside share one position, as in the released
code (`attention.expert`). Ours differs in form: whatever linear maps a layer has get an expert, so any causal language
model will do, and the language expert is also computed for the images' tokens, and not used.
"""

from contextlib import AbstractContextManager
from copy import deepcopy
from functools import partial

from torch import Tensor, nn

from regard.attention.expert import image_positions, routed
from regard.errors import ModelError
from regard.vlm.fusion.fusion import Fusion, decoder_layers, hooked
from regard.vlm.interleaved import Spliced


class Deep(Fusion):
    """shared: give the tokens inside an image one position, as CogVLM does."""

    name = "deep"
    in_prompt = True

    def __init__(self, language_model: nn.Module, shared: bool = True) -> None:
        super().__init__()
        self.shared = shared
        layers = decoder_layers(language_model)
        self.experts = nn.ModuleList(
            nn.ModuleDict(
                {name.replace(".", "/"): deepcopy(module).requires_grad_(True) for name, module in _maps(layer).items()}
            )
            for layer in layers
        )

    def positions(self, prompt: Spliced) -> Tensor:
        return image_positions(prompt.image, prompt.mask) if self.shared else prompt.positions

    def within(
        self, language_model: nn.Module, prompt: Spliced, memory: Tensor | None, shown: Tensor | None
    ) -> AbstractContextManager[None]:
        vision = routed(prompt.image)
        if not bool(vision.any()):
            return hooked([])
        handles = []
        for layer, experts in zip(decoder_layers(language_model), self.experts, strict=True):
            assert isinstance(experts, nn.ModuleDict)
            for name, module in _maps(layer).items():
                expert = experts[name.replace(".", "/")]
                handles.append(module.register_forward_hook(partial(_mended, expert, vision)))
        return hooked(handles)


def _mended(expert: nn.Module, vision: Tensor, module: nn.Module, given: tuple, out: Tensor) -> Tensor | None:
    """A hook: the expert's output where a token is of an image. An answer's tokens come one by one, and are words."""
    x = given[0].flatten(0, -2)  # some models' layers flatten batch and tokens
    beams, rest = divmod(len(x), vision.numel())
    if rest or not beams or given[0].shape[1] == 1:
        if given[0].ndim == 3 and given[0].shape[1] > 1:
            raise ModelError(f"deep fusion reads a prompt at once, {vision.shape[1]} tokens, got {given[0].shape[1]}")
        return None
    places = vision.repeat_interleave(beams, dim=0).flatten().nonzero()[:, 0]
    seen = expert(x.index_select(0, places))
    return out.flatten(0, -2).index_copy(0, places, seen.to(out.dtype)).view_as(out)


def _maps(layer: nn.Module) -> dict[str, nn.Module]:
    """The linear maps of a layer, by name. Raises ModelError where it has none."""
    found = {name: module for name, module in layer.named_modules() if _is_map(module)}
    if not found:
        raise ModelError(f"{type(layer).__name__} has no linear maps for visual experts: take another language model")
    return found


def _is_map(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's, a linear map too
