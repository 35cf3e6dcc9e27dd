"""The formulas of the layers against the modules themselves: parameters, and torch's own counter forward and backward.

The math kernel of attention is counted, as torch counts none of the fused kernel on a CPU.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from regard.attention.block_sparse import BlockSparseAttention
from regard.attention.convnext import ConvNeXtBlock
from regard.attention.cross import CrossAttention, GatedCrossAttentionBlock
from regard.attention.delta import DeltaAttention
from regard.attention.expert import VisualExpertAttention, VisualExpertBlock
from regard.attention.hybrid import HybridBlock
from regard.attention.linear import LinearAttention
from regard.attention.perceiver import Perceiver
from regard.attention.peripheral import PeripheralAttention
from regard.attention.qformer import QFormer
from regard.attention.resampler import PerceiverResampler
from regard.attention.scaled import MultiHeadAttention, TransformerBlock
from regard.attention.sliding import SlidingWindowAttention
from regard.attention.swin import SwinTransformer
from regard.attention.topk import TopKAttention
from regard.attention.vision import VisionTransformer
from regard.attention.window import PatchMerging, SwinBlock, WindowAttention
from regard.cost import layers, qformer, vit
from regard.cost.convnext import convnext_block
from regard.cost.counted import Cost
from regard.cost.linear import delta_attention, linear_attention
from regard.cost.models.layers import LAYERS
from regard.cost.perceiver import perceiver
from regard.cost.pervit import peripheral_attention
from regard.cost.sparse import block_sparse_attention, hybrid_block, sliding_window_attention, top_k_attention
from regard.cost.swin import Swin, patch_merging, swin_block, window_attention

Call = tuple[nn.Module, Callable[..., Any], list[tuple[int, ...]], Cost]


def of(module: nn.Module, cost: Cost, *shapes: tuple[int, ...], then: tuple = (), **named: Any) -> Call:
    """A module called with tensors of these shapes, then with what follows them."""
    return module, lambda *tensors: module(*tensors, *then, **named), list(shapes), cost


def expert(module: nn.Module, cost: Cost) -> Call:
    """29 tokens of text about 38 of an image, the last of which goes through the language's expert."""
    image = torch.tensor([[0] * 13 + [1] * 38 + [0] * 16], dtype=torch.bool)
    return of(module, cost, (1, 67, 24), then=(image,))


def sliding(count: int, window: int = 26, tokens: int = 331, dim: int = 24) -> Call:
    places = torch.arange(count)[None] * 7 if count else None
    cost = sliding_window_attention(tokens, dim, 3, window, count)
    return of(SlidingWindowAttention(dim, 3, window), cost, (1, tokens, dim), global_tokens=places)


D, H, W = 24, 3, 61  # width, heads, of the MLP
CALLS: dict[str, Callable[[], Call]] = {
    "MultiHeadAttention": lambda: of(MultiHeadAttention(D, H), layers.self_attention(67, D, H), (1, 67, D)),
    "MultiHeadAttention without bias": lambda: of(
        MultiHeadAttention(D, H, bias=False), layers.self_attention(67, D, H, bias=False), (1, 67, D)
    ),
    "TransformerBlock": lambda: of(TransformerBlock(D, H, W), layers.transformer_block(67, D, H, W), (1, 67, D)),
    "TransformerBlock gated": lambda: of(
        TransformerBlock(D, H, W, layer_scale=True, gated=True),
        layers.transformer_block(67, D, H, W, layer_scale=True, gated=True),
        (1, 67, D),
    ),
    "VisionTransformer": lambda: of(
        VisionTransformer(35, 5, D, 3, H, W, registers=2, pre_norm=True, patch_bias=False),
        vit.ViT(D, 3, H, 5, 35, W, out=0, registers=2, pre_norm=True, patch_bias=False).cost(35),
        (1, 3, 35, 35),
    ),
    "CrossAttention": lambda: of(
        CrossAttention(D, H, 31), layers.cross_attention(13, 67, D, H, 31), (1, 13, D), (1, 67, 31)
    ),
    "CrossAttention grouped": lambda: of(
        CrossAttention(D, 6, 31, qk_dim=42, v_dim=30, kv_heads=2, bias=False, qk_norm="layer"),
        layers.cross_attention(13, 67, D, 6, 31, 42, 30, 2, bias=False, qk_norm=True),
        (1, 13, D),
        (1, 67, 31),
    ),
    "GatedCrossAttentionBlock": lambda: of(
        GatedCrossAttentionBlock(D, H, W, 31),
        layers.gated_cross_attention_block(13, 67, D, H, W, 31),
        (1, 13, D),
        (1, 67, 31),
    ),
    "PerceiverResampler": lambda: of(
        PerceiverResampler(D, H, 7, 2, W), layers.perceiver_resampler(67, D, H, 7, 2, W), (1, 67, D)
    ),
    "PerceiverResampler of Idefics2": lambda: of(
        PerceiverResampler(D, 6, 7, 2, W, kv_heads=2, norm="rms", activation="swiglu"),
        layers.perceiver_resampler(67, D, 6, 7, 2, W, kv_heads=2, rms=True, gated=True),
        (1, 67, D),
    ),
    "Perceiver": lambda: of(
        Perceiver(D, 29, 11, H, 2, 3, hidden=W, cross_heads=1),
        perceiver(67, D, 29, 11, H, 2, 3, hidden=W, cross_heads=1),
        (1, 67, 29),
    ),
    "QFormer": lambda: of(
        QFormer(D, H, 3, W, encoder_dim=31, queries=7),
        qformer.QFormer(D, H, 3, W, 31, 7).cost(67),
        (1, 7, D),
        (1, 67, 31),
    ),
    "QFormer with text": lambda: of(
        QFormer(D, H, 3, W, encoder_dim=31, queries=7, text=True, vocabulary=101),
        qformer.QFormer(D, H, 3, W, 31, 7, text=True, vocabulary=101).cost(67, text=11),
        (1, 7, D),
        (1, 67, 31),
        (1, 11, D),
    ),
    "VisualExpertAttention": lambda: expert(VisualExpertAttention(D, H), layers.visual_expert_attention(37, 30, D, H)),
    "VisualExpertBlock": lambda: expert(VisualExpertBlock(D, H, W), layers.visual_expert_block(37, 30, D, H, W)),
    "WindowAttention": lambda: of(
        WindowAttention(D, H, 4, 2), window_attention((10, 14), D, H, 4, shifted=True), (1, 140, D), then=((10, 14),)
    ),
    "SwinBlock": lambda: of(SwinBlock(D, H, 5, W), swin_block((10, 15), D, H, 5, W), (1, 150, D), then=((10, 15),)),
    "SwinBlock on a small grid": lambda: of(
        SwinBlock(D, H, 7, W), swin_block((4, 9), D, H, 7, W), (1, 36, D), then=((4, 9),)
    ),
    "PatchMerging": lambda: of(PatchMerging(D), patch_merging((7, 10), D), (1, 70, D), then=((7, 10),)),
    "SwinTransformer": lambda: of(
        SwinTransformer(4, 12, (2, 2), (2, 4), 5), Swin(12, (2, 2), (2, 4), 5, classes=0).cost(44), (1, 3, 44, 44)
    ),
    "ConvNeXtBlock": lambda: of(ConvNeXtBlock(D, W, 5), convnext_block((7, 11), D, W, 5), (1, 77, D), then=((7, 11),)),
    "PeripheralAttention": lambda: of(
        PeripheralAttention(D, H, (5, 7)), peripheral_attention((5, 7), D, H, cached=False), (1, 35, D)
    ),
    "LinearAttention": lambda: of(LinearAttention(D, H), linear_attention(67, D, H), (1, 67, D)),
    "LinearAttention causal": lambda: of(
        LinearAttention(D, H, causal=True, chunk=16), linear_attention(67, D, H, causal=True, chunk=16), (1, 67, D)
    ),
    "DeltaAttention": lambda: of(DeltaAttention(D, H), delta_attention(131, D, H), (1, 131, D)),
    "DeltaAttention with DPFP": lambda: of(
        DeltaAttention(D, H, chunk=16, feature="dpfp", nu=2),
        delta_attention(131, D, H, chunk=16, feature="dpfp", nu=2),
        (1, 131, D),
    ),
    "SlidingWindowAttention": lambda: sliding(0),
    "SlidingWindowAttention with global tokens": lambda: sliding(3),
    "SlidingWindowAttention with many": lambda: sliding(11, 150),
    "BlockSparseAttention": lambda: of(
        BlockSparseAttention(D, H, 150, block=8, random=2), block_sparse_attention(150, D, H, 8, 2), (1, 150, D)
    ),
    "TopKAttention": lambda: of(TopKAttention(D, H, 5), top_k_attention(67, D, H, 5), (1, 67, D)),
    "HybridBlock": lambda: of(
        HybridBlock(D, H, 5, W, 7, shift=2), hybrid_block((10, 15), D, H, 5, W, 7), (1, 150, D), then=((10, 15),)
    ),
}


def solved(matrix: tuple[int, ...], right: tuple[int, ...], *_: Any, left: bool = True, **__: Any) -> int:
    """FLOPs of triangular systems, which torch does not count."""
    return prod(right) * matrix[-1]


def gradients(
    grad: tuple[int, ...],
    x: tuple[int, ...],
    weight: tuple[int, ...],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    offset: Any,
    groups: int,
    wanted: list[bool],
    out_shape: Any,
) -> int:
    """FLOPs of a convolution's gradients; torch counts the weights of a grouped one as if it were dense."""
    one = 2 * grad[0] * prod(grad[2:]) * prod(weight)
    return one * (bool(wanted[0]) + bool(wanted[1]))


MAPPING = {torch.ops.aten.linalg_solve_triangular: solved, torch.ops.aten.convolution_backward: gradients}


def counted(run: Callable[..., Any], shapes: list[tuple[int, ...]]) -> tuple[int, int]:
    """MACs forward, and of the gradients of parameters and tokens; pixels have none."""
    inputs = [torch.randn(shape, requires_grad=len(shape) == 3) for shape in shapes]
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False, custom_mapping=MAPPING) as forward:
            out = run(*inputs)
        with FlopCounterMode(display=False, custom_mapping=MAPPING) as backward:
            out.sum().backward()
    return forward.get_total_flops() // 2, backward.get_total_flops() // 2


@pytest.mark.parametrize("name", CALLS)
def test_a_layer_costs_what_its_module_does(name: str):
    module, run, shapes, cost = CALLS[name]()
    assert cost.params == sum(one.numel() for one in module.parameters())
    forward, backward = counted(run, shapes)
    assert cost.macs == pytest.approx(forward, rel=0.01)
    assert cost.backward == pytest.approx(backward, rel=0.01)
    assert cost.flops == 2 * cost.macs


def test_every_layer_has_a_formula_and_is_checked():
    from test_layers import HOUSE

    found = set()
    for file in (HOUSE / "attention").glob("[a-z]*.py"):
        module = __import__(f"regard.attention.{file.stem}", fromlist=["_"])
        found |= {
            name
            for name, kind in vars(module).items()
            if isinstance(kind, type)
            and issubclass(kind, nn.Module)
            and kind.__module__ == module.__name__
            and not name.startswith("_")
        }
    assert found == set(LAYERS) == {name.split()[0] for name in CALLS}
