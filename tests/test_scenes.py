"""Scenes of which it is known where the things are: on a made-up pool, and on the real one in `make slow`."""

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from regard import DataError
from regard.bench.tasks import cutouts, emoji, scenes, stamps, words
from regard.bench.tasks.cutouts import CutOut, half_of, kin_of, one, plural, trimmed
from regard.bench.tasks.debian import Package
from regard.bench.tasks.gcompris import Photo, Photos

GREY = (128, 140, 120)
NAMES = "apple boat cat cow dog egg fox hen kite lamp owl pig".split()
COLOURS = {name: (255 * (i % 2), 20 * i, 255 * (i // 2 % 2)) for i, name in enumerate(NAMES)}


def disc(colour: tuple[int, ...]) -> Image.Image:
    """Wider than high, with a hole, and a margin that is see-through."""
    alpha = Image.new("L", (199, 151))
    ImageDraw.Draw(alpha).ellipse((20, 10, 180, 140), fill=255)
    ImageDraw.Draw(alpha).ellipse((60, 50, 100, 90), fill=0)
    image = Image.new("RGB", alpha.size, colour)
    image.putalpha(alpha)
    return trimmed(image)


@pytest.fixture
def pool() -> scenes.Pool:
    animals = [Photo(name, name, Image.new("RGB", (50, 50), colour)) for name, colour in COLOURS.items()]
    things = [CutOut(name, name, disc(colour)) for name, colour in COLOURS.items()]
    backgrounds = {"wall": Image.new("RGB", (700, 500), GREY), "floor": Image.new("RGB", (500, 800), GREY)}
    return scenes.Pool(Photos(animals, [*backgrounds.values()]), things, backgrounds, words.sayings("tune"))


def pixels(image: Image.Image) -> np.ndarray:
    """A number for each colour, (height, width)."""
    return np.asarray(image.convert("RGBA")).view("uint32")[..., 0]


def where(image: Image.Image, *names: str) -> np.ndarray:
    """The pixels that have exactly the colour of one of the things."""
    return np.isin(pixels(image), [int.from_bytes(bytes((*COLOURS[name], 255)), "little") for name in names])


def wider(mask: np.ndarray, by: int = 4) -> np.ndarray:
    """What is at most so many pixels away as well: edges are soft."""
    return np.asarray(Image.fromarray(mask.astype("uint8") * 255).filter(ImageFilter.BoxBlur(by))) > 0


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(mask)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def there(image: Image.Image) -> set[str]:
    return {name for name in NAMES if where(image, name).sum() > 50}


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_a_scene_is_the_same_again_and_another_with_another_seed(pool: scenes.Pool, kind: str):
    first, other = scenes.make(kind, 5, pool), scenes.make(kind, 6, pool)
    again = scenes.make(kind, 5, pool)
    assert first.kind == kind
    assert first[2:4] == again[2:4]
    assert first.image.tobytes() == again.image.tobytes()
    np.testing.assert_array_equal(first.targets, again.targets)
    assert first.image.tobytes() != other.image.tobytes()
    turned = pool._replace(
        cutouts=pool.cutouts[::-1], backgrounds={name: pool.backgrounds[name] for name in reversed(pool.backgrounds)}
    )
    assert scenes.make(kind, 5, turned).image.tobytes() == first.image.tobytes()


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_targets_are_masks_apart_from_one_another(pool: scenes.Pool, kind: str):
    counts = set()
    for seed in range(12):
        made = scenes.make(kind, seed, pool)
        assert (made.image.mode, made.image.size) == ("RGB", (1024, 1024))
        assert made.targets.dtype == bool
        assert made.targets.shape == (len(made.targets), 1024, 1024)
        assert made.targets.any(axis=(1, 2)).all()
        assert made.targets.sum(axis=0).max() == 1
        counts.add(len(made.targets))
        boxes = [box(mask) for mask in made.targets]
        for place, a in enumerate(boxes):
            for b in boxes[:place]:
                assert max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3]) >= scenes.APART
    low, high = {"count": (3, 7), "missing": (2, 2), "vague": (5, 8), "text": (3, 5)}.get(kind, (1, 1))
    assert min(counts) >= low
    assert max(counts) <= high
    assert (len(counts) > 1) == (low < high)


@pytest.mark.parametrize("kind", ["cutout", "count", "missing", "wrong", "vague", "text"])
def test_the_picture_changed_where_things_are_and_nowhere_else(pool: scenes.Pool, kind: str):
    plain = Image.new("RGB", (1024, 1024), GREY)
    for seed in range(4):
        made = scenes.make(kind, seed, pool)
        changed = pixels(made.image) != pixels(plain)
        assert (changed | ~np.bitwise_or.reduce(made.targets)).all()
        if kind == "vague":  # all things are targets
            assert not (changed & ~wider(np.bitwise_or.reduce(made.targets))).any()
        else:
            assert (changed & ~wider(np.bitwise_or.reduce(made.targets))).any()  # the others


def test_a_cut_out_is_asked_for_and_its_mask_is_its_own(pool: scenes.Pool):
    for seed in range(20):
        made = scenes.make("cutout", seed, pool)
        assert made.question == f"where is the {made.name}?"
        assert 5 <= len(there(made.image)) <= 8
        own, mask = where(made.image, made.name), made.targets[0]
        assert not (own & ~mask).any()
        assert not (mask & ~wider(own)).any()
        x0, y0, x1, y1 = box(mask)
        assert 38 <= max(x1 - x0, y1 - y0) <= 130
        assert not mask[y0:y1, x0:x1].all()  # the corners and the hole
        assert min(x0, y0, 1024 - x1, 1024 - y1) >= scenes.EDGE


def test_all_copies_are_counted_and_no_other_thing(pool: scenes.Pool):
    for seed in range(12):
        made = scenes.make("count", seed, pool)
        assert made.question == f"how many {plural(made.name)} are there?"
        own = where(made.image, made.name)
        assert not (own & ~np.bitwise_or.reduce(made.targets)).any()
        assert all((own & mask).any() for mask in made.targets)
        assert 2 <= len(there(made.image) - {made.name}) <= 4


def test_one_of_three_is_missing_and_the_two_others_are_the_targets(pool: scenes.Pool):
    orders = set()
    for seed in range(24):
        made = scenes.make("missing", seed, pool)
        asked = made.question.removeprefix("which of these is missing: ").removesuffix("?").replace(" or ", ", ")
        names = [name.split(" ", 1)[1] for name in asked.split(", ")]
        assert len(set(names)) == 3
        orders.add(names.index(made.name))
        assert made.name not in there(made.image)
        assert len(there(made.image)) >= 4
        others = [name for name in names if name != made.name]
        for name in others:
            assert sum(bool((where(made.image, name) & mask).any()) for mask in made.targets) == 1
    assert orders == {0, 1, 2}


def test_a_wrong_question_names_what_is_not_there(pool: scenes.Pool):
    for seed in range(20):
        made = scenes.make("wrong", seed, pool)
        assert made.question == f"where is the {made.name}?"
        assert made.name not in there(made.image)
        assert 5 <= len(there(made.image)) <= 8
        assert sum(bool((where(made.image, name) & made.targets[0]).any()) for name in NAMES) == 1


@pytest.mark.parametrize("kind", ["vague", "text"])
def test_where_nothing_is_named_the_name_is_the_photo(pool: scenes.Pool, kind: str):
    asked = set()
    for seed in range(20):
        made = scenes.make(kind, seed, pool)
        asked.add(made.question)
        assert made.name in pool.backgrounds
        assert not set(made.question.rstrip("?.").split()) & set(NAMES)
    assert len(asked) == 4


def test_plates_of_words_are_whole_and_of_many_sizes(pool: scenes.Pool):
    heights = []
    for seed in range(12):
        made = scenes.make("text", seed, pool)
        for mask in made.targets:
            x0, y0, x1, y1 = box(mask)
            assert mask[y0:y1, x0:x1].all()
            heights.append(y1 - y0)
            assert np.asarray(made.image)[y0:y1, x0:x1].std() > 10  # something is written
        assert 2 <= len(there(made.image)) <= 4
    assert min(heights) < 30
    assert max(heights) > 60


def test_a_mosaic_has_its_quadrant(pool: scenes.Pool):
    for seed in range(12):
        made = scenes.make("mosaic", seed, pool)
        np.testing.assert_array_equal(where(made.image, made.name), made.targets[0])
        assert made.targets[0].sum() == 512 * 512


@pytest.mark.parametrize("kind", ["cutout", "count", "missing", "wrong"])
def test_names_are_asked_for_in_turn(pool: scenes.Pool, kind: str):
    assert {scenes.make(kind, seed, pool).name for seed in range(len(NAMES))} == set(NAMES)


def test_kin_never_stand_in_one_scene(pool: scenes.Pool):
    things = [CutOut("rooster", cut.source, cut.image) if cut.name == "hen" else cut for cut in pool.cutouts]
    things.append(CutOut("chicken", "chicken", disc((1, 2, 3))))
    assert kin_of("rooster") == kin_of("chicken") == "chicken"
    for seed in range(30):
        image = scenes.make("vague", seed, pool._replace(cutouts=things)).image
        both = [where(image, "hen").sum() > 50, (np.asarray(image) == (1, 2, 3)).all(axis=2).sum() > 50]
        assert sum(both) < 2


def test_a_thing_is_set_where_it_can_be_seen(pool: scenes.Pool):
    photo = Image.new("RGB", (512, 512), "white")
    photo.paste((0, 0, 0), (0, 0, 512, 256))
    canvas = scenes._Canvas(np.random.default_rng(0), pool._replace(backgrounds={"half": photo}))
    for colour, dark in (((250, 250, 250), True), ((9, 9, 9), False)):
        for _ in range(5):
            mask = canvas.put(disc(colour).resize((60, 50)))
            ys = np.nonzero(mask)[0]
            assert (ys.mean() < 512) == dark


def test_the_halves_share_no_kin_and_follow_the_photos():
    things = [
        CutOut(name, f"{name} {i}", disc(COLOURS["cat"])) for i in range(2) for name in [*NAMES, "rooster", "calf"]
    ]
    photos = {"tune": {"calf", "pig"}, "report": {"hen"}}
    tune, report = half_of(things, "tune", photos), half_of(things, "report", photos)
    assert not {cut.kin for cut in tune} & {cut.kin for cut in report}
    assert len(tune) + len(report) == len(things)
    assert {"cow", "calf", "pig"} <= {cut.name for cut in tune}
    assert {"hen", "rooster"} <= {cut.name for cut in report}
    assert abs(len(tune) - len(report)) <= 4
    assert not set(words.sayings("tune")) & set(words.sayings("report"))
    assert {*words.sayings("tune"), *words.sayings("report")} == set(words.SAYINGS)
    assert len(set(words.SAYINGS)) == len(words.SAYINGS)


def test_what_is_not_known_is_said(pool: scenes.Pool):
    with pytest.raises(DataError, match="no scene of kind 'maze': there are mosaic, cutout"):
        scenes.make("maze", 0, pool)
    with pytest.raises(DataError, match="no half 'both': there are tune and report"):
        scenes.pool("both")


def test_english():
    assert [plural(name) for name in ("fox", "mouse", "cherry", "toy", "sheep", "potato", "trumpet", "goldfish")] == (
        ["foxes", "mice", "cherries", "toys", "sheep", "potatoes", "trumpets", "goldfish"]
    )
    assert [one(name) for name in ("cat", "apple", "hourglass", "horse", "umbrella")] == (
        ["a cat", "an apple", "an hourglass", "a horse", "an umbrella"]
    )


def test_trimmed_is_the_opaque_part_without_a_dark_edge():
    wide = Image.new("RGBA", (900, 700))
    ImageDraw.Draw(wide).rectangle((100, 200, 699, 499), fill=(255, 0, 0, 255))
    small = trimmed(wide)
    assert small.size == (cutouts.LARGEST, cutouts.LARGEST // 2)
    shown = np.asarray(trimmed(disc((255, 0, 0)).resize((800, 640))))
    assert len(set(shown[..., 3].flat)) > 50  # soft
    assert (shown[shown[..., 3] > 20][:, 0] > 250).all()


@pytest.mark.parametrize(
    ("stem", "text", "name"),
    [
        ("animals/mammals/bovines/bison", "A bison. \naf.utf8=Bison", "bison"),
        ("animals/mammals/aquatic/sea_lion", "A sea lion.", "sea lion"),
        ("animals/mammals/rhino_black", "A male black rhino.", "rhinoceros"),
        ("food/pie", "An apple.", "apple"),
        ("animals/insects/cartoon/ladybug", "A ladybug.", ""),
        ("symbols/math/0", "A zero.", ""),
        ("town/flags/redflag", "A red flag.", ""),
        ("animals/birds/lark", "A lark.", ""),
        ("animals/pig_golden", "A Tamworth pig.", ""),
        ("food/bread", "Eat your bread!", ""),
        ("food/fruit/three", "A cone of pine.", ""),
        ("plants/flowers/flower1", "A flower.", ""),
    ],
)
def test_names_of_stamps(stem: str, text: str, name: str):
    assert stamps.named(stem, text) == name


def test_what_looks_like_a_photo():
    rng = np.random.default_rng(0)
    alpha = disc((0, 0, 0)).resize((150, 120)).getchannel("A")

    def stamp(pixels: np.ndarray, mask: Image.Image = alpha) -> Image.Image:
        image = Image.fromarray(pixels.astype("uint8"))
        image.putalpha(mask)
        return image

    noise = rng.integers(0, 200, (120, 150, 3))
    assert stamps.is_photo(stamp(noise))
    assert not stamps.is_photo(stamp(noise).convert("P"))
    assert not stamps.is_photo(stamp(noise).resize((80, 64)))  # small
    assert not stamps.is_photo(stamp(np.full((120, 150, 3), 90)))  # a drawing
    assert not stamps.is_photo(stamp(rng.integers(215, 256, (120, 150, 3))))  # white
    assert not stamps.is_photo(stamp(noise, Image.new("L", (150, 120), 255)))  # not cut out
    assert not stamps.is_photo(stamp(noise, alpha.filter(ImageFilter.GaussianBlur(15))))  # mostly half see-through


def test_names_of_emoji():
    chars = emoji.ANIMALS + emoji.FOOD + emoji.OBJECTS + emoji.VEHICLES
    assert len(set(chars)) == len(chars) >= 150
    assert [emoji.called(char) for char in "🐕☕🏀"] == ["dog", "hot beverage", "basketball"]
    for char in chars:
        assert 1 <= len(emoji.called(char).split()) <= 2, char
        assert emoji.called(char).replace(" ", "").replace("-", "").isalpha()


def deb(folder: Path, files: dict[str, bytes], mode: Any = "w:xz", data: str = "data.tar.xz", cut: int = 0) -> Path:
    """An ar archive with the three members that a .deb has."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    blob = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (data, packed.getvalue())):
        content = content[: len(content) - cut] if name == data else content
        blob += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
            + content
            + b"\n" * (len(content) % 2)
        )
    path = folder / "thing_1.0_all.deb"
    path.write_bytes(blob)
    return path


def pinned(path: Path) -> Package:
    return Package("thing", "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


FILES = {"./usr/share/a.txt": b"first" * 100, "./usr/share/b.png": np.random.default_rng(0).bytes(20000)}


@pytest.mark.parametrize(
    ("mode", "data"), [("w:xz", "data.tar.xz"), ("w:gz", "data.tar.gz"), ("w", "data.tar"), ("w", "data.tar/")]
)
def test_files_of_a_package(tmp_path: Path, mode: str, data: str):
    path = deb(tmp_path, FILES, mode, data)
    assert pinned(path).files(lambda name: True, path) == FILES
    assert pinned(path).files(lambda name: name.endswith(".png"), path) == dict([*FILES.items()][1:])
    assert pinned(path).within(tmp_path) == path
    assert pinned(path).within(None) is None


def test_a_package_that_is_another_or_not_whole_is_one_line(tmp_path: Path):
    path = deb(tmp_path, FILES)
    whole = pinned(path)
    cases = {}
    path.write_bytes(path.read_bytes()[:-10])
    cases["shorter"] = (whole, r"thing=1\.0 has the SHA-256 .*, expected .*: get that version, and remove '.*deb'")
    cases["cut off"] = (pinned(path), "is not a whole package")
    for package, message in cases.values():
        with pytest.raises(DataError, match=message) as raised:
            package.files(lambda name: True, path)
        assert "\n" not in str(raised.value)
    for blob in (b"", b"!<arch>\n", b"PK\x03\x04" * 40, b"!<arch>\n" + b"data.tar.xz     " + b"x" * 44):
        path.write_bytes(blob)
        with pytest.raises(DataError, match="is not a whole package"):
            pinned(path).files(lambda name: True, path)
    for cut, mode, data in ((9000, "w:xz", "data.tar.xz"), (9000, "w:gz", "data.tar.gz"), (16000, "w", "data.tar")):
        deb(tmp_path, FILES, mode, data, cut)
        with pytest.raises(DataError, match="cannot be unpacked"):
            pinned(path).files(lambda name: True, path)
    with pytest.raises(DataError, match="cannot read"):
        whole.files(lambda name: True, tmp_path / "none.deb")
    with pytest.raises(DataError, match=r"has no thing_\*\.deb"):
        whole.within(tmp_path / "empty")


def test_a_package_is_fetched_once_and_what_stops_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package, calls = pinned(deb(tmp_path, FILES)), []

    def refuse(command: list[str], **given: object):
        raise FileNotFoundError(command[0])

    def download(command: list[str], cwd: str, **given: object):
        calls.append(command)
        deb(Path(cwd), FILES)

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(DataError, match=r"apt-get cannot download thing=1\.0: on Debian 12 run apt-get update"):
        package.files(lambda name: True)
    assert not [path for path in (tmp_path / "regard").iterdir() if path.is_file()]
    monkeypatch.setattr(subprocess, "run", download)
    assert package.files(lambda name: True) == package.files(lambda name: True) == FILES
    assert calls == [["apt-get", "download", "-qq", "thing=1.0"]]


@pytest.mark.slow
def test_the_real_halves_share_nothing_and_make_all_kinds():
    pools = {half: scenes.pool(half) for half in ("tune", "report")}
    names = {
        half: {cut.name for cut in pool.cutouts} | {photo.name for photo in pool.photos.animals}
        for half, pool in pools.items()
    }
    assert not names["tune"] & names["report"]
    assert not pools["tune"].backgrounds.keys() & pools["report"].backgrounds.keys()
    for half, pool in pools.items():
        assert len({cut.name for cut in pool.cutouts}) >= 110, half
        assert len(pool.backgrounds) >= 20
        for kind in scenes.KINDS:
            made = scenes.scene(kind, 3, half)
            assert made.targets.any(axis=(1, 2)).all()
            assert made.name in names[half] | pool.backgrounds.keys()
