"""RAM: its retina against a loop over samples and pixels, its loss against the formulas, its gradients apart."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from regard.errors import ShapeError
from regard.mechanisms.recurrent import COPIES, RecurrentAttention, loss, noise, retina


def by_hand(images, at, size, scales):
    """One sample, patch and pixel at a time."""
    batch, channels, height, width = images.shape
    out = torch.zeros(batch, scales, channels, size, size, dtype=torch.float64)
    widest = size * 2 ** (scales - 1)
    for b in range(batch):
        x, y = at[b].tolist()
        left = math.floor((x + 1) / 2 * width - widest / 2 + 0.5)
        top = math.floor((y + 1) / 2 * height - widest / 2 + 0.5)
        for s in range(scales):
            step = 2**s
            edge = (widest - size * step) // 2
            for c in range(channels):
                for i in range(size):
                    for j in range(size):
                        total = 0.0
                        for u in range(step):
                            for v in range(step):
                                row, column = top + edge + i * step + u, left + edge + j * step + v
                                if 0 <= row < height and 0 <= column < width:
                                    total += float(images[b, c, row, column])
                        out[b, s, c, i, j] = total / step**2
    return out


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(5, 19),
    width=st.integers(5, 23),
    size=st.integers(1, 5),
    scales=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_the_retina_is_the_rule(height, width, size, scales, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 2, height, width), generator=generator, dtype=torch.uint8)
    at = torch.rand(2, 2, generator=generator, dtype=torch.float64) * 2 - 1
    want = by_hand(images, at, size, scales)
    torch.testing.assert_close(retina(images, at, size, scales).double() * 255, want, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(retina(images.double(), at, size, scales), want)


def test_corners_and_centre():
    images = torch.arange(1, 37.0).view(1, 1, 6, 6)  # no pixel is 0, as what is outside is
    top_left = retina(images, torch.tensor([[-1.0, -1.0]]), 2, 1)[0, 0, 0]
    assert top_left.tolist() == [[0, 0], [0, 1]]
    assert retina(images, torch.tensor([[0.0, 0.0]]), 2, 1)[0, 0, 0].tolist() == [[15, 16], [21, 22]]
    right = retina(images, torch.tensor([[1.0, 0.0]]), 2, 1)[0, 0, 0]
    assert right.tolist() == [[18, 0], [24, 0]]


@pytest.fixture
def ram():
    torch.manual_seed(0)
    return RecurrentAttention(5, 1, glimpses=3, glimpse=4, hidden=16, std=0.3).double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(7, 1, 13, 17, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (7,), generator=generator)
    draws = noise(7, 3, generator).double()
    return images, labels, draws


def test_locations_follow_the_policy(ram, batch):
    images, _, draws = batch
    seen = ram(images, draws)
    assert torch.equal(seen.locations[:, 0], draws[:, 0])
    for t in range(2):
        mean = ram.locate(seen.states[:, t]).tanh()
        chosen = mean + 0.3 * draws[:, t + 1]
        torch.testing.assert_close(seen.locations[:, t + 1], chosen.clamp(-1, 1))
        want = torch.distributions.Normal(mean, 0.3).log_prob(chosen).sum(dim=1)  # of what was drawn, before the clamp
        torch.testing.assert_close(seen.log_prob[:, t], want)


def test_the_loss_is_the_formula(ram, batch):
    images, labels, draws = batch
    with torch.no_grad():
        seen = ram(images, draws)
    total = 0.0
    for b in range(len(labels)):
        reward = float(seen.logits[b].argmax() == labels[b])
        total += float(-seen.logits[b].log_softmax(0)[labels[b]])
        for t in range(2):
            total += (float(seen.baselines[b, t]) - reward) ** 2
            total -= (reward - float(seen.baselines[b, t])) * float(seen.log_prob[b, t])
    assert float(loss(seen, labels)) == pytest.approx(total / len(labels))


def grads(module, value):
    found = torch.autograd.grad(value, list(module.parameters()), allow_unused=True, retain_graph=True)
    return [g for g in found if g is not None and float(g.abs().max()) > 0]


def test_the_class_teaches_glimpse_and_core_and_reinforce_the_location_alone(ram, batch):
    images, labels, draws = batch
    seen = ram(images, draws)
    crossed = nn.functional.cross_entropy(seen.logits, labels)
    assert not grads(ram.locate, crossed)
    assert not grads(ram.expect, crossed)
    assert grads(ram.what, crossed)
    assert grads(ram.core, crossed)
    policy = seen.log_prob.sum()
    assert grads(ram.locate, policy)
    for part in (ram.what, ram.where, ram.core, ram.classify, ram.expect):
        assert not grads(part, policy)
    whole = torch.autograd.grad(loss(seen, labels), list(ram.expect.parameters()), retain_graph=True)
    reward = (seen.logits.argmax(dim=1) == labels).double()[:, None]
    squared = torch.autograd.grad((seen.baselines - reward).square().sum(1).mean(), list(ram.expect.parameters()))
    for mine, theirs in zip(whole, squared, strict=True):  # the advantage does not teach the baseline
        torch.testing.assert_close(mine, theirs)


def test_reinforce_learns_where_to_look():
    """The class is a mark in one corner: only a policy that goes there is right."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    model = RecurrentAttention(2, 1, glimpses=2, glimpse=6, hidden=32, std=0.3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    corner, away = torch.tensor([-0.6, -0.6]), []
    for _ in range(300):
        labels = torch.randint(0, 2, (64,), generator=generator)
        images = torch.zeros(64, 1, 24, 24)
        images[:, :, :10, :10] = labels[:, None, None, None].float()
        seen = model(images, noise(64, 2, generator))
        optimizer.zero_grad()
        loss(seen, labels).backward()
        optimizer.step()
        away.append(float((seen.locations[:, 1] - corner).norm(dim=1).mean()))
    assert sum(away[-20:]) < 0.6 * sum(away[:20])


@pytest.mark.parametrize("core", ["rectifier", "lstm"])
def test_any_size_and_channels(core):
    model = RecurrentAttention(4, 3, glimpses=2, glimpse=3, scales=2, hidden=8, core=core)
    for size in ((5, 31), (40, 9), (3, 3)):
        seen = model(torch.rand(2, 3, *size), noise(2, 2))
        assert seen.logits.shape == (2, 4)
    assert model(torch.rand(0, 3, 9, 9), noise(0, 2)).logits.shape == (0, 4)


def test_one_glimpse_has_no_policy():
    model = RecurrentAttention(4, glimpses=1, glimpse=3, hidden=8)
    seen = model(torch.rand(2, 1, 9, 9), noise(2, 1))
    assert seen.log_prob.shape == seen.baselines.shape == (2, 0)
    assert loss(seen, torch.tensor([1, 2])).isfinite()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: RecurrentAttention(glimpses=0), "glimpses=0"),
        (lambda: RecurrentAttention(std=0), "std=0"),
        (lambda: RecurrentAttention(glimpse=8)(torch.rand(1, 1, 7, 30), noise(1, 6)), "8 x 8 is larger .* 30 x 7"),
    ],
)
def test_what_cannot_be_is_named(make, line):
    with pytest.raises(ShapeError, match=line):
        make()


def test_copies_are_averaged():
    torch.manual_seed(2)
    model = RecurrentAttention(5, glimpses=3, glimpse=4, hidden=16).eval()
    images = torch.rand(3, 1, 13, 13)
    draws = noise(4, 3, torch.Generator().manual_seed(9))
    with torch.no_grad():
        want = sum(model(images, draw.expand(3, -1, -1)).logits.softmax(1) for draw in draws) / 4
        looked = model.look(images, seed=9, copies=4)
    torch.testing.assert_close(looked.logits.exp(), want)
    assert looked.macs.tolist() == [4 * model.macs] * 3


def test_a_first_fixation_from_outside_is_taken():
    torch.manual_seed(2)
    model = RecurrentAttention(5, glimpses=3, glimpse=4, hidden=16).eval()
    images, at = torch.rand(3, 1, 13, 13), torch.tensor([[0.0, 0.5], [-1.0, 1.0], [0.3, -0.2]])
    with torch.no_grad():
        looked = model.look_at(images, at, seed=9)
    assert looked.fixations is not None
    torch.testing.assert_close(looked.fixations[:, 0] * 2 - 1, at)
    with pytest.raises(ShapeError, match="fixation"):
        model.look_at(images, at * 3)


def test_a_random_policy_looks_anywhere():
    torch.manual_seed(2)
    model = RecurrentAttention(5, glimpses=4, glimpse=4, hidden=16, policy="random")
    seen = model(torch.rand(4000, 1, 9, 9), noise(4000, 4, torch.Generator().manual_seed(1)))
    quarters = (seen.locations[:, 1:] + 1).mul(2).floor().flatten(0, 1)
    counts = torch.histc(quarters[:, 0] * 4 + quarters[:, 1], 16, 0, 16)
    assert float((counts / counts.sum() * 16 - 1).abs().max()) < 0.15


def test_what_ten_runs_spend_stands_beside_ten_readings_of_all():
    model = RecurrentAttention(classes=3, glimpses=2, glimpse=8, hidden=8).eval()
    trace = model.see(Image.fromarray(np.zeros((28, 28), dtype=np.uint8))).record.trace
    assert trace is not None
    assert trace.macs == COPIES * model.macs
    assert trace.macs_full == COPIES * model.full_macs(28, 28)
