"""Realizing relevance at grid scale: what moves with a state, a question, a budget, and what does not."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import Question, VisualTokens
from regard.relevance.realized import Gaze, Realized
from regard.relevance.realizer import Realizer
from regard.relevance.tensions import States
from regard.relevance.ways import perspectival, standardised
from relevance_toys import GRIDS, asking, drawn

few = settings(max_examples=10, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
unit = st.floats(0, 1)
REALIZER = Realizer()
NAMES = ("scope", "tempering", "prioritization")


@torch.no_grad()
def realized(tokens: VisualTokens, question: Question | None, budget: int, states: dict, gaze: Gaze | None = None):
    return REALIZER(tokens, question, budget, States(**states), gaze)


@few
@given(seeds, st.sampled_from(GRIDS), st.booleans())
def test_the_worth_of_a_cut_is_that_of_the_formula(seed: int, grid, masked: bool):
    tokens = drawn(seed, grid, masked, d=4)
    found, n = realized(tokens, asking(seed, 4), 3, {}), math.prod(grid)
    tree, worth = found.tree, found.worth.numpy()
    slots = (tree.token - tree.image * n).numpy()
    for place in range(len(slots)):
        low, high, image = int(tree.low[place]), int(tree.high[place]), int(tree.image[place])
        count = int(tokens.valid[image].sum())
        if place == int(tree.begin[image]):
            assert np.abs(worth[:, :, place]).max() == 0
            continue
        begin, end = int(tree.begin[image]), int(tree.begin[image + 1])
        variance = float(tree.energy[begin:end].sum()) / count
        for k, pole in enumerate(found.balance.poles[image].numpy()):
            one, other = pole[slots[low:place]].sum(), pole[slots[place:high]].sum()
            n1, n2 = place - low, high - place
            compress = (one * math.log((n1 + n2) / n1) + other * math.log((n1 + n2) / n2)) / math.log(count)
            particular = (one + other) / (n1 + n2) * float(tree.energy[place]) / variance
            np.testing.assert_allclose(worth[k, :, place], [compress, particular], rtol=1e-9, atol=1e-12)


def test_what_a_budget_and_an_earlier_look_change():
    """The scarcity of tokens drives scope; acuity is about the fixations."""
    tokens = drawn(8, (1, 5, 7), True, d=4)
    fixations = torch.tensor([[[0.1, 0.9]], [[0.7, 0.2]]], dtype=torch.float64)
    for budget in (1, 5, 11):
        found = realized(tokens, None, budget, {}, Gaze(fixations=fixations))
        scarcity = 1 - (budget - 1) / (tokens.valid.sum(dim=1).double() - 1)
        torch.testing.assert_close(found.balance.drives[:, 0, 1], scarcity + 0.05)
        near = perspectival(standardised(tokens), (1, 5, 7), tokens.valid, fixations)
        torch.testing.assert_close(found.seen[:, 1], near)


def best_values(found: Realized, image: int) -> np.ndarray:
    """The best value of any pruning with 1, 2, ... leaves, by trying every share of leaves in every region."""
    tree, gains = found.tree, found.gains.tolist()
    begin, end = int(tree.begin[image]), int(tree.begin[image + 1])
    cut = {(int(tree.low[p]), int(tree.high[p])): p for p in range(begin, end) if tree.depth[p] >= 0}

    def of(low: int, high: int) -> np.ndarray:
        if high - low == 1:
            return np.zeros(1)
        place = cut[low, high]
        one, other = of(low, place), of(place, high)
        best = np.full(high - low, -np.inf)
        best[0] = 0
        for k, value in enumerate(one):
            here = slice(k + 1, k + 1 + len(other))
            best[here] = np.maximum(best[here], value + other + gains[place])
        return best

    return of(begin, end)


def moved(found: Realized, image: int, which: str, budget: int) -> tuple[float, float]:
    """The quantity that a state moves, dU / dstate at the chosen cuts, and what U lacks of the best there is."""
    worth = found.worth.numpy()
    scope, temper, priority = found.balance.states[image].tolist()
    parts = np.array([(1 - priority) * (1 - temper), (1 - priority) * temper, priority])
    sides = np.array([1 - scope, scope])
    slope = {
        "scope": np.einsum("p,pm->m", parts, worth[:, 1] - worth[:, 0]),
        "tempering": (1 - priority) * np.einsum("s,sm->m", sides, worth[1] - worth[0]),
        "prioritization": np.einsum("s,sm->m", sides, worth[2] - (1 - temper) * worth[0] - temper * worth[1]),
    }[which]
    made = ((found.rank >= 0) & (found.rank < budget - 1) & (found.tree.image == image)).numpy()
    value = np.einsum("p,s,psm->m", parts, sides, worth)[made].sum()
    return float(slope[made].sum()), float(best_values(found, image)[budget - 1] - value)


@settings(few, max_examples=8)
@given(seeds, st.sampled_from(NAMES), unit, unit, st.integers(2, 34), st.booleans())
def test_a_state_moves_its_quantity_one_way(seed: int, which: str, one: float, other: float, budget: int, ask: bool):
    """The exchange theorem; a bundle that the budget cuts may cost what it lacks of the best, at either end."""
    tokens, question = drawn(seed, (1, 5, 7), d=13, batch=1), asking(seed, 13, batch=1) if ask else None
    held = dict(zip([name for name in NAMES if name != which], (one, other), strict=True))
    ends = (0.0, 0.2, 0.5, 0.8, 1.0)
    found = [realized(tokens, question, budget, {which: end, **held}) for end in ends]
    at = [(end, *moved(each, 0, which, budget)) for end, each in zip(ends, found, strict=True)]
    for (low, before, lacks), (high, after, lacks_too) in itertools.pairwise(at):
        assert lacks >= -1e-9
        assert after >= before - (lacks + lacks_too) / (high - low) - 1e-7


@pytest.mark.parametrize("which", ["tempering", "prioritization"])
def test_without_bundles_it_is_exact(which: str):
    """Where sides are powers of two and detail counts nothing, no region gains less than a part of it."""
    tokens, question = drawn(5, (1, 8, 8), d=13, batch=2), asking(5, 13)
    ends = torch.linspace(0, 1, 9).tolist()
    held = {"scope": 0.0, "tempering": 0.3, "prioritization": 0.4}
    found = [realized(tokens, question, 11, {**held, which: end}) for end in ends]
    for image in range(2):
        rose = 0.0
        for budget in (2, 5, 11, 23, 47):
            at = [moved(each, image, which, budget) for each in found]
            assert max(lacks for _, lacks in at) < 1e-8
            path = [quantity for quantity, _ in at]
            assert all(b >= a - 1e-8 for a, b in itertools.pairwise(path))
            rose += path[-1] - path[0]
        assert rose > 1e-3


def test_what_was_visited_gets_less_of_an_explorer():
    tokens = drawn(9, (1, 8, 8), d=13, batch=3)
    left = (torch.arange(64) % 8 < 4).expand(3, -1)
    states = {"tempering": 1.0, "prioritization": 0.0, "scope": 0.5}
    before = realized(tokens, None, 19, states).allocation.spent()
    visits = before.double() * left * 50
    after = realized(tokens, None, 19, states, Gaze(visits=visits)).allocation.spent()
    gone, stayed = ((after - before) * side for side in (left, ~left))
    assert (gone.sum(dim=1) < -2).all()
    assert (stayed.sum(dim=1) > 2).all()
    exploit = {**states, "tempering": 0.0}
    one, other = (realized(tokens, None, 19, exploit, gaze).groups(19) for gaze in (None, Gaze(visits=visits)))
    assert one.equal(other)


@settings(few, max_examples=4)
@given(seeds, unit, st.integers(2, 34))
def test_diversifying_ignores_the_question_and_focus_does_not(seed: int, scope: float, budget: int):
    tokens = drawn(seed, (1, 5, 7), d=13)
    asked = [None, asking(seed, 13), asking(seed + 1, 13)]
    blind_states = {"scope": scope, "tempering": 0.7, "prioritization": 1.0}
    focus = {"scope": scope, "tempering": 0.0, "prioritization": 0.0}
    blind = [realized(tokens, q, budget, blind_states).groups(budget) for q in asked]
    assert blind[0].equal(blind[1])
    assert blind[1].equal(blind[2])
    ranks = [realized(tokens, q, budget, focus).rank for q in asked]
    assert not ranks[0].equal(ranks[1])
    assert not ranks[1].equal(ranks[2])


@pytest.mark.parametrize("scope", [0.0, 0.5, 1.0, "auto"])
def test_a_constant_image_is_cut_evenly(scope):
    tokens = VisualTokens.from_grid(torch.full((1, 64, 7), 0.3), (8, 8))
    found = realized(tokens, None, 5, {"scope": scope})
    assert found.balance.field.std() == 0
    for budget in range(1, 65):
        sizes = found.groups(budget)[0].bincount()
        assert len(sizes) == budget
        assert sizes.max() <= 2 * sizes.min()


@few
@given(seeds, st.sampled_from(GRIDS), st.booleans(), st.data())
def test_every_token_is_in_one_average_at_its_centre(seed: int, grid, masked: bool, data):
    tokens, n = drawn(seed, grid, masked, d=4), math.prod(grid)
    budget = data.draw(st.integers(1, int(tokens.valid.sum(dim=1).min())))
    found = realized(tokens, asking(seed, 4), budget, {})
    allocation, groups = found.allocation, found.groups(budget)
    matrix, seen = allocation.matrix(), allocation.apply(tokens)
    assert allocation.anchor.shape == (2, budget)
    assert ((matrix > 0).sum(dim=1) == tokens.valid).all()
    for image in range(2):
        assert groups[image, ~tokens.valid[image]].unique().tolist() in ([], [-1])
        for row in range(budget):
            members = matrix[image, row].nonzero().squeeze(1)
            assert groups[image, members].unique().numel() == 1
            torch.testing.assert_close(matrix[image, row, members], torch.full((len(members),), 1 / len(members)))
            torch.testing.assert_close(seen.features[image, row], tokens.features[image, members].mean(dim=0))
            torch.testing.assert_close(seen.boxes[image, row], tokens.boxes[image, members].mean(dim=0))
    assert (realized(tokens, None, 1, {}).groups(1) == torch.where(tokens.valid, 0, -1)).all()
    coarse = found.groups(budget)
    for finer in range(budget, n + 2):  # nested: every finer region lies in one coarse
        fine = found.groups(finer)
        for image in range(2):
            pairs = torch.stack([coarse[image], fine[image]])[:, tokens.valid[image]].unique(dim=1)
            assert pairs.shape[1] == min(finer, int(tokens.valid[image].sum()))


def test_an_image_alone_is_decided_as_in_a_batch_bit_for_bit():
    tokens, question = drawn(3, (1, 7, 11), True, d=13, batch=5), asking(3, 13, masked=True, batch=5)
    whole = realized(tokens, question, 17, {}).groups(17)
    for image in range(5):
        one = torch.tensor([image])
        assert realized(tokens.images(one), question.images(one), 17, {}).groups(17).equal(whole[one])
