"""What the ways of fusion share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from regard.errors import ModelError
from regard.vlm.interleaved import Spliced


class Fusion(nn.Module, ABC):
    """Parameters beside a language model, and what they do to it while it runs. in_prompt: the images' tokens stand in
    the prompt; else they are a memory.
    """

    name: ClassVar[str]
    in_prompt: ClassVar[bool]

    @abstractmethod
    def within(
        self,
        language_model: nn.Module,
        prompt: Spliced,
        memory: Float[Tensor, "b i k d"] | None,
        shown: Bool[Tensor, "b i k"] | None,
    ) -> AbstractContextManager[None]:
        """While inside, the language model sees the images. memory: of each prompt's images, shown: which tokens of it
        are real; both None where images are in the prompt, or there are none. Nothing is left on the model after it.
        """

    def positions(self, prompt: Spliced) -> Tensor:
        """Of the prompt's tokens, (B, T)."""
        return prompt.positions


@contextmanager
def hooked(handles: list[RemovableHandle]) -> Iterator[None]:
    """Hooks that are gone after it, whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def decoder_layers(language_model: nn.Module) -> nn.ModuleList:
    """The layers of a causal language model of Hugging Face. Raises ModelError where there are none to be found."""
    config: Any = getattr(language_model, "config", None)
    count = getattr(config, "num_hidden_layers", None)
    for module in language_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and not isinstance(module[0], nn.Linear):
            return module
    raise ModelError(f"{type(language_model).__name__} has no list of decoder layers: take a causal language model")
