"""Prompts with images among words: what is parted, learned and padded, and images' tokens in their places."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regard.errors import DataError, ShapeError
from regard.tokens import Question, VisualTokens
from regard.vlm.interleaved import IMAGE, UNLEARNED, Interleaved, Spliced, interleaved, spliced, without_images
from regard.vlm.together import asked_together, seen_together
from tiny_lms import SPECIAL, WORDS, ToyEye, question, tokenizer, tokens

ID = {word: place for place, word in enumerate([*SPECIAL, *WORDS])}


def ids(text: str) -> list[int]:
    return [ID[word] for word in text.split()]


def test_a_prompt_is_parted_where_images_stand():
    made = interleaved(tokenizer(), [f"what {IMAGE} is this", "a cat"], [1, 0])
    assert made.ids.tolist() == [[1, *ids("what"), 0, *ids("is this")], [0, 0, 1, *ids("a cat")]]
    assert made.mask.tolist() == [[True] * 5, [False, False, True, True, True]]
    assert made.image.tolist() == [[False, False, True, False, False], [False] * 5]
    assert bool((made.labels == UNLEARNED).all())


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_what_is_learned_is_the_answer_and_its_end(bos: bool, eos: bool):
    texts, answers = [f"{IMAGE} what is this ?", "a dog ?"], ["the red cat", "no"]
    made = interleaved(tokenizer(bos, eos, pad=False), texts, [1, 0], answers)
    for row, answer in enumerate(answers):
        learned = ids(answer) + ([2] if eos else [])
        labels = made.labels[row].tolist()
        assert labels[-len(learned) :] == learned
        assert set(labels[: -len(learned)]) == {UNLEARNED}
        assert made.ids[row, -len(learned) :].tolist() == learned
        assert (1 in made.ids[row].tolist()) == bos
    longest = 1 * bos + 1 + 4 + 3 + eos
    assert made.ids.shape == (2, longest)
    assert made.mask.sum(dim=1).tolist() == [longest, bos + 3 + 1 + eos]


def test_an_answer_of_no_words_is_its_end():
    made = interleaved(tokenizer(), ["what"], [0], [""])
    assert made.labels.tolist() == [[UNLEARNED, UNLEARNED, 2]]


@pytest.mark.parametrize(
    ("texts", "images", "answers", "message"),
    [
        (["a", f"{IMAGE} {IMAGE} what"], [0, 1], None, "prompt 1 has 2 <image> and 1 images"),
        (["what"], [1], None, "prompt 0 has 0 <image> and 1 images"),
        ([f"{IMAGE}"], [0], None, "prompt 0 has 1 <image> and 0 images"),
        (["what"], [0, 0], None, "1 prompts need as many numbers of images, got 2"),
        (["what"], [0], ["a", "b"], "1 prompts need as many answers, got 2"),
        ([], [], None, "there are no prompts"),
    ],
)
def test_prompts_and_images_that_do_not_agree(texts, images, answers, message):
    with pytest.raises(DataError, match=message) as raised:
        interleaved(tokenizer(), texts, images, answers)
    assert "\n" not in str(raised.value)


def test_a_prompt_of_nothing_is_named():
    with pytest.raises(DataError, match="prompt 1 is empty"):
        interleaved(tokenizer(bos=False), ["what", ""], [0, 0])
    assert interleaved(tokenizer(), [""], [0]).ids.tolist() == [[1]]


def test_words_without_images():
    assert without_images(f"  what{IMAGE}is {IMAGE}\nthis ") == "what is this"


def plainly(prompts: Interleaved, words: torch.Tensor, features: torch.Tensor | None, valid: torch.Tensor | None):
    """The same as `spliced`, one token after another: of each row embeddings, image, labels and images so far."""
    rows, image = [], 0
    for row in range(len(prompts.ids)):
        out, seen = [], 0
        for place in range(prompts.ids.shape[1]):
            if prompts.image[row, place]:
                seen += 1
                if features is not None and valid is not None:
                    real = [slot for slot in range(features.shape[1]) if valid[image, slot]]
                    out += [(features[image, slot], True, UNLEARNED, seen) for slot in real]
                image += 1
            elif prompts.mask[row, place]:
                out.append((words[row, place], False, int(prompts.labels[row, place]), seen))
        rows.append(out)
    return rows


def assert_equal(made: Spliced, rows: list) -> None:
    longest = max(map(len, rows))
    assert made.embeddings.shape[:2] == (len(rows), longest)
    for row, wanted in enumerate(rows):
        gap = longest - len(wanted)
        assert made.mask[row].tolist() == [False] * gap + [True] * len(wanted)
        assert made.image[row].tolist() == [False] * gap + [image for _, image, _, _ in wanted]
        assert made.labels[row].tolist() == [UNLEARNED] * gap + [label for _, _, label, _ in wanted]
        assert made.seen[row].tolist() == [0] * gap + [seen for *_, seen in wanted]
        assert made.positions[row].tolist() == [0] * gap + list(range(len(wanted)))
        assert bool((made.embeddings[row, :gap] == 0).all())
        for place, (value, *_) in enumerate(wanted):
            assert torch.equal(made.embeddings[row, gap + place], value)


@st.composite
def cases(draw):
    """Rows of images, words, answers and padding, and tokens of the images of which some are real."""
    kinds = draw(st.lists(st.lists(st.sampled_from("iwa"), min_size=1, max_size=7), min_size=1, max_size=4))
    longest, places = max(map(len, kinds)), torch.arange(1, 100)
    shape = (len(kinds), longest)
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, UNLEARNED)
    mask, image = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for row, kind in enumerate(kinds):
        for at, what in enumerate(kind, longest - len(kind)):
            mask[row, at], image[row, at] = True, what == "i"
            ids[row, at] = 0 if what == "i" else places[row + at]
            labels[row, at] = places[row + at] if what == "a" else UNLEARNED
    most, seed = draw(st.integers(0, 5)), draw(st.integers(0, 99))
    generator = torch.Generator().manual_seed(seed)
    count = int(image.sum())
    features = torch.randn(count, most, 3, generator=generator)
    valid = torch.rand(count, most, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return Interleaved(ids, mask, image, labels), torch.randn(*shape, 3, generator=generator), features, valid


@settings(max_examples=150, deadline=None)
@given(cases(), st.booleans())
def test_spliced_is_a_plain_loop(case, in_prompt: bool):
    prompts, words, features, valid = case
    given = (features, valid) if in_prompt else (None, None)
    rows = plainly(prompts, words, *given)
    assert_equal(spliced(prompts, words, *given), rows)


def test_the_loop_tells_a_mistake():
    prompts = interleaved(tokenizer(), [f"what {IMAGE} is {IMAGE}", "a"], [2, 0])
    words, features = torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    valid = torch.tensor([[True, False, True, True], [False, True, False, False]])
    rows = plainly(prompts, words, features, valid)
    assert_equal(spliced(prompts, words, features, valid), rows)
    for wrong in (features.flip(0), features.flip(1)):
        with pytest.raises(AssertionError):
            assert_equal(spliced(prompts, words, wrong, valid), rows)
    with pytest.raises(AssertionError):
        assert_equal(spliced(prompts, words, features, valid.flip(0)), rows)


def test_gradients_reach_features_and_words():
    prompts = interleaved(tokenizer(), [f"what {IMAGE}", f"{IMAGE} a {IMAGE}"], [1, 2])
    words = torch.randn(2, 4, 3, requires_grad=True)
    features = torch.randn(3, 5, 3, requires_grad=True)
    valid = torch.tensor([[True] * 5, [True, False] * 2 + [True], [False] * 5])
    made = spliced(prompts, words, features, valid)
    (made.embeddings * torch.arange(1.0, made.embeddings.numel() + 1).view_as(made.embeddings)).sum().backward()
    assert features.grad is not None
    assert words.grad is not None
    assert torch.equal((features.grad != 0).all(dim=2), valid)
    assert torch.equal((words.grad != 0).all(dim=2), prompts.mask & ~prompts.image)


def test_tokens_of_several_images_are_one_batch():
    one, other = tokens(1, 2, 3), tokens(1, 4, 2, seed=5)
    both = seen_together([one, other])
    assert both.features.shape == (2, 8, 11)
    assert both.valid.sum(dim=1).tolist() == [6, 8]
    assert both.grid is None
    for name in ("features", "boxes", "aligned", "keys", "segment"):
        assert torch.equal(getattr(both, name)[0, :6], getattr(one, name)[0])
        assert bool((getattr(both, name)[0, 6:] == 0).all())
        assert torch.equal(getattr(both, name)[1], getattr(other, name)[0])
    assert torch.equal(both.scores["attention"][1], other.scores["attention"][0])


def test_a_grid_stays_where_it_is_one():
    alike = seen_together([tokens(2, 2, 3), tokens(1, 2, 3, seed=9)])
    assert alike.grid == (1, 2, 3)
    assert alike.mask is None
    some = VisualTokens(
        tokens(1, 2, 3).features, tokens(1, 2, 3).boxes, mask=torch.tensor([[True] * 5 + [False]]), grid=(1, 2, 3)
    )
    padded = seen_together([tokens(1, 2, 3), some])
    assert padded.grid == (1, 2, 3)
    assert padded.valid.sum(dim=1).tolist() == [6, 5]
    assert padded.keys is None
    assert not padded.scores


def test_together_says_what_is_wrong():
    with pytest.raises(ShapeError, match="no tokens"):
        seen_together([])
    with pytest.raises(ShapeError, match="no questions"):
        asked_together([])
    with pytest.raises(ShapeError, match=r"one width, got \[7, 11\]"):
        seen_together([tokens(1), tokens(1, width=7)])


def test_questions_of_several_images_are_one_batch():
    short = Question(torch.randn(1, 1, 5))
    both = asked_together([question(1), short])
    assert both.mask is not None
    assert both.mask.tolist() == [[True, True], [True, False]]
    assert torch.allclose(both.mean(), torch.cat([question(1).mean(), short.mean()]))


def test_the_toy_eye_tells_images_apart():
    red, wide = Image.new("RGB", (16, 24), (255, 0, 0)), Image.new("RGB", (40, 24))
    assert ToyEye().look(red).grid == (1, 3, 2)
    assert not torch.equal(ToyEye().look(red).features[:, :2], ToyEye().look(wide).features[:, :2])
