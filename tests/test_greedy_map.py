"""The greedy choice of a determinantal point process, and CDPruner, which makes it."""

import numpy as np
import pytest
import torch

from regard import Question, VisualTokens
from regard.allocate import _similar, load
from regard.allocate._similar import LazyRows
from regard.allocate.cdpruner import greedy_map
from selector_rules import case

# the kernels of OpenVINO GenAI's tests of its DPP (tests/cpp/test_cdpruner_dpp.cpp), and what must be picked
KERNELS = torch.tensor(
    [
        [[0.8, 0.3, 0.1, 0.2], [0.3, 0.9, 0.4, 0.1], [0.1, 0.4, 0.7, 0.5], [0.2, 0.1, 0.5, 0.6]],
        [[0.6, 0.1, 0.2, 0.3], [0.1, 0.8, 0.3, 0.2], [0.2, 0.3, 0.9, 0.4], [0.3, 0.2, 0.4, 0.7]],
    ]
)


@pytest.mark.parametrize(("k", "picks"), [(0, []), (1, [1]), (2, [1, 0]), (3, [1, 0, 3]), (4, [1, 0, 3, 2])])
def test_greedy_map_gives_known_answers(k: int, picks: list[int]):
    assert greedy_map(KERNELS[:1], k).tolist() == [picks]


def test_greedy_map_takes_a_batch():
    assert greedy_map(KERNELS, 2).tolist() == [[1, 0], [2, 1]]  # .8 - .09 / .9 is more than .7 - .16 / .9


@pytest.mark.parametrize(("n", "rank", "k"), [(23, 29, 11), (31, 17, 13), (19, 7, 7)])
def test_greedy_map_enlarges_the_determinant_the_most(n: int, rank: int, k: int):
    x = torch.randn(3, n, rank, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    kernel = x @ x.transpose(1, 2)
    picks = greedy_map(kernel, k).tolist()
    for image in range(3):
        chosen: list[int] = []
        for pick in picks[image]:
            gain = [
                kernel[image][[*chosen, i]][:, [*chosen, i]].logdet().item() if i not in chosen else -np.inf
                for i in range(n)
            ]
            assert pick == int(np.argmax(gain))
            chosen.append(pick)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 5, 13])
def test_greedy_map_beyond_the_rank_picks_each_once_and_the_strongest_first(rank: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(2, 53, rank, generator=generator, dtype=dtype) * torch.rand(2, 53, 1, generator=generator)
    kernel = x @ x.transpose(1, 2)
    picks = greedy_map(kernel, 47)
    for image in range(2):
        assert len(set(picks[image].tolist())) == 47
        rest = kernel[image].diagonal()[picks[image, rank:]]
        assert (rest.diff() <= 0).all()


def test_cdpruner_beyond_the_rank_keeps_the_budget():
    tokens, question = case(59, 3)
    count = load("cdpruner").allocate(tokens, question, 31).spent().sum(dim=1)
    assert count.tolist() == [31, 31, 31]


@pytest.mark.parametrize("rank", [67, 7])
def test_rows_on_demand_are_those_of_the_whole_kernel(rank: int, monkeypatch):
    tokens, question = case(131, rank)
    whole = load("cdpruner").allocate(tokens, question, 59).anchor
    learned: list[int] = []
    learn = LazyRows._learn
    monkeypatch.setattr(_similar, "_ALL_AT_ONCE", 16)
    monkeypatch.setattr(_similar, "_TOGETHER", 5)
    monkeypatch.setattr(LazyRows, "_learn", lambda self, *given: (learned.append(1), learn(self, *given)))
    assert load("cdpruner").allocate(tokens, question, 59).anchor.equal(whole)
    assert len(learned) >= 59 / 5
    rows, x = LazyRows(tokens.features), tokens.features
    for slot in torch.randperm(131, generator=torch.Generator().manual_seed(2)):
        at = torch.stack([slot, 130 - slot, slot])
        wanted = torch.stack([(x[i] * x[i, at[i]]).sum(dim=1) for i in range(3)])
        torch.testing.assert_close(rows.at(at, torch.zeros(3, 131, dtype=x.dtype)), wanted)


def test_cdpruner_keeps_what_is_relevant_and_not_what_is_not():
    x = torch.eye(7)[None]
    question = Question(torch.tensor([[[0.1, -3.0, 0.5, 0.7, 0.2, 0.0, -1.0]]]))
    tokens = VisualTokens(x, torch.rand(1, 7, 4))
    assert load("cdpruner").allocate(tokens, question, 3).anchor.tolist() == [[2, 3, 4]]


def test_cdpruner_with_one_relevance_for_all_is_diversity_alone():
    tokens, question = case(53, 11)
    blind = Question(torch.zeros_like(question.features))
    flat = load("cdpruner").allocate(tokens, blind, 7).anchor
    assert flat.equal(load("cdpruner", theta=0.0).allocate(tokens, question, 7).anchor)
    assert not flat.equal(load("cdpruner", theta=0.9).allocate(tokens, question, 7).anchor)
