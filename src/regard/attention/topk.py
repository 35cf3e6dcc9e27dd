"""Top-k attention (Gupta et al., arXiv 2106.06899; Zhao et al., arXiv 1912.11637): content decides what is looked at.

    y_i = softmax(q_i K_S' / sqrt(d)) V_S,    S = the k visible keys of the highest q_i' k_j; of equal ones the first

At k = N it is dense attention. The scores of all pairs are compared, so the cost is still N x N; what is spared is
attention spread thinly over keys that do not matter. Ours differs in ties, which fall to the key of the lower slot
and not to more than k keys. No gradient flows through the choice.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.attention._base import Layer, attend, attention_weights, check_input, checked_mask, heads_of, joined
from regard.attention.scaled import MultiHeadAttention
from regard.errors import ShapeError


class TopKAttention(Layer):
    """Self-attention of `heads` heads in which a query of a head sees its `k` best keys, or all where they are fewer.

    Raises ShapeError where the heads do not divide dim, for k below 1, and for an input or a mask of another shape.
    """

    def __init__(self, dim: int, heads: int, k: int, bias: bool = True) -> None:
        super().__init__()
        heads_of(dim, heads)
        if k < 1:
            raise ShapeError(f"k must be 1 key or more, got {k}")
        self.dim, self.heads, self.k = dim, heads, k
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "..."] | None = None) -> Float[Tensor, "b n c"]:
        """x: (B, N, D). mask: (B, N) or (B, N, N), True = may be seen; a row that sees nothing is 0."""
        q, k, v, seen = self._projected(x, mask)
        y = self.out(joined(attend(q, k, v, self._chosen(q, k, seen))))
        return y if seen is None else y.masked_fill(~seen.any(dim=-1)[:, 0, :, None], 0)

    def weights(self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "..."] | None = None) -> Float[Tensor, "b h n n"]:
        """(B, H, N, N): at most k weights in a row, which sum to 1, or to 0 where nothing is seen."""
        q, k, _, seen = self._projected(x, mask)
        return attention_weights(q, k, self._chosen(q, k, seen))

    def _projected(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        check_input("x", x, self.dim)
        seen = checked_mask(mask, len(x), x.shape[1], x.shape[1])
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v, seen

    def _chosen(self, q: Tensor, k: Tensor, seen: Tensor | None) -> Bool[Tensor, "b h q k"] | None:
        """The keys that each query keeps; None for all."""
        return seen if self.k >= k.shape[2] else best(q.detach() @ k.detach().transpose(-1, -2), self.k, seen)

    @classmethod
    def from_transformers(cls, module: Any, k: int) -> "TopKAttention":
        """From any attention that `MultiHeadAttention` can be lifted from."""
        dense = MultiHeadAttention.from_transformers(module)
        layer = cls(dense.dim, dense.heads, k, dense.qkv.bias is not None).to(dense.qkv.weight)
        layer.load_state_dict(dense.state_dict())
        return layer


def best(scores: Float[Tensor, "*b n"], k: int, seen: Bool[Tensor, "*#b n"] | None = None) -> Bool[Tensor, "*b n"]:
    """Which k of the last dimension are highest, the first among equals; of what is seen alone, if that is given."""
    scores = scores if seen is None else scores.masked_fill(~seen, -torch.inf)
    lowest = scores.topk(k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    above, level = scores > lowest, scores == lowest
    left = k - above.sum(dim=-1, keepdim=True)
    chosen = above | (level & (level.cumsum(dim=-1, dtype=torch.int32) <= left))
    return chosen if seen is None else chosen & seen
