"""Foveated tokens: fine where the eye rests and coarse away from it; it rests where it is told or what was asked is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.allocate import load
from regard.errors import DataError
from regard.tokens import Question, VisualTokens


def grid(h: int, w: int, seed: int = 0) -> VisualTokens:
    generator = torch.Generator().manual_seed(seed)
    return VisualTokens.from_grid(torch.randn(1, h * w, 3, generator=generator), (h, w))


def sizes(tokens: VisualTokens, fixation: tuple[float, float], budget: int) -> torch.Tensor:
    """Of each token, how many share its region."""
    matrix = load("fovea", fixation=fixation).allocate(tokens, None, budget).matrix()[0]
    return (matrix > 0).sum(dim=1).float() @ (matrix > 0).float()


@settings(max_examples=40, deadline=None)
@given(
    h=st.integers(3, 17),
    w=st.integers(3, 17),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
    share=st.floats(0.15, 0.6),
)
def test_regions_grow_with_the_distance(h, w, x, y, share):
    tokens = grid(h, w)
    n = h * w
    budget = max(4, int(share * n))
    size = sizes(tokens, (x, y), budget)
    centre = (tokens.boxes[0, :, :2] + tokens.boxes[0, :, 2:]) / 2
    away = ((centre - torch.tensor((x, y))) * torch.tensor((float(w), float(h)))).norm(dim=1)
    order = away.argsort()
    near, far = size[order[: n // 4]].mean(), size[order[-(n // 4) :]].mean()
    assert near <= far
    assert size[order[0]] <= size.min() * 4  # a token at the fixation is among the finest


def test_the_fixation_decides():
    tokens = grid(12, 12)
    left, right = sizes(tokens, (0.0, 0.5), 40), sizes(tokens, (1.0, 0.5), 40)
    columns = torch.arange(144) % 12
    assert left[columns < 3].mean() < left[columns > 8].mean()
    assert right[columns < 3].mean() > right[columns > 8].mean()
    assert not torch.equal(left, right)


def test_it_rests_where_the_question_is_and_else_in_the_middle():
    features = torch.zeros(1, 144, 2)
    features[..., 1] = 1
    features[0, 17] = torch.tensor((1.0, 0.0))  # row 1, column 5
    tokens = VisualTokens.from_grid(features, (12, 12))
    question = Question(torch.tensor([[[1.0, 0.0]]]))
    asked = load("fovea").allocate(tokens, question, 30)
    there = load("fovea", fixation=(5.5 / 12, 1.5 / 12)).allocate(tokens, None, 30)
    assert torch.equal(asked.matrix(), there.matrix())
    nothing = load("fovea").allocate(tokens, None, 30)
    middle = load("fovea", fixation=(0.5, 0.5)).allocate(tokens, None, 30)
    assert torch.equal(nothing.matrix(), middle.matrix())
    assert not torch.equal(nothing.matrix(), asked.matrix())


@pytest.mark.parametrize("fixation", [(0.5, 1.2), (-0.1, 0), (float("nan"), 0), (0.5,)])
def test_a_fixation_that_cannot_be_is_named(fixation, unchecked):
    with pytest.raises(DataError, match="fixation must be x and y from 0 to 1"):
        load("fovea", fixation=fixation)
