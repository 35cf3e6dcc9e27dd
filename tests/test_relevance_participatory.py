"""What a question and content have with one another, against the formulas in plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import DataError, Question, ShapeError, VisualTokens
from regard.relevance.ways import Participatory, interaction, needed_grid, transjectivity
from relevance_toys import GRIDS, asking, drawn

few = settings(max_examples=12, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def reference_participatory(content: np.ndarray, words: np.ndarray, bank: np.ndarray, valid: np.ndarray) -> np.ndarray:
    length = math.sqrt(np.mean([v @ v for v in content[valid]]))
    unit = [v / np.linalg.norm(v) for v in words]
    references = [v / np.linalg.norm(v) for v in bank]
    total, powers = np.zeros(len(content)), 0.0
    for word in unit:
        own = np.array([v @ word / length - np.mean([v @ u / length for u in references] or [0]) for v in content])
        own = np.where(valid, own - own[valid].mean(), 0)
        power = (own[valid] ** 2).mean() + 1e-6
        total, powers = total + power * own, powers + power
    return np.where(valid, 1 / (1 + np.exp(-total / powers / 0.07)), 0.5)


@few
@given(seeds, st.sampled_from(GRIDS), st.booleans(), st.booleans(), st.sampled_from([0, 1, 5]), st.booleans())
def test_participatory_is_what_is_left_of_likeness(seed: int, grid, masked: bool, padded: bool, bank: int, apart: bool):
    tokens, question = drawn(seed, grid, masked, d=4), asking(seed, 4, 3, padded, bank)
    if apart:  # the question's space is that of `aligned`
        tokens = VisualTokens(
            tokens.features[..., :2], tokens.boxes, mask=tokens.mask, grid=grid, aligned=tokens.features
        )
    got = Participatory()(tokens, question)
    assert ((got > 0) & (got < 1)).all()
    for image in range(2):
        valid = tokens.valid[image].numpy()
        content = tokens.features if tokens.aligned is None else tokens.aligned
        content = np.where(valid[:, None], content[image].numpy(), 0)
        words = question.features[image].numpy()
        words = words if question.mask is None else words[question.mask[image].numpy()]
        references = np.zeros((0, 4)) if question.reference is None else question.reference.numpy()
        want = reference_participatory(content, words, references, valid)
        np.testing.assert_allclose(got[image].detach(), want, atol=1e-9)


def test_without_a_question_it_is_a_half_everywhere():
    tokens = drawn(1, (1, 5, 7), True)
    assert Participatory()(tokens, None).tolist() == [[0.5] * 35] * 2


def test_masked_words_change_nothing():
    tokens, question = drawn(1, (1, 5, 7), d=4), asking(1, 4, 5, True, 5)
    one = torch.tensor([1])
    alone = Question(question.features[one, :3], reference=question.reference)
    padded, plain = (Participatory()(tokens.images(one), asked) for asked in (question.images(one), alone))
    torch.testing.assert_close(padded, plain, rtol=1e-12, atol=0)


def test_likeness_of_unit_vectors_is_their_cosine():
    tokens, question = drawn(1, (1, 5, 7), False, d=4), asking(1, 4, 3, False, 5)
    unit = VisualTokens(torch.nn.functional.normalize(tokens.features, dim=2), tokens.boxes, grid=tokens.grid)
    asked, bank = Participatory().likeness(unit, question)
    cosine = torch.nn.functional.cosine_similarity(tokens.features[:, :, None], question.features[:, None], dim=3)
    torch.testing.assert_close(asked, cosine)
    assert question.reference is not None
    cosine = torch.nn.functional.cosine_similarity(tokens.features[:, :, None], question.reference, dim=3)
    torch.testing.assert_close(bank, cosine)


@few
@given(seeds)
def test_what_image_or_question_do_alone_cancels(seed: int):
    generator = torch.Generator().manual_seed(seed)
    asked, bank = (torch.randn(2, 7, k, generator=generator, dtype=torch.float64) for k in (3, 5))
    valid = torch.rand(2, 7, generator=generator) < 0.7
    valid[:, 0] = True
    image = torch.randn(2, 7, 1, generator=generator, dtype=torch.float64) * 10
    words, others = (torch.randn(2, 1, k, generator=generator, dtype=torch.float64) * 10 for k in (3, 5))
    want = interaction(asked, bank, valid)
    torch.testing.assert_close(interaction(asked + image, bank + image, valid), want)
    torch.testing.assert_close(interaction(asked + words, bank + others, valid), want)
    assert want[~valid].abs().sum() == 0
    assert want.sum(dim=1).abs().max() < 1e-12
    assert interaction(image + words, image + others, valid).abs().max() < 1e-12


def test_another_space_is_a_shape_error():
    tokens = drawn(1, (1, 5, 7), False, d=4)
    with pytest.raises(ShapeError, match="5 dimensions and the tokens' space 4: ask with the eye that looked"):
        Participatory()(tokens, Question(torch.randn(2, 3, 5)))
    with pytest.raises(ShapeError, match="tokens have 4 dimensions, this realizer was made for 3"):
        Participatory(spaces=(3, 5))(tokens, Question(torch.randn(2, 3, 5)))
    with pytest.raises(ShapeError, match="question have 5 dimensions, this realizer was made for 4"):
        Participatory(spaces=(4, 4))(tokens, Question(torch.randn(2, 3, 5)))
    with pytest.raises(DataError, match="grid"):
        needed_grid(VisualTokens(tokens.features, tokens.boxes))


@few
@given(seeds, st.booleans())
def test_transjectivity_is_the_share_of_interaction(seed: int, masked: bool):
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(2, 11, generator=generator) < (0.6 if masked else 1)
    valid[:, :2] = True
    asked, bank = (torch.randn(2, 11, k, generator=generator, dtype=torch.float64) for k in (3, 5))
    got = transjectivity(asked, bank, valid)
    for image in range(2):
        real = valid[image].numpy()
        table = np.concatenate([asked[image].mean(dim=1, keepdim=True), bank[image]], axis=1)[real]
        both = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
        assert got[image] == pytest.approx((both**2).sum() / ((table - table.mean()) ** 2).sum())
    image, words = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 11, 1), (2, 1, 6)))
    table = image + words
    assert transjectivity(table[..., :1], table[..., 1:], valid).max() < 1e-12
    image = image - (image * valid[..., None]).sum(dim=1, keepdim=True) / valid.sum(dim=1)[:, None, None]
    table = image * (words - words.mean(dim=2, keepdim=True))
    torch.testing.assert_close(transjectivity(table[..., :1], table[..., 1:], valid), torch.ones(2).double())
    flat = torch.full_like(table, 3.0)
    assert transjectivity(flat[..., :1], flat[..., 1:], valid).tolist() == [0, 0]
