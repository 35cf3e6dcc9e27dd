"""Which tokens of an image the answer depends on, by six methods of different trust.

- "raw": attention of the last token in one layer and head; "mean": in all. Cheap; sinks are mistaken for what matters.
- "rollout" (arXiv 2005.00928), "gradient" (gradient x attention, arXiv 2103.15679): through all layers; see `flow`.
- "relative" (arXiv 2502.17422): "mean" divided by what the same image gets under a neutral question.
- "ablation": by how much the answer is less likely without a region. True by definition; a run of the model a region.

Which of them to believe of a model, `curves` measures: where what is important is taken away first, the answer must
fall early; where it is put back first, it must rise early (Petsiuk et al., arXiv 1806.07421).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.doctor import flow
from regard.doctor.capture import capture
from regard.doctor.pixels import pixel_map
from regard.doctor.placed import Placed
from regard.doctor.probe import Probe
from regard.errors import DataError, ModelError

METHODS = ("raw", "mean", "rollout", "gradient", "relative", "ablation")


@dataclass(frozen=True, eq=False)
class Importance:
    """columns: (B, S), of each column of the prompts. images: where their tokens stand. target: (B,), explained."""

    method: str
    columns: Float[Tensor, "b s"]
    images: tuple[Placed, ...]
    target: Int[Tensor, " b"]

    @property
    def tokens(self) -> list[Float[Tensor, " n"]]:
        """Of each token of each image, (N,)."""
        return [image.on_tokens(self.columns, len(self.columns)) for image in self.images]

    def maps(self, sizes: Sequence[tuple[int, int]]) -> list[Float[Tensor, "h w"]]:
        """Of each pixel, (H, W) for each image. sizes: (height, width) of each."""
        if len(sizes) != len(self.images):
            raise DataError(
                f"there are {len(self.images)} images and {len(sizes)} sizes: give (height, width) for each"
            )
        places = [image.boxes for image in self.images]
        return [pixel_map(*image) for image in zip(self.tokens, places, sizes, strict=True)]


def importance(
    model: nn.Module,
    inputs: Mapping[str, Any],
    method: str = "gradient",
    *,
    target: int | Sequence[int] | None = None,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    neutral: Mapping[str, Any] | None = None,
    regions: int | None = None,
) -> Importance:
    """How much each token of each image matters to what the model says next.

    model: a vision-language model of Hugging Face. inputs: of its processor, or as `regard.shorten` made them. target:
    the token to explain, one or one for each prompt; by default the model's own answer. layers, heads: of "raw" (by
    default the last layer's first head), "mean" and "relative" (all). neutral: of "relative", inputs of the same images
    with a question that asks for nothing ("Describe the image."). regions: of "ablation", hide each image in regions x
    regions squares in turn; by default token by token. Raises ModelError or DataError in one line.
    """
    if method not in METHODS:
        raise DataError(f"no method is named {method!r}: there are {', '.join(METHODS)}")
    for name, value, users in [
        ("layers", layers, ("raw", "mean", "relative")),
        ("heads", heads, ("raw", "mean", "relative")),
        ("neutral", neutral, ("relative",)),
        ("regions", regions, ("ablation",)),
    ]:
        if value is not None and method not in users:
            raise DataError(f"{name} is of {', '.join(users)}, not of {method!r}: leave it out")
    probe = Probe.of(model, inputs, target)
    return Importance(method, _columns(probe, method, layers, heads, neutral, regions), probe.images, probe.target)


def _columns(probe: Probe, method: str, layers: Any, heads: Any, neutral: Any, regions: int | None) -> Tensor:
    if method == "rollout":
        return flow.rollout(probe)
    if method == "gradient":
        return flow.gradient(probe)
    if method == "ablation":
        return _ablated(probe, regions)
    if method == "raw":
        return _attended(probe, -1 if layers is None else layers, 0 if heads is None else heads)
    found = _attended(probe, layers, heads)
    return found if method == "mean" else found / _on_the_same(probe, neutral, layers, heads)


def _attended(probe: Probe, layers: Any, heads: Any) -> Float[Tensor, "b s"]:
    with torch.no_grad(), capture(probe.model, layers, heads) as seen:
        probe.said()
    return seen.received()


def _on_the_same(probe: Probe, neutral: Mapping[str, Any] | None, layers: Any, heads: Any) -> Float[Tensor, "b s"]:
    """What the columns of the images get under a neutral question; infinite elsewhere."""
    if neutral is None:
        raise DataError("'relative' needs neutral=..., the same images with a question that asks for nothing")
    other = Probe.of(probe.model, neutral)
    pairs = list(zip(probe.images, other.images, strict=False))
    same = len(probe.images) == len(other.images) and len(probe.logits) == len(other.logits)
    if not same or any(len(one.columns) != len(two.columns) or one.row != two.row for one, two in pairs):
        raise DataError("neutral must have the same images in the same prompts, with another question")
    values = _attended(other, layers, heads)
    least = values.new_tensor(torch.finfo(values.dtype).tiny)
    found = torch.full(probe.inputs.mask.shape, torch.inf, device=values.device, dtype=values.dtype)
    for one, two in pairs:
        found[one.row, one.columns] = values[two.row, two.columns].maximum(least)
    return found


def _ablated(probe: Probe, regions: int | None) -> Float[Tensor, "b s"]:
    """How many nats less likely the target is without the region of each column; 0 for columns of no image."""
    if regions is not None and (isinstance(regions, bool) or not isinstance(regions, int) or regions < 1):
        raise DataError(f"regions must be a whole number of at least 1, got {regions!r}")
    found = torch.zeros(probe.inputs.mask.shape, dtype=torch.float64, device=probe.logits.device)
    whole = probe.likely()
    for image in probe.images:
        for columns in _regions(image, regions):
            gone = torch.zeros(found.shape, dtype=torch.bool, device=found.device)
            gone[image.row, columns] = True
            found[image.row, columns] = (whole - probe.likely(gone))[image.row]
    return found.float()


def _regions(image: Placed, regions: int | None) -> list[Int[Tensor, " k"]]:
    """The columns of each region that has any: of boxes whose middle lies there."""
    if regions is None:
        return list(image.columns.split(1))
    boxes = image.column_boxes
    middle = ((boxes[:, :2] + boxes[:, 2:]) / 2 * regions).long().clamp(0, regions - 1)
    cell = (middle[:, 1] * regions + middle[:, 0]).to(image.columns.device)
    return [image.columns[cell == number] for number in cell.unique()]


def checked_model(importance: Importance, probe: Probe) -> None:
    """Raise ModelError where an importance is of other prompts."""
    if importance.columns.shape != probe.inputs.mask.shape:
        got, want = tuple(importance.columns.shape), tuple(probe.inputs.mask.shape)
        raise ModelError(f"this importance is of prompts of shape {got}, and these are of {want}: give its own inputs")
