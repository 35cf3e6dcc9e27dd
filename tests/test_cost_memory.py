"""Memory by formula against what is kept for the backward pass, and against what lives at once in a forward pass.

Layers that gather windows or keys make copies that the formulas leave out: for them the formula is the least.
"""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from regard.cost.language import LanguageModel
from test_cost_layers import CALLS

DENSE = {
    "MultiHeadAttention",
    "TransformerBlock",
    "TransformerBlock gated",
    "VisionTransformer",
    "CrossAttention",
    "GatedCrossAttentionBlock",
    "PerceiverResampler",
    "PerceiverResampler of Idefics2",
    "Perceiver",
    "QFormer",
    "QFormer with text",
    "SwinBlock on a small grid",
    "SwinTransformer",
}


class Live(TorchDispatchMode):
    """The most numbers that live at once of what is made within."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = {one.untyped_storage()._cdata for one in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor) and one.untyped_storage()._cdata not in self._known:
                storage = one.untyped_storage()
                place, count = storage._cdata, storage.nbytes() // 4
                self._known.add(place)
                self.now += count
                weakref.finalize(storage, self._gone, place, count)
        self.most = max(self.most, self.now)
        return out

    def _gone(self, place: int, count: int) -> None:
        self._known.discard(place)
        self.now -= count


def kept(module: nn.Module, run: Any, inputs: list[Tensor]) -> int:
    """Numbers that autograd keeps, parameters left out, what is kept twice once."""
    own = {one.untyped_storage().data_ptr() for one in module.parameters()}
    found: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            found[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run(*inputs)
    return sum(one.untyped_storage().nbytes() for one in found.values()) // 4


@pytest.mark.parametrize("name", CALLS)
def test_memory_is_what_lives(name: str):
    module, run, shapes, cost = CALLS[name]()
    inputs = [torch.randn(shape, requires_grad=len(shape) == 3) for shape in shapes]
    saved = kept(module, run, inputs)
    live = Live([*module.parameters(), *module.buffers(), *inputs])
    with torch.no_grad(), live:
        run(*inputs)
    peak = live.most + sum(one.numel() for one in inputs)
    if name in DENSE:
        assert cost.saved == pytest.approx(saved, rel=0.1)
        assert cost.peak == pytest.approx(peak, rel=0.1)
    else:
        assert 0.2 * saved <= cost.saved <= 1.2 * saved
        assert 0.2 * peak <= cost.peak <= 1.1 * peak


@pytest.mark.parametrize(("kv_heads", "feed_forward"), [(8, 172), (2, 172), (8, 40)])
def test_a_language_model_holds_its_tokens_and_its_cache(kv_heads: int, feed_forward: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=feed_forward,
        num_hidden_layers=3,
        vocab_size=101,
        num_attention_heads=8,
        num_key_value_heads=kv_heads,
    )
    model, ids = LlamaForCausalLM(config).eval(), torch.randint(0, 101, (1, 300))
    cost, read = LanguageModel.of(config), [300] * 3
    assert cost.params == sum(one.numel() for one in model.parameters())
    live = Live([*model.parameters(), *model.buffers(), ids])
    with torch.no_grad(), live:
        out = model(ids, logits_to_keep=1)
    assert cost.kv_cache(read) == sum(layer.keys.numel() + layer.values.numel() for layer in out.past_key_values.layers)
    assert cost.peak(read) + cost.kv_cache(read) == pytest.approx(live.most, rel=0.05)
