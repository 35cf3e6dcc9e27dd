"""One contract for every trained mechanism that chooses where to look. A new one needs entries in TINY."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import regard.mechanisms
from regard.attention.vision import VisionTransformer
from regard.errors import ModelError, ShapeError
from regard.mechanisms.avit import AViT
from regard.mechanisms.cascade import Cascade
from regard.mechanisms.dynamicvit import DynamicViT
from regard.mechanisms.evit import EViT
from regard.mechanisms.foveated import FoveaTer
from regard.mechanisms.gaze_vit import GazeViT
from regard.mechanisms.looker import Looker
from regard.mechanisms.pervit import PerViT
from regard.mechanisms.recurrent import RecurrentAttention
from regard.mechanisms.vit import StaticViT
from regard.record import Record


def vision() -> VisionTransformer:
    return VisionTransformer(20, 4, 16, 5, 2, 24, channels=1)


def other_vision() -> VisionTransformer:
    return VisionTransformer(24, 8, 24, 7, 3, 16, channels=3, registers=2, layer_scale=True, gated=True)


def cascade(*arguments: Any, **others: Any) -> Cascade:
    made = Cascade(*arguments, **others)
    made.set_thresholds([0.5] * (made.stages - 1))
    return made


# what makes small ones, unlike one another, and the pixels of a side that each is shown
GAZE: dict[str, Any] = {"strides": (1, 2), "grids": (2, 3), "token": 4, "view": 16}
TINY: dict[str, tuple[tuple[Callable[[], Looker], int], ...]] = {
    "RecurrentAttention": (
        (lambda: RecurrentAttention(5, 1, glimpses=3, glimpse=4, scales=2, hidden=16), 23),
        (lambda: RecurrentAttention(4, 3, glimpses=5, glimpse=3, hidden=12, core="lstm", policy="random"), 14),
    ),
    "Cascade": (
        (lambda: cascade(5, 1, 16, patch=2, stages=3, keep=[2, 3], width=16, depth=2, heads=2), 16),
        (lambda: cascade(4, 3, 16, 4, 2, width=8, depth=3, heads=4, expand=2, reuse=False, first=0), 16),
        (lambda: cascade(4, 3, 16, 4, 1, width=8, depth=1, heads=4, first=0), 16),
    ),
    "StaticViT": ((lambda: StaticViT(vision(), 5), 20), (lambda: StaticViT(other_vision(), 4), 24)),
    "DynamicViT": (
        (lambda: DynamicViT(vision(), 5), 20),
        (lambda: DynamicViT(other_vision(), 4, keep=0.5, layers=(2, 6)), 24),
    ),
    "AViT": (
        (lambda: AViT(vision(), 5, gate=2, centre=3), 20),
        (lambda: AViT(other_vision(), 4, gate=1, centre=1, eps=0.2), 24),
    ),
    "EViT": (
        (lambda: EViT(vision(), 5), 20),
        (lambda: EViT(other_vision(), 4, keep=0.4, layers=(1, 5), fuse=False), 24),
    ),
    "FoveaTer": (
        (lambda: FoveaTer(5, 1, dim=16, depth=2, heads=2, glimpses=3, threshold=0.3, levels=3, inhibit=0.1), 100),
        (lambda: FoveaTer(4, 3, dim=8, depth=3, heads=4, glimpses=2, regions="polar", levels=2), 70),
        (lambda: FoveaTer(4, 3, dim=8, depth=1, heads=1, regions="all"), 70),
    ),
    "GazeViT": (
        (lambda: GazeViT(5, 1, 16, 2, 2, **GAZE), 23),
        (lambda: GazeViT(4, 3, 8, 1, 4, strides=(1, 3), grids=(3, 3), token=2, view=32), 30),
        (lambda: GazeViT(4, 3, 8, 3, 1, **GAZE, reading="all"), 23),
    ),
    "PerViT": (
        (lambda: PerViT(5, 1, side=20, patch=4, dim=16, depth=2, heads=2), 20),
        (lambda: PerViT(4, 3, side=12, patch=2, dim=12, depth=3, heads=3, attention="plain"), 12),
    ),
}
EVERY = [f"{name}-{number}" for name, several in TINY.items() for number in range(len(several))]


def made(name: str) -> tuple[Looker, int]:
    torch.manual_seed(7)
    kind, number = name.split("-")
    make, side = TINY[kind][int(number)]
    looker = make().eval()
    with torch.no_grad():
        for value in looker.parameters():
            if value.ndim > 1:
                value.normal_(0, 0.3)
    return looker, side


def pixels(looker: Looker, side: int, count: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, looker.channels, side, side), generator=generator, dtype=torch.uint8)


def test_every_mechanism_is_here():
    found = set()
    for module in pkgutil.iter_modules(regard.mechanisms.__path__):
        members = vars(importlib.import_module(f"regard.mechanisms.{module.name}")).values()
        found |= {
            m.__name__ for m in members if isinstance(m, type) and issubclass(m, Looker) and not inspect.isabstract(m)
        }
    assert found == set(TINY)


@pytest.fixture(params=EVERY)
def looker(request):
    return made(request.param)


@torch.no_grad()
def test_what_it_says_fits_together(looker):
    it, side = looker
    looked = it.look(pixels(it, side))
    batch, regions = looked.stages.shape
    assert batch == 5
    assert looked.boxes.shape == (batch, regions, 4)
    assert looked.features.shape[:2] == (batch, regions)
    read = looked.stages >= 0
    assert bool((looked.stages <= looked.exits[:, None]).all())
    boxes = looked.boxes[read]
    assert bool(((boxes >= 0) & (boxes <= 1)).all())
    assert bool((boxes[:, :2] <= boxes[:, 2:]).all())
    assert bool((looked.tokens >= 1).all())
    assert bool(looked.logits.isfinite().all())
    if looked.fixations is not None:
        there = looked.fixations[~looked.fixations.isnan()]
        assert bool(((there >= 0) & (there <= 1)).all())


@torch.no_grad()
def test_macs_counted_are_macs_measured(looker):
    it, side = looker
    it.look(pixels(it, side))  # what depends on no image is made once, and kept
    for image in pixels(it, side).split(1):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            looked = it.look(image)
        assert int(looked.macs) == counter.get_total_flops() // 2


@torch.no_grad()
def test_a_seed_decides_all_that_is_drawn(looker):
    it, side = looker
    images = pixels(it, side)
    one, same = it.look(images, seed=4), it.look(images, seed=4)
    for name in ("logits", "features", "boxes", "stages", "exits", "macs"):
        assert torch.equal(getattr(one, name), getattr(same, name))


@torch.no_grad()
def test_an_image_does_not_depend_on_its_neighbours(looker):
    it, side = looker
    images = pixels(it, side)
    whole = it.look(images)
    for place, image in enumerate(images.split(1)):
        alone = it.look(image)
        torch.testing.assert_close(whole.logits[place], alone.logits[0], rtol=1e-4, atol=1e-5)
        for name in ("exits", "tokens", "macs"):
            assert getattr(whole, name)[place] == getattr(alone, name)[0]
        ours, theirs = whole.stages[place] >= 0, alone.stages[0] >= 0
        torch.testing.assert_close(whole.boxes[place, ours], alone.boxes[0, theirs])


@torch.no_grad()
def test_what_it_makes_is_made_where_the_images_are(looker):
    """On the device of the images, not on the default one: here that is a device whose tensors fit no others."""
    it, side = looker
    images, places = pixels(it, side, 3), torch.tensor([[0.1, -0.4], [0.9, 0.2], [-1.0, 1.0]])
    looks = [it.look]
    with suppress(ModelError):  # where it takes no fixation
        it.look_at(images, places)
        looks.append(lambda images: it.look_at(images, places))
    for look in looks:
        here = look(images)  # what depends on no image is made once, and kept
        with torch.device("meta"):
            there = look(images)
        for name, value in vars(there).items():
            if value is not None:
                assert value.device == images.device, name
                assert torch.equal(value.nan_to_num(), getattr(here, name).nan_to_num()), name


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_no_images_are_looked_at_like_some(looker, dtype):
    it, side = looker
    some, none = it.look(pixels(it, side, 2).to(dtype)), it.look(pixels(it, side, 0).to(dtype))
    for name, value in vars(none).items():
        there = getattr(some, name)
        if value is None:
            assert there is None
        else:
            assert len(value) == 0, name
            assert (value.ndim, value.dtype) == (there.ndim, there.dtype), name
    assert none.logits.shape[1] == some.logits.shape[1]
    assert none.boxes.shape[1:] == (none.stages.shape[1], 4)


@torch.no_grad()
def test_bytes_are_floats_over_255(looker):
    it, side = looker
    images = pixels(it, side, 2)
    torch.testing.assert_close(it.look(images).logits, it.look(images / 255).logits)
    torch.testing.assert_close(it.look(images).logits, it.look(images.double() / 255).logits.float())


def test_the_record_is_whole(looker):
    it, side = looker
    array = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    seen = it.see(Image.fromarray(array), seed=2)
    record = seen.record
    assert seen.route == "prediction"
    assert Record.from_json(record.to_json()) == record
    assert record.trace is not None
    assert len(record.trace.stages) == len(record.boxes) == seen.tokens.features.shape[1]
    assert record.trace.macs > 0
    assert record.trace.macs_full == it.runs * it.full_macs(side, side)
    assert abs(sum(record.trace.probabilities) - 1) < 1e-4
    with pytest.raises(ModelError, match="expected names for"):
        it.see(Image.fromarray(array), labels=("one",))
    assert record.trace.answer in {str(k) for k in range(len(record.trace.probabilities))}


@pytest.mark.parametrize("wrong", ["channels", "dims", "dtype", "list"])
def test_wrong_pixels_are_named(looker, wrong):
    it, side = looker
    images = pixels(it, side, 2)
    bad = {
        "channels": torch.cat((images, images), dim=1),
        "dims": images[0],
        "dtype": images.long(),
        "list": images.tolist(),
    }[wrong]
    with pytest.raises(ShapeError, match="pixels must"):
        it.look(bad)
