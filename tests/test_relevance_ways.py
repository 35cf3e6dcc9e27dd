"""Two ways and the field, against the formulas in plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import VisualTokens
from regard.relevance.ways import Field, acuity, perspectival, propositional, robust_scores, standardised
from relevance_toys import GRIDS, drawn

few = settings(max_examples=12, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def lower_median(values: list[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]


def reference_standardised(x: np.ndarray, valid: np.ndarray) -> np.ndarray:
    away = np.where(valid[:, None], x - x[valid].mean(axis=0), 0)
    return away / np.sqrt((away[valid] ** 2).mean())


def reference_propositional(x: np.ndarray, grid: tuple[int, int, int], valid: np.ndarray) -> np.ndarray:
    frames, h, w = grid
    at = {(t, r, c): (t * h + r) * w + c for t in range(frames) for r in range(h) for c in range(w)}
    error = np.zeros(len(x))
    for (t, r, c), i in at.items():
        around = [at.get((t, r + dr, c + dc)) for dr in (-1, 0, 1) for dc in (-1, 0, 1) if dr or dc]
        others = [x[j] for j in around if j is not None and valid[j]]
        if others:
            error[i] = ((x[i] - np.mean(others, axis=0)) ** 2).sum() / x.shape[1]
    bits = 0.5 * np.log2(1 + error / (lower_median(list(error[valid])) + 1e-6))
    return np.where(valid, bits / (1 + bits), 0)


@few
@given(seeds, st.sampled_from(GRIDS), st.booleans())
def test_propositional_is_the_surprise_of_each_token_given_its_neighbours(seed: int, grid, masked: bool):
    tokens = drawn(seed, grid, masked)
    x = standardised(tokens)
    got = propositional(x, grid, tokens.valid)
    assert ((got >= 0) & (got < 1)).all()
    for image in range(2):
        valid = tokens.valid[image].numpy()
        features = np.where(valid[:, None], tokens.features[image].numpy(), 0)
        if valid.sum() > 1:
            features = reference_standardised(features, valid)
            np.testing.assert_allclose(x[image], features, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(got[image], reference_propositional(features, grid, valid), atol=1e-9)


def reference_perspectival(x: np.ndarray, grid: tuple[int, int, int], valid: np.ndarray) -> np.ndarray:
    places = [(t, r, c) for t in range(grid[0]) for r in range(grid[1]) for c in range(grid[2])]

    def blur(values: np.ndarray, deviation: float) -> np.ndarray:
        weights = np.zeros((len(x), len(x)))
        for i, (t, r, c) in enumerate(places):
            for j, (u, s, d) in enumerate(places):
                if t == u and valid[j]:
                    weights[i, j] = math.exp(-((r - s) ** 2 + (c - d) ** 2) / (2 * deviation**2))
        return weights @ values / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)

    contrast = np.where(valid, ((blur(x, 1) - blur(x, 5)) ** 2).sum(axis=1), 0)
    return np.where(valid, contrast / (contrast + blur(contrast[:, None], 5)[:, 0] + 1e-6), 0)


@few
@given(seeds, st.sampled_from(GRIDS), st.booleans())
def test_perspectival_is_centre_surround_over_what_is_around(seed: int, grid, masked: bool):
    tokens = drawn(seed, grid, masked)
    x = standardised(tokens)
    got = perspectival(x, grid, tokens.valid)
    assert ((got >= 0) & (got < 1)).all()
    for image in range(2):
        want = reference_perspectival(x[image].numpy(), grid, tokens.valid[image].numpy())
        np.testing.assert_allclose(got[image], want, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 3.7, -1e4])
def test_a_constant_image_surprises_nowhere_and_nothing_stands_out(value: float):
    tokens = VisualTokens.from_grid(torch.full((2, 35, 3), value) * torch.tensor([1.0, 0.3, 7.1]), (5, 7))
    x = standardised(tokens)
    assert x.abs().max() == 0
    assert propositional(x, (1, 5, 7), tokens.valid).abs().max() == 0
    assert perspectival(x, (1, 5, 7), tokens.valid).abs().max() == 0


@few
@given(seeds, st.floats(1e-3, 1e3), st.booleans())
def test_a_scale_and_a_shift_change_neither(seed: int, scale: float, masked: bool):
    grid = (1, 5, 7)
    tokens = drawn(seed, grid, masked)
    shift = torch.randn(3, generator=torch.Generator().manual_seed(seed)).double() * 5
    moved = VisualTokens(scale * tokens.features + scale * shift, tokens.boxes, mask=tokens.mask, grid=grid)
    for way in (propositional, perspectival):
        one, other = (way(standardised(each), grid, tokens.valid) for each in (tokens, moved))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


@few
@given(seeds)
def test_turning_and_mirroring_the_image_turns_and_mirrors_both(seed: int):
    tokens = drawn(seed, (1, 5, 7), False, d=4)
    x = standardised(tokens).unflatten(1, (5, 7))
    for turn in (lambda a: a.flip(1), lambda a: a.flip(2), lambda a: a.rot90(1, (1, 2))):
        turned = turn(x)
        grid = (1, *turned.shape[1:3])
        for way in (propositional, perspectival):
            want = turn(way(x.flatten(1, 2), (1, 5, 7), tokens.valid).unflatten(1, (5, 7)))
            got = way(turned.flatten(1, 2), grid, tokens.valid)
            torch.testing.assert_close(got, want.flatten(1), rtol=0, atol=1e-12)


def test_a_frame_knows_nothing_of_the_others():
    tokens = drawn(3, (2, 3, 5), False)
    x = standardised(tokens)
    for way in (propositional, perspectival):
        later = x.clone()
        later[:, 15:] = x[:, 15:].flip(1)  # the same values, so the median is the same only for the same neighbours
        want, got = way(x, (2, 3, 5), tokens.valid), way(later, (2, 3, 5), tokens.valid)
        torch.testing.assert_close(got[:, :15], want[:, :15])
        torch.testing.assert_close(got[:, 15:], want[:, 15:].flip(1))


def test_acuity_halves_in_015_diagonals_and_scales_half_of_salience():
    grid = (2, 7, 11)
    fixations = torch.tensor([[[0.5, 0.5]], [[2.5 / 11, 4.5 / 7]]], dtype=torch.float64)
    got = acuity(grid, fixations).view(2, 2, 7, 11)
    assert got[0, :, 3, 5].tolist() == pytest.approx([1, 1])
    assert got[1, 0, 4, 2] == pytest.approx(1)
    diagonal = math.hypot(7, 11)
    for r, c in ((0, 0), (6, 3), (2, 10)):
        assert got[1, 1, r, c] == pytest.approx(1 / (1 + math.hypot(r - 4, c - 2) / diagonal / 0.15))
    half = torch.tensor([[[0.15 * diagonal / 11 + 0.5 / 11, 0.5 / 7]]], dtype=torch.float64)
    assert acuity((1, 7, 11), half)[0, 0] == pytest.approx(0.5)
    both = acuity(grid, torch.cat([fixations[:1], fixations[1:]], dim=1))
    torch.testing.assert_close(both, torch.maximum(got[:1], got[1:]).flatten(1))
    tokens = drawn(5, grid, True)
    x, valid = standardised(tokens), tokens.valid
    free, fixed = perspectival(x, grid, valid), perspectival(x, grid, valid, fixations)
    torch.testing.assert_close(fixed, free * (0.5 + 0.5 * got.flatten(1)))


def reference_field(ways: np.ndarray, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one image's regions without padding."""
    z = np.zeros_like(ways)
    for k, way in enumerate(ways):
        middle = lower_median(list(way))
        spread = 1.4826 * lower_median([abs(v - middle) for v in way]) + 0.02
        z[k] = [min(max((v - middle) / spread, -4), 4) for v in way]
    precision = []
    for row in z:
        p = np.exp(row) / np.exp(row).sum()
        precision.append(1 + (p * np.log(p)).sum() / math.log(len(row)))
    mix = np.exp(gain) * (np.array(precision) + 1e-3)
    mix = mix / mix.sum()
    score = np.exp((mix[:, None] * z).sum(axis=0) / 0.7)
    return score / score.sum(), mix, z


@few
@given(seeds, st.booleans())
def test_the_field_weighs_the_ways_by_their_precision(seed: int, masked: bool):
    generator = torch.Generator().manual_seed(seed)
    ways = torch.rand(2, 3, 13, generator=generator, dtype=torch.float64)
    ways[:, 1] *= 0.01
    valid = torch.rand(2, 13, generator=generator) < (0.6 if masked else 1)
    valid[:, :2] = True
    field = Field()
    with torch.no_grad():
        field.gain.copy_(torch.tensor([0.5, 0.0, -0.7]))
    got, mix, z = field(ways.masked_fill(~valid[:, None], torch.nan), valid)
    torch.testing.assert_close(got.sum(dim=1), torch.ones(2).double())
    torch.testing.assert_close(mix.sum(dim=1), torch.ones(2).double())
    assert got[~valid].abs().sum() == 0
    for image in range(2):
        real = valid[image].numpy()
        want = reference_field(ways[image].numpy()[:, real], np.array([0.5, 0.0, -0.7]))
        for one, other in zip((got[image, real], mix[image], z[image][:, real]), want, strict=True):
            np.testing.assert_allclose(one.detach(), other, atol=1e-6)


def test_a_flat_way_gets_next_to_no_weight():
    ways = torch.rand(1, 3, 101, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ways[:, 0] = 0.3
    _, mix, z = Field()(ways, torch.ones(1, 101, dtype=torch.bool))
    assert z[:, 0].abs().max() == 0
    assert mix[0, 0] < 0.02
    _, mix, _ = Field()(ways[:, :1].expand(-1, 3, -1), torch.ones(1, 101, dtype=torch.bool))
    assert mix.tolist() == [pytest.approx([1 / 3] * 3)]


def test_scores_are_clipped_and_padding_is_not_counted():
    ways = torch.tensor([[[0.0, 0.1, 0.2, 1.0, 9.0, 9.0, 9.0, 9.0, 9.0]]]).double().expand(1, 3, -1)
    valid = torch.arange(9)[None] < 4
    z = robust_scores(ways, valid)
    assert z[0, 0].tolist() == [
        pytest.approx(-0.1 / (1.4826 * 0.1 + 0.02)),
        0.0,
        pytest.approx(0.1 / (0.14826 + 0.02)),
        4,
        0,
        0,
        0,
        0,
        0,
    ]
