"""A-ViT (Yin et al., arXiv 2112.07658): each token halts at a depth of its own, by what stands in its first channel.

    h^l = sigmoid(gamma x^l_0 - beta), 1 in the last block;    halted when c = h^1 + ... + h^l >= 1 - eps
    output = sum_{l before} h^l x^l + R x^halt,    R = 1 - sum_{l before} h^l,    logits = W LN(output_class)

`forward` is how it learns: halted tokens stay, hidden from the attention of others. `look` is how it is used: they are
gathered away, ragged over the batch (padded to the image with most), and an image whose class token has halted is
gone, as nothing can change its logits any more. Both are the same function. Ours differs from the authors' code, which
runs every image to the last block, in that.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.attention.vision import VisionTransformer
from regard.errors import ShapeError
from regard.mechanisms.looker import Looked
from regard.mechanisms.vit import ViTLooker, gathered


@dataclass(frozen=True, eq=False)
class Pondered:
    """What it learns from. logits: (B, classes). depths: (B, N), the block at which each token halted, from 0, the
    class token and registers first. ponder: (B, N), blocks passed and the remainder. halting: (L,), the mean h of each
    block.
    """

    logits: Float[Tensor, "b k"]
    depths: Int[Tensor, "b n"]
    ponder: Float[Tensor, "b n"]
    halting: Float[Tensor, " l"]


class AViT(ViTLooker):
    """gate, centre: gamma and beta of the halting score. eps: how much less than 1 is enough to halt.

    The rest is of `ViTLooker`. Raises ShapeError for an eps that is not in (0, 1), or others that are not finite.
    """

    name = "avit"
    narrows = True

    def __init__(
        self,
        vision: VisionTransformer | Mapping[str, Any],
        classes: int = 10,
        gate: float = 10.0,
        centre: float = 30.0,
        eps: float = 0.01,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__(vision, classes, mean, std)
        if not 0 < eps < 1 or not (math.isfinite(gate) and math.isfinite(centre)):
            got = f"eps={eps}, gate={gate} and centre={centre}"
            raise ShapeError(f"eps must be in (0, 1), gate and centre finite, got {got}")
        self.gate, self.centre, self.eps = gate, centre, eps

    def forward(self, pixels: Tensor) -> Pondered:
        """Every token through every block, those that halted hidden."""
        x = self.embed(pixels)
        alive = torch.ones_like(x[..., 0], dtype=torch.bool)
        total, left, ponder = torch.zeros_like(x[..., 0]), torch.ones_like(x[..., 0]), torch.zeros_like(x[..., 0])
        depths, output, means = torch.zeros_like(alive, dtype=torch.long), torch.zeros_like(x), []
        for depth, block in enumerate(self.blocks):
            x = block(x, alive if depth else None)
            means.append(torch.where(alive, self._gated(x), 0).mean())
            score, total, halts, weight = self._halted(x, depth, total, left, alive)
            output = output + weight[..., None] * x
            ponder = ponder + alive + torch.where(halts, left, 0)
            depths = torch.where(alive, depth, depths)
            left, alive = left - score, alive & ~halts
        return Pondered(self.classify(output), depths, ponder, torch.stack(means))

    def _gated(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        return torch.sigmoid(self.gate * x[..., 0] - self.centre)

    def _halted(
        self, x: Tensor, depth: int, total: Tensor, left: Tensor, alive: Tensor
    ) -> tuple[Tensor, Tensor, Bool[Tensor, "b n"], Tensor]:
        """After a block: the score, c, what halts now, and what x weighs in the output. Each (B, N)."""
        score = torch.ones_like(total) if depth == len(self.blocks) - 1 else self._gated(x)
        total = total + score
        halts = alive & (total >= 1 - self.eps)
        return score, total, halts, torch.where(halts, left, torch.where(alive, score, 0))

    def look(self, pixels: Tensor, seed: int = 0) -> Looked:
        """stages: the block at which a patch was last read, from 0. exits: that at which the class token halted.
        features: the weighted sums. tokens: patches read, summed over the layers.
        """
        x = self.embed(pixels)
        batch, count, _ = x.shape
        output, sums = torch.zeros_like(x), torch.zeros_like(x)
        stages = torch.zeros_like(x[..., 0], dtype=torch.long)
        exits, tokens, macs = torch.zeros(3, batch, dtype=torch.long, device=x.device)
        rows = torch.arange(batch, device=x.device)
        place = torch.arange(count, device=x.device).expand(batch, -1)
        alive = torch.ones_like(stages, dtype=torch.bool)
        total, left = torch.zeros_like(x[..., 0]), torch.ones_like(x[..., 0])
        for depth, block in enumerate(self.blocks):
            there = alive.sum(dim=1)
            macs[rows] += self.block_macs(depth, there)
            tokens[rows] += (alive & (place >= self.first)).sum(dim=1)
            exits[rows] = depth
            stages[rows[:, None], place] = torch.where(alive, depth, stages[rows[:, None], place])
            x = block(x, None if bool(alive.all()) else alive)
            score, total, halts, weight = self._halted(x, depth, total, left, alive)
            sums, left, alive = sums + weight[..., None] * x, left - score, alive & ~halts
            if bool(halts.any()):
                output[rows[:, None], place] = sums
                on = alive[:, 0].nonzero()[:, 0]  # the class token stands first as long as it is there
                if not len(on):
                    break
                order = (~alive[on]).int().sort(dim=1, stable=True).indices[:, : int(alive[on].sum(dim=1).max())]
                rows = rows[on]
                x, sums = gathered(x[on], order), gathered(sums[on], order)
                place, alive, total, left = (one[on].gather(1, order) for one in (place, alive, total, left))
        features, stages = output[:, self.first :], stages[:, self.first :]
        macs += self.ends_macs()
        return Looked(self.classify(output), features, self.boxes(batch), stages, exits, tokens, macs)


def prior(depth: int, centre: float, std: float = 1.0) -> Float[Tensor, " l"]:
    """A Gaussian over the blocks, from 0, that sums to 1."""
    return (-0.5 * ((torch.arange(depth) - centre) / std).square()).softmax(dim=0)


def loss(
    seen: Pondered,
    labels: Int[Tensor, " b"],
    target: Float[Tensor, " l"],
    ponder: float = 5e-4,
    depth: float = 1e-3,
) -> Float[Tensor, ""]:
    """Cross-entropy + ponder * the mean of blocks and remainder + depth * KL(target, halting / sum) / L.

    target: `prior`. The shares of halting are held to [0.01, 0.99], as in the authors' code.
    """
    shares = (seen.halting / seen.halting.sum()).clamp(0.01, 0.99)
    apart = F.kl_div(shares.log(), target.to(shares), reduction="batchmean")
    return F.cross_entropy(seen.logits, labels) + ponder * seen.ponder.mean() + depth * apart
