"""Small things on large photographs: on made-up things and photos; on the real ones in `make slow`."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from regard import DataError
from regard.bench.tasks import search, stamps
from regard.bench.tasks.cutouts import trimmed
from regard.bench.tasks.search import CLASSES, SearchTask
from test_scenes import GREY

BRIGHT = 100  # of 255, so that a lighter thing is not held to white
COLOURS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1), (2, 1, 0), (0, 2, 1), (1, 0, 2)]


def thing(colour: tuple[int, int, int]) -> Image.Image:
    alpha = Image.new("L", (199, 151))
    ImageDraw.Draw(alpha).ellipse((20, 10, 180, 140), fill=255)
    image = Image.new("RGB", alpha.size, tuple(BRIGHT * part // max(colour) for part in colour))
    image.putalpha(alpha)
    return trimmed(image)


@pytest.fixture(scope="module")
def task() -> SearchTask:
    return SearchTask(
        {kind: [thing(colour)] for kind, colour in zip(CLASSES, COLOURS, strict=True)},
        {
            "train": [Image.new("RGB", (1024, 768), GREY), Image.new("RGB", (768, 1024), (120, 140, 128))],
            "test": [Image.new("RGB", (700, 600), (200, 200, 220))],
        },
    )


def changed(image: torch.Tensor) -> np.ndarray:
    """Where the image is not as its first pixel, (side, side)."""
    pixels = image.permute(1, 2, 0).numpy().astype(int)
    return (np.abs(pixels - pixels[0, 0]) > 2).any(axis=2)


@pytest.mark.parametrize("side", search.SIDES)
def test_a_box_is_where_the_image_changed(task: SearchTask, side: int):
    made = task.search(10, side, 3, "train")
    assert made.images.dtype == torch.uint8
    assert made.images.shape == (10, 3, side, side)
    assert made.labels.dtype == torch.int64
    assert made.boxes.shape == (10, 4)
    for image, box in zip(made.images, made.boxes, strict=True):
        ys, xs = np.nonzero(changed(image))
        seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        np.testing.assert_allclose(box.numpy() * side, seen, atol=2)


def test_things_are_small_of_many_sizes_and_everywhere(task: SearchTask):
    boxes = task.search(150, 512, 0, "train").boxes * 512
    sizes = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    assert sizes.min() >= 30
    assert sizes.max() <= 64
    assert len(sizes.round().unique()) > 20
    assert boxes.min() >= search.EDGE
    assert boxes.max() <= 512 - search.EDGE
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = (centre / 128).long()
    assert len((cells[:, 0] * 4 + cells[:, 1]).unique()) == 16
    assert (centre.mean(0) - 256).abs().max() < 50


def test_labels_go_round_and_name_the_thing(task: SearchTask):
    made = task.search(40, 512, 0, "test")
    for ten in made.labels.split(10):
        assert sorted(ten.tolist()) == list(range(10))
    assert made.labels[:10].tolist() != made.labels[10:20].tolist()
    light = set()
    for image, label, box in zip(made.images, made.labels, made.boxes, strict=True):
        x, y = ((box[:2] + box[2:]) * 256).long().tolist()
        colour, shown = np.array(COLOURS[label]), image[:, y, x].numpy().astype(float)
        np.testing.assert_allclose(shown / shown.max(), colour / colour.max(), atol=0.02)
        light.add(shown.max() / BRIGHT)
    assert 0.69 < min(light) < 0.8
    assert 1.2 < max(light) < 1.31


def test_images_depend_on_seed_and_split_and_not_on_the_count(task: SearchTask):
    whole = task.search(12, 512, 5, "train")
    for part in (task.search(4, 512, 5, "train", first=8), task.search(12, 512, 5, "train")):
        for a, b in zip(part, whole, strict=True):
            assert torch.equal(a, b[-len(a) :])
    for other in (task.search(12, 512, 6, "train"), task.search(12, 512, 5, "test")):
        assert not torch.equal(whole.boxes, other.boxes)
        assert not torch.equal(whole.labels, other.labels)
    assert task.search(0, 512, 5, "train").images.shape == (0, 3, 512, 512)


def test_each_split_has_its_own_photos(task: SearchTask):
    first = {split: task.search(20, 512, 0, split).images[:, :, 0, 0] for split in search.SPLITS}
    assert {tuple(pixel) for pixel in first["train"].tolist()} == {GREY, (120, 140, 128)}
    assert {tuple(pixel) for pixel in first["test"].tolist()} == {(200, 200, 220)}


def test_a_thing_is_set_where_it_can_be_seen(task: SearchTask):
    photo = Image.new("RGB", (600, 600), (130, 130, 130))
    photo.paste((0, 0, 0), (0, 0, 600, 300))
    dark = Image.new("RGBA", (50, 40), (9, 9, 9, 255))
    task = SearchTask({kind: [dark] for kind in CLASSES}, {"train": [photo], "test": []})
    made = task.search(20, 512, 0, "train")
    for image, box in zip(made.images, made.boxes, strict=True):
        x0, y0, x1, y1 = (box * 512).long().tolist()
        assert image[:, max(0, y0 - 3) : y1 + 3, x0 - 3 : x1 + 3].amax() == 130


def test_what_is_not_there_is_one_line(task: SearchTask):
    cases = {
        "no images of side 500: there are 512, 768 and 1024": (3, 500, 0, "train"),
        "no split 'tune': there are train and test": (3, 512, 0, "tune"),
        "count, seed and first must be 0 or more, got -1, 0 and 0": (-1, 512, 0, "train"),
        "must be 0 or more, got 1, -2 and 0": (1, 512, -2, "train"),
    }
    for message, given in cases.items():
        with pytest.raises(DataError, match=message) as raised:
            task.search(*given)
        assert "\n" not in str(raised.value)


def test_packages_that_are_not_there_are_said(tmp_path):
    with pytest.raises(DataError, match=r"has no tuxpaint-stamps-default_\*\.deb: put tuxpaint"):
        search.search_task(tmp_path)


def test_ten_kinds_of_several_pictures_none_twice():
    paths = {kind: search._paths(listed) for kind, listed in search._STAMPS.items()}
    assert len(paths) == len(CLASSES) == 10
    assert all(len(of) >= 3 for of in paths.values())
    every = [path for of in paths.values() for path in of]
    assert len(set(every)) == len(every)
    assert all(path.startswith(stamps.ROOT) and path.endswith(".png") for path in every)


@pytest.mark.slow
def test_the_real_task_has_all_pictures_and_shares_no_photo():
    task = search.search_task()
    assert [*task.things] == list(CLASSES)
    photos = {split: {photo.tobytes() for photo in task.photos[split]} for split in search.SPLITS}
    assert not photos["train"] & photos["test"]
    assert min(len(of) for of in photos.values()) >= 20
    made = search.search(20, 512, 0, "test")
    assert made.labels.bincount().tolist() == [2] * 10
    assert made.images.flatten(1).float().std(1).min() > 10
