"""A quadtree over each image's valid tokens, as a line that every budget cuts further.

A region is a rectangle of the grid about its valid tokens; it splits into its quarters, in up to three steps that cost
one token each: first into the halves (upper and lower, or left and right) whose means differ more, then each half. So
any budget from 1 to N is met exactly, and regions of 1, 4, 16 tokens are those of a plain quadtree. An elongated region
splits along its longer side only, several frames between frames. Written as a line of tokens in which every region is
an interval, a split is one cut, and K tokens are the first K - 1 cuts of an order in which no region is cut before the
one that holds it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_HALVES = (  # of a node's quarters, by rows first and by columns first: its halves, and within each
    ((1, 1, 0, 0), (1, 0, 0, 0), (0, 0, 1, 0), (1, 0, 1, 0), (1, 0, 0, 0), (0, 1, 0, 0)),
    ((0, 0, 1, 1), (0, 1, 0, 0), (0, 0, 0, 1), (0, 1, 0, 1), (0, 0, 1, 0), (0, 0, 0, 1)),
)
_TIE = 1e-5  # of an energy, that rounding may decide
_STEPS = 1 << 32  # gains are compared as whole numbers, in parts of the image's largest, so that rounding decides none


@dataclass(frozen=True, eq=False)
class Quadtree:
    """The splits of all images of a batch, on one line of its M valid tokens, image after image.

    token: (M,), image * N + slot. image: (M,). begin: (B + 1,), where each image's tokens begin. The split before a
    place cuts the region [low, high) of the line, the depth-th of its path; a place that begins an image has none
    (depth -1). energy: what its two halves differ by, n1 n2 / (n1 + n2) |mean1 - mean2|^2; all of an image's sum to its
    squared distance from its mean.
    """

    token: Int[Tensor, " m"]
    image: Int[Tensor, " m"]
    begin: Int[Tensor, " b1"]
    low: Int[Tensor, " m"]
    high: Int[Tensor, " m"]
    depth: Int[Tensor, " m"]
    energy: Float[Tensor, " m"]

    @classmethod
    def of(cls, x: Float[Tensor, "b n d"], grid: tuple[int, int, int], valid: Bool[Tensor, "b n"]) -> "Quadtree":
        """x: what the energies are of. O(N D) time and memory, in one pass for each level of the tree."""
        batch, n = valid.shape
        token = valid.flatten().nonzero().squeeze(1)
        image, slot = token // n, token % n
        places = torch.stack((slot // (grid[1] * grid[2]), slot // grid[2] % grid[1], slot % grid[2]), dim=1)
        levels, node = _levels(places, image, batch)
        rows = x.flatten(0, 1)
        energies = _energies(rows if len(token) == len(rows) else rows.index_select(0, token), node, levels)
        return _line(token, image, batch, node, levels, energies)

    @property
    def real(self) -> Bool[Tensor, " m"]:
        """Where there is a split."""
        return self.depth >= 0

    def along(self, values: Float[Tensor, "b n"]) -> Float[Tensor, " m"]:
        """A value for each token, on the line."""
        return values.flatten()[self.token]

    def sums(self, values: Float[Tensor, " m"]) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """The sum of values on the line over the two parts of each split, lower part first."""
        total = torch.nn.functional.pad(values.double().cumsum(0), (1, 0))
        cut = torch.arange(len(self.low), device=self.low.device)
        return total[cut] - total[self.low], total[self.high] - total[cut]

    def order(self, gains: Float[Tensor, " m"]) -> Int[Tensor, " m"]:
        """The rank of each split in its image, 0 first; -1 at a place that begins an image.

        By falling slope of the tree's concave majorant: a region that gains little itself and much further down is
        worth the best average that begins with it. Ties go to the split higher up, then to the place on the line.
        """
        slopes = self._majorant(gains)
        key = (self.image << 39) | ((_STEPS - slopes) << 6) | self.depth.clamp(min=0)
        key = torch.where(self.real, key, (self.image << 39) - 1)
        order = key.sort(stable=True).indices
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        return rank - self.begin[self.image] - 1

    def groups(self, rank: Int[Tensor, " m"], budget: int, shape: torch.Size) -> Int[Tensor, "b n"]:
        """The output that each token goes to with `budget` tokens an image (or as many as it has), -1 where padded.

        rank: of the cuts, as `order` gives them. shape: (B, N).
        """
        made = rank < budget - 1
        region = made.cumsum(0) - 1
        region = region - region[self.begin[:-1].clamp(max=len(region) - 1)][self.image]
        group = torch.full((shape.numel(),), -1, device=region.device)
        group[self.token] = region
        return group.view(shape)

    def _majorant(self, gains: Float[Tensor, " m"]) -> Int[Tensor, " m"]:
        """Slopes as whole numbers: no split's is over that of the split above it."""
        gains = gains.detach().clamp(min=0).masked_fill(~self.real, 0)
        most = torch.zeros(len(self.begin) - 1, dtype=gains.dtype, device=gains.device)
        most = most.scatter_reduce(0, self.image, gains, "amax")[self.image]
        slopes = (gains / torch.where(most > 0, most, 1) * _STEPS).round().long()
        place = torch.arange(len(slopes), device=slopes.device)
        for depth in range(int(self.depth.max()) - 1, -1, -1):
            split = (self.depth == depth).nonzero().squeeze(1)
            if not len(split):
                continue
            low, high = self.low[split], self.high[split]  # disjoint and rising
            own = (torch.searchsorted(low, place, right=True) - 1).clamp(min=0)
            inside = (place > low[own]) & (place < high[own]) & (place != split[own])
            higher = inside & (slopes > slopes[split][own])
            if not bool(higher.any()):
                continue
            bad = torch.zeros(len(split), dtype=torch.bool, device=split.device)
            bad[own[higher]] = True
            member = (inside & bad[own]).nonzero().squeeze(1)
            best = _best_averages(slopes[member], own[member], slopes[split])
            slopes[split] = best
            slopes[member] = torch.minimum(slopes[member], best[own[member]])
        return slopes


def _best_averages(slopes: Int[Tensor, " k"], group: Int[Tensor, " k"], own: Int[Tensor, " g"]) -> Int[Tensor, " g"]:
    """For each group, the best mean of its own gain and any number of its largest members'."""
    order = ((group << 34) + (_STEPS - slopes)).sort().indices
    slopes, group = slopes[order], group[order]
    total = torch.nn.functional.pad(slopes.cumsum(0), (1, 0))
    start = torch.searchsorted(group, torch.arange(len(own), device=own.device))[group]
    count = torch.arange(len(group), device=own.device) - start + 1
    mean = (own[group] + total[start + count] - total[start]) // (count + 1)
    return own.scatter_reduce(0, group, mean, "amax")


@dataclass(frozen=True, eq=False)
class _Level:
    """How the nodes of one depth of the quadtree split. counts: (G, 4), tokens in each quarter (upper left, upper
    right, lower left, lower right). child: (G, 4), the node of each quarter one level down, -1 for an empty one.
    """

    counts: Int[Tensor, "g 4"]
    child: Int[Tensor, "g 4"]


def _levels(places: Int[Tensor, "m 3"], image: Int[Tensor, " m"], batch: int) -> tuple[list[_Level], Int[Tensor, " m"]]:
    """Every level from the whole images down, and each token's node at the end, its own."""
    node, nodes, levels = image, batch, []
    while True:
        wide = node[:, None].expand_as(places)
        low = places.new_full((nodes, 3), 1 << 30).scatter_reduce(0, wide, places, "amin")
        high = places.new_full((nodes, 3), -1).scatter_reduce(0, wide, places, "amax")
        if not bool((high > low).any()):
            return levels, node
        size = (high - low + 1).clamp(min=0)
        several, h, w = size[:, 0] > 1, size[:, 1], size[:, 2]
        upper = places >= (low + (size + 1) // 2)[node]
        by_row, by_column = upper[:, 1] & (2 * h > w)[node], upper[:, 2] & (2 * w > h)[node]
        quarter = torch.where(several[node], 2 * upper[:, 0].long(), 2 * by_row.long() + by_column)
        slot = 4 * node + quarter
        counts = slot.bincount(minlength=4 * nodes)
        child = torch.where(counts > 0, (counts > 0).cumsum(0) - 1, -1)
        levels.append(_Level(counts.view(nodes, 4), child.view(nodes, 4)))
        node, nodes = child[slot], int((counts > 0).sum())


def _energies(
    x: Float[Tensor, "m d"], node: Int[Tensor, " m"], levels: list[_Level]
) -> list[tuple[Float[Tensor, "g 2 3"], Bool[Tensor, " g"]]]:
    """For each level: what the three splits of a node differ by, by rows first or by columns first, (G, 2, 3), and
    whether rows come first. Bottom up, from the sums of quarters.
    """
    sums = torch.empty_like(x).index_copy_(0, node, x)
    found = []
    for level in reversed(levels):
        inner = ((level.child >= 0).sum(dim=1) > 1).nonzero().squeeze(1)
        counts, child = level.counts[inner], level.child[inner]
        parts = sums.index_select(0, child.clamp(min=0).flatten()).unflatten(0, (-1, 4))
        if bool((child < 0).any()):
            parts.masked_fill_((child < 0)[..., None], 0)
        energy = x.new_zeros(len(level.child), 2, 3, dtype=torch.float64)
        energy[inner] = _between(parts, counts)
        rows_first = (energy[:, 0, 0] >= energy[:, 1, 0] * (1 - _TIE)) & (level.counts[:, 2:].sum(dim=1) > 0)
        found.append((energy, rows_first))
        whole = (parts[:, 0] + parts[:, 1]) + (parts[:, 2] + parts[:, 3])
        if len(inner) < len(level.child):  # a node of one child is that child
            whole = sums.index_select(0, level.child.amax(dim=1)).index_copy_(0, inner, whole)
        sums = whole
    return found[::-1]


def _between(parts: Float[Tensor, "g 4 d"], counts: Int[Tensor, "g 4"]) -> Float[Tensor, "g 2 3"]:
    """n1 n2 / (n1 + n2) |mean1 - mean2|^2 between halves, and within each half between its quarters: by rows first, and
    by columns first. parts: sums of quarters, of as many tokens as counts.
    """
    one, two = (torch.tensor(sides, device=parts.device) for sides in _HALVES)
    n1, n2 = (counts[:, None] * one).sum(dim=2), (counts[:, None] * two).sum(dim=2)
    per = one / n1.clamp(min=1)[..., None] - two / n2.clamp(min=1)[..., None]
    apart = torch.linalg.vector_norm(torch.bmm(per.to(parts.dtype), parts), dim=2).double().square()
    return (apart * (n1 * n2).double() / (n1 + n2).clamp(min=1)).unflatten(1, (2, 3))


def _line(
    token: Tensor,
    image: Tensor,
    batch: int,
    node: Tensor,
    levels: list[_Level],
    energies: list[tuple[Tensor, Tensor]],
) -> Quadtree:
    """Lay the tokens on the line from the top down, and note each split where it cuts."""
    m, device = len(token), token.device
    begin = torch.nn.functional.pad(image.bincount(minlength=batch).cumsum(0), (1, 0))
    low, high = torch.zeros(m, dtype=torch.long, device=device), torch.zeros(m, dtype=torch.long, device=device)
    depth, energy = torch.full_like(low, -1), torch.zeros(m, dtype=torch.float64, device=device)
    start = begin[:-1]
    by_rows, by_columns = (torch.tensor(order, device=device) for order in ((0, 1, 2, 3), (0, 2, 1, 3)))
    for number, (level, (found, rows_first)) in enumerate(zip(levels, energies, strict=True)):
        order = torch.where(rows_first[:, None], by_rows, by_columns)
        count = level.counts.gather(1, order)
        end = start[:, None] + count.cumsum(dim=1)
        gain = torch.where(rows_first[:, None], found[:, 0], found[:, 1])
        starts = end - count
        half, whole = end[:, 1], end[:, 3]
        for lower, cut, upper, which in (
            (start, half, whole, 0),
            (start, end[:, 0], half, 1),
            (half, end[:, 2], whole, 2),
        ):
            real = (lower < cut) & (cut < upper)
            at = cut[real]
            low[at], high[at], energy[at] = lower[real], upper[real], gain[real, which]
            depth[at] = 2 * number + (which > 0)
        below = starts.new_empty(int(level.child.max()) + 1)
        child = level.child.gather(1, order)
        below[child[child >= 0]] = starts[child >= 0]
        start = below
    line = torch.empty_like(token)
    line[start[node]] = token
    return Quadtree(line, image, begin, low, high, depth, energy)
