"""Prefill cost of decoder-only language models, by formula: multiply-accumulates (MACs), half of the FLOPs.

Counted: the projections, the gated feed-forward, the two attention products over the full square (as kernels that do
not skip the masked half do), and the logits of the last position. Not counted: norms, softmax, rotations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class LanguageModel:
    """The sizes that decide the cost of a Llama-style decoder with grouped-query attention and a gated feed-forward.

    head_size: of one head, where it is not hidden / heads.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    head_size: int = 0

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

    def prefill_macs(self, tokens: int) -> int:
        """MACs to read a prompt of `tokens` and give the logits of its last position."""
        return self.prefill_macs_of_layers([tokens] * self.layers)

    def prefill_macs_of_layers(self, tokens: Sequence[int]) -> int:
        """The same where each layer reads a number of tokens of its own."""
        assert len(tokens) == self.layers
        width, kv_width = self.heads * self.head_size, self.kv_heads * self.head_size
        projections = self.hidden * (2 * width + 2 * kv_width)
        feed_forward = 3 * self.hidden * self.feed_forward
        layers = sum(count * (projections + feed_forward + 2 * count * width) for count in tokens)
        return layers + self.hidden * self.vocabulary


# Qwen2.5-VL-7B's language model; sizes from its published config.json (arXiv 2412.15115, 2502.13923).
QWEN2_5_7B = LanguageModel(
    "Qwen2.5-7B", layers=28, hidden=3584, heads=28, kv_heads=4, feed_forward=18944, vocabulary=152064
)
