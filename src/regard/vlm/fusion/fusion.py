"""What the ways of fusion share."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
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

    def positions(self, prompt: Spliced) -> Int[Tensor, "b t"]:
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


def before_calls(language_model: nn.Module, values: Tensor, tell: Callable[[Tensor], None]) -> RemovableHandle:
    """A hook that tells, before each call of a language model, what of a prompt's `values` is beside its tokens.

    values: (B, T, ...), of the prompt's tokens. told: (rows, tokens, ...), of those that the call reads, each prompt's
    own for each of its beams; a token that follows the prompt has what the prompt's last one has. Raises ModelError
    where layers are run again in the backward pass, when hooks are gone.
    """
    again = any(getattr(module, "gradient_checkpointing", False) for module in language_model.modules())
    if again and language_model.training and torch.is_grad_enabled():
        raise ModelError("late and deep fusion do without gradient checkpointing: disable it in the language model")

    def told(module: nn.Module, given: tuple, named: dict) -> None:
        read = next(x for x in (named.get("inputs_embeds"), named.get("input_ids"), *given) if x is not None)
        past = named.get("past_key_values")
        before = 0 if past is None else int(past.get_seq_length())
        places = torch.arange(before, before + read.shape[1], device=values.device).clamp(max=values.shape[1] - 1)
        tell(values[:, places].repeat_interleave(len(read) // len(values), dim=0))

    return decoder_of(language_model).register_forward_pre_hook(told, with_kwargs=True)


def base_of(language_model: nn.Module) -> Any:
    """The model without what peft puts around it."""
    model: Any = language_model
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(language_model: nn.Module) -> nn.Module:
    """The part of a causal language model of Hugging Face that has its layers. Raises ModelError for another model."""
    model = base_of(language_model)
    kind, config = type(model).__name__, getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{kind} has an encoder and a decoder: take a causal language model (AutoModelForCausalLM)")
    if config is None or not model.can_generate():
        raise ModelError(f"{kind} does not write: take a causal language model (AutoModelForCausalLM)")
    return model.get_decoder()


def decoder_layers(language_model: nn.Module) -> nn.ModuleList:
    """The layers of a causal language model of Hugging Face. Raises ModelError where there are none to be found."""
    decoder = decoder_of(language_model)
    for name in ("layers", "h", "blocks"):
        found = getattr(decoder, name, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    raise ModelError(f"{type(decoder).__name__} has no layers that are known: take early fusion, or another model")


def takes_positions(language_model: nn.Module) -> bool:
    """Whether it may be told the positions of its tokens; a model with ALiBi, such as BLOOM, counts them itself."""
    return "position_ids" in inspect.signature(base_of(language_model).forward).parameters


def learned_positions(language_model: nn.Module) -> int | None:
    """How many positions it has embeddings of; None where it counts them by a rule, as most models do."""
    most = getattr(base_of(language_model).config.get_text_config(), "max_position_embeddings", None)
    tables = [part for part in decoder_of(language_model).modules() if isinstance(part, nn.Embedding)]
    words = words_of(language_model)
    sizes = {table.num_embeddings for table in tables if table is not words}
    return most if most is not None and sizes & {most, most + 2} else None  # OPT has two more


def words_of(language_model: nn.Module) -> Any:
    """The embeddings of its words."""
    return base_of(language_model).get_input_embeddings()
