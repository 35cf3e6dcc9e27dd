"""FoveaTer by its properties: regions that partition the grid, fixations that never come back, and stopping early."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from regard.errors import ModelError, ShapeError
from regard.mechanisms._regions import KINDS, about, count_of, held, pooled, regions
from regard.mechanisms.foveated import STRIDE, Convolutions, FoveaTer, Frozen

SHAPES = st.tuples(
    st.sampled_from(KINDS), st.sampled_from([4, 8]), st.integers(2, 5), st.integers(1, 40), st.integers(1, 40)
)
PLACES = st.tuples(st.floats(-1, 1), st.floats(-1, 1))


def tiny(**others) -> FoveaTer:
    torch.manual_seed(0)
    given = {"dim": 16, "depth": 2, "heads": 2, "levels": 3, "glimpses": 4, "threshold": 2.0} | others
    return FoveaTer(5, 1, **given).eval()


@given(SHAPES, PLACES)
@settings(deadline=None, max_examples=40)
def test_regions_partition_the_grid(shape, place):
    kind, fovea, levels, height, width = shape
    count = count_of(kind, fovea, levels)
    region = about(regions(kind, height, width, fovea, levels), torch.tensor([place]))
    assert region.shape == (1, height * width)
    assert 0 <= int(region.min()) <= int(region.max()) < count
    cells = torch.rand(1, height * width, 3)
    found = pooled(cells, region, count, (height, width))
    assert int(found.sizes.sum()) == height * width
    for one in range(count):
        mine = cells[0, region[0] == one]
        assert len(mine) == int(found.sizes[0, one])
        expected = mine.mean(dim=0) if len(mine) else torch.zeros(3)
        torch.testing.assert_close(found.means[0, one], expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("fovea", "levels"), [(4, 2), (4, 5), (8, 3)])
def test_every_region_is_there_and_resolution_falls_with_distance(kind, fovea, levels):
    reach = fovea * 2 ** (levels - 1) // 2
    table = regions(kind, reach, reach, fovea, levels)
    assert torch.equal(table.unique(), torch.arange(count_of(kind, fovea, levels)))
    if kind == "square":
        assert count_of(kind, fovea, levels) == fovea**2 + (levels - 1) * 3 * fovea**2 // 4
    y, x = torch.meshgrid(*(torch.arange(-reach, reach) + 0.5,) * 2, indexing="ij")
    away = torch.maximum(y.abs(), x.abs()) if kind == "square" else (y**2 + x**2).sqrt()
    sizes = table.flatten().bincount()
    single = away < fovea / 2
    assert bool((sizes[table[single]] == 1).all())
    rings = [2 ** (level - 1) * fovea / 2 for level in range(1, levels)]
    means = []
    for inner in rings:
        ring = (away >= inner) & (away < 2 * inner)
        means.append(float(sizes[table[ring].unique()].float().mean()))
    assert all(near * 2 < far for near, far in zip([1.0, *means], means, strict=False))


@pytest.mark.parametrize("kind", KINDS)
def test_regions_move_with_the_fixation(kind):
    table = regions(kind, 12, 20, 4, 3)
    here, there = (about(table, torch.tensor([at])).view(12, 20) for at in ([0.0, 0.0], [0.2, 0.5]))
    torch.testing.assert_close(there[3:, 2:], here[:-3, :-2])


def test_a_batch_of_regions_is_its_images():
    torch.manual_seed(1)
    at, cells = torch.rand(4, 2) * 2 - 1, torch.rand(4, 6 * 9, 2)
    region = about(regions("polar", 6, 9, 4, 3), at)
    count = count_of("polar", 4, 3)
    together, boxes = pooled(cells, region, count, (6, 9)), held(region, count, (6, 9))
    for place in range(4):
        part = slice(place, place + 1)
        alone = pooled(cells[part], region[part], count, (6, 9))
        torch.testing.assert_close(together.means[part], alone.means)
        torch.testing.assert_close(together.centres[part], alone.centres)
        for one in region[place].unique().tolist():
            cell = (region[place] == one).nonzero()[:, 0]
            x, y = cell % 9, cell // 9
            expected = torch.tensor(
                [int(x.min()) / 9, int(y.min()) / 6, (int(x.max()) + 1) / 9, (int(y.max()) + 1) / 6]
            )
            torch.testing.assert_close(boxes[place, one], expected)
            inside = together.centres[place, one]
            assert bool(((inside > expected[:2]) & (inside < expected[2:])).all())


@pytest.mark.parametrize(
    ("kind", "fovea", "levels", "error"),
    [
        ("round", 4, 3, ModelError),
        ("square", 3, 3, ShapeError),
        ("polar", 6, 3, ShapeError),
        ("square", 4, 1, ShapeError),
    ],
)
def test_regions_that_do_not_exist_are_named(kind, fovea, levels, error):
    with pytest.raises(error):
        regions(kind, 8, 8, fovea, levels)
    with pytest.raises(error):
        FoveaTer(regions=kind, fovea=fovea, levels=levels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inhibit", [0.02, 0.1, 0.3])
@torch.no_grad()
def test_no_place_is_fixated_twice(kind, inhibit):
    model = tiny(regions=kind, inhibit=inhibit, glimpses=12)
    looked = model.look(torch.rand(6, 1, 200, 150))
    assert looked.fixations is not None
    for path in looked.fixations:
        path = path[~path.isnan().any(dim=1)]
        apart = (path[:, None] - path).abs().amax(dim=-1) + torch.eye(len(path))
        assert float(apart.min()) > inhibit
    if inhibit == 0.3:  # nothing is left to look at
        assert int(looked.exits.max()) < 11


@torch.no_grad()
def test_the_next_fixation_is_where_attention_is_most():
    model = tiny()
    cells, grid = model.features(torch.rand(3, 1, 160, 160))
    seen = model.glimpse(cells, grid, torch.zeros(3, 2))
    far = torch.full((3, 1, 2), 5.0)
    following, free = model.next(seen, far)
    best = seen.read.attention.masked_fill(seen.regions.sizes == 0, -1).argmax(dim=1)
    torch.testing.assert_close(following, seen.regions.centres[torch.arange(3), best] * 2 - 1)
    assert bool(free.all())
    again, _ = model.next(seen, torch.cat((far, following[:, None]), dim=1))
    assert bool(((again - following).abs().amax(dim=1) > 2 * model.inhibit).all())


@torch.no_grad()
def test_images_that_are_sure_stop_their_work(monkeypatch):
    model, pixels = tiny(glimpses=4), torch.rand(8, 1, 128, 128)
    seen = [one.read.logits for one in model.scan(*model.features(pixels), torch.zeros(8, 2))]
    after = [torch.stack(seen[: turn + 1]).mean(dim=0) for turn in range(4)]
    sure = torch.stack([logits.softmax(dim=1).amax(dim=1) for logits in after])
    model.threshold = float(sure[:2].median())  # some stop at once, some later
    expected = torch.tensor([next((t for t in range(3) if sure[t, k] >= model.threshold), 3) for k in range(8)])
    read, sizes = model.reader.forward, []
    monkeypatch.setattr(model.reader, "forward", lambda x, valid=None: (sizes.append(len(x)), read(x, valid))[1])
    looked = model.look(pixels)
    assert torch.equal(looked.exits, expected)
    assert sizes == [n for n in ((expected >= turn).sum().item() for turn in range(4)) if n]
    assert len(set(sizes)) > 1
    for place, turn in enumerate(expected.tolist()):
        torch.testing.assert_close(looked.logits[place], after[turn][place])
    spent = looked.macs - model.glimpse_macs(64) * (expected + 1)
    assert spent.unique().tolist() == [Convolutions(1).macs(128, 128)]
    assert looked.fixations is not None
    assert torch.equal((~looked.fixations.isnan()).all(dim=2).sum(dim=1), expected + 1)


@torch.no_grad()
def test_a_fixation_from_outside_is_used():
    model, pixels = tiny(), torch.rand(2, 1, 96, 96)
    at = torch.tensor([[-0.5, 0.25], [1.0, -1.0]])
    looked = model.look_at(pixels, at)
    assert looked.fixations is not None
    torch.testing.assert_close(looked.fixations[:, 0], (at + 1) / 2)
    assert not torch.allclose(looked.logits, model.look(pixels).logits)
    for wrong, match in ((at * 2, r"in \[-1, 1\]"), (at[:1], "fixations must be floats")):
        with pytest.raises(ShapeError, match=match):
            model.look_at(pixels, wrong)


@torch.no_grad()
def test_the_twin_reads_every_cell_once():
    twin = tiny(regions="all")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        looked = twin.look(torch.rand(1, 1, 70, 100))
    assert int(looked.macs) == counter.get_total_flops() // 2 == twin.full_macs(70, 100) == tiny().full_macs(70, 100)
    assert int(looked.tokens) == 5 * 7
    assert looked.fixations is None
    with pytest.raises(ModelError, match="takes no fixation"):
        twin.look_at(torch.rand(1, 1, 70, 100), torch.zeros(1, 2))


@torch.no_grad()
def test_the_frozen_backbone_is_the_eyes():
    frozen, pixels = Frozen(3), torch.rand(1, 3, 96, 64)
    with FlopCounterMode(display=False) as counter:
        maps = frozen(pixels)
    assert maps.shape == (1, Frozen.width, 96 // STRIDE, 64 // STRIDE)
    assert frozen.macs(96, 64) == counter.get_total_flops() // 2
    with pytest.raises(ShapeError, match="reads 3 channels"):
        Frozen(1)
    model = FoveaTer(5, 3, dim=16, depth=1, heads=2, backbone="efficientnet").eval()
    assert not any(name.startswith("backbone") for name in model.state_dict())
    assert model.look(torch.rand(1, 3, 50, 70)).logits.shape == (1, 5)


def test_what_cannot_be_built_is_named():
    with pytest.raises(ShapeError, match="glimpses must"):
        FoveaTer(glimpses=0)
    with pytest.raises(ShapeError, match="inhibit"):
        FoveaTer(inhibit=0)
    with pytest.raises(ModelError, match="no backbone"):
        FoveaTer(backbone="resnet")  # pyright: ignore


@torch.no_grad()
def test_places_are_the_images_where_cells_reach_beyond_it():
    """40 pixels are two and a half cells of 16: their edges are at 0.4 and 0.8 of the image."""
    model = FoveaTer(4, 1, dim=8, depth=1, heads=2, regions="all").eval()
    boxes = model.look(torch.rand(1, 1, 40, 40)).boxes[0]
    torch.testing.assert_close(boxes[:, 0].unique(), torch.tensor((0.0, 0.4, 0.8)))
    torch.testing.assert_close(boxes[:, 2].unique(), torch.tensor((0.4, 0.8, 1.0)))
    model = FoveaTer(4, 1, dim=8, depth=1, heads=2, glimpses=1).eval()
    looked = model.look_at(torch.rand(2, 1, 40, 72), torch.tensor([[0.5, -1.0], [1.0, 1.0]]))
    assert looked.fixations is not None
    torch.testing.assert_close(looked.fixations[:, 0], torch.tensor([[0.75, 0.0], [1.0, 1.0]]))
