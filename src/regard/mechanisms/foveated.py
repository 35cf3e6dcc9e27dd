"""FoveaTer, a foveated transformer (Jonnalagadda et al., arXiv 2105.14173): it fixates until it is sure.

    z_r = mean of the backbone's features over region r about the fixation
    p_t = softmax(mean over fixations so far of ViT([class, z_1 ... z_R]))
    next fixation = centre of the region that the class token attends to most, away from all past ones
    stop when max p_t >= threshold

No code is published; ours is written from the abstract. The regions are cells in the middle and double in size
outwards (`regions="square"` or `"polar"`); their means are one sum by index for the whole batch; and images that have
stopped leave the batch. The twin, regions="all", reads every cell once.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.errors import ModelError, ShapeError
from regard.eyes.efficientnet import MIDDLE, EfficientNetLite0
from regard.mechanisms._reader import ClassReader, Read, positions
from regard.mechanisms._regions import Pooled, about, count_of, held, pooled, regions
from regard.mechanisms.looker import Looked, Looker, check_fixations, check_pixels, check_sizes, floats_of

STRIDE = 16  # pixels of a cell's side


class Convolutions(nn.Module):
    """Four convolutions of stride 2, trained with all else: pixels in [0, 1] to 96 features a cell."""

    width = 96

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths, layers = (channels, 16, 32, 64, self.width), []
        for into, out in pairwise(widths):
            layers += [nn.Conv2d(into, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Features of each cell of 16 x 16 pixels."""
        return self.layers(pixels * 2 - 1)

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of an image of height x width pixels."""
        total = 0
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                height, width = -(-height // 2), -(-width // 2)
                total += layer.weight.numel() * height * width
        return total


class Frozen:
    """The blocks of stride 16 of the embedded eye's EfficientNet-Lite0, as they are: 112 features a cell."""

    width = 112

    def __init__(self, channels: int) -> None:
        if channels != 3:
            raise ShapeError(f"the backbone 'efficientnet' reads 3 channels, got {channels}: take 'convolutions'")
        self.net = EfficientNetLite0.installed()

    @torch.no_grad()
    def __call__(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        height, width = pixels.shape[2:]
        padded = F.pad(pixels, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        return self.net.cells((padded.cpu() * 255 - 127) / 128, MIDDLE).to(pixels.device)

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of an image of height x width pixels."""
        return self.net.cells_macs(height + -height % STRIDE, width + -width % STRIDE, MIDDLE)


@dataclass(frozen=True, eq=False)
class Glimpse:
    """One fixation. at: (B, 2). region: (B, h * w), of each cell. means: over the regions. read: of the transformer."""

    at: Float[Tensor, "b 2"]
    region: Int[Tensor, "b n"]
    regions: Pooled
    read: Read


class FoveaTer(Looker):
    """glimpses: fixations of an image at most. threshold: of the largest probability, from which on it stops;
    above 1 it never does.

    fovea, levels: of `_regions.regions`. inhibit: how near to a past fixation the next may not be, in parts of the
    image's side. backbone: "convolutions", trained with it, or "efficientnet", the embedded eye's, frozen.
    """

    name = "foveater"

    def __init__(
        self,
        classes: int = 10,
        channels: int = 3,
        dim: int = 96,
        depth: int = 2,
        heads: int = 4,
        glimpses: int = 5,
        threshold: float = 0.9,
        regions: Literal["square", "polar", "all"] = "square",
        fovea: int = 4,
        levels: int = 5,
        inhibit: float = 0.06,
        backbone: Literal["convolutions", "efficientnet"] = "convolutions",
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, depth=depth, heads=heads, glimpses=glimpses)
        if not 0 < inhibit < 1 or not threshold >= 0:
            got = f"inhibit={inhibit} and threshold={threshold}"
            raise ShapeError(f"inhibit must be in (0, 1) and threshold 0 or more, got {got}")
        if backbone not in ("convolutions", "efficientnet"):
            raise ModelError(f"no backbone is named {backbone!r}: there are convolutions, efficientnet")
        self.channels, self.threshold, self.inhibit = channels, threshold, inhibit
        self.kind, self.fovea, self.levels = regions, fovea, levels
        self.glimpses = 1 if regions == "all" else glimpses
        self.backbone = Convolutions(channels) if backbone == "convolutions" else Frozen(channels)
        self.project = nn.Linear(self.backbone.width, dim)
        count = 0 if regions == "all" else count_of(regions, fovea, levels)
        self.slots = nn.Parameter(torch.randn(count, dim) * 0.02)
        self.reader = ClassReader(dim, depth, heads, classes)

    def features(self, pixels: Tensor) -> tuple[Float[Tensor, "b n c"], tuple[int, int]]:
        """What the backbone makes of pixels, cells in raster order, and the grid (h, w). Once for all fixations."""
        check_pixels(pixels, self.channels)
        maps = self.backbone(floats_of(pixels, self.project.weight))
        return maps.flatten(2).transpose(1, 2), (maps.shape[2], maps.shape[3])

    def glimpse(self, cells: Float[Tensor, "b n c"], grid: tuple[int, int], at: Float[Tensor, "b 2"]) -> Glimpse:
        """What is seen from a fixation (x, y) in [-1, 1]."""
        if self.kind == "all":
            count = cells.shape[1]
            region = torch.arange(count, device=cells.device).expand(len(cells), -1)
        else:
            region = about(regions(self.kind, *grid, self.fovea, self.levels), at)
            count = len(self.slots)
        found = pooled(cells, region, count, grid)
        tokens = self.project(found.means) + positions(found.centres, self.reader.dim)
        if self.kind == "all":
            return Glimpse(at, region, found, self.reader(tokens))
        return Glimpse(at, region, found, self.reader(tokens + self.slots, found.sizes > 0))

    def next(self, seen: Glimpse, past: Float[Tensor, "b t 2"]) -> tuple[Float[Tensor, "b 2"], Bool[Tensor, " b"]]:
        """Where to look next, x and y in [-1, 1], and whether there is a region away from all past fixations."""
        centres = seen.regions.centres * 2 - 1
        away = (centres[:, :, None] - past[:, None]).abs().amax(dim=-1) > 2 * self.inhibit
        free = away.all(dim=-1) & (seen.regions.sizes > 0)
        best = seen.read.attention.masked_fill(~free, -1).argmax(dim=1)
        return centres[torch.arange(len(best), device=best.device), best].detach(), free.any(dim=1)

    def scan(self, cells: Float[Tensor, "b n c"], grid: tuple[int, int], at: Float[Tensor, "b 2"]) -> list[Glimpse]:
        """All fixations of all images from a first one on, without stopping, for training."""
        seen, past = [], at[:, None]
        for _ in range(self.glimpses):
            seen.append(self.glimpse(cells, grid, past[:, -1]))
            past = torch.cat((past, self.next(seen[-1], past)[0][:, None]), dim=1)
        return seen

    def look(self, pixels: Tensor, seed: int = 0) -> Looked:
        """First at the middle of each image."""
        return self._looked_from(pixels, None)

    def look_at(self, pixels: Tensor, fixations: Float[Tensor, "b 2"], seed: int = 0) -> Looked:
        """First at these places. Raises ShapeError, and ModelError for the twin."""
        return self._looked_from(pixels, fixations)

    def _looked_from(self, pixels: Tensor, fixations: Float[Tensor, "b 2"] | None) -> Looked:
        cells, grid = self.features(pixels)
        height, width = pixels.shape[2:]
        share = (width / (STRIDE * grid[1]), height / (STRIDE * grid[0]))
        return self.look_on(cells, grid, self.backbone.macs(height, width), fixations, share)

    def look_on(
        self,
        cells: Float[Tensor, "b n c"],
        grid: tuple[int, int],
        macs: int,
        fixations: Float[Tensor, "b 2"] | None = None,
        share: tuple[float, float] = (1.0, 1.0),
    ) -> Looked:
        """As `look` and `look_at`, at what the backbone made of the pixels before, for so many multiply-accumulates an
        image. share: of the grid's width and height that the image fills, the rest being beyond its edges.
        """
        batch = len(cells)
        if fixations is not None and self.kind == "all":
            raise ModelError("the twin that reads all cells takes no fixation: look without one")
        at = cells.new_zeros(batch, 2) if fixations is None else fixations
        check_fixations(at, batch)
        at = (at + 1) * at.new_tensor(share) - 1  # places on the grid from here on
        past, active, turns, sums = at[:, None], torch.arange(batch, device=at.device), [], at.new_zeros(())
        for turn in range(self.glimpses):
            seen = self.glimpse(cells, grid, past[:, -1])
            sums = sums + seen.read.logits
            turns.append((active, seen, sums / (turn + 1)))
            following, free = self.next(seen, past)
            on = free & ((sums / (turn + 1)).softmax(dim=1).amax(dim=1) < self.threshold)
            if turn + 1 == self.glimpses or not bool(on.any()):
                break
            past = torch.cat((past, following[:, None]), dim=1)[on]
            active, cells, sums = active[on], cells[on], sums[on]
        return self._looked(turns, batch, grid, macs, share)

    def glimpse_macs(self, cells: int) -> int:
        """Multiply-accumulates of one fixation: of the transformer, and of what comes before it."""
        count = cells if self.kind == "all" else len(self.slots)
        return count * self.project.weight.numel() + self.reader.macs(count)

    def full_macs(self, height: int, width: int) -> int:
        """Of the twin."""
        cells = -(-height // STRIDE) * -(-width // STRIDE)
        return self.backbone.macs(height, width) + cells * self.project.weight.numel() + self.reader.macs(cells)

    def _looked(
        self,
        turns: list[tuple[Tensor, Glimpse, Tensor]],
        batch: int,
        grid: tuple[int, int],
        macs: int,
        share: tuple[float, float],
    ) -> Looked:
        """turns: the images that looked in each, what they saw, and their logits after it."""
        first, count = turns[0][1], turns[0][1].regions.sizes.shape[1]
        logits = torch.zeros_like(first.read.logits)
        features = first.read.tokens.new_zeros(batch, len(turns), count, self.reader.dim)
        boxes = features.new_zeros(batch, len(turns), count, 4)
        stages = features.new_full((batch, len(turns), count), -1, dtype=torch.long)
        fixations = features.new_full((batch, len(turns), 2), torch.nan)
        exits = features.new_zeros(batch, dtype=torch.long)
        for turn, (active, seen, now) in enumerate(turns):
            logits[active], exits[active] = now, turn
            features[active, turn], boxes[active, turn] = seen.read.tokens, held(seen.region, count, grid)
            stages[active, turn] = torch.where(seen.regions.sizes > 0, turn, -1)
            fixations[active, turn] = (seen.at + 1) / 2
        whole = boxes.new_tensor(share)
        return Looked(
            logits,
            features.flatten(1, 2),
            (boxes / whole.repeat(2)).clamp(0, 1).flatten(1, 2),
            stages.flatten(1),
            exits,
            (stages >= 0).sum(dim=(1, 2)),
            macs + (exits + 1) * self.glimpse_macs(grid[0] * grid[1]),
            None if self.kind == "all" else (fixations / whole).clamp(0, 1),
        )
