"""Calibration tells a score that points at the answer from one that points away, and from one that is blind."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from regard.bench.calibrate import calibrate, chance_above, interval, named_photos
from regard.bench.tasks.gcompris import Photo, Photos
from regard.errors import DataError
from regard.tokens import Question, VisualTokens

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "white": (255, 255, 255),
    "gray": (99, 99, 99),
}


@dataclass(frozen=True)
class Paint:
    """An eye that knows colours: relevance falls with the distance to the named one."""

    sign: int = 1
    name: str = "paint"

    def look(self, image):
        pixels = np.asarray(image.resize((14, 14), Image.Resampling.BOX), dtype=np.float32) / 255
        x = torch.from_numpy(pixels).reshape(1, 196, 3)
        near = torch.cat((x, -(x**2).sum(dim=2, keepdim=True)), dim=2)
        return VisualTokens.from_grid(near, (14, 14))

    def ask(self, text):
        colour = torch.tensor(next(rgb for name, rgb in COLOURS.items() if name in text)) / 255
        return Question(self.sign * torch.cat((2 * colour, torch.ones(1)))[None, None])


@dataclass(frozen=True)
class Blind(Paint):
    def ask(self, text):
        return Question(torch.zeros(1, 1, 4))


@pytest.fixture
def pool():
    return Photos([Photo(n, n, Image.new("RGB", (60, 60), rgb)) for n, rgb in COLOURS.items()], [])


def test_the_sign_is_found(pool):
    towards, away = calibrate(Paint(), pool, 40), calibrate(Paint(sign=-1), pool, 40)
    assert towards.sign == 1
    assert towards.above == 1.0
    assert towards.found == 1.0
    assert away.sign == -1
    assert away.above == 0.0
    assert away.lowest == 1.0
    assert "--sign -1" in away.advice
    blind = calibrate(Blind(), pool, 40)
    assert blind.sign == 0
    assert blind.above == 0.5
    assert "needs no question" in blind.advice
    assert "(5 names, 40 mosaics)" in blind.advice
    assert calibrate(Paint(), pool, 3).sign == 0, "3 names are too few to tell"


def test_a_blind_eye_is_rarely_believed():
    """Of 400 draws of a few names each, about one in twenty may be taken for something."""
    random = np.random.default_rng(0)
    for names in (5, 8, 20):
        intervals = [interval(random.normal(0.5, 0.1, names).tolist()) for _ in range(400)]
        wrong = [not low <= 0.5 <= high for low, high in intervals]
        assert 0.02 < np.mean(wrong) < 0.085


def test_the_interval_is_students():
    """t of 4, 9 and 29 degrees of freedom, from the tables: 2.776, 2.262, 2.045."""
    for n, t in ((5, 2.776), (10, 2.262), (30, 2.045)):
        values = np.linspace(0.45, 0.55, n)
        low, high = interval(values.tolist())
        assert (high - low) / 2 == pytest.approx(t * values.std(ddof=1) / n**0.5, rel=0.004)


def test_the_chance_is_counted_pair_by_pair():
    scores = torch.tensor([3.0, 1.0, 2.0, 2.0, 5.0, 2.0])
    asked = torch.tensor([True, False, True, False, False, False])
    pairs = [(float(a > b) + float(a == b) / 2) for a in scores[asked] for b in scores[~asked]]
    assert chance_above(scores, asked) == pytest.approx(np.mean(pairs))


def test_the_interval_is_over_names(pool):
    """An eye that is right for two of five colours only cannot be sure."""

    @dataclass(frozen=True)
    class Partly(Paint):
        def ask(self, text):
            asked = super().ask(text)
            return asked if "red" in text or "blue" in text else replace(asked, features=-asked.features)

    result = calibrate(Partly(), pool, 40)
    assert result.interval[0] < 0.5 < result.interval[1]
    assert result.sign == 0


def test_photos_of_a_folder_are_named_by_their_files(tmp_path, pool):
    for photo in pool.animals:
        photo.square.resize((80, 60)).save(tmp_path / f"{photo.name}_12.png")
    (tmp_path / "notes.txt").write_text("no photo")
    found = named_photos(tmp_path)
    assert [photo.name for photo in found.animals] == sorted(COLOURS)
    assert found.animals[0].square.size == (60, 60)
    assert calibrate(Paint(), found, 20).sign == 1
    with pytest.raises(DataError, match="no folder"):
        named_photos(tmp_path / "none")
    with pytest.raises(DataError, match="4 different things"):
        calibrate(Paint(), Photos(found.animals[:3], []), 20)
    with pytest.raises(DataError, match="at least 1 task"):
        calibrate(Paint(), found, 0)
