"""Asked scenes as the pocket eye encodes them, kept on disk: each is made and encoded once.

What tokens and questions have in common, inner products and norms, is all that relevance reads of them. So the classes
that tokens show, of 1,000 dimensions, are kept in a basis of the reference questions, then of the scene's own, and one
dimension more for what is left of a token's norm: of M + Q + 1 dimensions, with the same products. What is seen costs
far more than what is asked, so scenes to train with are asked much.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from regard.bench.tasks.asked import PAIRS, asked
from regard.bench.tasks.asked.layout import Thing, whole_masks
from regard.bench.tasks.fetching import Told
from regard.errors import DataError
from regard.eyes.grounding import Grounding
from regard.files import write_all
from regard.relevance.realizer import Realizer
from regard.tokens import VisualTokens

CHUNK = 50  # scenes of a file
MANY = (40, 40)  # questions of a scene to train with, where there are so many
FIELDS = {"kinds": "kind", "asks": "question", "answers": "answer"}  # of a scene, and of its pairs

_PARTS = ("features", "classes", "questions", "heard", "covered", "answered")
_HALF = ("features", "classes", "covered", "answered")  # in 16 bits


class Eye(Protocol):
    """What sees and hears classes, and finds what is meant by a grounding, as the pocket eye does."""

    @property
    def grounding(self) -> Grounding: ...

    @property
    def realizer(self) -> Realizer: ...

    @property
    def reference(self) -> Float[Tensor, "m s"]:
        """Other questions, heard."""
        ...

    def see(self, image: Image.Image) -> VisualTokens:
        """Aligned with the classes alone."""
        ...

    def hear(self, text: str) -> Float[Tensor, " s"]: ...

    def classes_of(self, heard: Float[Tensor, "q s"]) -> Float[Tensor, "q e"]: ...


class Encoded(NamedTuple):
    """A scene as it is kept. features: (N, D) and classes: (N, E), on a grid of side x side. questions: (Q, E), as
    classes; heard: (Q, S), as sentences. covered: (Q, N), how much of each token's box the things fill that
    the answer needs; answered: those alone that it is about. kinds, asks, answers: of each question. features, classes,
    covered and answered are float16.
    """

    side: int
    features: Tensor
    classes: Tensor
    questions: Tensor
    heard: Tensor
    covered: Tensor
    answered: Tensor
    kinds: list[str]
    asks: list[str]
    answers: list[str]


def pairs_of(split: str) -> tuple[int, int]:
    """How many questions each of its scenes is asked."""
    return MANY if split == "train" else PAIRS


def encoded(eye: Eye, split: str, indices: range, folder: Path, told: Told | None = None) -> list[Encoded]:
    """As `seen`, before any grounding."""
    basis, hear = basis_of(eye), cache(eye.hear)
    scenes: list[Encoded] = []
    for start in indices[::CHUNK]:
        path = folder / f"{split}-{start:05d}.safetensors"
        if not path.exists() or not path.with_suffix(".json").exists():
            _encode(eye, split, start, path, basis, hear)
        scenes += _loaded(path)
        if told:
            told(f"encode the {split} scenes: {min(len(scenes), len(indices))} of {len(indices)}")
    return scenes[: len(indices)]


def _encode(eye: Eye, split: str, start: int, path: Path, basis: Tensor, hear: Callable[[str], Tensor]) -> None:
    pairs = pairs_of(split)
    tensors: dict[str, Tensor] = {}
    texts = []
    for index in range(start, start + CHUNK):
        scene = asked(split, index, pairs=pairs)
        tokens = eye.see(scene.image)
        assert tokens.grid is not None
        assert tokens.aligned is not None
        heard = torch.stack([hear(pair.question) for pair in scene.pairs])
        classes, questions = compacted(tokens.aligned[0], eye.classes_of(heard), basis, pairs[1])
        size = (scene.image.width, tokens.grid[2])
        places = [_covered([getattr(pair, of) for pair in scene.pairs], *size) for of in ("targets", "answered")]
        parts = (tokens.features[0], classes, questions, heard, *places)
        for name, value in zip(_PARTS, parts, strict=True):
            tensors[f"{index}.{name}"] = (value.half() if name in _HALF else value).contiguous()
        texts.append({"side": tokens.grid[2], **{n: [getattr(p, k) for p in scene.pairs] for n, k in FIELDS.items()}})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_all(path.parent, {path.name: save(tensors), path.with_suffix(".json").name: json.dumps(texts)})


def _loaded(path: Path) -> list[Encoded]:
    try:
        tensors, texts = load_file(path), json.loads(path.with_suffix(".json").read_text())
        first = int(path.stem.rpartition("-")[2])
        whole = ({name: tensors[f"{first + place}.{name}"] for name in _PARTS} for place in range(len(texts)))
        return [Encoded(**parts, **about) for parts, about in zip(whole, texts, strict=True)]
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{str(path)!r} cannot be read, it may be cut short: remove it ({error})") from error


def _covered(things: Sequence[tuple[Thing, ...]], side: int, grid: int) -> Float[Tensor, "q n"]:
    """The part of each of grid x grid cells that each question's things fill, (Q, N)."""
    cell = -(-side // grid)
    whole = np.zeros((len(things), grid * cell, grid * cell), dtype=bool)
    for place, of in enumerate(things):
        whole[place, :side, :side] = whole_masks(of, side).any(axis=0)
    return torch.from_numpy(whole.reshape(-1, grid, cell, grid, cell).mean(axis=(2, 4), dtype=np.float32)).flatten(1)


def compacted(
    aligned: Float[Tensor, "n e"], asks: Float[Tensor, "q e"], basis: Float[Tensor, "e m"], most: int
) -> tuple[Float[Tensor, "n f"], Float[Tensor, "q f"]]:
    """Tokens and questions in M + most + 1 dimensions, with the same inner products, and tokens with the same norms.

    basis: orthonormal, of the reference questions, which then have the coordinates that `_reference` gives.
    """
    asks64, aligned64 = asks.double(), aligned.double()
    own = asks64 - asks64 @ basis @ basis.T
    extra, _ = torch.linalg.qr(own.T)
    extra = extra - basis @ (basis.T @ extra)
    whole = torch.nn.functional.pad(torch.cat((basis, extra), dim=1), (0, most - extra.shape[1]))
    coordinates = aligned64 @ whole
    rest = (aligned64.square().sum(dim=1) - coordinates.square().sum(dim=1)).clamp(min=0).sqrt()
    questions = asks64 @ whole
    return torch.cat((coordinates, rest[:, None]), dim=1).float(), torch.nn.functional.pad(questions, (0, 1)).float()


def basis_of(eye: Eye) -> Float[Tensor, "e m"]:
    """Orthonormal, of the reference questions' classes."""
    return torch.linalg.qr(eye.classes_of(eye.reference).double().T)[0]
