"""Tile scale: how an image is cut, what a resolution loses, and what a plan spends."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import BudgetError, DataError, Question, ShapeError, VisualTokens
from regard.relevance import tiles
from regard.relevance.budget import LADDER
from regard.relevance.realizer import Realizer, plan_tiles
from regard.relevance.tensions import States
from regard.relevance.ways import standardised
from relevance_toys import asking, drawn

few = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


@few
@given(seeds, st.sampled_from([(1, 1), (2, 3), (3, 2), (1, 7), (5, 1)]), st.floats(0, 1), st.booleans())
def test_a_plan_spends_rungs_and_leaves_less_than_a_step(seed: int, layout: tuple[int, int], share: float, ask: bool):
    tokens, count = drawn(seed, (1, 11, 13), seed % 2 == 0, d=5), math.prod(layout)
    budget = round(count * (64 + share * 336))
    plan = plan_tiles(tokens, asking(seed, 5) if ask else None, budget, layout=layout)
    assert set(plan.counts.flatten().tolist()) <= set(LADDER)
    for image in range(2):
        left = budget - int(plan.counts[image].sum())
        assert left >= 0
        assert left < 76 or set(plan.counts[image].tolist()) == {400}
    rows, columns = layout
    boxes = [(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r in range(rows) for c in range(columns)]
    for image in range(2):
        for box, want in zip(plan.boxes[image].tolist(), boxes, strict=True):
            assert box == pytest.approx(want, abs=1e-6)


def test_more_budget_is_more_for_each_tile():
    tokens = drawn(4, (1, 17, 19), d=5)
    held = States(0.5, 0.3, 0.4)
    before = torch.full((2, 6), 64)
    for budget in range(384, 2401, 211):
        counts = plan_tiles(tokens, asking(4, 5), budget, layout=(2, 3), states=held).counts
        assert (counts >= before).all()
        before = counts


def test_a_budget_between_the_limits_is_as_scarce_as_it_is_near_the_lower():
    class Watched(Realizer):
        def balance(self, seen, detail, diverse, valid, scarcity, states, gaze):
            heard.append(scarcity.tolist())
            return super().balance(seen, detail, diverse, valid, scarcity, states, gaze)

    heard: list[list[float]] = []
    for budget in (384, 636, 2400):
        plan_tiles(drawn(4, (1, 5, 7), d=5), None, budget, layout=(2, 3), realizer=Watched())
    assert heard == [[1, 1], [pytest.approx(0.875)] * 2, [0, 0]]


@pytest.mark.parametrize(
    ("grid", "budget", "aspect", "want"),
    [
        ((1, 32, 32), 64, 1.0, (1, 1)),
        ((1, 32, 32), 640, 1.0, (2, 2)),
        ((1, 32, 32), 1440, 1.0, (3, 3)),
        ((1, 16, 48), 480, 3.0, (1, 3)),
        ((1, 48, 16), 480, 1 / 3, (3, 1)),
        ((1, 32, 32), 960, 1.5, (2, 3)),
        ((1, 2, 2), 1600, 1.0, (2, 2)),
    ],
)
def test_tiles_are_nearly_square_and_of_about_160_tokens(grid, budget: int, aspect: float, want: tuple[int, int]):
    assert tiles.layout(grid, budget, aspect) == want
    tokens = VisualTokens.from_grid(torch.randn(1, grid[1] * grid[2], 3), grid[1:])
    assert plan_tiles(tokens, None, budget, aspect=aspect).counts.shape[1] == math.prod(want)


@few
@given(st.integers(1, 17), st.integers(1, 17), st.data())
def test_a_token_belongs_to_the_tile_of_its_middle_and_no_tile_is_empty(h: int, w: int, data):
    rows, columns = data.draw(st.integers(1, h)), data.draw(st.integers(1, w))
    tile = tiles.members((1, h, w), rows, columns).view(h, w)
    for r in range(h):
        for c in range(w):
            assert tile[r, c] == (2 * r + 1) * rows // (2 * h) * columns + (2 * c + 1) * columns // (2 * w)
    assert len(tile.unique()) == rows * columns


def test_the_fullest_quarter_speaks_for_a_tile():
    values = torch.rand(2, 3, 23, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tile = torch.randint(-1, 4, (2, 23), generator=torch.Generator().manual_seed(2))
    got = tiles.fullest(values, tile, 5)
    assert got[..., 4].abs().max() == 0
    for image, kind, t in np.ndindex(2, 3, 4):
        own = sorted(values[image, kind, tile[image] == t].tolist(), reverse=True)
        assert got[image, kind, t] == pytest.approx(np.mean(own[: math.ceil(len(own) / 4)]))


def area_average(x: np.ndarray, cells: int) -> np.ndarray:
    """The rows of x averaged over `cells` equal parts by area and spread back, in plain loops."""
    n = len(x)
    if cells >= n:
        return x
    held = np.zeros_like(x)
    for cell in range(cells):
        low, high = cell * n / cells, (cell + 1) * n / cells
        share = np.array([max(0.0, min(high, i + 1) - max(low, i)) for i in range(n)])
        mean = np.tensordot(share, x, axes=(0, 0)) / share.sum()
        held += share.reshape(-1, *[1] * (x.ndim - 1)) * mean
    return held


@pytest.mark.parametrize(("grid", "layout"), [((1, 23, 31), (1, 2)), ((1, 29, 19), (2, 1)), ((1, 40, 9), (1, 1))])
def test_what_a_rung_loses_is_what_area_averages_lose(grid, layout: tuple[int, int]):
    tokens = drawn(6, grid, d=3)
    x, (rows, columns) = standardised(tokens), layout
    tile = tiles.members(grid, rows, columns).expand(2, -1).clone()
    tile[1, 5] = -1
    got = tiles.losses(x, grid, rows, columns, tile)
    for image, (rung, size) in [(i, each) for i in range(2) for each in enumerate(LADDER)]:
        side, whole = math.isqrt(size), x[image].view(*grid[1:], 3).numpy()
        held = area_average(whole, rows * side).transpose(1, 0, 2)
        held = area_average(held, columns * side).transpose(1, 0, 2)
        lost = ((whole - held) ** 2).sum(axis=2).flatten()
        for t in range(rows * columns):
            assert got[image, t, rung] == pytest.approx(lost[tile[image].numpy() == t].sum(), abs=1e-9)
    assert (got[..., 0] > got[..., 3]).all()


def test_what_is_won_back_is_over_the_average_tile_or_guessed_from_variance():
    tokens, general = drawn(7, (1, 9, 9), d=3), torch.tensor([0.0, 0.4, 1.0]).double()
    x, tile = standardised(tokens), tiles.members((1, 9, 9), 1, 3).expand(2, -1).clone()
    tile[1, 5:20] = -1
    sums = torch.stack([torch.stack([x[i][tile[i] == t].sum(dim=0) for t in range(3)]) for i in range(2)])
    lost = torch.tensor([[[6.0, 7.0, 1.0], [4.0, 3.0, 0.0], [2.0, 2.0, 2.0]], [[0.0] * 3] * 3]).double()
    got = tiles.recovered(x, sums, tile, lost, general)
    assert got[0].flatten().tolist() == pytest.approx([0, 0, 5 / 3, 0, 1 / 3, 4 / 3, 0, 0, 0])
    own = [float(((y := x[1][tile[1] == t]) - y.mean(dim=0)).square().sum()) for t in range(3)]
    want = torch.tensor(own).double()[:, None] / (sum(own) / 3) * general
    torch.testing.assert_close(got[1], want)


def test_detail_gets_tokens_where_all_counts_for_detail():
    """One tile of four has fine texture, the others are flat."""
    x = torch.zeros(1, 32, 32, 5)
    x[0, :16, 16:] = torch.randn(16, 16, 5, generator=torch.Generator().manual_seed(1))
    tokens = VisualTokens.from_grid(x.flatten(1, 2), (32, 32))
    for prioritization in (0.0, 1.0):
        states = States(1.0, 0.0, prioritization)
        counts = plan_tiles(tokens, None, 600, layout=(2, 2), states=states).counts[0].tolist()
        assert counts[1] == 256  # 16 a side: each token of the texture by itself, and finer recovers nothing
        assert max(counts[:1] + counts[2:]) <= 144


def colours(h: int, w: int) -> VisualTokens:
    """Noise, with a red patch at the upper left and a blue one at the lower right."""
    x = torch.randn(1, h, w, 3, generator=torch.Generator().manual_seed(8)) * 0.05
    x[0, : h // 4, : w // 4, 0] += 1
    x[0, -(h // 4) :, -(w // 4) :, 2] += 1
    return VisualTokens.from_grid(x.flatten(1, 2), (h, w))


@pytest.mark.parametrize("side", [16, 48])
@pytest.mark.parametrize("scope", ["auto", 0.0, 0.5])
def test_the_question_moves_tokens_between_tiles(side: int, scope):
    states = States(scope, 0.0, 0.0)
    red, blue = (
        plan_tiles(colours(side, side), Question(torch.eye(3)[None, k : k + 1]), 900, layout=(2, 2), states=states)
        for k in (0, 2)
    )
    assert red.counts[0, 0] > red.counts[0, 3]
    assert blue.counts[0, 3] > blue.counts[0, 0]


def test_the_question_moves_tokens_where_tiles_hold_all_that_the_eye_saw():
    """Particularizing alone: the eye's grid is too coarse to say what a finer tile would show."""
    states = States(1.0, 0.0, 0.0)
    red, blue = (
        plan_tiles(colours(16, 16), Question(torch.eye(3)[None, k : k + 1]), 900, layout=(2, 2), states=states).counts
        for k in (0, 2)
    )
    assert red[0, 0] > red[0, 3]
    assert blue[0, 3] > blue[0, 0]


def test_what_cannot_be_planned_names_the_limits_and_the_nearest():
    tokens = drawn(1, (1, 4, 4), d=3)
    limits = "6 regions of 64 to 400 tokens take a budget from 384 to 2400"
    for budget, nearest in ((383, 384), (2401, 2400)):
        with pytest.raises(BudgetError, match=f"^{limits}, got {budget}: the nearest is {nearest}$"):
            plan_tiles(tokens, None, budget, layout=(2, 3))
    with pytest.raises(BudgetError, match="take a budget from 64 to 6400, got 63: the nearest is 64"):
        plan_tiles(tokens, None, 63)
    assert int(plan_tiles(tokens, None, 6400).counts.sum()) == 2 * 6400
    with pytest.raises(BudgetError, match="got 6500: the nearest is 6400$"):
        plan_tiles(tokens, None, 6500)
    for layout in ((0, 2), (5, 1), (1, 5)):
        with pytest.raises(ShapeError, match="tiles must be rows x columns within the grid of 4 x 4 tokens"):
            plan_tiles(tokens, None, 640, layout=layout)
    with pytest.raises(DataError, match="a grid of 2 frames"):
        plan_tiles(drawn(1, (2, 2, 2)), None, 640)
    with pytest.raises(DataError, match="grid"):
        plan_tiles(VisualTokens(tokens.features, tokens.boxes), None, 640)
    with pytest.raises(ShapeError, match="ask with the eye that looked"):
        plan_tiles(tokens, asking(1, 5), 640)
    tokens.features[1, 3] = torch.nan
    with pytest.raises(DataError, match="finite"):
        plan_tiles(tokens, None, 640)
