"""Prefill and decoding of decoder-only language models, by formula: multiply-accumulates (MACs), half of the FLOPs.

Counted: the projections, the gated feed-forward, the two attention products over the full square (as kernels that do
not skip the masked half do), and the logits of the last position. Not counted: norms, softmax, rotations.
With the two-matrix convention (DivPrune's) the feed-forward has two matrices, not three, and there are no logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class LanguageModel:
    """The sizes that decide the cost of a Llama-style decoder with grouped-query attention and a gated feed-forward.

    head_size: of one head, where it is not hidden / heads. qkv_bias: of queries, keys and values (Qwen). tied: whether
    the words' matrix is that of the logits too.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    head_size: int = 0
    qkv_bias: bool = False
    tied: bool = False

    def __post_init__(self) -> None:
        if not self.head_size:
            object.__setattr__(self, "head_size", self.hidden // self.heads)

    @classmethod
    def of(cls, config: Any) -> Self:
        """The sizes of a Hugging Face model's language model, from its configuration."""
        text = config.get_text_config()
        return cls(
            f"{config.model_type}'s {text.model_type}",
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            heads=text.num_attention_heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            feed_forward=text.intermediate_size,
            vocabulary=text.vocab_size,
            head_size=getattr(text, "head_dim", None) or 0,
        )

    @property
    def width(self) -> int:
        """Of all heads of queries."""
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        """Of all heads of keys."""
        return self.kv_heads * self.head_size

    @property
    def params(self) -> int:
        """Parameters: words, layers, norms, logits."""
        bias = (self.width + 2 * self.kv_width) * self.qkv_bias
        layer = self._projections + bias + 3 * self.hidden * self.feed_forward + 2 * self.hidden
        return self.layers * layer + (2 - self.tied) * self.vocabulary * self.hidden + self.hidden

    @property
    def _projections(self) -> int:
        return self.hidden * (2 * self.width + 2 * self.kv_width)

    def prefill_macs(self, tokens: int) -> int:
        """MACs to read a prompt of `tokens` and give the logits of its last position."""
        return self.prefill_macs_of_layers([tokens] * self.layers)

    def prefill_macs_of_layers(self, tokens: Sequence[int]) -> int:
        """The same where each layer reads a number of tokens of its own."""
        assert len(tokens) == self.layers
        dense = self._projections + 3 * self.hidden * self.feed_forward
        layers = sum(count * (dense + 2 * count * self.width) for count in tokens)
        return layers + self.hidden * self.vocabulary

    def two_matrix_macs_of_layers(self, tokens: Sequence[int]) -> int:
        """T (4 n d^2 + 2 n^2 d + 2 n d m): what DivPrune's tflops.py (github.com/vbdi/divprune) and others print as
        FLOPs. Keys and values are counted at full width, grouped or not.
        """
        assert len(tokens) == self.layers
        d, m = self.hidden, self.feed_forward
        return sum(n * (4 * d * d + 2 * n * d + 2 * d * m) for n in tokens)

    def decode_macs(self, cached: int) -> int:
        """MACs to read one token more, after so many."""
        return self.decode_macs_of_layers([cached] * self.layers)

    def decode_macs_of_layers(self, cached: Sequence[int]) -> int:
        """The same where each layer has cached a number of tokens of its own."""
        assert len(cached) == self.layers
        dense = self._projections + 3 * self.hidden * self.feed_forward
        return sum(dense + 2 * (count + 1) * self.width for count in cached) + self.hidden * self.vocabulary

    def kv_cache(self, tokens: Sequence[int]) -> int:
        """Numbers of the keys and values that are kept, from the tokens that each layer reads."""
        return 2 * self.kv_width * sum(tokens)

    def peak(self, tokens: Sequence[int]) -> int:
        """The most numbers that live at once in a prefill beside the cache, with attention by a fused kernel: tokens as
        they were embedded, before a layer and within it, rotations; and the gate and the value of the feed-forward
        and their product, or queries, keys, values and what attention makes of them.
        """
        widest = max(self.hidden + 3 * self.feed_forward, self.hidden + 2 * self.width + 2 * self.kv_width)
        return max(tokens) * (3 * self.hidden + 2 * self.head_size + widest)


def spread(visual: int, text: int, layers: int, stages: Sequence[tuple[int, int]] = ()) -> list[int]:
    """Tokens that each layer reads. stages: (layer, visual tokens from there on), ascending, from 0: none, one (FastV,
    arXiv 2403.06764; 0 for what is dropped before the language model) or several (PyramidDrop, arXiv 2410.17247).
    """
    each = [visual + text] * layers
    for layer, left in stages:
        each[layer:] = [left + text] * (layers - layer)
    return each


def pyramid(visual: int, layers: int, keep: float = 0.5) -> list[tuple[int, int]]:
    """PyramidDrop's stages: a share of what is left goes on at 1/4, 1/2 and 3/4 of the layers, rounded, at least 1."""
    return [(layers * k // 4, max(1, round(visual * keep**k))) for k in (1, 2, 3)]


# Sizes from the published config.json of each.
VICUNA_7B = LanguageModel("vicuna-7b", 32, hidden=4096, heads=32, kv_heads=32, feed_forward=11008, vocabulary=32000)
VICUNA_13B = LanguageModel("vicuna-13b", 40, hidden=5120, heads=40, kv_heads=40, feed_forward=13824, vocabulary=32000)
# arXiv 2412.15115, 2502.13923
QWEN2_5_7B = LanguageModel(
    "Qwen2.5-7B",
    layers=28,
    hidden=3584,
    heads=28,
    kv_heads=4,
    feed_forward=18944,
    vocabulary=152064,
    qkv_bias=True,
)
QWEN2_5_3B = LanguageModel(
    "Qwen2.5-3B",
    layers=36,
    hidden=2048,
    heads=16,
    kv_heads=2,
    feed_forward=11008,
    vocabulary=151936,
    qkv_bias=True,
    tied=True,
)
