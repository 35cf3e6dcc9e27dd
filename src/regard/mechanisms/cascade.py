"""A cascade from coarse to fine with early exit: CF-ViT (Chen et al., arXiv 2203.03821), of two stages or more.

    stage 0: z = T([class, E(x at the lowest resolution) + P_0])
    stage s: z = T([class, tokens that are kept, E(x_s in the k chosen) + P_s (+ MLP(LN(z of the parent)))])
    g_l = b g_{l-1} + (1 - b) mean_h attention_l(class, .)      which tokens of the newest resolution to split in 2 x 2
    p_s = softmax(W LN(z_class));    an image stops where first max p_s >= threshold_s, unless that is 1
    loss = CE(last) + sum_s KL(p_last || p_s), the last not moved by the second

The transformer T, the embedding E and W are the same at all stages. Ours differs in that there may be a third stage,
which splits tokens of the second; positions are learned at the finest grid and averaged for the coarser ones, with a
vector for each resolution added; and only the patches that were chosen are read, for those images alone that go on.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.errors import ShapeError
from regard.mechanisms._salient import Salient, Stage
from regard.mechanisms.exits import confidence, going_on
from regard.mechanisms.looker import Looked, Looker, check_pixels, check_sizes, floats_of
from regard.mechanisms.stems import EmbeddedStem, PixelStem, Stem


class Tokens(NamedTuple):
    """What a stage reads: embeddings x (B, N, D), the newest last; slots (B, N), their places among all that were read
    so far; newest (B, M), where the newest are on the grid of their resolution, in raster order.
    """

    x: Tensor
    slots: Tensor
    newest: Tensor

    def of(self, rows: Tensor) -> "Tokens":
        """Of these images."""
        return Tokens(*(part[rows] for part in self))


class Scan(NamedTuple):
    """What a stage makes of its tokens: logits (B, classes); saliency (B, M) and boxes (B, M, 4) of its newest tokens,
    the saliency 0 where nothing is split after it and the model is not in training.
    """

    logits: Tensor
    saliency: Tensor
    boxes: Tensor


class Cascade(Looker):
    """Images of side x side pixels, in patches of `patch` pixels at each of `stages` resolutions, each next twice as
    fine, the last of the image's own. stages=1 reads everything at once: what the cascade is compared with.

    keep: how many tokens each stage after the first splits, by default half of the newest. expand: hidden width of the
    MLPs over `width`. reuse: give what is known of a token to the four that it becomes. first: the layer from which on
    attention counts. stem: "pixels", or "embedded", features of a frozen EfficientNet-Lite0 (patch 32, 3 channels).
    thresholds: a buffer, 1 (no exits) until `set_thresholds`.
    """

    name = "cascade"
    thresholds: Tensor

    def __init__(
        self,
        classes: int = 10,
        channels: int = 1,
        side: int = 32,
        patch: int = 4,
        stages: int = 2,
        keep: Sequence[int] | None = None,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        expand: int = 4,
        reuse: bool = True,
        first: int = 1,
        smoothing: float = 0.99,
        stem: Literal["pixels", "embedded"] = "pixels",
    ) -> None:
        super().__init__()
        check_sizes(patch=patch, side=side, width=width, expand=expand, channels=channels)
        if not 1 <= stages <= side.bit_length() or side % (patch * 2 ** (stages - 1)):
            got = f"side {side}, patch {patch}, stages {stages}"
            raise ShapeError(f"side must be divided by patch * 2^(stages - 1), stages being 1 or more, got {got}")
        self.channels, self.side, self.patch, self.stages = channels, side, patch, stages
        self.grids = [side // patch // 2 ** (stages - 1 - stage) for stage in range(stages)]
        self.keep = self._checked_keep(keep)
        self.stem: Stem = (EmbeddedStem if stem == "embedded" else PixelStem)(channels, patch)
        norm = nn.LayerNorm(self.stem.width) if stem == "embedded" else nn.Identity()
        self.embed = nn.Sequential(norm, nn.Linear(self.stem.width, width))
        self.positions = nn.Parameter(torch.randn(1, width, self.grids[-1], self.grids[-1]) * 0.02)
        self.scales = nn.Parameter(torch.zeros(stages, width))
        self.transformer = Salient(classes, width, depth, heads, expand, first, smoothing)
        wide = nn.Sequential(nn.Linear(width, expand * width), nn.GELU(), nn.Linear(expand * width, width))
        self.reuse = nn.Sequential(nn.LayerNorm(width), *wide) if reuse and stages > 1 else None
        self.register_buffer("thresholds", torch.ones(stages - 1, dtype=torch.float64))

    def _checked_keep(self, keep: Sequence[int] | None) -> tuple[int, ...]:
        newest, found = self.grids[0] ** 2, []
        if keep is not None and len(keep) != self.stages - 1:
            raise ShapeError(f"keep must have a number for each of {self.stages - 1} later stages, got {list(keep)}")
        for place in range(self.stages - 1):
            count = -(-newest // 2) if keep is None else keep[place]
            if not 1 <= count <= newest:
                raise ShapeError(f"stage {place + 1} can split 1 to {newest} tokens, got keep={count}")
            found.append(count)
            newest = 4 * count
        return tuple(found)

    def forward(self, pixels: Tensor, everything: bool = False) -> list[Float[Tensor, "b k"]]:
        """The logits of every stage, without exits. Arguments as for `scan`."""
        return [one.logits for one in self.scan(pixels, everything)]

    def scan(self, pixels: Tensor, everything: bool = False) -> list[Scan]:
        """Every stage, without exits, for training. pixels: as for `look`. everything: split all tokens, not only the
        most salient.
        """
        first, fine = self._source(pixels)
        rows, tokens, found = torch.arange(len(pixels), device=first.device), self._begin(first), []
        for stage in range(self.stages):
            last, count = stage + 1 == self.stages, tokens.newest.shape[1]
            seen = self.transformer(tokens.x, self.training or not last)
            found.append(Scan(seen.logits, seen.saliency[:, -count:], self._boxes(tokens.newest, stage)))
            if not last:
                chosen, rest = self._ranked(tokens, seen, count if everything else self.keep[stage])
                read = fine(rows, stage + 1, tokens.newest.gather(1, chosen))
                tokens = self._split(tokens, seen, stage + 1, chosen, rest, read)
        return found

    @property
    def patches(self) -> list[int]:
        """Patches of the whole image at each resolution."""
        return [grid**2 for grid in self.grids]

    @torch.no_grad()
    def read(self, pixels: Tensor) -> Float[Tensor, "b n f"]:
        """The stem's features of all patches: the coarsest in raster order, then of each next resolution those of each
        patch of the one before, four at a time. What training needs, computed once where the stem is slow.
        """
        check_pixels(pixels, self.channels, self.side)
        parts = [self.stem(self._coarse(pixels))]
        for stage in range(1, self.stages):
            every = torch.arange(self.patches[stage - 1], device=pixels.device).expand(len(pixels), -1)
            parts.append(self._crops(pixels, stage, every).flatten(1, 2))
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def look(self, pixels: Tensor, seed: int = 0) -> Looked:
        """Stage after stage, each for the images alone that no stage before it was sure of. pixels: (B, C, side, side),
        uint8 or floats in [0, 1], or what `read` makes of them. tokens: those that went through the transformer, one
        that is kept once for each stage.
        """
        first, crops = self._source(pixels)
        batch, slots = len(pixels), self.read_by
        logits = self.positions.new_zeros(batch, self.transformer.classify.out_features)
        features = logits.new_zeros(batch, slots[-1], self.transformer.width)
        boxes, stages = features.new_zeros(batch, slots[-1], 4), logits.new_full((batch, slots[-1]), -1).long()
        exits, rows = logits.new_zeros(batch).long(), torch.arange(batch, device=first.device)
        tokens = self._begin(first)
        for stage in range(self.stages):
            seen = self.transformer(tokens.x, stage + 1 < self.stages)
            logits[rows], exits[rows] = seen.logits, stage
            features[rows[:, None], tokens.slots] = seen.features
            new = slice(slots[stage - 1] if stage else 0, slots[stage])
            boxes[rows, new], stages[rows, new] = self._boxes(tokens.newest, stage), stage
            if stage + 1 == self.stages:
                break
            on = going_on(confidence(seen.logits), self.thresholds[stage]).nonzero()[:, 0]
            if not len(on):
                break
            rows, tokens, seen = rows[on], tokens.of(on), seen.of(on)
            chosen, rest = self._ranked(tokens, seen, self.keep[stage])
            fine = crops(rows, stage + 1, tokens.newest.gather(1, chosen))
            tokens = self._split(tokens, seen, stage + 1, chosen, rest, fine)
        spent, macs = exits.new_tensor(self.lengths).cumsum(0)[exits], exits.new_tensor(self.costs)[exits]
        return Looked(logits, features, boxes, stages, exits, spent, macs)

    def set_thresholds(self, thresholds: Sequence[float] | Tensor) -> None:
        """How sure each stage but the last must be, in [0, 1], for an image to stop there; at 1 none does. Raises
        ShapeError.
        """
        given = torch.as_tensor(thresholds, dtype=torch.float64)
        if given.shape != self.thresholds.shape or not bool(((given >= 0) & (given <= 1)).all()):
            raise ShapeError(f"expected {self.stages - 1} thresholds in [0, 1], got {given.tolist()}")
        self.thresholds.copy_(given)

    @property
    def lengths(self) -> list[int]:
        """Tokens that each stage reads, without the class token."""
        found = [self.patches[0]]
        for count in self.keep:
            found.append(found[-1] + 3 * count)
        return found

    @property
    def read_by(self) -> list[int]:
        """Patches that are read up to each stage, each counted once."""
        return [self.patches[0] + 4 * sum(self.keep[:stage]) for stage in range(self.stages)]

    @property
    def costs(self) -> list[int]:
        """Multiply-accumulates of an image that stops at each stage, exact: what a profiler counts."""
        width, total, found = self.transformer.width, 0, []
        for stage, length in enumerate(self.lengths):
            split = self.keep[stage - 1] if stage else 0
            side = self.patch * (2 + 2 * self.stem.margin if stage else self.grids[0])
            total += max(1, split) * self.stem.macs(side, side)
            total += (4 * split if stage else length) * self.stem.width * width
            total += 0 if self.reuse is None else split * 2 * self.transformer.expand * width**2
            total += self.transformer.macs(length, stage + 1 < self.stages)
            found.append(total)
        return found

    def full_macs(self, height: int, width: int) -> int:
        """Every patch at the finest resolution in one pass."""
        cells, side = self.patches[-1], self.patch * self.grids[-1]
        embedded = cells * self.stem.width * self.transformer.width
        return self.stem.macs(side, side) + embedded + self.transformer.macs(cells, False)

    def _source(self, pixels: Tensor) -> tuple[Tensor, Callable[[Tensor, int, Tensor], Tensor]]:
        """The coarsest features, and what gives those of some images' patches of a stage, by the patches before."""
        whole = (sum(self.patches), self.stem.width)
        if isinstance(pixels, Tensor) and pixels.shape[1:] == whole and pixels.is_floating_point():
            parts = pixels.split(self.patches, dim=1)
            return parts[0], lambda rows, stage, parents: parts[stage].unflatten(1, (-1, 4))[rows[:, None], parents]
        check_pixels(pixels, self.channels, self.side)
        return self.stem(self._coarse(pixels)), lambda rows, *what: self._crops(pixels[rows], *what)

    def _coarse(self, pixels: Tensor) -> Tensor:
        return F.avg_pool2d(floats_of(pixels, self.positions), 2 ** (self.stages - 1))

    def _crops(self, pixels: Tensor, stage: int, parents: Int[Tensor, "b k"]) -> Float[Tensor, "b k 4 f"]:
        """The stem's features of the four patches of a stage that each of these patches of the one before becomes."""
        grid, rows = self.grids[stage - 1], torch.arange(len(pixels), device=pixels.device)[:, None]
        coarser, margin = 2 ** (self.stages - 1 - stage), self.stem.margin
        edge, step = margin * self.patch * coarser, 2 * self.patch * coarser
        grey = 127 / 255 if pixels.is_floating_point() else 127  # 0 to a network, as what is beyond an edge
        windows = (
            F.pad(pixels, (edge,) * 4, value=grey).unfold(2, step + 2 * edge, step).unfold(3, step + 2 * edge, step)
        )
        crops = windows[rows, :, parents // grid, parents % grid].flatten(0, 1)
        read = self.stem(F.avg_pool2d(floats_of(crops, self.positions), coarser))
        cells = read.unflatten(1, (2 + 2 * margin, -1))[:, margin : margin + 2, margin : margin + 2]
        return cells.flatten(1, 2).unflatten(0, parents.shape)

    def _begin(self, features: Float[Tensor, "b n f"]) -> Tokens:
        every = torch.arange(self.patches[0], device=features.device).expand(len(features), -1)
        return Tokens(self._embedded(features, 0, every), every, every)

    def _embedded(self, features: Float[Tensor, "b n f"], stage: int, places: Int[Tensor, "b n"]) -> Tensor:
        grid = F.avg_pool2d(self.positions, 2 ** (self.stages - 1 - stage))[0].flatten(1).T + self.scales[stage]
        return self.embed(features.to(grid.dtype)) + grid[places]

    def _ranked(self, tokens: Tokens, seen: Stage, count: int) -> tuple[Tensor, Tensor]:
        """Which of the newest tokens to split, the most salient first, and which to keep, in order."""
        newest = seen.saliency[:, -tokens.newest.shape[1] :].detach()
        order = newest.argsort(dim=1, descending=True, stable=True)
        return order[:, :count], order[:, count:].sort(dim=1).values

    def _split(
        self, tokens: Tokens, seen: Stage, stage: int, chosen: Tensor, rest: Tensor, fine: Float[Tensor, "b k 4 f"]
    ) -> Tokens:
        """The tokens of a stage: those kept, and four for each that is split."""
        older, grid = tokens.x.shape[1] - tokens.newest.shape[1], self.grids[stage - 1]
        parents = tokens.newest.gather(1, chosen)
        quarter = torch.tensor((0, 1, 2 * grid, 2 * grid + 1), device=parents.device)
        corner = parents // grid * 4 * grid + parents % grid * 2
        newest = (corner[:, :, None] + quarter).flatten(1)
        x = self._embedded(fine.flatten(1, 2), stage, newest)
        if self.reuse is not None:
            known = seen.features.take_along_dim((older + chosen)[:, :, None], dim=1)
            x = x + self.reuse(known).repeat_interleave(4, dim=1)
        kept = torch.cat((torch.arange(older, device=rest.device).expand(len(rest), -1), older + rest), dim=1)
        slots = self.read_by[stage - 1] + torch.arange(newest.shape[1], device=newest.device).expand(len(newest), -1)
        return Tokens(
            torch.cat((tokens.x.take_along_dim(kept[:, :, None], dim=1), x), dim=1),
            torch.cat((tokens.slots.gather(1, kept), slots), dim=1),
            newest,
        )

    def _boxes(self, places: Int[Tensor, "b n"], stage: int) -> Float[Tensor, "b n 4"]:
        grid = self.grids[stage]
        x, y = places % grid, places // grid
        return torch.stack((x, y, x + 1, y + 1), dim=-1) / grid


def loss(logits: Sequence[Float[Tensor, "b k"]], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    """Cross-entropy of the last stage, and for each before it the divergence of its answer from the last one's."""
    goal = logits[-1].detach().log_softmax(dim=1)
    found = F.cross_entropy(logits[-1], labels)
    for early in logits[:-1]:
        found = found + F.kl_div(early.log_softmax(dim=1), goal, reduction="batchmean", log_target=True)
    return found
