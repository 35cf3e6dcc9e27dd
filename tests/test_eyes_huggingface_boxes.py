"""What part of the original picture each token of a Hugging Face eye stands for: cropped, squashed, tiled, of any size.

A picture whose red is its x and whose green is its y tells, in the pixels that the encoder gets, where they come from.
"""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.image_processing_utils import select_best_resolution

import tiny_towers
from regard.errors import ImageError, ModelError
from regard.eyes._hf_views import View, anyres
from regard.eyes.huggingface import HuggingFaceEye
from tiny_towers import FAMILIES, photo

FLEXIBLE = ("siglip2", "siglip2_vision_model")
SIZES = [(211, 149), (113, 239), (37, 59)]


@pytest.fixture(scope="module")
def eye(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    return lambda family, **options: HuggingFaceEye.load(tiny_towers.build(family, folder), device="cpu", **options)


def ramp(width: int, height: int) -> Image.Image:
    red, green = np.broadcast_to(np.arange(width), (height, width)), np.arange(height)[:, None] + np.zeros((1, width))
    return Image.fromarray(np.stack((red, green, 0 * red), axis=2).astype(np.uint8))


def seen_at(looker: HuggingFaceEye, view: View) -> torch.Tensor:
    """(h * w, 2): the mean x and y, in pixels of the original, of what each patch of the embeddings gets."""
    processor: Any = looker._views.processor
    patch = looker.tower.config.patch_size
    mean, std = torch.tensor(processor.image_mean[:2]), torch.tensor(processor.image_std[:2])
    if looker._views.flexible:
        colours = view.pixels.unflatten(1, (patch * patch, 3)).mean(dim=1)[:, :2]
    else:
        h, w = looker.tower.grid(view.shape)
        pixels = F.pad(view.pixels, (0, patch, 0, patch))  # as Swin does, which sees what is left over
        cells = pixels[:2, : h * patch, : w * patch].unflatten(2, (w, patch)).unflatten(1, (h, patch))
        colours = cells.mean(dim=(2, 4)).flatten(1).T
    return (colours * std + mean) * 255 + 0.5  # the first pixel's middle is at half a pixel


def middles(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.stack((boxes[:, [0, 2]].mean(dim=1) * size[0], boxes[:, [1, 3]].mean(dim=1) * size[1]), dim=1)


def check_places(looker: HuggingFaceEye, size: tuple[int, int]) -> float:
    """The largest distance in pixels of a token's middle from where its pixels come from, the rim left out."""
    worst = 0.0
    for view in looker._views.of(ramp(*size)):
        boxes = looker.tower.boxes(view.shape, torch.tensor(view.part))
        h, w = looker.tower.grid(view.shape)
        inner = torch.zeros(h, w, dtype=torch.bool)
        inner[1:-1, 1:-1] = True  # filters end at the rim, and Swin pads there
        far = (middles(boxes, size) - seen_at(looker, view)).abs().amax(dim=1)[inner.flatten()]
        worst = max(worst, float(far.max()) if len(far) else 0.0)
    return worst


WAYS: dict[str, dict[str, Any]] = {
    "as the processor does": {},
    "any aspect": {"longest": 131},
    "six tiles": {"tiles": (2, 3)},
    "some tiles": {"tiles": 5},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_come_from_the_boxes(eye, family, size, way):
    if family in FLEXIBLE and way == "any aspect":
        pytest.skip("SigLIP 2 keeps the aspect without being asked")
    looker = eye(family, layer=0, **WAYS[way])  # the embeddings: a token is a patch
    assert check_places(looker, size) < 0.8
    tokens = looker.look(ramp(*size))
    assert float(tokens.boxes.min()) >= 0
    assert float(tokens.boxes.max()) <= 1
    assert bool((tokens.boxes[..., 2:] > tokens.boxes[..., :2]).all())


@pytest.mark.parametrize("family", ["clip", "convnext", "dinov2"])
def test_places_without_the_crop_would_be_wrong(eye, family, monkeypatch):
    looker = eye(family, layer=0)
    right = type(looker._views).of
    monkeypatch.setattr(
        type(looker._views),
        "of",
        lambda self, image: [v._replace(part=(0.0, 0.0, 1.0, 1.0)) for v in right(self, image)],
    )
    assert check_places(looker, SIZES[0]) > 5


@pytest.mark.parametrize(("family", "other"), [("clip", {"size": {"shortest_edge": 37}}), ("vit", {}), ("swin", {})])
def test_other_settings_of_the_processor(eye, family, other):
    made = eye(family, layer=0)
    for settings in (other, {**other, "do_resize": False}, {**other, "do_center_crop": False}):
        looker = HuggingFaceEye(made.tower.model, tiny_towers.image_processor(family, **settings), layer=0)
        size = (83, 149)
        assert check_places(looker, size) < 0.8, settings
        assert looker.look(ramp(*size)).grid is not None


def test_convnext_squashes_from_384_pixels_on(eye):
    large = tiny_towers.image_processor("convnext", size={"shortest_edge": 384})
    looker = HuggingFaceEye(eye("convnext").tower.model, large, layer=0)
    tokens = looker.look(ramp(211, 149))
    assert tokens.grid == (1, 96, 96)
    assert torch.equal(tokens.boxes[0, [0, -1]], torch.tensor([[0, 0, 1 / 96, 1 / 96], [95 / 96, 95 / 96, 1, 1]]))
    assert check_places(looker, (211, 149)) < 0.8


@pytest.mark.parametrize("family", FAMILIES)
def test_a_change_of_the_picture_changes_the_tokens_of_its_place(eye, family):
    """At the embeddings exactly: a token changes if and only if its box, grown by the filter, meets the change."""
    size = (211, 149)
    looker = eye(family, layer=0)
    before = looker.look(photo(*size, 7))
    for x0, y0, x1, y1 in ((97, 41, 131, 83), (53, 61, 67, 67)):
        changed = photo(*size, 7)
        changed.paste(photo(x1 - x0, y1 - y0, 8), (x0, y0))
        after = looker.look(changed)
        moved = (after.features - before.features)[0].abs().amax(dim=1) > 1e-5
        box = before.boxes[0] * torch.tensor([*size, *size])
        reach = 2.5 * 211 / 28  # pixels of the original under a bicubic filter, at the strongest reduction here

        def meets(grown: float, box=box, edges=(x0, y0, x1, y1)) -> torch.Tensor:
            a, b, c, d = edges
            return (box[:, 0] - grown < c) & (box[:, 2] + grown > a) & (box[:, 1] - grown < d) & (box[:, 3] + grown > b)

        assert bool(moved.any())
        assert not (moved & ~meets(reach)).any()
        assert not (meets(-0.5) & ~moved).any()
        assert not torch.equal(moved, meets(reach).roll(3))


@pytest.mark.parametrize("family", ["swin", "convnext", "convnextv2"])
def test_the_last_grid_lies_on_the_picture(eye, family):
    """A change in the middle of one cell of the last grid changes that cell most."""
    looker = eye(family, longest=160)
    plain = photo(160, 112, 9)
    before = looker.look(plain)
    assert before.grid == (1, 7, 10)
    for cell in (23, 46):
        x0, y0, x1, y1 = (before.boxes[0, cell] * torch.tensor([160, 112, 160, 112])).tolist()
        assert (x1 - x0, y1 - y0) == pytest.approx((16, 16), abs=1e-4)
        changed = plain.copy()
        changed.paste((255, 0, 255), (round(x0) + 3, round(y0) + 3, round(x1) - 3, round(y1) - 3))
        moved = (looker.look(changed).features - before.features)[0].norm(dim=1)
        assert int(moved.argmax()) == cell


def test_a_rest_that_no_whole_token_covers(eye):
    """CLIP does not see it, Swin pads it: the last boxes end where the picture does."""
    vit = HuggingFaceEye(
        eye("clip").tower.model, tiny_towers.image_processor("clip", do_resize=False, do_center_crop=False)
    )
    tokens = vit.look(photo(37, 30))
    assert tokens.grid == (1, 7, 9)
    assert torch.allclose(tokens.boxes[0, -1], torch.tensor([32 / 37, 24 / 30, 36 / 37, 28 / 30]))
    swin = HuggingFaceEye(eye("swin").tower.model, tiny_towers.image_processor("swin", do_resize=False))
    tokens = swin.look(photo(70, 49))
    assert tokens.grid == (1, 4, 5)
    assert torch.allclose(tokens.boxes[0, -1], torch.tensor([64 / 70, 48 / 49, 1, 1]))


def test_tiles_are_pictures_of_their_own(eye):
    picture = photo(211, 149, 3)
    looker, whole = eye("siglip", tiles=(2, 3)), eye("siglip")
    tokens = looker.look(picture)
    assert tokens.grid is None
    assert tokens.segment is not None
    assert tokens.segment[0].bincount().tolist() == [49] * 7
    assert torch.allclose(tokens.features[:, :49], whole.look(picture).features, atol=1e-5)
    assert torch.equal(tokens.boxes[:, :49], whole.look(picture).boxes)
    edges = ((0, 70, 141, 211), (0, 74, 149))
    for number in range(6):
        row, column = divmod(number, 3)
        corner = edges[0][column], edges[1][row], edges[0][column + 1], edges[1][row + 1]
        alone = whole.look(picture.crop(corner))
        mine = tokens.segment[0] == number + 1
        assert torch.allclose(tokens.features[:, mine], alone.features, atol=1e-5)
        x0, y0, x1, y1 = corner
        scaled = alone.boxes * torch.tensor([x1 - x0, y1 - y0] * 2) + torch.tensor([x0, y0] * 2)
        assert torch.allclose(tokens.boxes[:, mine], scaled / torch.tensor([211, 149] * 2), atol=1e-6)


def test_pictures_of_different_numbers_of_tiles_in_a_batch(eye):
    for family in ("clip", "siglip2", "convnext"):
        looker = eye(family, tiles=4)
        photos = [photo(101, 97, 1), photo(19, 23, 2), photo(59, 31, 3)]
        alone = [looker.look(picture) for picture in photos]
        together = looker.look(photos)
        assert together.mask is not None
        assert together.segment is not None
        assert len({tokens.features.shape[1] for tokens in alone}) > 1
        for number, tokens in enumerate(alone):
            real = together.mask[number]
            assert tokens.segment is not None
            assert torch.allclose(together.features[number, real], tokens.features[0], atol=1e-4)
            assert torch.equal(together.segment[number, real], tokens.segment[0])
            assert torch.equal(together.boxes[number, real], tokens.boxes[0])


def test_a_picture_of_one_tile_is_itself(eye):
    looker = eye("vit", tiles=5)
    tokens = looker.look(photo(19, 23))
    assert tokens.grid == (1, 7, 7)
    assert tokens.segment is not None
    assert not tokens.segment.any()
    assert torch.allclose(tokens.features, eye("vit").look(photo(19, 23)).features, atol=1e-5)


def test_the_choice_of_tiles_is_anyres():
    """As transformers has it for LLaVA-NeXT, where its choice of sizes is ours: all grids of at most so many."""
    for most in (4, 6):
        grids = [(r, c) for r in range(1, most + 1) for c in range(1, most // r + 1)]
        for width, height in [(211, 149), (61, 239), (400, 30), (37, 31), (97, 97), (29, 300)]:
            wanted = select_best_resolution((height, width), [(r * 28, c * 28) for r, c in grids])
            rows, columns = anyres((width, height), most, (28, 28))
            assert (rows * 28, columns * 28) == tuple(wanted)


def test_options_that_do_not_fit(eye, unchecked):
    with pytest.raises(ModelError, match="longest goes without tiles: give one of them"):
        eye("vit", longest=90, tiles=3)
    with pytest.raises(ModelError, match="longest goes without SigLIP 2's processor, which has max_num_patches"):
        eye("siglip2", longest=90)
    with pytest.raises(ModelError, match="longest must be 16 pixels, a token's side, or more, got 15"):
        eye("convnext", longest=15)
    for tiles in (0, (2, 0), (2, 3, 4), "2"):
        with pytest.raises(ModelError, match="tiles must be \\(rows, columns\\) or how many at most, from 1, got"):
            eye("vit", tiles=tiles)
    with pytest.raises(ImageError, match="a picture of 3 x 90 pixels has no 4 x 2 tiles"):
        eye("vit", tiles=(2, 4)).look(photo(3, 90))
    small = tiny_towers.image_processor("clip", size={"shortest_edge": 19})
    with pytest.raises(ModelError, match="makes 28 x 28 of a picture resized to 26 x 19, expected a resize, then a"):
        HuggingFaceEye(eye("clip").tower.model, small).look(photo(211, 149))
    odd = tiny_towers.image_processor("vit", size={"shortest_edge": 28, "longest_edge": 31})
    with pytest.raises(ModelError, match="makes 31 x 22 of a picture resized to 39 x 28"):
        HuggingFaceEye(eye("vit").tower.model, odd).look(photo(211, 149))
