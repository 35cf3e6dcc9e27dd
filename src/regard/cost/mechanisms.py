"""The mechanisms of `regard.mechanisms`, whose fields are theirs, with their defaults.

What each image cost is counted by the module itself as it looks (`Looked.macs`). Here is what can be known before:
where a mechanism stops when it is sure, `least` is the cost of an image that stops first and `cost` of one that never
does. The residual networks of the embedded eye (stem="embedded", backbone="efficientnet") are not modelled.
"""

from dataclasses import dataclass
from math import log2

from regard.cost.counted import Cost, total
from regard.cost.gaze import GazeTokens
from regard.cost.layers import mlp, self_attention, transformer_block
from regard.cost.parts import activation, attention, convolution, linear, norm, of_data, parameters
from regard.cost.pervit import convolutional_stem


def class_reader(tokens: int, dim: int, depth: int, heads: int, classes: int) -> Cost:
    """A class token before the tokens; in the last block it alone asks."""
    n = tokens + 1
    last = norm(n, dim) + linear(n, dim, 3 * dim) + attention(1, n, heads, dim // heads) + linear(1, dim, dim)
    last += norm(1, dim) + mlp(1, dim, 4 * dim)
    blocks = transformer_block(n, dim, heads, 4 * dim) * (depth - 1) + last.beside(n * dim)
    return parameters(dim) + blocks + norm(1, dim) + linear(1, dim, classes)


@dataclass(frozen=True)
class RAM:
    """RecurrentAttention: its cost does not depend on the size of the image. Of one run of `glimpses` glimpses."""

    classes: int = 10
    channels: int = 1
    glimpses: int = 6
    glimpse: int = 8
    scales: int = 1
    hidden: int = 256
    lstm: bool = False

    def tokens(self, side: int) -> int:
        """Patches that are read."""
        return self.glimpses * self.scales

    def cost(self, side: int) -> Cost:
        """The same for every side."""
        half, wide = self.hidden // 2, self.hidden
        seen = of_data(linear(1, self.scales * self.channels * self.glimpse**2, half))
        seen += activation(1, half) + linear(1, half, wide)
        seen += of_data(linear(1, 2, half)) + activation(1, half) + linear(1, half, wide) + activation(1, wide)
        core = linear(1, wide, 4 * wide) * 2 if self.lstm else linear(1, 2 * wide, wide) + activation(1, wide)
        known = (seen + core).again(self.glimpses)
        known += Cost(backward=-4 * wide * wide * self.lstm)  # what is known before the first glimpse is constant
        policy = of_data(linear(1, wide, 2) + linear(1, wide, 1))
        return known + policy.again(self.glimpses - 1) + linear(1, wide, self.classes)


@dataclass(frozen=True)
class Gaze:
    """GazeViT: tokens about a gaze, which a small network on the image at view x view pixels predicts."""

    classes: int = 10
    channels: int = 3
    dim: int = 128
    depth: int = 4
    heads: int = 4
    strides: tuple[int, ...] = (1, 2, 6)
    grids: tuple[int, ...] = (2, 3, 3)
    token: int = 16
    view: int = 64

    @property
    def count(self) -> int:
        """Tokens about a gaze."""
        return GazeTokens(self.strides, self.grids).count

    def tokens(self, side: int) -> int:
        """The same for every side."""
        return self.count

    def least(self, side: int) -> int:
        """With a gaze that is given."""
        return self._read().macs

    def cost(self, side: int) -> Cost:
        """The same for every side."""
        return self._glance() + self._read()

    def _read(self) -> Cost:
        embed = of_data(linear(self.count, self.channels * self.token**2, self.dim))
        slots = parameters(self.count * self.dim)
        return embed + slots + class_reader(self.count, self.dim, self.depth, self.heads, self.classes)

    def _glance(self) -> Cost:
        """A score and a place for each of 8 x 8 cells."""
        halvings, side, width, parts = int(log2(self.view / 8)), self.view, self.channels, []
        for turn in range(halvings):
            out = min(64, 12 * 2**turn)
            for into, stride in ((width, 2), (out, 1))[: 1 + (turn >= halvings - 2)]:
                before, side = side**2, side // stride
                layer = convolution(side**2, into, out, 3, bias=False, before=before)
                parts += [layer if parts else of_data(layer), norm(side**2, out), activation(side**2, out)]
            width = out
        return total(parts) + convolution(64, width, 3, 1)


@dataclass(frozen=True)
class FoveaTer:
    """FoveaTer with convolutions and square regions: fixations until it is sure."""

    classes: int = 10
    channels: int = 3
    dim: int = 96
    depth: int = 2
    heads: int = 4
    glimpses: int = 5
    fovea: int = 4
    levels: int = 5

    widths = (16, 32, 64, 96)

    @property
    def regions(self) -> int:
        """That are read in each fixation: the fovea's cells, and a ring about it for each level."""
        return self.fovea**2 + (self.levels - 1) * (self.fovea**2 - (self.fovea // 2) ** 2)

    def tokens(self, side: int) -> int:
        """Of all fixations; regions off the grid among them."""
        return self.glimpses * self.regions

    def least(self, side: int) -> int:
        """Of one fixation."""
        return self._cells(side).macs + self._fixation().macs

    def cost(self, side: int) -> Cost:
        """Of all fixations."""
        return self._cells(side) + self._fixation().again(self.glimpses)

    def _cells(self, side: int) -> Cost:
        return convolutional_stem(side, (self.channels, *self.widths), bias=False)

    def _fixation(self) -> Cost:
        read = linear(self.regions, self.widths[-1], self.dim) + parameters(self.regions * self.dim)
        return read + class_reader(self.regions, self.dim, self.depth, self.heads, self.classes)


@dataclass(frozen=True)
class Cascade:
    """The cascade on pixels: every stage splits the `keep` most salient tokens in four."""

    classes: int = 10
    channels: int = 1
    patch: int = 4
    stages: int = 2
    width: int = 64
    depth: int = 4
    heads: int = 4
    expand: int = 4
    first: int = 1

    def _lengths(self, side: int) -> tuple[list[int], list[int]]:
        """Tokens of each stage, and how many of the newest each splits: half of them, rounded up."""
        newest, lengths, keep = (side // self.patch // 2 ** (self.stages - 1)) ** 2, [], []
        lengths.append(newest)
        for _ in range(self.stages - 1):
            keep.append(-(-newest // 2))
            lengths.append(lengths[-1] + 3 * keep[-1])
            newest = 4 * keep[-1]
        return lengths, keep

    def tokens(self, side: int) -> int:
        """That the last stage reads."""
        return self._lengths(side)[0][-1]

    def least(self, side: int) -> int:
        """Of the first stage alone."""
        first = self._lengths(side)[0][0]
        return first * self.channels * self.patch**2 * self.width + self._stage(first, self.stages > 1).macs

    def cost(self, side: int) -> Cost:
        """Of all stages."""
        lengths, keep = self._lengths(side)
        into, seen = self.channels * self.patch**2, self._stage(lengths[0], self.stages > 1)
        parts = [of_data(linear(lengths[0], into, self.width)), seen]
        for place, count in enumerate(keep):
            reused = norm(count, self.width) + mlp(count, self.width, self.expand * self.width)
            stage = self._stage(lengths[place + 1], place + 2 < self.stages)
            alike = [of_data(linear(4 * count, into, self.width)), stage, *([reused] if place else [])]
            parts += [Cost(-one.params) + one for one in alike] + ([] if place else [reused])
        grid = side // self.patch
        return total(parts) + parameters((grid**2 + self.stages) * self.width)

    def _stage(self, tokens: int, salient: bool) -> Cost:
        n, wide = tokens + 1, self.width
        block = norm(n, wide) + self_attention(n, wide, self.heads) + norm(n, wide) + mlp(n, wide, self.expand * wide)
        rows = n * wide * (self.depth - self.first) if salient else 0
        cost = parameters(wide) + block.beside(n * wide) * self.depth + norm(n, wide) + linear(1, wide, self.classes)
        return cost + Cost(macs=rows)
