"""The layers of `regard.attention` at the sizes of ViT-B/16, on side x side tokens; 64 tokens of text, where there is.

By the names of their classes. Any other sizes: the functions of `layers.py`, `linear.py`, `sparse.py` and the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass

from regard.cost.asked import Asked, Facts, checked_side
from regard.cost.convnext import convnext_block
from regard.cost.counted import Cost
from regard.cost.layers import (
    cross_attention,
    gated_cross_attention_block,
    perceiver_resampler,
    self_attention,
    transformer_block,
    visual_expert_attention,
    visual_expert_block,
)
from regard.cost.linear import delta_attention, linear_attention
from regard.cost.perceiver import perceiver
from regard.cost.pervit import peripheral_attention
from regard.cost.qformer import QFormer
from regard.cost.sparse import block_sparse_attention, hybrid_block, sliding_window_attention, top_k_attention
from regard.cost.swin import Swin, patch_merging, swin_block, window_attention
from regard.cost.vit import ViT


@dataclass(frozen=True)
class Layer:
    """At side x side tokens, as many as patches of 16 pixels make."""

    cost: Callable[[int], Cost]

    applies = frozenset({"resolution"})

    def facts(self, asked: Asked) -> Facts:
        side, facts = checked_side(asked.resolution, 224, 16, "as patches are of 16"), Facts()
        facts.add_cost(self.cost(side // 16), asked.batch, (side // 16) ** 2)
        facts.add("resolution", side, "pixels")
        return facts


DIM, HEADS, HIDDEN, TEXT = 768, 12, 3072, 64
VISION = ViT(DIM, 12, HEADS, patch=16, out=0)
SWIN_TINY = Swin(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, classes=0)

LAYERS: dict[str, Callable[[int], Cost]] = {
    "MultiHeadAttention": lambda side: self_attention(side**2, DIM, HEADS),
    "TransformerBlock": lambda side: transformer_block(side**2, DIM, HEADS, HIDDEN),
    "VisionTransformer": lambda side: VISION.cost(16 * side),
    "CrossAttention": lambda side: cross_attention(TEXT, side**2, DIM, HEADS),
    "GatedCrossAttentionBlock": lambda side: gated_cross_attention_block(TEXT, side**2, DIM, HEADS, HIDDEN),
    "PerceiverResampler": lambda side: perceiver_resampler(side**2, DIM, HEADS, 64, 6, HIDDEN),
    "Perceiver": lambda side: perceiver(side**2, DIM, DIM, 64, HEADS, 6),
    "QFormer": lambda side: QFormer(encoder_dim=DIM).cost(side**2),
    "VisualExpertAttention": lambda side: visual_expert_attention(side**2, TEXT, DIM, HEADS),
    "VisualExpertBlock": lambda side: visual_expert_block(side**2, TEXT, DIM, HEADS, HIDDEN),
    "WindowAttention": lambda side: window_attention((side, side), DIM, HEADS, 7),
    "SwinBlock": lambda side: swin_block((side, side), DIM, HEADS, 7, HIDDEN),
    "PatchMerging": lambda side: patch_merging((side, side), DIM),
    "SwinTransformer": lambda side: SWIN_TINY.cost(16 * side),
    "ConvNeXtBlock": lambda side: convnext_block((side, side), DIM),
    "PeripheralAttention": lambda side: peripheral_attention((side, side), DIM, HEADS),
    "LinearAttention": lambda side: linear_attention(side**2, DIM, HEADS),
    "DeltaAttention": lambda side: delta_attention(side**2, DIM, HEADS),
    "SlidingWindowAttention": lambda side: sliding_window_attention(side**2, DIM, HEADS, 64),
    "BlockSparseAttention": lambda side: block_sparse_attention(side**2, DIM, HEADS, 16),
    "TopKAttention": lambda side: top_k_attention(side**2, DIM, HEADS, 32),
    "HybridBlock": lambda side: hybrid_block((side, side), DIM, HEADS, 7, HIDDEN),
}
MODELS = {name: Layer(cost) for name, cost in LAYERS.items()}
