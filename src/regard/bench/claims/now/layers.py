"""Of the layers of `regard.attention`: what they equal, what a token sees and moves, how their products grow."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from regard.attention._base import split
from regard.attention.block_sparse import BlockSparseAttention
from regard.attention.convnext import ConvNeXtBlock
from regard.attention.cross import CrossAttention, GatedCrossAttentionBlock, preceding_images
from regard.attention.expert import VisualExpertAttention
from regard.attention.linear import LinearAttention
from regard.attention.resampler import PerceiverResampler
from regard.attention.scaled import MultiHeadAttention, TransformerBlock
from regard.attention.sliding import SlidingWindowAttention
from regard.attention.topk import TopKAttention
from regard.attention.window import SwinBlock, WindowAttention
from regard.bench.claims.now._shared import (
    DIM,
    HEADS,
    counted,
    exponent,
    now,
    pairs,
    reach,
    scores,
    x,
)
from regard.cost.layers import perceiver_resampler

now("self-attention, scores: exponent in tokens", "exponent")(lambda: exponent((196, 784), lambda n: scores(n, n)))
now("cross-attention, scores: exponent in text", "exponent")(lambda: exponent((32, 128), lambda n: scores(n, 196)))
now("cross-attention, scores: exponent in image tokens", "exponent")(
    lambda: exponent((196, 784), lambda n: scores(32, n))
)


@now("self-attention: outputs equal to softmax(QK'/sqrt(d))V", "share")
def _formula() -> float:
    layer, given = MultiHeadAttention(DIM, HEADS).double(), x(17).double()
    with torch.no_grad():
        q, k, v = (split(part, HEADS) for part in layer.qkv(given).chunk(3, dim=-1))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DIM / HEADS)
        expected = layer.out((scores.exp() / scores.exp().sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2))
        return float(torch.isclose(layer(given), expected, atol=1e-9, rtol=0).double().mean())


@now("cross-attention: outputs equal to softmax(Q_text K_vision'/sqrt(d))V_vision", "share")
def _cross_formula() -> float:
    layer, text, vision = CrossAttention(DIM, HEADS).double(), x(5).double(), x(17).double()
    with torch.no_grad():
        q = split(layer.q(text), HEADS)
        k, v = (split(part, HEADS) for part in layer.kv(vision).chunk(2, dim=-1))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DIM / HEADS)
        expected = layer.out((scores.exp() / scores.exp().sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2))
        return float(torch.isclose(layer(text, vision), expected, atol=1e-9, rtol=0).double().mean())


now("self-attention: pairs seen of all, 28 x 28 tokens", "share")(
    lambda: pairs(MultiHeadAttention(DIM, HEADS), 784) / 784**2
)
now("windows of 7 x 7: pairs seen of all, 28 x 28 tokens", "share")(
    lambda: pairs(WindowAttention(DIM, HEADS, 7), 784, (28, 28)) / 784**2
)
now("windows of 7 x 7: exponent of pairs", "exponent")(
    lambda: exponent((196, 784), lambda n: pairs(WindowAttention(DIM, HEADS, 7), n, (math.isqrt(n),) * 2))
)
now("sliding window of 64: exponent of pairs", "exponent")(
    lambda: exponent((1024, 2048), lambda n: pairs(SlidingWindowAttention(DIM, HEADS, 64), n))
)
now("BigBird, blocks of 16: exponent of pairs", "exponent")(
    lambda: exponent((1024, 2048), lambda n: pairs(BlockSparseAttention(DIM, HEADS, n, 16), n))
)
now("BigBird: random blocks of a row of blocks", "blocks")(
    lambda: int((BlockSparseAttention(DIM, HEADS, 1024).blocks >= 0).sum(dim=-1).max())
)
now("top 16 keys: exponent of pairs", "exponent")(
    lambda: exponent((256, 512), lambda n: pairs(TopKAttention(DIM, HEADS, 16), n))
)
now("top 16 keys: exponent of products from 1024 to 2048 tokens", "exponent")(
    lambda: exponent((1024, 2048), lambda n: counted(TopKAttention(DIM, HEADS, 16), n))
)
now("linear attention: exponent of products", "exponent")(
    lambda: exponent((512, 2048), lambda n: counted(LinearAttention(DIM, HEADS), n))
)
now("one transformer block: share of tokens that move one", "share")(
    lambda: reach(TransformerBlock(DIM, HEADS, 2 * DIM), 28)
)
now("one Swin block: share of tokens that move one", "share")(
    lambda: reach(SwinBlock(DIM, HEADS, 7, 2 * DIM), 28, (28, 28))
)


@now("two Swin blocks, the second shifted: share of tokens that move one", "share")
def _two_swins() -> float:
    blocks = [SwinBlock(DIM, HEADS, 7, 2 * DIM, shift) for shift in (0, 3)]
    return reach(lambda given: blocks[1](blocks[0](given, (28, 28)), (28, 28)), 28)


@now("gated block, new: outputs equal to its input", "share")
def _identity() -> float:
    block, text = GatedCrossAttentionBlock(DIM, HEADS, 2 * DIM), x(5)
    with torch.no_grad():
        return float((block(text, x(17)) == text).double().mean())


now("gated block: gates", "numbers")(
    lambda: sum(p.numel() for n, p in GatedCrossAttentionBlock(DIM, HEADS, 2 * DIM).named_parameters() if "gate" in n)
)
now("image tokens that a word sees, of four images before it", "share")(
    lambda: float(preceding_images(torch.tensor([[True] * 4 + [False]]), 4, 64)[0, -1].double().mean())
)


def _resampled(count: int) -> float:
    with torch.no_grad():
        return PerceiverResampler(DIM, HEADS, 64, 1, 2 * DIM)(x(count)).shape[1]


now("resampler of 64 latents: tokens of 256", "tokens")(lambda: _resampled(256))
now("resampler of 64 latents: tokens of 1024", "tokens")(lambda: _resampled(1024))
now("Flamingo's resampler: exponent of MACs in image tokens", "exponent")(
    lambda: exponent((4096, 16384), lambda n: perceiver_resampler(n, 1536, 16, 64, 6, 6144).macs)
)
now("64 queries, scores: exponent in image tokens", "exponent")(lambda: exponent((256, 1024), lambda n: scores(64, n)))


@now("visual expert: text's attention to image and text together, the least", "share")
def _one_softmax() -> float:
    image = torch.tensor([[True] * 6 + [False] * 5])
    with torch.no_grad():
        return float(VisualExpertAttention(DIM, HEADS).weights(x(11), image)[:, :, 6:].sum(dim=-1).min())


now("ConvNeXt block: products of two activations", "")(lambda: _products_of_activations(ConvNeXtBlock(DIM), 16, (4, 4)))
now("Swin block: products of two activations", "")(
    lambda: _products_of_activations(SwinBlock(DIM, HEADS, 4, DIM), 16, (4, 4))
)


def _products_of_activations(layer: nn.Module, count: int, *arguments: Any) -> int:
    """Batched products: of what was computed with what was computed, as attention has and convolution has not."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        layer(x(count), *arguments)
    return sum(value > 0 for kind, value in counter.get_flop_counts()["Global"].items() if "bmm" in str(kind))


@now("bridge behind a frozen block: its gradient over that without the block", "ratio")
def _through_frozen() -> float:
    bridge, frozen, given = nn.Linear(DIM, DIM), TransformerBlock(DIM, HEADS, 2 * DIM).requires_grad_(False), x(9)
    norms = []
    for last in (frozen, nn.Identity()):
        bridge.zero_grad()
        last(bridge(given)).square().mean().backward()
        assert bridge.weight.grad is not None
        norms.append(float(bridge.weight.grad.norm()))
    assert all(value.grad is None for value in frozen.parameters())
    return norms[0] / norms[1]
