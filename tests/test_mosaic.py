"""The tasks that say whether an eye finds what is asked for, on made-up photos; on the real ones in `make slow`."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from regard import DataError, Question, VisualTokens
from regard.bench.tasks import gcompris, mosaic
from regard.bench.tasks.gcompris import Photo, Photos, photos, resources
from regard.eyes.embedded import EmbeddedEye

COLOURS = {"red": (250, 5, 5), "green": (5, 250, 5), "blue": (5, 5, 250), "cat": (250, 250, 5), "kitten": (250, 240, 5)}


class Toy:
    """Relevance is nearness to the colour asked for."""

    name = "toy"

    def look(self, image: Image.Image) -> VisualTokens:
        h, w = image.height // 16, image.width // 16
        x = torch.from_numpy(np.asarray(image.resize((w, h), Image.Resampling.BOX)).astype("float32") / 255)
        x = x.reshape(1, h * w, 3) - 0.5
        return VisualTokens.from_grid(x, (h, w))

    def ask(self, text: str) -> Question:
        colour = torch.tensor(COLOURS[text.removeprefix("where is the ").rstrip("?")])
        return Question((colour / 255 - 0.5)[None, None], text=text)


@pytest.fixture
def pool() -> Photos:
    animals = [Photo(name, name, Image.new("RGB", (50, 50), colour)) for name, colour in COLOURS.items()]
    return Photos(animals, [Image.new("RGB", (600, 500), (128, 128, 128))])


def test_a_mosaic_has_the_asked_photo_in_its_box_and_no_kin(pool: Photos):
    asked = set()
    for seed in range(30):
        task = mosaic.mosaic(seed, pool, side=32)
        asked.add(task.asked)
        x, y = round(task.box[0] * 64) + 16, round(task.box[1] * 64) + 16
        assert task.image.getpixel((x, y)) == COLOURS[task.asked]
        pixels = {task.image.getpixel((px, py)) for px in (16, 48) for py in (16, 48)}
        assert len(pixels) == 4
        assert not {COLOURS["cat"], COLOURS["kitten"]} <= pixels
    assert asked == set(COLOURS)


def test_small_photos_stand_apart_and_in_their_box(pool: Photos):
    for seed in range(20):
        task = mosaic.small(seed, pool)
        pixels = np.asarray(task.image)
        x0, y0, x1, y1 = (round(edge * 512) for edge in task.box)
        assert 48 <= x1 - x0 == y1 - y0 <= 110
        assert (pixels[y0:y1, x0:x1] == COLOURS[task.asked]).all()
        assert ((pixels == COLOURS[task.asked]).all(axis=2)).sum() == (x1 - x0) ** 2
        task_again = mosaic.small(seed, pool)
        assert task_again.box == task.box


def test_the_scores_are_right_for_an_eye_that_sees(pool: Photos):
    for seed in range(8):
        assert mosaic.found(Toy(), mosaic.mosaic(seed, pool, side=64)) == {"": 1.0}
        scores = mosaic.covered(Toy(), mosaic.small(seed, pool))
        assert scores["top"] > 0.9
        assert scores["random"] < 0.4


def test_inside_is_the_shared_area():
    tokens = VisualTokens.from_grid(torch.zeros(1, 4, 1), (2, 2))
    torch.testing.assert_close(
        mosaic.inside(tokens, (0.25, 0.25, 0.75, 1.0)), torch.tensor([1 / 6, 1 / 6, 1 / 3, 1 / 3])
    )


def qt_resources(files: dict[str, bytes], packed: bool) -> bytes:
    """A version 1 Qt resource file with one folder."""
    names, data, nodes = b"", b"", [struct.pack(">IHII", 0, 2, 1, 1)]
    entries = [("folder", None), *files.items()]
    for name, content in entries:
        at = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if content is None:
            nodes.append(struct.pack(">IHII", at, 2, len(files), 2))
            continue
        body = struct.pack(">I", len(content)) + zlib.compress(content) if packed else content
        nodes.append(struct.pack(">IHHHI", at, int(packed), 0, 0, len(data)))
        data += struct.pack(">I", len(body)) + body
    tree = b"".join(nodes)
    head = b"qres" + struct.pack(">4I", 1, 20, 20 + len(tree), 20 + len(tree) + len(data))
    return head + tree + data + names


@pytest.mark.parametrize("packed", [False, True])
def test_qt_resources(packed: bool):
    files = {"one.webp": b"first" * 50, "zwei.webp": b"second"}
    assert dict(resources(qt_resources(files, packed))) == {f"/folder/{name}": data for name, data in files.items()}
    with pytest.raises(DataError, match="not a Qt resource file"):
        list(resources(b"zip"))


def test_a_package_with_another_hash_is_refused(tmp_path):
    (tmp_path / "other.deb").write_bytes(b"!<arch>\n")
    with pytest.raises(DataError, match=r"expected e9cf06ab21055290\.\.\.: get that version"):
        gcompris._unpacked(tmp_path / "other.deb")


@pytest.mark.slow
def test_the_embedded_eye_finds_the_animals():
    pool, eye = photos("tune"), EmbeddedEye()
    hits = [mosaic.found(eye, mosaic.mosaic(seed, pool))[""] for seed in range(58)]
    parts = [mosaic.covered(eye, mosaic.small(seed, pool)) for seed in range(58)]
    assert np.mean(hits) > 0.75
    assert np.mean([part["top"] for part in parts]) > 0.65
    assert np.mean([part["top"] for part in parts]) > 3 * np.mean([part["random"] for part in parts])


@pytest.mark.slow
def test_the_halves_share_no_animal():
    tune, report = photos("tune"), photos("report")
    assert not {photo.kin for photo in tune.animals} & {photo.kin for photo in report.animals}
    assert len(tune.animals) + len(report.animals) == 57
    assert min(len(tune.scenes), len(report.scenes)) >= 20
