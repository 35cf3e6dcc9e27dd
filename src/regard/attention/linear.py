"""Linear attention (Katharopoulos et al., arXiv 2006.16236): a kernel for the softmax, so time and memory are O(N).

    y_i = phi(q_i)' sum_j phi(k_j) v_j' / (phi(q_i)' sum_j phi(k_j) + eps),    phi(x) = elu(x) + 1

over all visible j, or over visible j <= i where causal. There the sums are a state, S_i = S_{i-1} + phi(k_i) v_i' and
z_i = z_{i-1} + phi(k_i), and the sequence is read in chunks: within one by a product of C x C, before it by its state.
Ours differs in form only: one projection for queries, keys and values, and sums that are float32 in half precision.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.attention._base import Layer, check_input, heads_of, joined
from regard.attention._keys import key_mask, summable
from regard.errors import ShapeError

SLAB = 4096  # tokens projected together: larger buffers are given back to the system and fetched again each time
State = tuple[Float[Tensor, "b h d e"], Float[Tensor, "b h d"]]


class LinearAttention(Layer):
    """Self-attention of `heads` heads without softmax. causal: a token sees itself and those before it.

    chunk: tokens of a chunk, which changes the cost and not the result. eps: added to the denominator. Raises
    ShapeError where the heads do not divide dim, for a chunk below 1, and for an input or a mask of another shape.
    """

    def __init__(
        self, dim: int, heads: int, causal: bool = False, bias: bool = True, chunk: int = 64, eps: float = 1e-6
    ) -> None:
        super().__init__()
        heads_of(dim, heads)
        if chunk < 1:
            raise ShapeError(f"chunk must be 1 token or more, got {chunk}")
        self.dim, self.heads, self.causal, self.chunk, self.eps = dim, heads, causal, chunk, eps
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n c"]:
        """x: (B, N, D). mask: (B, N), True = may be seen; a row that sees nothing is 0."""
        if self.causal:
            return self.extend(x, None, mask)[0]
        check_input("x", x, self.dim)
        seen = key_mask(mask, len(x), x.shape[1])
        size = max(SLAB // max(len(x), 1), 1)
        masks = [None] * max(-(-x.shape[1] // size), 1) if seen is None else seen.split(size, dim=1)
        state = summable(x.new_zeros(len(x), self.heads, self.dim // self.heads, self.dim // self.heads))
        total, queries = state[..., 0], []
        for slab, shown in zip(x.split(size, dim=1), masks, strict=True):
            q, k, v = self._projected(slab, shown)
            state, total = state + k.transpose(-1, -2) @ v, total + k.sum(dim=-2)
            queries.append(q)
        return torch.cat([self._read(q @ state, q @ total[..., None], x.dtype) for q in queries], dim=1)

    def extend(
        self, x: Float[Tensor, "b n c"], state: State | None = None, mask: Bool[Tensor, "b n"] | None = None
    ) -> tuple[Float[Tensor, "b n c"], State]:
        """The recurrent form: read N more tokens (one, or many) after what `state` holds; their output and the new
        state, (B, H, d, d) and (B, H, d). None: nothing was read. Each token sees itself and those before it.

        Raises ShapeError for a state of another shape.
        """
        q, k, v = self._projected(x, mask)
        shape = (len(x), self.heads, k.shape[-1], v.shape[-1])
        if state is not None and (state[0].shape != shape or state[1].shape != shape[:3]):
            got = (tuple(state[0].shape), tuple(state[1].shape))
            raise ShapeError(f"state must have shapes {shape} and {shape[:3]}, got {got[0]} and {got[1]}")
        count = x.shape[1]
        size = max(min(self.chunk, count), 1)
        q, k, v = (F.pad(part, (0, 0, 0, -count % size)).unflatten(2, (-1, size)) for part in (q, k, v))
        written, total = k.transpose(-1, -2) @ v, k.sum(dim=-2)  # (B, H, chunks, d, d), (B, H, chunks, d)
        if state is not None:
            written = torch.cat((state[0][:, :, None], written), dim=2)
            total = torch.cat((state[1][:, :, None], total), dim=2)
        else:
            written, total = F.pad(written, (0, 0, 0, 0, 1, 0)), F.pad(total, (0, 0, 1, 0))
        written, total = written.cumsum(dim=2), total.cumsum(dim=2)  # one more than chunks: before each, and after all
        near = (q @ k.transpose(-1, -2)).tril()
        above = near @ v + q @ written[:, :, :-1]
        below = near.sum(dim=-1, keepdim=True) + q @ total[:, :, :-1, :, None]
        above, below = (part.flatten(2, 3)[:, :, :count] for part in (above, below))
        return self._read(above, below, x.dtype), (written[:, :, -1], total[:, :, -1])

    def weights(self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b h n n"]:
        """(B, H, N, N), rows that sum to 1 up to eps, or to 0 where nothing is seen."""
        q, k, _ = self._projected(x, mask)
        scores = q @ k.transpose(-1, -2)
        scores = scores.tril() if self.causal else scores
        return (scores / (scores.sum(dim=-1, keepdim=True) + self.eps)).to(x.dtype)

    def _projected(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """phi(q), phi(k), 0 for keys that are not to be seen, and v, (B, H, N, d)."""
        check_input("x", x, self.dim)
        seen = key_mask(mask, len(x), x.shape[1])
        q, k, v = summable(self.qkv(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        return q, k if seen is None else k.masked_fill(~seen[:, None, :, None], 0), v

    def _read(self, above: Tensor, below: Tensor, dtype: torch.dtype) -> Tensor:
        y = self.out(joined(above / (below + self.eps)).to(dtype))
        return y.masked_fill((below == 0).all(dim=1), 0)  # phi is above 0: nothing was seen
