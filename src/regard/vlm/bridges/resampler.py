"""Flamingo's bridge (arXiv 2204.14198): a Perceiver Resampler's latents read the image and themselves.

    out_k = W Resampler(latents, V LN(x) + places(box))_k,    k = 1 .. K

The first latents are used where the budget is smaller than their number, as the queries of `qformer` are. Ours differs
in that the eye's features tell where they are (`Places`), and a linear map brings latents to the model's width.
"""

import torch
from torch import nn

from regard.allocation import Attribution
from regard.attention.resampler import PerceiverResampler
from regard.tokens import Question, VisualTokens
from regard.vlm.bridges.bridge import Bridged, Reader
from regard.vlm.bridges.queried import Queried, Start


class ResamplerBridge(Queried):
    """latents: how many there are. depth, heads, inner: of the resampler, its hidden width being 4 x inner. inner:
    width, `dim` by default. start: as of `Queried`.
    """

    name = "resampler"
    spread = 1.0

    def __init__(
        self,
        width: int,
        dim: int,
        latents: int = 64,
        depth: int = 2,
        heads: int = 4,
        inner: int | None = None,
        start: Start = "random",
    ) -> None:
        super().__init__(width, dim, latents, start)
        inner = inner or dim
        self.read = Reader(width, inner)
        self.resampler = PerceiverResampler(inner, heads, latents, depth, 4 * inner)
        self.out = nn.Linear(inner, dim)

    @property
    def learned(self) -> nn.Parameter:
        """The latents, (K, D)."""
        return self.resampler.latents

    def bridged(self, tokens: VisualTokens, question: Question | None, budget: int) -> Bridged:
        media = self.read(tokens.features, tokens.boxes)
        found = self.out(self.resampler(media, tokens.mask, count=budget))
        reading = None
        if not self.training:
            with torch.no_grad():
                looked = self.resampler.weights(media, tokens.mask, layer=0, count=budget).mean(dim=1)
            looked = looked[..., : media.shape[1]]
            reading = Attribution(looked / looked.sum(dim=-1, keepdim=True).clamp(min=1e-9))
        return Bridged(found, torch.ones_like(found[..., 0], dtype=torch.bool), reading)
