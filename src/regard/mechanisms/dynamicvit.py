"""DynamicViT (Rao et al., arXiv 2106.02034): before some blocks, a small network says which patches are read no more.

    z = MLP(LN(x)) = [local, global],    p = softmax(MLP([local_i, sum_j D_j global_j / sum_j D_j]))
    D <- D * gumbel-softmax(log p)       what goes on, while it learns
    A_ij = (exp(s_ij) G_ij + eps / N) / (sum_k exp(s_ik) G_ik + eps),    G_ij = D_j, and 1 on the diagonal

`forward` is how it learns: nothing is removed, the policy D hides it from the attention of others. `look` is how it is
used: the rho^s N patches of the highest p at stage s are gathered and the rest is gone. For equal decisions and eps = 0
both are the same function. Ours differs from the authors' code in that patches stay in raster order (which changes no
logit), and in the noise, which comes from a generator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.attention._base import joined
from regard.attention.scaled import TransformerBlock
from regard.attention.vision import VisionTransformer
from regard.errors import ShapeError
from regard.mechanisms.looker import Looked
from regard.mechanisms.vit import ViTLooker, checked_layers, gathered, highest, scattered


class Predictor(nn.Module):
    """Log-probabilities of going on and of ending, (B, N, 2), from patches and the policy so far, (B, N)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.split = nn.LayerNorm(dim), nn.Linear(dim, dim)
        half, quarter = dim // 2, dim // 4
        self.decide = nn.Sequential(
            nn.Linear(dim, half), nn.GELU(), nn.Linear(half, quarter), nn.GELU(), nn.Linear(quarter, 2)
        )

    def forward(self, x: Float[Tensor, "b n d"], policy: Float[Tensor, "b n"] | None = None) -> Float[Tensor, "b n 2"]:
        """The logarithms of going on and of ending, for each token. policy: what goes on already, 1 or 0; None: all."""
        near, far = F.gelu(self.split(self.norm(x))).chunk(2, dim=2)
        if policy is None:
            mean = far.mean(dim=1, keepdim=True)
        else:
            count = policy.sum(dim=1)[:, None, None].clamp(min=0.5)  # 0 where all have ended
            mean = (far * policy[..., None]).sum(dim=1, keepdim=True) / count
        return self.decide(torch.cat((near, mean.expand_as(far)), dim=2)).log_softmax(dim=2)

    @property
    def macs(self) -> int:
        """Of one patch."""
        return sum(one.weight.numel() for one in self.modules() if isinstance(one, nn.Linear))


@dataclass(frozen=True, eq=False)
class Policed:
    """What it learns from. logits: (B, classes). tokens: (B, N, D), patches after the last block, normed. policies:
    (B, S, N), 1 for a patch that goes on after each stage, with gradients by the straight-through estimate.
    """

    logits: Float[Tensor, "b k"]
    tokens: Float[Tensor, "b n d"]
    policies: Float[Tensor, "b s n"]


class DynamicViT(ViTLooker):
    """keep: rho, the share of patches that is kept at each of the stages. layers: the blocks before which they are.

    eps: of the masked softmax. The rest is of `ViTLooker`. Raises ShapeError for other layers or shares.
    """

    name = "dynamicvit"
    narrows = True

    def __init__(
        self,
        vision: VisionTransformer | Mapping[str, Any],
        classes: int = 10,
        keep: float = 0.7,
        layers: Sequence[int] | None = None,
        eps: float = 1e-6,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__(vision, classes, mean, std)
        self.layers = checked_layers(layers, len(self.blocks))
        if not 0 < keep <= 1:
            raise ShapeError(f"keep must be a share in (0, 1], got {keep}")
        if self.dim < 4:
            raise ShapeError(f"the vision transformer must be of width 4 or more, got {self.dim}")
        self.eps = eps
        self.shares = [keep**stage for stage in range(1, len(self.layers) + 1)]
        self.counts = [max(1, int(self.patch_count * share + 1e-9)) for share in self.shares]
        self.predictors = nn.ModuleList([Predictor(self.dim) for _ in self.layers])

    def forward(
        self,
        pixels: Tensor,
        generator: torch.Generator | None = None,
        decisions: Bool[Tensor, "b s n"] | None = None,
    ) -> Policed:
        """generator: of the Gumbel noise. decisions: (B, S, N), what goes on after each stage, for what is drawn."""
        x = self.embed(pixels)
        policy = x.new_ones(len(x), self.patch_count)
        policies: list[Tensor] = []
        for depth, block in enumerate(self.blocks):
            if depth in self.layers:
                stage = len(policies)
                if decisions is not None:
                    policy = policy * decisions[:, stage]
                else:
                    policy = policy * _drawn(self.predictors[stage](x[:, self.first :], policy), generator)
                policies.append(policy)
            if policies:
                x = block.fed(block.attended(x, self._masked(block, x, F.pad(policy, (self.first, 0), value=1.0))))
            else:
                x = block(x)
        x = self.vision.final_norm(x)
        return Policed(self.head(x[:, 0]), x[:, self.first :], torch.stack(policies, dim=1))

    def _masked(self, block: TransformerBlock, x: Float[Tensor, "b n d"], policy: Float[Tensor, "b n"]) -> Tensor:
        """Attention that sees what goes on, and each token itself."""
        q, k, v = block.attention.projected(block.norm1(x))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        seen = policy[:, None, None] * (1 - eye) + eye
        weights = (scores - scores.amax(dim=-1, keepdim=True).detach()).exp() * seen
        weights = (weights + self.eps / x.shape[1]) / (weights.sum(dim=-1, keepdim=True) + self.eps)
        return block.attention.out(joined(weights @ v))

    def look(self, pixels: Tensor, seed: int = 0) -> Looked:
        """stages: how many of the prunings a patch outlived. features: as it was when it was last read. tokens: patches
        read, summed over the layers.
        """
        x = self.embed(pixels)
        batch, first, macs, tokens = len(x), self.first, self.ends_macs(), 0
        place = torch.arange(self.patch_count, device=x.device).expand(batch, -1)
        stages, features = torch.zeros_like(place), x[:, first:]
        for depth, block in enumerate(self.blocks):
            if depth in self.layers:
                stage = self.layers.index(depth)
                patches, predictor = x[:, first:], self.predictors[stage]
                macs += patches.shape[1] * predictor.macs  # pyright: ignore
                features = scattered(features, place, patches)
                kept = highest(predictor(patches)[..., 0], self.counts[stage])
                x = torch.cat((x[:, :first], gathered(patches, kept)), dim=1)
                place = place.gather(1, kept)
                stages = stages.scatter(1, place, stage + 1)
            x = block(x)
            macs += self.block_macs(depth, x.shape[1])
            tokens += x.shape[1] - first
        features = scattered(features, place, x[:, first:])
        each = torch.ones(batch, dtype=torch.long, device=x.device)
        boxes = self.boxes(batch)
        return Looked(self.classify(x), features, boxes, stages, each * len(self.layers), each * tokens, each * macs)


def loss(
    seen: Policed,
    labels: Int[Tensor, " b"],
    taught: tuple[Float[Tensor, "b k"], Float[Tensor, "b n d"]],
    shares: Sequence[float],
    ratio: float = 2.0,
    distill: float = 0.5,
) -> Float[Tensor, ""]:
    """Cross-entropy + ratio * mean_s (mean D_s - rho_s)^2 + distill * (KL(p', p) + mean (x - x')^2 of what is kept).

    taught: logits p' and normed patches x' of the classifier that it was made of.
    """
    logits, tokens = taught
    wanted = seen.policies.new_tensor(shares)
    kept_share = (seen.policies.mean(dim=2) - wanted).square().mean()
    log_p, log_q = seen.logits.log_softmax(dim=1), logits.log_softmax(dim=1)
    divergence = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    kept = seen.policies[:, -1] > 0.5
    apart = (seen.tokens - tokens)[kept].square().mean() if bool(kept.any()) else divergence * 0
    return F.cross_entropy(seen.logits, labels) + ratio * kept_share + distill * (divergence + apart)


def _drawn(log_p: Float[Tensor, "b n 2"], generator: torch.Generator | None) -> Float[Tensor, "b n"]:
    """1 where going on is drawn, by the hard Gumbel-softmax (arXiv 1611.01144) of temperature 1."""
    noise = -torch.empty_like(log_p).exponential_(generator=generator).log()
    soft = (log_p + noise).softmax(dim=2)[..., 0]
    return (soft > 0.5).to(soft.dtype) - soft.detach() + soft
