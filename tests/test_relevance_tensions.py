"""The three opponents: what drives them, what they are driven to, and what they weigh by."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import DataError
from regard.relevance import tensions
from regard.relevance.tensions import Balance, States, Tensions

few = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
NAMES = ("scope", "tempering", "prioritization")


def regions(seed: int, masked: bool = False, r: int = 13):
    """Scores, a field, detail of mean 1 and which are real, of two images."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(2, r, generator=generator) < (0.6 if masked else 1)
    valid[:, :3] = True
    z = torch.randn(2, 3, r, generator=generator, dtype=torch.float64).masked_fill(~valid[:, None], 0)
    field = torch.rand(2, r, generator=generator, dtype=torch.float64).masked_fill(~valid, 0)
    detail = torch.rand(2, r, generator=generator, dtype=torch.float64).masked_fill(~valid, 0)
    return z, field / field.sum(dim=1, keepdim=True), detail, valid


@few
@given(st.floats(0.05, 20), st.floats(0.05, 20), st.integers(0, 2), st.sampled_from([1.001, 1.5, 10]))
def test_a_state_follows_its_drives(up: float, down: float, which: int, more: float):
    drives = torch.tensor([[[0.3, 0.7], [1.1, 0.2], [0.6, 0.6]]], dtype=torch.float64)
    drives[0, which] = torch.tensor([up, down])
    stronger, weaker = drives.clone(), drives.clone()
    stronger[0, which, 0] *= more
    weaker[0, which, 1] *= more
    states = [Tensions()(each, States())[0] for each in (drives, stronger, weaker)]
    for state in states:
        assert ((state >= 0) & (state <= 1)).all()
    assert states[0][which].item() == pytest.approx(up**2 / (up**2 + down**2))
    assert states[1][which] > states[0][which] > states[2][which]
    others = [i for i in range(3) if i != which]
    assert states[0][others].equal(states[1][others])
    assert states[0][others].equal(states[2][others])


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("value", [0, 0.0, 0.3, 1])
def test_a_fixed_state_is_what_was_said_and_moves_no_other(which: int, value: float, unchecked):
    given_ = States(**{NAMES[which]: value})
    assert given_.fixed == (NAMES[which],)
    drives = torch.rand(2, 3, 2, dtype=torch.float64) + 0.05
    free, held = Tensions()(drives, States()), Tensions()(drives, given_)
    assert held[:, which].tolist() == [value, value]
    others = [i for i in range(3) if i != which]
    assert held[:, others].equal(free[:, others])
    assert not (free[:, which] == value).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [-0.01, 1.01, math.nan, math.inf, -math.inf, "Auto", "", "0.5", None, True, (0.5,)])
def test_a_bad_state_is_named(name: str, bad, unchecked):
    with pytest.raises(DataError, match=f"^{name} must be 'auto' or a number from 0 to 1, got "):
        States(**{name: bad})


def test_the_correction_moves_a_state_and_starts_at_nothing():
    module = Tensions()
    assert all(bool((p == 0).all()) for p in module.parameters())
    drives = torch.tensor([[[2.0, 1.0], [1.0, 1.0], [1.0, 3.0]]]).double()
    with torch.no_grad():
        module.correction.bias[1] = math.log(3)
        module.correction.weight[2, 0] = 1  # of the logarithm of scope's first drive
    assert module(drives, States())[0].tolist() == pytest.approx([4 / 5, 3 / 4, 2 / (2 + 9)])


@few
@given(seeds, st.booleans(), st.booleans())
def test_the_drives_are_those_of_the_formulas(seed: int, masked: bool, told: bool):
    z, field, detail, valid = regions(seed, masked)
    scarcity, uncertainty = torch.tensor([0.0, 0.37]).double(), torch.tensor([0.9, 0.0]).double()
    got = tensions.drives(field, z, detail, scarcity, valid, uncertainty if told else None)
    for image in range(2):
        real = valid[image].numpy()
        p, scores, lost = field[image].numpy()[real], z[image].numpy()[:, real], detail[image].numpy()[real]
        doubt = (p * scores.std(axis=0)).sum() / 4
        share = math.exp(-sum(v * math.log(v) for v in p if v > 0)) / real.sum()
        want = [
            [(p * lost).sum(), float(scarcity[image])],
            [float(uncertainty[image]) if told else doubt, 1 - share],
            [share, 1 - share],
        ]
        np.testing.assert_allclose(got[image], np.array(want) + 0.05, atol=1e-6)


@few
@given(seeds, st.booleans())
def test_exploring_goes_where_the_ways_disagree_and_was_not_before(seed: int, masked: bool):
    z, _, _, valid = regions(seed, masked)
    visits = torch.rand(2, 13, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    got = tensions.explore(z, visits, valid)
    for image in range(2):
        real = valid[image].numpy()
        want = np.sqrt(z[image].numpy().var(axis=0) + 0.05) / np.sqrt(1 + visits[image].numpy()) * real
        np.testing.assert_allclose(got[image], want / want.sum(), atol=1e-12)
    again = visits.clone()
    again[:, 1] += 1
    assert (tensions.explore(z, again, valid)[:, 1] < got[:, 1]).all()
    assert (tensions.explore(z, again, valid)[:, 2] > got[:, 2]).all()


def reference_novelty(x: np.ndarray, valid: np.ndarray, pivots: int, first: int) -> np.ndarray:
    """What is left of each unit vector beside the span of the pivots: after the first each the one with the most."""
    holds = valid & (np.linalg.norm(x, axis=1) > 0)
    unit = np.array([v / np.linalg.norm(v) if ok else v * 0 for v, ok in zip(x, holds, strict=True)])
    left, basis = holds.astype(float), np.zeros((0, x.shape[1]))
    for step in range(min(pivots, len(x))):
        pick = int(np.argmax(left)) if step else first
        rest = unit[pick] - basis.T @ (basis @ unit[pick])
        if np.linalg.norm(rest) < 1e-6:
            break
        basis = np.vstack([basis, rest / np.linalg.norm(rest)])
        left = np.array([np.linalg.norm(v - basis.T @ (basis @ v)) for v in unit])
    return np.where(left > 1e-6, left, 0)


@few
@given(seeds, st.booleans(), st.sampled_from([(11, 3), (13, 17), (5, 11)]))
def test_novelty_is_what_a_few_others_cannot_tell(seed: int, masked: bool, sizes: tuple[int, int]):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, *sizes, generator=generator, dtype=torch.float64)
    valid = torch.rand(2, sizes[0], generator=generator) < (0.7 if masked else 1)
    valid[:, 0] = True
    x[0, 1] = 0  # what is not valid holds something, and is told by nothing
    for pivots in (1, 3, 8):
        got = tensions.novelty(x, valid, pivots)
        assert ((got >= 0) & (got <= 1)).all()
        for image in range(2):
            real = valid[image].numpy()
            starts = (
                reference_novelty(x[image].numpy(), real, pivots, first) for first in np.flatnonzero(real).tolist()
            )
            assert any(np.allclose(got[image], want, atol=1e-4) for want in starts)  # at first all have as much


def test_novelty_does_not_depend_on_where_a_token_stands():
    """A mirrored image has the mirrored novelty: no token is first because of its place."""
    x = torch.randn(1, 31, 23, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    valid = torch.ones(1, 31, dtype=torch.bool)
    got = tensions.novelty(x.flip(1), valid).flip(1)
    torch.testing.assert_close(got, tensions.novelty(x, valid))


def test_novelty_of_one_among_many_alike():
    x = torch.tensor([[1.0, 0.0]] * 5 + [[0.0, 2.0]] + [[3.0, 0.0]] * 3)[None]
    valid = torch.ones(1, 9, dtype=torch.bool)
    assert tensions.novelty(x, valid, 1).tolist() == [[0] * 5 + [1] + [0] * 3]
    diverse = tensions.diversify(tensions.novelty(x, valid, 1), valid)
    assert diverse[0].tolist() == pytest.approx([0.05 / 1.45] * 5 + [1.05 / 1.45] + [0.05 / 1.45] * 3)


@few
@given(st.floats(0, 1), st.floats(0, 1), seeds)
def test_the_terms_of_a_weight_sum_to_1_and_are_those_of_the_formula(temper: float, priority: float, seed: int):
    poles = torch.rand(1, 3, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    poles = poles / poles.sum(dim=2, keepdim=True)
    states = torch.tensor([[0.5, temper, priority]], dtype=torch.float64)
    none = torch.zeros(1, 3, 11)
    terms = Balance(poles[:, 0], none[..., 0], none, torch.zeros(1, 3, 2), states, poles).terms
    assert float(terms.sum()) == pytest.approx(1)
    field, explore, diverse = poles[0]
    want = (1 - priority) * ((1 - temper) * field + temper * explore) + priority * diverse
    torch.testing.assert_close(terms.sum(dim=1)[0], want)
    torch.testing.assert_close(terms[0, 1], (1 - priority) * temper * explore)


def test_shares_of_nothing_are_even():
    x, valid = torch.tensor([[0.0, 0.0, 7.0], [1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]] * 2)
    assert tensions.shares(x, valid).tolist() == [[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]]
