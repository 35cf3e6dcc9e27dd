"""The nouns that decisions are made from."""

import pytest
import torch

from regard import Question, ShapeError, VisualTokens


def test_from_grid_tiles_the_image_in_raster_order():
    tokens = VisualTokens.from_grid(torch.randn(2, 6, 5), (2, 3))
    assert tokens.grid == (1, 2, 3)
    want = [[x / 3, y / 2, (x + 1) / 3, (y + 1) / 2] for y in range(2) for x in range(3)]
    torch.testing.assert_close(tokens.boxes, torch.tensor([want, want]))
    area = (tokens.boxes[..., 2] - tokens.boxes[..., 0]) * (tokens.boxes[..., 3] - tokens.boxes[..., 1])
    torch.testing.assert_close(area.sum(dim=1), torch.ones(2))


def test_relevance_is_the_inner_product_averaged_over_the_real_question_tokens():
    features, aligned = torch.randn(2, 7, 3), torch.randn(2, 7, 5)
    asked, mask = torch.randn(2, 4, 5), torch.tensor([[True, True, False, True], [True, False, False, False]])
    tokens = VisualTokens(features, torch.rand(2, 7, 4), aligned=aligned)
    want = torch.stack(
        [torch.stack([(aligned[b] @ asked[b, t]) for t in range(4) if mask[b, t]]).mean(dim=0) for b in range(2)]
    )
    torch.testing.assert_close(tokens.relevance(Question(asked, mask)), want)
    plain = VisualTokens(features, torch.rand(2, 7, 4))
    q = torch.randn(2, 1, 3)
    torch.testing.assert_close(plain.relevance(Question(q)), (features * q).sum(dim=2))


def test_a_masked_question_token_may_hold_anything():
    asked = torch.tensor([[[1.0, 2.0], [torch.nan, torch.inf]]])
    assert Question(asked, torch.tensor([[True, False]])).mean().tolist() == [[1.0, 2.0]]


def test_images_takes_a_part_of_the_batch():
    tokens = VisualTokens.from_grid(
        torch.randn(3, 6, 5), (2, 3), mask=torch.rand(3, 6) > 0.2, scores={"attention": torch.rand(3, 6)}
    )
    part = tokens.images(torch.tensor([2, 0]))
    assert torch.equal(part.features, tokens.features[[2, 0]])
    assert torch.equal(part.scores["attention"], tokens.scores["attention"][[2, 0]])
    assert torch.equal(part.valid, tokens.valid[[2, 0]])
    assert part.grid == tokens.grid


X, BOXES = torch.randn(2, 6, 5), torch.rand(2, 6, 4)
MISTAKES = {
    r"features must have shape \(any, any, any\), got \(2, 6\)": lambda: VisualTokens(X[..., 0], BOXES),
    r"boxes must have shape \(2, 6, 4\), got \(2, 5, 4\)": lambda: VisualTokens(X, BOXES[:, :5]),
    "mask must be of dtype bool": lambda: VisualTokens(X, BOXES, mask=torch.ones(2, 6)),
    r"grid \(T, H, W\) must multiply to the 6 tokens, got \(1, 2, 4\)": lambda: VisualTokens(X, BOXES, grid=(1, 2, 4)),
    r"scores\['attention'\] must have shape \(2, 6\)": lambda: VisualTokens(X, BOXES, scores={"attention": X}),
    r"features must have shape \(any, 8, any\)": lambda: VisualTokens.from_grid(X, (2, 4)),
    r"grid must be \(h, w\)": lambda: VisualTokens.from_grid(X, (1, 2, 3)),
    "question mask must have shape": lambda: Question(X, torch.ones(2, 5, dtype=torch.bool)),
    "with a real token in each question": lambda: Question(X, torch.zeros(2, 6, dtype=torch.bool)),
    "the question has 4 dimensions and the tokens' features 5": lambda: VisualTokens(X, BOXES).relevance(
        Question(torch.ones(2, 1, 4))
    ),
    "must be a tensor, got list": lambda: VisualTokens([[1.0]], BOXES),  # pyright: ignore[reportArgumentType]
}


@pytest.mark.parametrize("says", MISTAKES)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_one_line_that_says_what(says: str):
    with pytest.raises(ShapeError, match=says) as raised:
        MISTAKES[says]()
    assert "\n" not in str(raised.value)
