"""Late fusion (Flamingo, arXiv 2204.14198): gated cross-attention before chosen layers of a frozen language model.

    x = x + tanh(a) CrossAttention(LN(x), memory);    x = x + tanh(b) FF(x);    then the layer, as it was

Both gates begin at 0, so the language model begins as it was, bit for bit. A text token sees the last image before it,
or, with `every_image`, all before it. Ours differs in that a token without an image before it goes by as it is, where
Flamingo gives it the feed-forward: a prompt without images is the language model's own, whatever the gates.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.attention.cross import GatedCrossAttentionBlock
from regard.errors import ModelError
from regard.vlm.fusion.fusion import Fusion, base_of, before_calls, decoder_layers, hooked, words_of
from regard.vlm.interleaved import Spliced


class Late(Fusion):
    """where: layers from 0, or "every N", "early" (the first half) or "late" (the second). heads: of the
    cross-attention; hidden: of the feed-forward, four times the width by default.
    """

    name = "late"
    in_prompt = False

    def __init__(
        self,
        language_model: nn.Module,
        where: str | Sequence[int] = "every 1",
        heads: int | None = None,
        hidden: int | None = None,
        every_image: bool = False,
    ) -> None:
        super().__init__()
        config = base_of(language_model).config.get_text_config()
        width, memory = config.hidden_size, words_of(language_model).embedding_dim
        self.places, self.every_image = _layers(where, len(decoder_layers(language_model))), every_image
        of = heads or getattr(config, "num_attention_heads", None)
        if of is None:
            raise ModelError(f"a model of type {config.model_type} has no heads of its own: give heads")
        self.blocks = nn.ModuleList(
            GatedCrossAttentionBlock(width, of, hidden or 4 * width, memory) for _ in self.places
        )

    def within(
        self, language_model: nn.Module, prompt: Spliced, memory: Tensor | None, shown: Tensor | None
    ) -> AbstractContextManager[None]:
        if memory is None or shown is None:
            return hooked([])
        images = torch.arange(1, memory.shape[1] + 1, device=memory.device)
        before = prompt.seen[:, :, None]
        sees = (before >= images if self.every_image else before == images)[..., None] & shown[:, None]
        reading = _Reading(memory.flatten(1, 2))
        handles = [before_calls(language_model, sees.flatten(2), reading.tell)]
        layers = decoder_layers(language_model)
        for place, block in zip(self.places, self.blocks, strict=True):
            handles.append(layers[place].register_forward_pre_hook(partial(reading.fused, block), with_kwargs=True))
        return hooked(handles)


class _Reading:
    """The images, and what of them the tokens of this call see."""

    def __init__(self, memory: Float[Tensor, "b k d"]) -> None:
        self.memory = self.now = memory
        self.sees: Tensor | None = None

    def tell(self, sees: Bool[Tensor, "r t k"]) -> None:
        self.sees, self.now = sees, self.memory.repeat_interleave(len(sees) // len(self.memory), dim=0)

    def fused(self, block: nn.Module, module: nn.Module, given: tuple, named: dict) -> tuple[tuple, dict]:
        """A hook before a layer: what it is given has read the images."""
        assert self.sees is not None
        x = given[0] if given else named["hidden_states"]
        own = block.get_parameter("attention_gate").dtype  # float32 where it learned beside a model in 16 bits
        read = block(x.to(own), self.now.to(own), self.sees).to(x.dtype)
        x = torch.where(self.sees.any(dim=2, keepdim=True), read, x)
        return ((x, *given[1:]), named) if given else (given, {**named, "hidden_states": x})


def _layers(where: str | Sequence[int], count: int) -> list[int]:
    if isinstance(where, str):
        half = (count + 1) // 2
        named = {"early": range(half), "late": range(half, count)}
        word, _, step = where.partition(" ")
        if len(named.get(where, ())):
            return list(named[where])
        if word != "every" or not step.isdecimal() or not 1 <= int(step) <= count:
            raise ModelError(f"where must be layers, 'early', 'late' or 'every N' of {count} layers, got {where!r}")
        return list(range(0, count, int(step)))
    chosen = sorted(set(where))
    if not chosen or not all(isinstance(place, int) and 0 <= place < count for place in chosen):
        raise ModelError(f"cross-attention goes before layers 0 to {count - 1}, got {list(where)}")
    return chosen
