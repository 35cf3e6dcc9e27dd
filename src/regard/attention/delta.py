"""Fast weights by the delta rule (Schlag, Irie, Schmidhuber, arXiv 2102.11174): linear attention that writes over.

    S_i = S_{i-1} + k_i (b_i (v_i - S_{i-1}' k_i))',    y_i = S_i' q_i / sqrt(d),    b_i = sigmoid(w x_i) of each head

with q and k already phi(.) / sum(phi(.)), phi(x) = elu(x) + 1, or DPFP: of r = [relu(x), relu(-x)], r_j r_{j-s} for
s = 1 .. nu. What a key held before, S' k, is replaced by a share b: there is no denominator. What is written, U, solves
a triangular system (Yang et al., arXiv 2406.06484, the UT transform), so that the sequence is read in chunks of C:

    (I + diag(b) tril(K K', -1)) U = diag(b) (V - K S),    Y = (Q S + tril(Q K') U) / sqrt(d),    S <- S + K' U

Ours differs in form only: a bias in the projections, and all from the product K K' on in float32 in half precision.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.attention._base import Layer, check_input, heads_of, joined
from regard.attention._keys import key_mask, summable
from regard.errors import ModelError, ShapeError

Written = tuple[Float[Tensor, "b h f d"], Bool[Tensor, " b"]]


class DeltaAttention(Layer):
    """Causal self-attention of `heads` heads by the delta rule: a token sees itself and those before it.

    feature: "elu" or "dpfp", whose keys are 2 * nu times as wide. chunk: tokens of a chunk, which changes the cost and
    not the result. Raises ShapeError where the heads do not divide dim, for a chunk or nu below 1, and for an input or
    a mask of another shape, ModelError for another feature.
    """

    def __init__(
        self, dim: int, heads: int, bias: bool = True, chunk: int = 64, feature: str = "elu", nu: int = 1
    ) -> None:
        super().__init__()
        heads_of(dim, heads)
        if chunk < 1 or nu < 1:
            raise ShapeError(f"chunk and nu must be 1 or more, got chunk={chunk} and nu={nu}")
        if feature not in ("elu", "dpfp"):
            raise ModelError(f"no feature is named {feature!r}: there are elu, dpfp")
        self.dim, self.heads, self.chunk, self.feature, self.nu = dim, heads, chunk, feature, nu
        self.qkv, self.share = nn.Linear(dim, 3 * dim, bias=bias), nn.Linear(dim, heads, bias=bias)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n c"]:
        """x: (B, N, D). mask: (B, N), True = may be seen: the rest writes nothing; a row that sees nothing is 0."""
        return self.extend(x, None, mask)[0]

    def extend(
        self, x: Float[Tensor, "b n c"], state: Written | None = None, mask: Bool[Tensor, "b n"] | None = None
    ) -> tuple[Float[Tensor, "b n c"], Written]:
        """The recurrent form: read N more tokens (one, or many) after what `state` holds; their output and the new
        state: S, (B, H, f, d) of keys f wide, and whether anything was seen, (B,). None: nothing was read.

        Raises ShapeError for a state of another shape.
        """
        q, k, v, share = self._projected(x, mask)
        shape = (len(x), self.heads, k.shape[-1], v.shape[-1])
        if state is None:
            state = (v.new_zeros(shape), torch.zeros(len(x), dtype=torch.bool, device=x.device))
        elif state[0].shape != shape or state[1].shape != shape[:1]:
            got = (tuple(state[0].shape), tuple(state[1].shape))
            raise ShapeError(f"state must have shapes {shape} and {shape[:1]}, got {got[0]} and {got[1]}")
        y, held = delta_rule(q, k, v, share, state[0], self.chunk)
        y = self.out(joined(y).to(x.dtype))
        shown = torch.ones_like(x[..., 0], dtype=torch.bool) if mask is None else mask
        seen = torch.cat((state[1][:, None], shown), dim=1).cumsum(dim=1) > 0
        return y if mask is None else y.masked_fill(~seen[:, 1:, None], 0), (held, seen[:, -1])

    def weights(self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b h n n"]:
        """(B, H, N, N), how much of each value a token reads: what came later may have written over it, or against it,
        so that rows need not sum to 1, and weights may be below 0.
        """
        q, k, _, share = self._projected(x, mask)
        with torch.autocast(x.device.type, enabled=False):
            near, apart = _within(q * (self.dim // self.heads) ** -0.5, k, share)
            found = torch.linalg.solve_triangular(apart, near, upper=False, left=False, unitriangular=True)
        return (found * share[..., None, :]).to(x.dtype)

    def _projected(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of q and k (B, H, N, f), of v (B, H, N, d); the shares (B, H, N), 0 where a token is not to be seen."""
        check_input("x", x, self.dim)
        seen = key_mask(mask, len(x), x.shape[1])
        q, k, v = summable(self.qkv(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        share = summable(self.share(x)).sigmoid().transpose(1, 2)
        q, k = self._featured(q), self._featured(k)
        return q, k, v, share if seen is None else share.masked_fill(~seen[:, None], 0)

    def _featured(self, x: Tensor) -> Tensor:
        if self.feature == "elu":
            x = F.elu(x) + 1
        else:
            r = torch.cat((x.relu(), (-x).relu()), dim=-1)
            x = torch.cat([r * r.roll(step, dims=-1) for step in range(1, self.nu + 1)], dim=-1)
        return x / x.sum(dim=-1, keepdim=True).clamp(min=1e-12)  # features that are all 0 stay


def delta_rule(
    q: Float[Tensor, "b h n f"],
    k: Float[Tensor, "b h n f"],
    v: Float[Tensor, "b h n d"],
    share: Float[Tensor, "b h n"],
    state: Float[Tensor, "b h f d"],
    chunk: int = 64,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h f d"]]:
    """What each token reads, and the state after the last. q, k: as they are multiplied, features of them already.

    The state passes through chunks one by one, by a product of f x f; all else is done for all chunks at once.
    """
    count, scale = q.shape[2], v.shape[-1] ** -0.5
    size = max(min(chunk, count), 1)
    if count % size:
        q, k, v = (F.pad(part, (0, 0, 0, -count % size)) for part in (q, k, v))
        share = F.pad(share, (0, -count % size))
    q, k, v, share = (part.unflatten(2, (-1, size)) for part in (q * scale, k, v, share))
    with torch.autocast(q.device.type, enabled=False):
        near, apart = _within(q, k, share)
        both = torch.cat((v, k), dim=-1) * share[..., None]
        both = torch.linalg.solve_triangular(apart, both, upper=False, unitriangular=True)
        written, erased = both.split((v.shape[-1], k.shape[-1]), dim=-1)  # U = written - erased S
        gained, lost = (k.transpose(-1, -2) @ part for part in (written, erased))
        states = [state]
        for place in range(k.shape[2]):
            states.append(states[-1] + gained[:, :, place] - lost[:, :, place] @ states[-1])
        before = torch.stack(states, dim=2)[:, :, :-1]
        y = q @ before + near @ (written - erased @ before)
    return y.flatten(2, 3)[:, :, :count], states[-1]


def _within(
    q: Float[Tensor, "... c f"], k: Float[Tensor, "... c f"], share: Float[Tensor, "... c"]
) -> tuple[Float[Tensor, "... c c"], Float[Tensor, "... c c"]]:
    """tril(Q K'), and the system's diag(share) tril(K K', -1), whose diagonal is left to be taken for 1."""
    keys = k.transpose(-1, -2)
    return (q @ keys).tril(), (k @ keys).tril(-1) * share[..., None]
