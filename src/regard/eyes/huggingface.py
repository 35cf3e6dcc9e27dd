"""The eyes of Hugging Face: CLIP, SigLIP, SigLIP 2, EVA-CLIP (BLIP-2), DINOv2, ViT, Swin and ConvNeXt as one module.

A token is a patch, or a cell of the last grid; class tokens and registers are left out. CLIP, SigLIP and SigLIP 2 hear
a question with their own text tower, so that relevance needs no other model; its sign has to be measured first
(`regard calibrate`), as CLIP's patches are often less like the text where the object is.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from regard.errors import DataError, ModelError
from regard.eyes._hf_load import loaded
from regard.eyes._hf_space import space_of
from regard.eyes._hf_towers import Tower
from regard.eyes._hf_views import Views
from regard.eyes.class_vectors import classes
from regard.tokens import Question, VisualTokens

_REFERENCES = 64


class HuggingFaceEye(nn.Module):
    """A vision tower as an eye; gradients flow through `forward`, none through `look`.

    model: of transformers, whole (CLIPModel, SiglipModel, Siglip2Model, a BLIP-2) or vision only. processor: its image
    processor. tokenizer: of a model with a text tower, where questions are asked.

    layer: which of the model's hidden_states are the features: 0 the embeddings, -1 the last layer's output, -2 the one
    before (LLaVA's choice), without the final norm; of Swin and ConvNeXt, the output of a stage. None: the model's
    last_hidden_state, which is after the final norm but in CLIP and ConvNeXt, whose norm is the pooled vector's only.
    `aligned` are always made from last_hidden_state.

    longest: in place of the processor's resize and crop, the whole picture with its aspect, the longer side at most
    this many pixels, rounded to whole tokens. tiles: (rows, columns), or how many at most: the whole picture and each
    tile, squashed to the encoder's own size (SigLIP 2: with its aspect). attention: also give `scores["attention"]`,
    the attention received at the layer before the last, from the class token or else the mean over all patches, and
    `keys`; both averaged over heads. sign: -1 turns relevance round, where `regard calibrate` finds that it points
    away.

    Raises ModelError where model, processor or an option do not fit.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        tokenizer: Any = None,
        *,
        layer: int | None = None,
        longest: int | None = None,
        tiles: tuple[int, int] | int | None = None,
        attention: bool = False,
        sign: Literal[1, -1] = 1,
    ) -> None:
        super().__init__()
        self.tower = Tower(model, layer, attention)
        self.space = space_of(model)
        self._views = Views(processor, self.tower.stride, longest, tiles)
        if self._views.flexible != self.tower.kind.flexible:
            raise ModelError(f"{type(self.tower.model).__name__} cannot see what {type(processor).__name__} prepares")
        self._tokenizer = tokenizer
        self._sign = sign
        source = model.config.name_or_path
        self._called = f"{model.config.model_type} {Path(source).name if Path(source).is_dir() else source}".strip()
        self._others: tuple[tuple, Tensor] | None = None

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike,
        *,
        layer: int | None = None,
        longest: int | None = None,
        tiles: Sequence[int] | int | None = None,
        attention: bool = False,
        sign: Literal[1, -1] = 1,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        revision: str = "main",
    ) -> "HuggingFaceEye":
        """The eye in a folder, or by its name on the hub. dtype: "auto" is that of its files. device: "auto" is a GPU
        if any. revision: a branch, tag or commit of the hub. Raises ModelError.
        """
        made = loaded(name_or_path, dtype, device, revision)
        grid: Any = tiles if isinstance(tiles, int | None) else tuple(tiles)
        return cls(*made, layer=layer, longest=longest, tiles=grid, attention=attention, sign=sign)

    @property
    def name(self) -> str:
        """What it is called in records."""
        return self._called

    @property
    def width(self) -> int:
        """D of the features."""
        return self.tower.width

    @property
    def asked(self) -> int:
        """E of the questions' features; 0 where there is no text tower."""
        return 0 if self.space is None else self.space.width

    def prepare(self, images: Image.Image | Sequence[Image.Image]) -> dict[str, Tensor]:
        """What `forward` takes, on the CPU, one row a view: an image, or an image's whole and its tiles.

        pixel_values: (R, 3, H, W), or (R, P, C) of SigLIP 2, with zeros after what is smaller. shapes: (R, 2), height
        and width of what is real, in pixels (SigLIP 2: patches). parts: (R, 4), what part of its image a view shows.
        images: (R,), the image of each view. Raises DataError where there is no image, ImageError for an empty one.
        """
        pictures = [images] if isinstance(images, Image.Image) else list(images)
        if not pictures or not all(isinstance(picture, Image.Image) for picture in pictures):
            kinds = ", ".join(sorted({type(picture).__name__ for picture in pictures})) or "none"
            raise DataError(f"expected a PIL image or some, got {kinds}: give one or more")
        found = [(number, view) for number, picture in enumerate(pictures) for view in self._views.of(picture)]
        pixels = [view.pixels for _, view in found]
        return {
            "pixel_values": pad_sequence(pixels, batch_first=True) if self._views.flexible else _padded(pixels),
            "shapes": torch.tensor([view.shape for _, view in found]),
            "parts": torch.tensor([view.part for _, view in found]),
            "images": torch.tensor([number for number, _ in found]),
        }

    def forward(self, pixel_values: Tensor, shapes: Tensor, parts: Tensor, images: Tensor) -> VisualTokens:
        """Tokens of what `prepare` gives: features (B, N, D), with a mask where images have different numbers of them.

        `aligned`, where there is a text tower, are unit vectors in float32. `grid` is given where each image has the
        same one. `segment`, with tiles: 0 for the whole picture, 1 and on for its tiles in raster order. Raises
        ShapeError for a picture that is too small.
        """
        sizes = [(h, w) for h, w in shapes.tolist()]
        rows: list[dict[str, Tensor]] = [{} for _ in sizes]
        for shape in dict.fromkeys(sizes if not self._views.flexible else sizes[:1]):
            members = [i for i, size in enumerate(sizes) if self._views.flexible or size == shape]
            part = pixel_values[members]
            self._encode(part if self._views.flexible else part[..., : shape[0], : shape[1]], members, sizes, rows)
        owners = images.tolist()
        segments = [owners[:i].count(owner) for i, owner in enumerate(owners)]
        places = parts.to(self.tower.model.device)
        for row, size, place, segment in zip(rows, sizes, places, segments, strict=True):
            row["boxes"] = self.tower.boxes(size, place)
            row["segment"] = torch.full((len(row["boxes"]),), segment, device=places.device)
        grids = {self.tower.grid(size) for size in sizes}
        alone = len(grids) == 1 and not any(segments)
        return _together(rows, owners, (1, *grids.pop()) if alone else None, self._views.tiles is not None)

    def _encode(
        self, pixels: Tensor, members: list[int], sizes: list[tuple[int, int]], rows: list[dict[str, Tensor]]
    ) -> None:
        """Encode some views at once, into their rows."""
        shapes = [sizes[i] for i in members]
        encoded = self.tower(pixels, shapes)
        given = {"features": encoded.features, **encoded.maps}
        if self.space is not None:
            given["aligned"] = F.normalize(self.space.patches(self.tower.model, encoded.last).float(), dim=-1)
        for place, (i, shape) in enumerate(zip(members, shapes, strict=True)):
            h, w = self.tower.grid(shape)
            rows[i] |= {name: values[place, : h * w] for name, values in given.items()}

    def look(self, image: Image.Image | Sequence[Image.Image]) -> VisualTokens:
        """`prepare` and `forward` without gradients, in evaluation mode."""
        inputs = self.prepare(image)
        with _at_rest(self):
            return self(**inputs)

    def ask(self, text: str) -> Question:
        """A question in the text's space, (1, 1, E), of length 1: a cosine with `aligned`. reference: "a photo of a"
        64 of ImageNet's classes.

        Raises ModelError where there is no text tower or no tokenizer, DataError for text that is empty or too long.
        """
        if self.space is None or self._tokenizer is None:
            what = "no text tower" if self.space is None else "no tokenizer: give tokenizer=..."
            raise ModelError(f"{self.name} has {what}, so it hears no question")
        if not text.strip():
            raise DataError("the question is empty: ask in words, such as 'where is the cat?'")
        with _at_rest(self):
            return Question(self._heard([text])[None], text=text, reference=self._references())

    def _heard(self, texts: list[str]) -> Float[Tensor, "m e"]:
        space = self.space
        assert space is not None
        ids = self._tokenizer(texts)["input_ids"]
        most = max(len(row) for row in ids)
        if most > space.longest:
            raise DataError(f"the question has {most} tokens, {self.name} hears {space.longest}: shorten it")
        padded = self._tokenizer(texts, padding=space.padding, max_length=space.longest, return_tensors="pt")
        heard = space.text(padded["input_ids"].to(space.text_model.device))
        return self._sign * F.normalize(heard.float(), dim=-1)

    def _references(self) -> Float[Tensor, "m e"]:
        """Heard once, and anew when the text tower is trained or moved."""
        assert self.space is not None
        weights = [(weight.device, weight.dtype, weight._version) for weight in self.space.parameters()]
        if self._others is None or self._others[0] != tuple(weights):
            known = classes()
            chosen = [known[i].names[0] for i in torch.linspace(0, len(known) - 1, _REFERENCES).long()]
            self._others = tuple(weights), self._heard([f"a photo of a {name}" for name in chosen])
        return self._others[1]


@contextmanager
def _at_rest(module: nn.Module) -> Iterator[None]:
    """In evaluation mode and without gradients; each part's own mode comes back after."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def _padded(pixels: Sequence[Tensor]) -> Float[Tensor, "r 3 h w"]:
    """Pictures in one batch, with zeros to the right and below."""
    height, width = (max(picture.shape[side] for picture in pixels) for side in (1, 2))
    gaps = [(0, width - picture.shape[2], 0, height - picture.shape[1]) for picture in pixels]
    return torch.stack([F.pad(picture, gap) for picture, gap in zip(pixels, gaps, strict=True)])


def _together(
    rows: list[dict[str, Tensor]], owners: list[int], grid: tuple[int, int, int] | None, tiled: bool
) -> VisualTokens:
    """The views of each image one after another, images padded to the one with the most tokens."""
    of_image: list[list[dict[str, Tensor]]] = [[] for _ in range(max(owners) + 1)]
    for row, owner in zip(rows, owners, strict=True):
        of_image[owner].append(row)
    given = {
        name: pad_sequence([torch.cat([row[name] for row in views]) for views in of_image], batch_first=True)
        for name in rows[0]
    }
    counts = torch.tensor([sum(len(row["boxes"]) for row in views) for views in of_image])
    boxes, features = given["boxes"], given["features"]
    mask = torch.arange(boxes.shape[1]) < counts[:, None]
    return VisualTokens(
        features,
        boxes,
        mask=None if bool(mask.all()) else mask.to(features.device),
        aligned=given.get("aligned"),
        keys=given.get("keys"),
        scores={"attention": given["attention"]} if "attention" in given else {},
        grid=grid,
        segment=given["segment"] if tiled else None,
    )
