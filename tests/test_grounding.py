"""The pocket eye's sense of where what is asked for may be: its space, its loss, and that it can be learned."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from regard.bench.pocket import hits
from regard.eyes.grounding import Grounding
from regard.eyes.pocket import PocketEye
from regard.relevance.realizer import Realizer
from regard.relevance.tensions import States
from regard.tokens import Question, VisualTokens
from regard.train.grounding import found, grounded, realizer, train
from regard.train.loop import Recipe
from regard.vlm.pocket import Pocket
from regard.vlm.pocket_ask import ready


@dataclass
class Toy:
    """A scene of side x side tokens; question q is about the only token that shows colour q, or about none."""

    side: int
    features: Tensor
    classes: Tensor
    questions: Tensor
    heard: Tensor
    covered: Tensor


@dataclass
class Noted:
    """A batch of questions."""

    tokens: VisualTokens
    question: Question
    covered: Tensor


def toy(seed: int, side: int = 5, colours: int = 3) -> Toy:
    generator = torch.Generator().manual_seed(seed)
    count = side**2
    shown = torch.randperm(count, generator=generator)[: colours - 1]  # the last colour shows nowhere
    features = 0.1 * torch.randn(count, 7, generator=generator)
    covered = torch.zeros(colours, count)
    for colour, place in enumerate(shown):
        features[place, colour] += 3
        covered[colour, place] = 0.5
    nothing = torch.zeros(count, 2)
    return Toy(side, features.half(), nothing.half(), torch.zeros(colours, 2), torch.eye(11)[:colours], covered.half())


def test_the_loss_is_of_the_tokens_that_the_things_fill():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.3, -1.0, 2.0]])
    covered = torch.tensor([[0.8, 0.2, 0.0], [0.05, 0.0, 0.0]])
    first = -(torch.tensor(1.0).exp() + 0.25 * torch.tensor(2.0).exp()).log()
    first = first + torch.tensor([1.0, 2.0, 0.5, 0.0]).logsumexp(0)
    second = torch.tensor([0.3, -1.0, 2.0, 0.0]).logsumexp(0)  # nothing shows: nowhere, whose logit is 0
    torch.testing.assert_close(grounded(logits, covered), (first + second) / 2)


def test_logits_are_those_of_the_space_and_of_the_classes():
    torch.manual_seed(3)
    scene, model = toy(0), Grounding(7, 11, dim=13, hidden=17).eval()
    scene.classes, scene.questions = torch.randn(25, 2).half(), torch.randn(3, 2)
    other = toy(1)
    both = found(model, [scene, other])
    edges = torch.linspace(0, 1, 6)
    x, y = edges[:-1].repeat(5), edges[:-1].repeat_interleave(5)
    boxes = torch.stack((x, y, x + 0.2, y + 0.2), dim=1)
    wanted = model.questions(scene.heard) @ model.tokens(scene.features[None].float(), boxes[None])[0].T
    torch.testing.assert_close(both[:3], wanted + scene.questions @ scene.classes.float().T, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both[3:], found(model, [other]), atol=1e-5, rtol=1e-4)


def test_it_learns_where_things_are_and_what_is_nowhere(tmp_path):
    scenes = [toy(seed, side=5 + seed % 2) for seed in range(60)]
    model = train(scenes, Recipe(8, batch=8, rate=3e-3), tmp_path)
    others = [toy(seed) for seed in range(1000, 1020)]
    assert hits(model, others) > 0.9  # pyright: ignore[reportArgumentType]
    logits = found(model, others).unflatten(0, (-1, 3))
    assert (logits[:, 2].logsumexp(dim=1) < 0).float().mean() > 0.8, "what does not show is likelier nowhere"
    assert (logits[:, :2].logsumexp(dim=2) > 0).float().mean() > 0.8


def test_a_run_that_was_stopped_goes_on_as_it_would_have(tmp_path):
    scenes = [toy(seed) for seed in range(12)]

    def stop(epoch: int, *_: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    whole = train(scenes, Recipe(3, batch=4), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(scenes, Recipe(3, batch=4), tmp_path / "cut", stop)
    again = train(scenes, Recipe(3, batch=4), tmp_path / "cut")
    for (name, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_the_pocket_eye_hears_where(tmp_path):
    """Red discs on noise are found by their colour, and the question about classes is still there."""
    from PIL import Image, ImageDraw

    eye = PocketEye()
    image = Image.effect_noise((448, 448), 40).convert("RGB")
    ImageDraw.Draw(image).ellipse((320, 64, 420, 164), fill=(220, 20, 20))
    tokens = eye.look(image)
    question = eye.ask("which colour is the circle?")
    assert tokens.aligned is not None
    assert tokens.aligned.shape[2] == question.features.shape[2] == eye.asked == 1128
    left, _, _, bottom = tokens.boxes[0, int(tokens.relevance(question).argmax())].tolist()
    assert left > 0.6
    assert bottom < 0.45, "the circle is at the top right"
    plain, classes = eye.embedded.look(image), eye.embedded.ask("which colour is the circle?")
    assert plain.aligned is not None
    torch.testing.assert_close(tokens.aligned[..., :1000], plain.aligned)
    torch.testing.assert_close(question.features[..., :1000], classes.features)


def test_relevance_learns_to_trust_the_way_that_finds_things():
    """Things are where the question's classes are; nothing else about them stands out."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(6):
        tokens = torch.randn(16, 36, 7, generator=generator)
        aligned = 0.3 * torch.randn(16, 36, 5, generator=generator)
        place = torch.randint(36, (16,), generator=generator)
        aligned[torch.arange(16), place, 2] += 4
        covered = torch.nn.functional.one_hot(place, 36).float()
        asked = torch.nn.functional.one_hot(torch.tensor(2), 5).float().expand(16, 1, 5)
        question = Question(asked, reference=torch.eye(5)[:2])
        batches.append(Noted(VisualTokens.from_grid(tokens, (6, 6), aligned=aligned), question, covered))
    learned, plain = realizer(batches, epochs=10), Realizer()
    for batch in batches:
        found, before = (
            one.field(one.seen(batch.tokens.features, batch.tokens, batch.question), batch.tokens.valid)[0]
            for one in (learned, plain)
        )
        at = batch.covered.argmax(dim=1, keepdim=True)
        assert found.gather(1, at).mean() > before.gather(1, at).mean() + 0.1
    assert learned.field.gain[2] > learned.field.gain[:2].max()
    assert not any(value.requires_grad for value in learned.parameters())


def test_the_pocket_model_spends_by_what_its_eye_has_learned():
    eye = PocketEye()
    assert eye.realizer.field.gain[2] > 1
    model = Pocket(["where"])
    for vlm in (model.vlm("relevance"), ready(model, "relevance", states=States(scope=0.5))):
        assert vlm.bridge.allocator.realizer is eye.realizer  # pyright: ignore[reportAttributeAccessIssue]
    assert ready(model, "relevance", states=States(scope=0.5)).bridge.allocator.scope == 0.5  # pyright: ignore
