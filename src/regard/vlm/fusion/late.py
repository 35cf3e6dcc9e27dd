"""Late fusion (Flamingo, arXiv 2204.14198): gated cross-attention before chosen layers of a frozen language model.

    x = x + tanh(a) CrossAttention(LN(x), memory);    x = x + tanh(b) FF(x);    then the layer, as it was

Both gates begin at 0, so the language model begins as it was, bit for bit. A text token sees the last image before it,
or, with `every_image`, all before it.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regard.attention.cross import GatedCrossAttentionBlock
from regard.errors import ModelError
from regard.vlm.fusion.fusion import Fusion, decoder_layers, hooked
from regard.vlm.interleaved import Spliced


class Late(Fusion):
    """where: layers from 0, or "every 2", "early" (the first half) or "late" (the second). heads: of the
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
        config: Any = language_model.config
        width, count = config.hidden_size, len(decoder_layers(language_model))
        self.places, self.every_image = _layers(where, count), every_image
        of = heads or int(config.num_attention_heads)
        self.blocks = nn.ModuleList(GatedCrossAttentionBlock(width, of, hidden or 4 * width) for _ in self.places)

    def within(
        self, language_model: nn.Module, prompt: Spliced, memory: Tensor | None, shown: Tensor | None
    ) -> AbstractContextManager[None]:
        if memory is None or shown is None:
            return hooked([])
        images = torch.arange(1, memory.shape[1] + 1, device=memory.device)
        seen = prompt.seen[:, :, None]
        sees = (seen >= images if self.every_image else seen == images)[..., None] & shown[:, None]
        keys, sees = memory.flatten(1, 2), sees.flatten(2)
        layers = decoder_layers(language_model)
        handles = []
        for place, block in zip(self.places, self.blocks, strict=True):
            fuse = partial(_fused, block, keys, sees)
            handles.append(layers[place].register_forward_pre_hook(fuse, with_kwargs=True))
        return hooked(handles)


def _fused(
    block: nn.Module, keys: Tensor, sees: Tensor, module: nn.Module, given: tuple, named: dict
) -> tuple[tuple, dict]:
    """A hook before a layer: what it is given has read the images."""
    x = given[0] if given else named["hidden_states"]
    x = block(x, _beams(keys, x), _beams(_rows(sees, x), x))
    return ((x, *given[1:]), named) if given else (given, {**named, "hidden_states": x})


def _rows(sees: Tensor, x: Tensor) -> Tensor:
    """What the tokens of this step may see: all of the prompt, or what follows it, which sees as its last token."""
    if x.shape[1] == sees.shape[1]:
        return sees
    return sees[:, -1:].expand(-1, x.shape[1], -1)


def _beams(value: Tensor, x: Tensor) -> Tensor:
    """A prompt's own for each of its beams."""
    return value if len(value) == len(x) else value.repeat_interleave(len(x) // len(value), dim=0)


def _layers(where: str | Sequence[int], count: int) -> list[int]:
    if isinstance(where, str):
        half = (count + 1) // 2
        named = {"early": range(half), "late": range(half, count)}
        word, _, step = where.partition(" ")
        if where in named:
            return list(named[where])
        if word != "every" or not step.isdecimal() or not 1 <= int(step) <= count:
            raise ModelError(f"where must be layers, 'early', 'late' or 'every N' of {count} layers, got {where!r}")
        return list(range(0, count, int(step)))
    chosen = sorted(set(where))
    if not chosen or not all(isinstance(place, int) and 0 <= place < count for place in chosen):
        raise ModelError(f"cross-attention goes before layers 0 to {count - 1}, got {list(where)}")
    return chosen
