"""Tokens about a gaze: against averages by hand, and as what they are, squares that tile a square once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from regard.errors import DataError, ModelError, ShapeError
from regard.mechanisms.gaze import GazeTokens, read_fixations
from regard.mechanisms.gaze_vit import GRID, GazeViT, Glance, centre_of
from regard.mechanisms.pervit import PerViT

SMALL = {"strides": (1, 2), "grids": (2, 3), "token": 4}
LEVELS = st.sampled_from(
    [((1, 2, 6), (2, 3, 3), 4), ((1, 3), (3, 3), 2), ((2, 4, 8), (4, 4, 4), 3), ((1, 2), (4, 6), 2), ((3,), (5,), 2)]
)


def by_hand(pixels, gaze, tokens):
    """Every area of every token, averaged by itself."""
    _, channels, height, width = pixels.shape
    patches, valid = [], []
    for image, (x, y) in zip(pixels.double(), gaze.tolist(), strict=True):
        left = int(((x + 1) * 0.5 * width - tokens.side / 2 + 0.5) // 1)
        top = int(((y + 1) * 0.5 * height - tokens.side / 2 + 0.5) // 1)
        for x0, y0, x1, _ in tokens.areas().tolist():
            stride = (x1 - x0) // tokens.token
            patch, seen = torch.zeros(channels, tokens.token, tokens.token).double(), False
            for row in range(tokens.token * stride):
                for column in range(tokens.token * stride):
                    py, px = top + y0 + row, left + x0 + column
                    if 0 <= py < height and 0 <= px < width:
                        patch[:, row // stride, column // stride] += image[:, py, px] / stride**2
                        seen = True
            patches.append(patch)
            valid.append(seen)
    return torch.stack(patches).view(len(pixels), tokens.count, *patches[0].shape), torch.tensor(valid).view(
        len(pixels), -1
    )


def test_the_papers_tokens():
    tokens = GazeTokens()
    assert [len(kept) for kept in tokens.kept] == [4, 8, 8]
    assert (tokens.count, tokens.side, tokens.uniform) == (20, 288, 324)


@pytest.mark.parametrize("at", [(0.0, 0.0), (-1.0, -1.0), (1.0, 1.0), (-0.93, 0.41), (0.999, -0.5)])
@pytest.mark.parametrize("size", [(30, 41), (24, 24), (5, 7)])
def test_tokens_are_averages_of_their_areas(at, size):
    torch.manual_seed(0)
    pixels, gaze = torch.rand(2, 3, *size), torch.tensor([at, (0.21, -0.33)])
    tokens = GazeTokens(**SMALL)
    gazed = tokens(pixels, gaze)
    patches, valid = by_hand(pixels, gaze, tokens)
    torch.testing.assert_close(gazed.patches.double(), patches, rtol=0, atol=1e-6)
    assert torch.equal(gazed.valid, valid)
    assert not gazed.patches[~gazed.valid].any()


@given(LEVELS)
@settings(deadline=None, max_examples=20)
def test_the_areas_tile_the_square_once(levels):
    tokens = GazeTokens(*levels)
    times = torch.zeros(tokens.side, tokens.side)
    for x0, y0, x1, y1 in tokens.areas().tolist():
        times[y0:y1, x0:x1] += 1
    assert bool((times == 1).all())
    assert len(tokens.areas()) == tokens.count


def test_the_papers_areas_tile_288_pixels_once():
    areas = GazeTokens().areas()
    times = torch.zeros(288, 288)
    for x0, y0, x1, y1 in areas.tolist():
        times[y0:y1, x0:x1] += 1
    assert bool((times == 1).all())
    assert (areas[:, 2] - areas[:, 0]).unique().tolist() == [16, 32, 96]


@given(LEVELS, st.floats(-1, 1), st.floats(-1, 1), st.integers(1, 60), st.integers(1, 60))
@settings(deadline=None, max_examples=50)
def test_boxes_tile_what_of_the_image_is_in_the_square(levels, x, y, height, width):
    tokens, gaze = GazeTokens(*levels), torch.tensor([[x, y]])
    gazed = tokens(torch.ones(1, 1, height, width), gaze)
    size = torch.tensor([width, height, width, height])
    times = torch.zeros(height, width)
    for x0, y0, x1, y1 in (gazed.boxes[0, gazed.valid[0]] * size).round().long().tolist():
        times[y0:y1, x0:x1] += 1
    assert set(times.unique().tolist()) <= {0, 1}
    assert bool(gazed.valid.any())
    seen = gazed.patches.sum(dim=(2, 3, 4))[0] * torch.tensor(
        [(b - a) ** 2 for a, b in tokens.areas()[:, ::2].tolist()]
    )
    torch.testing.assert_close(seen.sum() / tokens.token**2, times.sum(), rtol=1e-4, atol=1e-3)


def test_each_image_has_its_own_gaze_and_bytes_are_floats():
    torch.manual_seed(1)
    pixels, gaze = torch.randint(0, 256, (4, 3, 50, 40), dtype=torch.uint8), torch.rand(4, 2) * 2 - 1
    tokens = GazeTokens(**SMALL)
    together = tokens(pixels, gaze)
    for place in range(4):
        alone = tokens(pixels[place : place + 1] / 255, gaze[place : place + 1])
        torch.testing.assert_close(together.patches[place], alone.patches[0])
        assert torch.equal(together.boxes[place], alone.boxes[0])


def test_the_cost_does_not_grow_with_the_image():
    """Nothing that is made on the way is as large as the image."""
    tokens, sizes = GazeTokens(**SMALL), []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() != pixels.data_ptr():
                sizes.append(out.untyped_storage().nbytes())
            return out

    pixels, gaze = torch.zeros(1, 1, 2000, 2000, dtype=torch.uint8), torch.zeros(1, 2)
    with Sizes():
        tokens(pixels, gaze)
    assert 0 < max(sizes) < 4 * (2 * tokens.side) ** 2


@pytest.mark.parametrize(
    ("strides", "grids", "token", "match"),
    [
        ((1, 2, 6), (2, 3), 16, "as many"),
        ((), (), 16, "as many"),
        ((1, 0), (2, 3), 16, "above 0"),
        ((1, 2), (2, 3), 0, "above 0"),
        ((1, 4), (2, 3), 16, "does not hold"),
        ((1, 2), (2, 4), 16, "in its middle"),
        ((1, 1), (3, 3), 16, "does not hold"),
    ],
)
def test_levels_that_do_not_nest_are_named(strides, grids, token, match):
    with pytest.raises(ShapeError, match=match):
        GazeTokens(strides, grids, token)


def small(**others):
    torch.manual_seed(0)
    return GazeViT(5, 3, dim=16, depth=2, heads=2, view=16, **SMALL, **others).eval()


@torch.no_grad()
def test_a_gaze_that_is_given_is_used():
    model, pixels = small(), torch.rand(2, 3, 60, 60)
    gaze = torch.tensor([[0.5, -0.5], [-0.4, 0.8]])
    looked = model.look_at(pixels, gaze)
    assert looked.fixations is not None
    torch.testing.assert_close(looked.fixations[:, 0], (gaze + 1) / 2)
    assert looked.tokens.tolist() == [12, 12]
    away = pixels.clone()
    away[0, :, 30:] = 0  # beyond what the first gaze covers
    torch.testing.assert_close(model.look_at(away, gaze).logits[0], looked.logits[0])
    guessed = model.look(pixels)
    assert int(guessed.macs[0] - looked.macs[0]) == Glance(3, 16).macs
    assert int((guessed.tokens - GRID**2 - (guessed.stages >= 0).sum(dim=1)).abs().max()) == 0


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3), torch.zeros(1, 2), torch.zeros(2, 2).long(), [[0, 0]] * 2])
def test_wrong_fixations_are_named(wrong):
    with pytest.raises(ShapeError, match="fixations must be floats"):
        small().look_at(torch.rand(2, 3, 20, 20), wrong)


@pytest.mark.parametrize("value", [1.01, -1.5, float("nan")])
def test_fixations_outside_are_named(value):
    with pytest.raises(ShapeError, match=r"in \[-1, 1\]"):
        small().look_at(torch.rand(1, 3, 20, 20), torch.tensor([[0.0, value]]))


@torch.no_grad()
def test_the_twin_reads_every_token_once():
    model = small(reading="all")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        looked = model.look(torch.rand(1, 3, 22, 30))
    assert int(looked.macs) == counter.get_total_flops() // 2 == model.full_macs(22, 30) == small().full_macs(22, 30)
    assert int(looked.tokens) == 6 * 8
    areas = (looked.boxes[0, :, 2:] - looked.boxes[0, :, :2]).prod(dim=1)
    torch.testing.assert_close(areas.sum(), torch.tensor(1.0))
    with pytest.raises(ModelError, match="takes no fixation"):
        model.look_at(torch.rand(1, 3, 20, 20), torch.zeros(1, 2))
    with pytest.raises(ModelError, match="takes no gaze"):
        model.predict(torch.rand(1, 3, 20, 20))


def test_a_glance_learns_where_a_thing_is():
    torch.manual_seed(0)
    model = small()
    assert model.glance is not None
    optimizer = torch.optim.Adam(model.glance.parameters(), 1e-2)
    for _ in range(60):
        centres = torch.rand(64, 2) * 1.6 - 0.8
        pixels = torch.zeros(64, 3, 64, 64)
        x, y = ((centres + 1) * 32).long().unbind(1)
        for dx in range(-3, 4):
            for dy in range(-3, 4):
                pixels[torch.arange(64), :, y + dy, x + dx] = 1
        optimizer.zero_grad()
        loss = model.predict(pixels).loss(centres)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval().predict(pixels)
    assert float((found.best - centres).abs().mean()) < 0.1
    inside = found.places
    cells = ((inside + 1) * 0.5 * GRID).long()
    assert torch.equal(cells[0, :, 1] * GRID + cells[0, :, 0], torch.arange(GRID**2))


def test_a_trackers_file(tmp_path):
    path = tmp_path / "gaze.csv"
    path.write_text("time,x,y\n0.1,0.5,0.25\n0.2,1,0\n")
    torch.testing.assert_close(read_fixations(path), torch.tensor([[0.0, -0.5], [1.0, -1.0]]))
    for text, match in (
        ("a,b\n1,2\n", "columns x and y"),
        ("x,y\n0.5,2\n", "line 2"),
        ("x,y\n0.1\n", "line 2"),
        ("", "columns"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=match):
            read_fixations(path)
    with pytest.raises(DataError, match="cannot read"):
        read_fixations(tmp_path / "none.csv")


def test_one_image_and_a_fixation():
    from PIL import Image

    image = Image.new("RGB", (40, 30), "red")
    seen = small().see(image, fixation=(0.25, 0.75))
    assert seen.record.trace is not None
    assert seen.record.trace.fixations == ((0.25, 0.75),)
    with pytest.raises(ShapeError, match="fixations"):
        small().see(image, fixation=(0.25, 1.5))
    with pytest.raises(ModelError, match="takes no fixation"):
        PerViT(5, 3, side=8, patch=4, dim=8, heads=2).see(image, fixation=(0.25, 0.75))


def test_what_cannot_be_built_is_named():
    with pytest.raises(ShapeError, match="view must"):
        GazeViT(view=60)
    with pytest.raises(ShapeError, match="dim divided by 4"):
        GazeViT(dim=30)
    with pytest.raises(ShapeError, match="depth"):
        GazeViT(depth=0)
    with pytest.raises(ModelError, match="a gaze is needed"):
        small()(torch.rand(1, 3, 20, 20))


def test_centres():
    torch.testing.assert_close(centre_of(torch.tensor([[0.0, 0.5, 0.5, 1.0]])), torch.tensor([[-0.5, 0.5]]))
