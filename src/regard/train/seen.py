"""What a frozen eye makes of each image, computed once and kept on disk: float16, in safetensors files of many images.

A file is written whole or not at all, so whatever ends a run loses a minute of work at most. Images go by the hash of
their bytes. An eye is known by what it makes of two pictures of noise, so that other weights or options are another
eye, with a folder of its own.
"""

import json
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from regard.errors import DataError, ImageError, RegardError, ShapeError
from regard.eyes import Eye
from regard.files import write_all, write_whole
from regard.images import load_image
from regard.tokens import VisualTokens

_PROBES = ((320, 200), (1600, 1200))  # pixels
_NEAR = 1e-3  # relative error of an eye that is the same
_BYTES, _SECONDS = 64_000_000, 60.0  # a file is written when it has so much, or after so long
_FIELDS = ("features", "boxes", "mask", "aligned", "keys", "segment")

Grid = tuple[int, int, int]
Stage = Callable[[str], None]


@dataclass(frozen=True)
class _Where:
    """shard: the file that has an image. scores: names of its maps."""

    shard: Path
    grid: Grid | None
    scores: tuple[str, ...]


class Seen:
    """A mapping from an image's hash to its tokens, a batch of one, in float32 and on the CPU.

    folder: of the cache. team: an `Accelerator`. broken: hashes of images that cannot be seen, and why. encoded: how
    many this process has encoded.
    """

    def __init__(self, folder: Path, eye: Eye, team: Any) -> None:
        from accelerate.utils import broadcast_object_list

        self.eye, self.team = eye, team
        place = [str(_folder_of(folder / "eyes", eye)) if team.is_main_process else ""]
        self.folder = Path(broadcast_object_list(place)[0])
        self.broken: dict[str, str] = {}
        self.encoded = 0
        self._found: dict[str, _Where] = {}
        self._known: set[Path] = set()
        self._opened = lru_cache(maxsize=64)(_opened)

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> VisualTokens:
        where = self._found[key]
        file = self._opened(where.shard)
        there = set(file.keys())
        parts = {name: _single(file.get_tensor(f"{key}.{name}")) for name in _FIELDS if f"{key}.{name}" in there}
        scores = {name: _single(file.get_tensor(f"{key}.scores.{name}")) for name in where.scores}
        return VisualTokens(**parts, scores=scores, grid=where.grid)

    def grid(self, key: str) -> Grid | None:
        return self._found[key].grid

    def fill(self, images: Mapping[str, str], stage: Stage = lambda text: None) -> None:
        """Encode what is not there yet, each process its share. images: hashes and paths."""
        self._scan()
        wanted = [key for key in images if key not in self._found and key not in self.broken]
        self.team.wait_for_everyone()
        mine = wanted[self.team.process_index :: self.team.num_processes]
        self._encode({key: images[key] for key in mine}, stage)
        self.team.wait_for_everyone()
        self._scan()

    def _encode(self, images: Mapping[str, str], stage: Stage) -> None:
        tensors: dict[str, Tensor] = {}
        about: dict[str, dict[str, Any]] = {}
        size, since = 0, time.monotonic()
        for number, (key, path) in enumerate(images.items()):
            stage(f"encode the images: {number} of {len(images)}")
            try:
                tokens = self.eye.look(load_image(path))
                made, about[key] = _kept(key, tokens)
                tensors |= made
                size += sum(value.nbytes for value in made.values())
                self.encoded += 1
            except (ImageError, ShapeError) as error:
                about[key] = {"broken": str(error)}
            if size > _BYTES or time.monotonic() - since > _SECONDS:
                self._write(tensors, about)
                tensors, about, size, since = {}, {}, 0, time.monotonic()
        if about:
            self._write(tensors, about)

    def _write(self, tensors: dict[str, Tensor], about: dict[str, dict[str, Any]]) -> None:
        write_whole(self.folder / f"{uuid.uuid4().hex}.safetensors", save(tensors, {"seen": json.dumps(about)}))

    def _scan(self) -> None:
        """Learn what the files have that were written since."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in self._known:
                continue
            self._known.add(path)
            for key, about in json.loads((_opened(path).metadata() or {}).get("seen", "{}")).items():
                if "broken" in about:
                    self.broken[key] = about["broken"]
                else:
                    grid = None if about["grid"] is None else tuple(about["grid"])
                    self._found[key] = _Where(path, grid, tuple(about["scores"]))


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt").__enter__()
    except (SafetensorError, OSError) as error:
        raise DataError(f"{str(path)!r} of the cache cannot be read, remove it: {error}") from error


def _kept(key: str, tokens: VisualTokens) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors to write, and what is to be known of them. Raises ShapeError where the eye's numbers are not finite."""
    if len(tokens.features) != 1:
        raise DataError(f"an eye gives an image's tokens as a batch of 1, got {len(tokens.features)}: mend its look")
    there = _there(tokens)
    if not all(bool(value.isfinite().all()) for value in there.values()):
        raise ShapeError("the eye made numbers of it that are not finite")
    made = {f"{key}.{name}": value if name == "boxes" else _half(value) for name, value in there.items()}
    whole = {name: value.clone().contiguous() for name, value in made.items()}
    return whole, {"grid": tokens.grid, "scores": list(tokens.scores)}


def _there(tokens: VisualTokens) -> dict[str, Tensor]:
    """All its tensors by name, on the CPU."""
    parts: dict[str, Tensor | None] = {name: getattr(tokens, name) for name in _FIELDS}
    parts |= {f"scores.{name}": value for name, value in tokens.scores.items()}
    return {name: value.detach().cpu() for name, value in parts.items() if value is not None}


def _half(value: Tensor) -> Tensor:
    """In 16 bits, where they suffice."""
    if not value.is_floating_point():
        return value
    half = value.half()
    return half if bool(half.isfinite().all()) else value.float()


def _single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def described(eye: Any) -> dict[str, Any]:
    """An eye's name and, of a dataclass, its options."""
    return {"name": eye.name, "options": _options(eye) if is_dataclass(eye) else None}


def _options(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _options(getattr(value, f.name)) for f in fields(value)}
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__


def _folder_of(place: Path, eye: Eye) -> Path:
    """The folder of an eye: of one that makes the same of the probes, or a new one."""
    about = described(eye)
    made: dict[str, Tensor] = {}
    for number, size in enumerate(_PROBES):
        try:
            seen = _there(eye.look(_noise(size)))
        except RegardError as error:
            raise DataError(f"the eye {eye.name} cannot see a picture of {size[0]} x {size[1]}: {error}") from error
        made |= {f"{number}.{name}": value.float().contiguous() for name, value in seen.items()}
    slug = re.sub(r"[^a-z0-9]+", "-", eye.name.lower()).strip("-")[:40] or "eye"
    for number in range(10_000):
        folder = place / f"{slug}-{number}"
        if not (folder / "eye.json").is_file():
            write_all(folder, {"probes": save(made), "eye.json": json.dumps(about)})
            return folder
        if json.loads((folder / "eye.json").read_text()) == about and _same(made, load_file(folder / "probes")):
            return folder
    raise DataError(f"{str(place)!r} has too many eyes: take another cache")


def _same(made: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> bool:
    def near(one: Tensor, other: Tensor) -> bool:
        return one.shape == other.shape and bool((one - other).norm() <= _NEAR * other.norm())

    return made.keys() == there.keys() and all(near(made[name], there[name]) for name in made)


def _noise(size: tuple[int, int]) -> Image.Image:
    """Noise of all scales, the same each time."""
    generator = np.random.default_rng(0)
    whole = np.zeros((size[1], size[0], 3))
    for scale in (1, 8, 64):
        part = generator.random((-(-size[1] // scale), -(-size[0] // scale), 3))
        whole += part.repeat(scale, axis=0).repeat(scale, axis=1)[: size[1], : size[0]]
    return Image.fromarray((whole * 85).astype(np.uint8))


def drop_broken(broken: Mapping[str, str], rows: Iterable[Any]) -> None:
    """Leave rows out whose images cannot be seen. broken: hashes, and why. Raises DataError where none is left."""
    for some in rows:
        some.drop(broken)
        if not len(some):
            raise DataError("no row can be used: the images of all are broken")
