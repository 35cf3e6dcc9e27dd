"""Scenes that are asked about: on a made-up stock, and on the real one in `make slow` (test_asked_real.py)."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from regard import DataError
from regard.bench.tasks import asked
from regard.bench.tasks.asked import drawing, fluent, splits, wording
from regard.bench.tasks.asked.layout import FAINT, INSIDE, Canvas, Thing, place_of, whole_masks
from regard.bench.tasks.asked.questions import CLEAR
from regard.bench.tasks.cutouts import CutOut, kin_of, one, plural
from test_scenes import disc

NAMES = "apple balloon cap car dog dress egg fox horse key kite lamp owl pig train zebra".split()
COUNT = 60


def cutouts(names: Sequence[str], each: int = 2) -> tuple[CutOut, ...]:
    return tuple(
        CutOut(name, f"{name}/{i}", disc((40 + 10 * i, 12 * place, 180 - 9 * place)))
        for place, name in enumerate(names)
        for i in range(each)
    )


def by_name(cuts: tuple[CutOut, ...]) -> dict[str, list[CutOut]]:
    return {name: [cut for cut in cuts if cut.name == name] for name in sorted({cut.name for cut in cuts})}


def made_up(split: str = "train", photo: Image.Image | None = None) -> splits.Stock:
    noise = np.random.default_rng(1).integers(80, 200, (600, 700, 3), np.uint8)
    digits = np.random.default_rng(2).integers(0, 256, (20, 28, 28), np.uint8)
    things = by_name(cutouts(NAMES))
    return splits.Stock(split, things, {"wall": photo or Image.fromarray(noise)}, digits, np.arange(20) % 10)


@pytest.fixture(scope="module")
def scenes() -> list[asked.Asked]:
    stock = made_up()
    return [asked.make(stock, index) for index in range(COUNT)]


def pairs(scenes: list[asked.Asked], *kinds: str):
    found = [(scene, pair) for scene in scenes for pair in scene.pairs if pair.kind in kinds]
    assert len(found) > 10
    return found


def filled(pattern: str, text: str) -> str:
    """What stands in the one gap of one of the ways to put a question."""
    for way in wording._PUT[pattern]:
        match = re.fullmatch(re.sub(r"\\{\w+\\}", "(.+)", re.escape(way)), text)
        if match:
            return match[1]
    raise AssertionError(text)


def middle(thing: Thing, side: int) -> np.ndarray:
    """Of the pixels of its whole mask, (x, y)."""
    ys, xs = np.nonzero(whole_masks((thing,), side)[0])
    return np.array([xs.mean() + 0.5, ys.mean() + 0.5])


def test_a_scene_is_the_same_whatever_else_is_made(scenes: list[asked.Asked]):
    stock = made_up()
    again = asked.make(stock, 7)
    assert again.image.tobytes() == scenes[7].image.tobytes()
    assert [pair[:3] for pair in again.pairs] == [pair[:3] for pair in scenes[7].pairs]
    for other in (asked.make(stock, 7, seed=1), asked.make(made_up("test"), 7), scenes[8]):
        assert other.image.tobytes() != again.image.tobytes()


def test_pairs_are_few_and_different_and_images_of_known_sizes(scenes: list[asked.Asked]):
    assert {scene.image.size[0] for scene in scenes} == set(asked.SIDES)
    assert {pair.kind for scene in scenes for pair in scene.pairs} == set(wording.KINDS)
    for scene in scenes:
        assert scene.image.mode == "RGB"
        assert scene.image.size[0] == scene.image.size[1]
        assert asked.PAIRS[0] <= len(scene.pairs) <= asked.PAIRS[1]
        assert len({pair.question for pair in scene.pairs}) == len(scene.pairs)
        for pair in scene.pairs:
            assert pair.question == pair.question.lower()
            assert 1 <= len(pair.answer.split()) <= 3
            assert all(any(target is thing for thing in scene.things) for target in pair.targets)
            assert bool(pair.targets) == (pair.answer != "no")


def test_nothing_is_asked_twice_however_much_is_asked():
    for split in ("train", "new"):
        stock = made_up(split)
        for index in range(6):
            pairs = asked.make(stock, index, pairs=(40, 40)).pairs
            vain = [tuple(wording.named(pair.question)) for pair in pairs if pair.answer == "no"]
            there = [(pair.kind, *map(id, pair.targets)) for pair in pairs if pair.targets]
            assert len(set(vain)) == len(vain)
            assert len(set(there)) == len(there)
            for pair in pairs:
                if pair.kind in ("what", "next"):
                    assert [thing.name for thing in pair.answered] == [pair.answer]


def test_things_lie_where_the_picture_changed_and_apart():
    plain = Image.new("RGB", (640, 640), (128, 140, 120))
    stock = made_up(photo=plain)
    for index in range(12):
        scene = asked.make(stock, index)
        side = scene.image.size[0]
        masks = whole_masks(scene.things, side)
        assert masks.shape == (len(scene.things), side, side)
        assert masks.sum(axis=0).max() == 1
        shown = masks.any(axis=0)
        changed = np.abs(np.asarray(scene.image).astype(int) - (128, 140, 120)).max(axis=2) > 2
        assert (changed & shown).sum() >= 0.97 * shown.sum()
        soft = np.asarray(Image.fromarray(shown.astype("uint8") * 255).filter(ImageFilter.BoxBlur(4))) > 0
        assert not (changed & ~soft).any()
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            assert thing.mask.shape == (y1 - y0, x1 - x0)
            assert 0 <= x0 < x1 <= side
            assert 0 <= y0 < y1 <= side


def test_where_is_the_place_of_the_masks_middle_away_from_the_lines(scenes: list[asked.Asked]):
    rows, columns = ("top", "center", "bottom"), ("left", "center", "right")
    for scene, pair in pairs(scenes, "where"):
        side = scene.image.size[0]
        x, y = middle(pair.targets[0], side) / side
        words = [rows[int(3 * y)], columns[int(3 * x)]]
        assert pair.answer == ("center" if words == ["center"] * 2 else " ".join(words))
        assert filled("where", pair.question).split()[-1] == pair.targets[0].name.split()[-1]
        for thing in scene.things:
            for value in middle(thing, side) / side:
                assert min(abs(value - 1 / 3), abs(value - 2 / 3)) >= INSIDE - 1e-6


def test_count_and_exists_agree_with_what_was_placed(scenes: list[asked.Asked]):
    counts = set()
    for scene, pair in pairs(scenes, "count"):
        name = pair.targets[0].name
        there = [thing for thing in scene.things if thing.name == name]
        assert filled("count", pair.question) == plural(name)
        assert pair.answer == wording.NUMBERS[len(there) - 1]
        assert len(pair.targets) == len(there)
        counts.add(len(there))
    assert counts == set(range(1, 7))
    for scene, pair in pairs(scenes, "exists"):
        name = filled("exists", pair.question).split(" ", 1)[1]
        there = {kin_of(thing.name) for thing in scene.things}
        assert (kin_of(name) in there) == (pair.answer == "yes")
        assert {thing.name for thing in pair.targets} == ({name} if pair.answer == "yes" else set())


def test_missing_is_the_one_of_three_that_is_not_there(scenes: list[asked.Asked]):
    at = set()
    for scene, pair in pairs(scenes, "missing"):
        named = re.search(r"(an? [\w -]+), (an? [\w -]+) or (an? [\w -]+)[?:]", pair.question)
        assert named
        there = {one(thing.name) for thing in scene.things}
        gone = [place for place, name in enumerate(named.groups()) if name not in there]
        assert [named[place + 1] for place in gone] == [one(pair.answer)]
        assert {one(thing.name) for thing in pair.targets} == {*named.groups()} - {one(pair.answer)}
        at.update(gone)
    assert at == {0, 1, 2}


def test_next_is_the_nearest_on_that_side_by_far(scenes: list[asked.Asked]):
    for scene, pair in pairs(scenes, "next"):
        side = next(side for side in wording.SIDES if side in pair.question.split())
        answer, reference = pair.targets
        middles = [middle(thing, scene.image.size[0]) for thing in scene.things]
        (at,) = (m for m, thing in zip(middles, scene.things, strict=True) if thing is reference)
        assert filled(side, pair.question) == reference.name
        assert sum(thing.name == reference.name for thing in scene.things) == 1
        axis, sign = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}[side]
        beyond = [
            (math.dist(m, at), thing)
            for m, thing in zip(middles, scene.things, strict=True)
            if thing is not reference and sign * (m - at)[axis] > 0
        ]
        beyond.sort(key=lambda found: found[0])
        assert beyond[0][1] is answer
        assert answer.name == pair.answer
        assert len(beyond) == 1 or beyond[1][0] > (CLEAR - 0.01) * beyond[0][0]
        off = middle(answer, scene.image.size[0]) - at
        assert abs(off[1 - axis]) < abs(off[axis])


def test_what_is_the_only_thing_there_or_the_nearest(scenes: list[asked.Asked]):
    beside = 0
    for scene, pair in pairs(scenes, "what"):
        side = scene.image.size[0]
        assert pair.answer == pair.targets[0].name
        if len(pair.targets) == 1:
            place = place_of(pair.targets[0].centre, side)
            assert re.search(rf"the {place}[?. ]", pair.question)
            assert [place_of(thing.centre, side) for thing in scene.things].count(place) == 1
            continue
        beside += 1
        answer, reference = pair.targets
        at = middle(reference, side)
        far = sorted((math.dist(middle(t, side), at), t.name) for t in scene.things if t is not reference)
        assert far[0][1] == answer.name
        assert far[1][0] > (CLEAR - 0.01) * far[0][0]
    assert beside


def test_read_and_colour_are_those_of_the_one_that_is_meant(scenes: list[asked.Asked]):
    for scene, pair in pairs(scenes, "read"):
        (thing,) = pair.targets
        assert pair.answer.replace(" ", "") == thing.says
        alike = [other for other in scene.things if other.name == thing.name]
        assert len({other.colour for other in alike}) == len(alike)
        assert (f"the {thing.colour} sign" in pair.question) == (len(alike) > 1)
    for scene, pair in pairs(scenes, "colour"):
        (thing,) = pair.targets
        assert pair.answer == thing.colour
        x0, y0, x1, y1 = thing.box
        seen = np.asarray(scene.image)[y0:y1, x0:x1][thing.mask].astype(float)
        for colour in wording.COLOURS:
            if thing.kind == "shape" and colour != pair.answer:
                apart = [np.abs(np.median(seen, axis=0) - drawing._RGB[which]).sum() for which in (pair.answer, colour)]
                assert apart[0] < apart[1]


def test_a_dyed_thing_has_no_other_hue():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (50, 60, 4), np.uint8) | np.array([0, 0, 0, 255], np.uint8))
    for colour in wording.COLOURS:
        out = np.asarray(drawing.dyed(rng, noise, colour))
        assert out[..., 3].min() == 255
        spread = (out[..., :3].max(axis=2).astype(int) - out[..., :3].min(axis=2)).max()
        if colour in ("white", "black"):
            assert spread < 30
            assert (out.mean(axis=(0, 1))[:3].mean() > 200) == (colour == "white")
        else:
            hue = np.asarray(Image.fromarray(out[..., :3]).convert("HSV"))[..., 0].astype(int)
            base = int(np.asarray(Image.new("RGB", (1, 1), drawing._RGB[colour]).convert("HSV"))[0, 0, 0])
            assert np.abs((hue - base + 128) % 256 - 128).max() < 14


def test_a_thing_is_set_where_it_can_be_seen():
    photo = Image.new("RGB", (700, 700), "white")
    photo.paste((5, 5, 5), (0, 0, 350, 700))
    canvas = Canvas(np.random.default_rng(0), photo, 640)
    for level in (0, 255) * 4:
        canvas.put(disc((level,) * 3).resize((60, 50)), "cutout", "egg")
        x0, y0, x1, y1 = canvas.things[-1].box
        assert np.abs(canvas.pixels[y0:y1, x0:x1][canvas.things[-1].mask].astype(int) - level).mean() >= FAINT


def test_new_is_asked_only_where_and_whether():
    for index in range(12):
        scene = asked.make(made_up("new"), index)
        assert {pair.kind for pair in scene.pairs} <= {"where", "exists"}
        assert all(thing.kind == "cutout" for pair in scene.pairs for thing in pair.targets)
        assert not any(thing.colour for thing in scene.things if thing.kind == "cutout")


def test_splits_share_no_picture_and_new_shares_no_name_or_kin_or_word():
    names = [*NAMES, "hot dog", "tennis ball", "soccer ball", "rooster", "hen", "orange"]
    cuts = tuple(cut for i, name in enumerate(names) for cut in cutouts([name], 1 + i % 5))
    parts = splits.divided(cuts)
    sources = {split: {cut.source for of in part.values() for cut in of} for split, part in parts.items()}
    assert sum(map(len, sources.values())) == len(cuts) == len(set().union(*sources.values()))
    assert {*parts["val"], *parts["test"]} <= {*parts["train"]}
    assert all(parts.values())
    assert parts == splits.divided(cuts[::-1])
    assert not {kin_of(name) for name in parts["new"]} & {kin_of(name) for name in parts["train"]}
    assert not {"dog", "hot dog", "tennis ball", "orange"} & {*parts["new"]}
    photos = splits.split_photos({str(i): Image.new("RGB", (1, 1)) for i in range(45)})
    assert {split: len(of) for split, of in photos.items()} == {"val": 7, "test": 7, "train": 31}
    assert len(set().union(*photos.values())) == 45


def test_vocabulary_is_closed(scenes: list[asked.Asked]):
    known = set(wording.closed(NAMES))
    said = {token for scene in scenes for pair in scene.pairs for token in wording.tokens(pair.question + pair.answer)}
    assert said <= known
    assert list(wording.closed(NAMES)) == sorted(known)
    assert {"foxes", "a", "an", "?", "7", "t-shirt", "dragon"} & known == {"foxes", "a", "an", "?", "7"}
    assert wording.tokens("Read the t-shirt: 4 2?") == ["read", "the", "t-shirt", ":", "4", "2", "?"]


def test_what_is_not_known_is_said():
    with pytest.raises(DataError, match="no split 'dev': there are train, val, test, new"):
        asked.asked("dev", 0)
    with pytest.raises(DataError, match="index and seed must be 0 or more, got -1 and 0"):
        asked.make(made_up(), -1)


def test_a_package_that_is_another_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = tmp_path / fluent.FILE
    with pytest.raises(DataError, match="cannot read"):
        fluent.fluent(other)
    other.write_bytes(b"something else")
    with pytest.raises(DataError, match="fluent-emoji-3d@1.1.0 has the SHA-256 .*, expected c1bb7eee"):
        fluent.fluent(other)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm cannot pack @lobehub/fluent-emoji-3d@1.1.0: .* or give lobehub-"):
        fluent.fetched()
