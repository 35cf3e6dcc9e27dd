"""The quadtree on its line, against one built by recursion, and its order against all prunings."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import Question, VisualTokens
from regard.allocate import load
from regard.relevance.quadtree import Quadtree
from regard.relevance.ways import standardised
from relevance_toys import asking, drawn

few = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
GRIDS = [(1, 5, 7), (1, 8, 8), (1, 3, 11), (2, 3, 5), (5, 2, 3), (1, 1, 13), (1, 13, 1), (1, 1, 1), (7, 1, 1)]
Region = tuple[int, ...]


def built(seed: int, grid: tuple[int, int, int], masked: bool, kept: float = 0.75):
    tokens = drawn(seed, grid, masked, d=4, batch=3, kept=kept)
    x = standardised(tokens)
    return Quadtree.of(x, grid, tokens.valid), x.numpy(), tokens.valid.numpy()


def splits(tree: Quadtree, image: int, n: int) -> dict[Region, tuple[Region, Region, int]]:
    """Each region that is cut, its two parts and the place of the cut, tokens as sorted slots."""
    slots = (tree.token - image * n).tolist()
    found = {}
    for place in range(int(tree.begin[image]), int(tree.begin[image + 1])):
        if tree.depth[place] >= 0:
            low, high = int(tree.low[place]), int(tree.high[place])
            parts = [tuple(sorted(slots[a:b])) for a, b in ((low, high), (low, place), (place, high))]
            assert parts[0] not in found
            found[parts[0]] = (parts[1], parts[2], place)
    return found


def between(x: np.ndarray, one: Region, other: Region) -> float:
    a, b = x[list(one)], x[list(other)]
    return len(a) * len(b) / (len(a) + len(b)) * float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum())


def reference(x: np.ndarray, grid: tuple[int, int, int], slots: Region) -> dict[Region, tuple[Region, Region]]:
    """The tree of one image by recursion, from the description of it."""
    if len(slots) < 2:
        return {}
    place = {i: np.array([i // (grid[1] * grid[2]), i // grid[2] % grid[1], i % grid[2]]) for i in slots}
    low, high = np.min(list(place.values()), axis=0), np.max(list(place.values()), axis=0)
    size = high - low + 1
    middle = low + (size + 1) // 2

    def halved(among: Region, axis: int) -> tuple[Region, Region]:
        return (
            tuple(i for i in among if place[i][axis] < middle[axis]),
            tuple(i for i in among if place[i][axis] >= middle[axis]),
        )

    axes = [axis for axis, other in ((1, 2), (2, 1)) if 2 * size[axis] > size[other]]
    axes = [0] if size[0] > 1 else axes
    ways = [halved(slots, axis) for axis in axes]
    energies = [between(x, *parts) if all(parts) else 0.0 for parts in ways]
    first = int(np.argmax(energies)) if len(axes) == 2 else 0
    if not all(ways[first]):
        first = 1 - first
    found: dict[Region, tuple[Region, Region]] = {slots: ways[first]}
    for half in ways[first]:
        quarters = halved(half, axes[1 - first]) if len(axes) == 2 else (half, ())
        if all(quarters):
            found[half] = quarters
        for quarter in quarters:
            found |= reference(x, grid, quarter)
    return found


@few
@given(seeds, st.sampled_from(GRIDS), st.booleans(), st.sampled_from([0.2, 0.75, 0.95]))
def test_the_tree_is_the_one_that_recursion_builds(seed: int, grid, masked: bool, kept: float):
    tree, x, valid = built(seed, grid, masked, kept)
    for image in range(3):
        slots = tuple(np.flatnonzero(valid[image]).tolist())
        found = splits(tree, image, valid.shape[1])
        assert len(found) == len(slots) - 1
        want = reference(x[image], grid, slots)
        assert {region: parts[:2] for region, parts in found.items()} == want
        for one, other, place in found.values():
            assert float(tree.energy[place]) == pytest.approx(between(x[image], one, other), rel=1e-6, abs=1e-9)
        away = x[image][list(slots)] - x[image][list(slots)].mean(axis=0)
        begin, end = int(tree.begin[image]), int(tree.begin[image + 1])
        assert float(tree.energy[begin:end].sum()) == pytest.approx(float((away**2).sum()), rel=1e-6, abs=1e-9)
    assert tree.real.sum() == valid.sum() - 3


@few
@given(seeds, st.sampled_from(GRIDS), st.booleans())
def test_every_region_is_a_rectangle_of_one_frame_or_whole_frames(seed: int, grid, masked: bool):
    tree, _, valid = built(seed, grid, masked)
    shape = valid.reshape(3, *grid)
    for image in range(3):
        for one, other, _ in splits(tree, image, valid.shape[1]).values():
            for region in (one, other, (*one, *other)):
                t, r, c = np.unravel_index(list(region), grid)
                inside = shape[image, t.min() : t.max() + 1, r.min() : r.max() + 1, c.min() : c.max() + 1]
                assert inside.sum() == len(region)
                if t.min() != t.max():
                    assert shape[image, t.min() : t.max() + 1].sum() == len(region)


@few
@given(seeds, st.sampled_from(GRIDS), st.booleans(), st.sampled_from(["normal", "heavy", "ties", "none", "deep"]))
def test_no_region_is_cut_before_the_one_that_holds_it(seed: int, grid, masked: bool, kind: str):
    tree, _, valid = built(seed, grid, masked)
    gains = gains_of(seed, tree, kind)
    rank = tree.order(gains)
    for image in range(3):
        begin, end = int(tree.begin[image]), int(tree.begin[image + 1])
        assert sorted(rank[begin:end].tolist()) == list(range(-1, end - begin - 1))
        assert rank[begin] == -1
        found = splits(tree, image, valid.shape[1])
        for one, other, place in found.values():
            for part in (one, other):
                assert part not in found or rank[found[part][2]] > rank[place]


def gains_of(seed: int, tree: Quadtree, kind: str) -> torch.Tensor:
    gains = torch.rand(len(tree.low), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {
        "normal": gains,
        "heavy": gains**9 * 1e5,
        "ties": (gains * 3).floor(),
        "none": gains * 0,
        "deep": gains * 2.0 ** tree.depth.clamp(min=0),
    }[kind]


def prunings(found, gains: list[float], region: Region) -> list[tuple[int, float]]:
    """The count of leaves and the value of every pruning of a region's tree."""
    every = [(1, 0.0)]
    if region in found:
        one, other, place = found[region]
        for (k1, v1), (k2, v2) in itertools.product(*(prunings(found, gains, part) for part in (one, other))):
            every.append((k1 + k2, v1 + v2 + gains[place]))
    return every


def corners(best: list[float], rounding: float) -> list[int]:
    """Where the line through the best values (of 1, 2, ... tokens) has a corner of its concave majorant."""
    n = len(best)
    return [
        k
        for k in range(n)
        if all(
            best[k] > best[i] + (best[j] - best[i]) * (k - i) / (j - i) + rounding
            for i in range(k)
            for j in range(k + 1, n)
        )
    ]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seeds,
    st.sampled_from([(1, 3, 3), (1, 2, 4), (1, 1, 7), (1, 8, 1), (2, 2, 2), (1, 4, 4)]),
    st.booleans(),
    st.sampled_from(["normal", "heavy", "ties", "deep"]),
)
def test_the_order_is_the_best_of_all_prunings_where_it_cuts_no_bundle(seed: int, grid, masked: bool, kind: str):
    masked = masked or math.prod(grid) > 9
    tree, _, valid = built(seed, grid, masked, kept=0.5)
    gains = gains_of(seed, tree, kind)
    rank = tree.order(gains)
    for image in range(3):
        found, values = splits(tree, image, valid.shape[1]), gains.tolist()
        slots = tuple(np.flatnonzero(valid[image]).tolist())
        if len(slots) > 9:
            continue
        every = prunings(found, values, slots)
        best = [max(v for k, v in every if k == count + 1) for count in range(len(slots))]
        most = max(best)
        got = [sum(values[p] for *_, p in found.values() if rank[p] < count) for count in range(len(slots))]
        met = corners(best, most * 1e-7)
        assert {0, len(slots) - 1} <= set(met)
        for count in range(len(slots)):
            assert got[count] <= best[count] + most * 1e-7
            if count in met:
                assert got[count] == pytest.approx(best[count], abs=most * 1e-7)


def test_a_quadtree_of_equals_is_cut_level_by_level_in_the_order_of_the_line():
    tokens = VisualTokens.from_grid(torch.ones(1, 64, 3), (8, 8))
    tree = Quadtree.of(standardised(tokens), (1, 8, 8), tokens.valid)
    rank = tree.order(torch.zeros(64).double())
    order = rank.argsort()[1:]
    assert tree.depth[order].diff().min() == 0
    levels = [order[tree.depth[order] == depth] for depth in range(6)]
    assert [len(level) for level in levels] == [1, 2, 4, 8, 16, 32]
    assert all((level.diff() > 0).all() for level in levels)
    for tokens_, side in ((4, 4), (16, 2)):
        region = torch.empty(64, dtype=torch.long)
        region[tree.token] = (rank < tokens_ - 1).cumsum(0)
        blocks = region.view(8 // side, side, 8 // side, side).transpose(1, 2).flatten(2)
        assert (blocks == blocks[..., :1]).all()
        assert len(blocks[..., 0].unique()) == tokens_


def test_a_longer_side_is_cut_alone():
    for grid, first in (((1, 2, 8), 4), ((1, 4, 8), 4), ((1, 8, 2), 4), ((1, 8, 4), 4)):
        x = torch.zeros(1, *grid[1:], 1).double()
        x[:, :, ::2], x[:, ::2] = x[:, :, ::2] + 1, x[:, ::2] + 2
        x[0, 0, 0] = 9
        tree = Quadtree.of(x.flatten(1, 2), grid, torch.ones(1, math.prod(grid), dtype=torch.bool))
        place = int((tree.depth == 0).nonzero())
        along = tree.token[:place] % grid[2] if grid[2] > grid[1] else tree.token[:place] // grid[2]
        assert place == math.prod(grid) // 2
        assert sorted(set(along.tolist())) == list(range(first))


TURNS = {
    "upside down": lambda a: a.flip(1),
    "mirrored": lambda a: a.flip(2),
    "turned": lambda a: a.rot90(1, (1, 2)),
    "transposed": lambda a: a.transpose(1, 2),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("prioritization", [0.0, "auto"])
def test_a_turned_image_has_the_turned_allocation(turn: str, prioritization):
    relevance = load("relevance", prioritization=prioritization)

    def spent(image: torch.Tensor, question: Question | None, budget: int) -> torch.Tensor:
        tokens = VisualTokens.from_grid(image.flatten(1, 2), (image.shape[1], image.shape[2]))
        return relevance.allocate(tokens, question, budget).spent().view(image.shape[:3])

    for (h, w), question in (((4, 4), None), ((8, 8), asking(7, 23)), ((4, 8), asking(8, 23))):
        x = torch.randn(2, h, w, 23, generator=torch.Generator().manual_seed(h + w), dtype=torch.float64)
        turned = TURNS[turn](x).contiguous()
        for budget in (3, 7, 13):
            assert spent(turned, question, budget).equal(TURNS[turn](spent(x, question, budget)))
