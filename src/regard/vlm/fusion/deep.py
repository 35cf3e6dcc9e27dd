"""Deep fusion (CogVLM, arXiv 2311.03079): in every layer, weights of their own for the images' tokens.

    y_i = W_e(i) x_i,    e(i) = vision for tokens of images, language for the others,    of every linear map of a layer

Each visual expert begins as a copy of the language model's, and where no image is, the language model is as it was, bit
for bit. The last token of an image goes to the language expert, and those inside share one position, as in the released
code (`attention.expert`). Ours differs in form: whatever linear maps a layer has get an expert, so any causal language
model will do whose layers have no other matrices (mixtures of experts have), and the language expert is also computed
for the images' tokens, and not used. Adapters of peft are of the language expert alone, and images that stand side by
side are one run.
"""

from contextlib import AbstractContextManager
from copy import deepcopy
from functools import partial

from jaxtyping import Bool, Int
from torch import Tensor, nn

from regard.attention.expert import image_positions, routed
from regard.errors import ModelError
from regard.vlm.fusion.fusion import Fusion, before_calls, decoder_layers, hooked, takes_positions
from regard.vlm.interleaved import Spliced


class Deep(Fusion):
    """shared: give the tokens inside an image one position, as CogVLM does."""

    name = "deep"
    in_prompt = True

    def __init__(self, language_model: nn.Module, shared: bool = True) -> None:
        super().__init__()
        if shared and not takes_positions(language_model):
            raise ModelError(f"{type(language_model).__name__} counts positions itself: take shared=False")
        self.shared = shared
        self.experts = nn.ModuleList(
            nn.ModuleDict({name.replace(".", "/"): _copied(module) for name, module in _maps(layer).items()})
            for layer in decoder_layers(language_model)
        )

    def positions(self, prompt: Spliced) -> Int[Tensor, "b t"]:
        return image_positions(prompt.image, prompt.mask) if self.shared else prompt.positions

    def within(
        self, language_model: nn.Module, prompt: Spliced, memory: Tensor | None, shown: Tensor | None
    ) -> AbstractContextManager[None]:
        vision = routed(prompt.image)
        if not bool(vision.any()):
            return hooked([])
        routing = _Routing()
        handles = [before_calls(language_model, vision, routing.tell)]
        for layer, experts in zip(decoder_layers(language_model), self.experts, strict=True):
            assert isinstance(experts, nn.ModuleDict)
            for name, expert in experts.items():
                module = layer.get_submodule(name.replace("/", "."))
                handles.append(module.register_forward_hook(partial(routing.mended, expert)))
        return hooked(handles)


class _Routing:
    """Where the tokens for the visual experts stand in this call, (V,), among all of it; none after the prompt."""

    def tell(self, vision: Bool[Tensor, "r t"]) -> None:
        self.total, self.places = vision.numel(), vision.flatten().nonzero()[:, 0]

    def mended(self, expert: nn.Module, module: nn.Module, given: tuple, out: Tensor) -> Tensor | None:
        """A hook after a linear map: the expert's output where a token is of an image."""
        if not len(self.places):
            return None
        x = given[0].flatten(0, -2)  # some models' layers flatten batch and tokens
        if len(x) != self.total:
            raise ModelError(f"deep fusion needs maps that read every token, got {len(x)} of {self.total}")
        seen = expert(x.index_select(0, self.places).to(next(expert.parameters()).dtype))
        return out.flatten(0, -2).index_copy(0, self.places, seen.to(out.dtype)).view_as(out)


def _maps(layer: nn.Module) -> dict[str, nn.Module]:
    """The linear maps of a layer, by name, without adapters. Raises ModelError where it has none."""
    found = {
        name.removesuffix(".base_layer"): module
        for name, module in layer.named_modules()
        if _is_map(module) and ".lora_" not in name
    }
    if not found:
        raise ModelError(f"{type(layer).__name__} has no linear maps for visual experts: take another language model")
    for name, value in layer.named_parameters():
        owner = name.rpartition(".")[0].removesuffix(".base_layer")
        if value.ndim > 1 and owner not in found and ".lora_" not in name:
            kind = type(layer).__name__
            raise ModelError(f"{kind} has {name}, which is no linear map and would get no expert: take another fusion")
    return found


def _is_map(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's, a linear map too


def _copied(module: nn.Module) -> nn.Module:
    if not all(value.is_floating_point() for value in module.parameters()):
        raise ModelError("visual experts are copies of weights in floating point: load the model unquantised")
    return deepcopy(module).requires_grad_(True)
