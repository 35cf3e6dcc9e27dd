"""Where the tokens of each image stand in what a layer reads, and which part of the image each of them is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.allocation import Allocation
from regard.doctor.opening import Patient
from regard.errors import DataError, ShapeError
from regard.vlm.opened import checked_inputs
from regard.vlm.opened import opened as opened_vlm
from regard.vlm.prompt import Prompt
from regard.vlm.shortened import Shortened


@dataclass(frozen=True, eq=False)
class Placed:
    """One image. row: its prompt. columns: (K,), where its tokens stand there. boxes: (N, 4), of its tokens as the eye
    made them. reading: how the K tokens read the N; None where they are the same.
    """

    row: int
    columns: Int[Tensor, " k"]
    boxes: Float[Tensor, "n 4"]
    reading: Allocation | Tensor | None = None

    def on_tokens(self, values: Float[Tensor, "b s"], rows: int) -> Float[Tensor, " n"]:
        """What the columns of a prompt have, on the image's tokens as the eye made them. rows: prompts there are; each
        has as many rows of `values` as it has beams, of which the first is taken.
        """
        if len(self.columns) and values.shape[1] <= int(self.columns.max()):
            raise DataError(f"{values.shape[1]} columns were read, and an image stands behind them: give what was read")
        row = self.row * max(1, len(values) // rows)
        if row >= len(values):
            raise DataError(f"rows of {len(values)} images were seen together, not of all: images were read in groups")
        own = values[row, self.columns.to(values.device)]
        if self.reading is None:
            return own
        if isinstance(self.reading, Tensor):
            return own @ self.reading.to(own)
        return self.reading.reading.spread(own[None, :, None].to(self.reading.anchor.device))[0, :, 0].to(own.device)

    @property
    def column_boxes(self) -> Float[Tensor, "k 4"]:
        """The part of the image that each column stands for: of a token made of several, the mean of their boxes."""
        if self.reading is None:
            return self.boxes
        if isinstance(self.reading, Tensor):
            return self.reading.to(self.boxes) @ self.boxes
        return self.reading.reading.read(self.boxes[None].to(self.reading.anchor.device))[0]


def placed(patient: Patient, inputs: Mapping[str, Any]) -> list[Placed]:
    """The images of inputs for a Hugging Face model: of its processor, or as `regard.shorten` made them."""
    vlm = opened_vlm(patient.model)
    if isinstance(inputs, Shortened):
        prompt = Prompt.of(vlm, dict(inputs))
        decisions = inputs._decisions
        columns = prompt.places[:, 1].split([decision.allocation.n_out for decision in decisions])
        return [
            Placed(decision.row, where, decision.tokens.boxes[0], decision.allocation)
            for decision, where in zip(decisions, columns, strict=True)
        ]
    given = checked_inputs(vlm, inputs)
    prompt = Prompt.of(vlm, given)
    layouts = vlm.family.layouts(vlm.base, given, prompt.runs())
    counts = [len(layout.boxes) for layout in layouts]
    rows = [row for row, _, _ in prompt.spans(counts)]
    parts = prompt.places[:, 1].split(counts)
    return [Placed(*image) for image in zip(rows, parts, [layout.boxes for layout in layouts], strict=True)]


def placed_in_vlm(prompts: Sequence[tuple], bridged: Sequence[tuple], part: str) -> list[Placed]:
    """The images of the prompts that a `regard.VLM` read last. prompts, bridged: what its parts were given and gave."""
    if not prompts:
        raise DataError("no prompt was read in this block yet: call the model first")
    interleaved, spliced = prompts[-1]
    rows = interleaved.image.nonzero()[:, 0].tolist()
    images: list[Placed] = []
    for tokens, made in reversed(bridged):
        if len(images) < len(rows):
            images = _bridged(tokens, made, part) + images
    if len(images) != len(rows):
        raise DataError(f"{len(rows)} images were read, and where {len(images)} of them stand is known: give tokens")
    if part in ("qformer", "bridge"):
        return [Placed(number, image.columns, image.boxes) for number, image in enumerate(images)]
    if part in ("qformer-self", "vision"):
        raise DataError(f"which part of an image the columns of {part!r} are is not known: give boxes")
    if part == "cross":
        return _in_memory(images, rows, max(len(made.mask[0]) for _, made in bridged[-len(rows) :]))
    if not bool(spliced.image.any()):
        raise DataError("no token of an image stands in the prompt, as text reads images aside: capture part='cross'")
    columns = spliced.image.nonzero()[:, 1].split([len(image.columns) for image in images])
    return [Placed(row, where, i.boxes, i.reading) for row, where, i in zip(rows, columns, images, strict=True)]


def _bridged(tokens: Any, made: Any, part: str) -> list[Placed]:
    """The images of one call of a bridge, each in a row of its own: columns are those of its real tokens."""
    if part in ("qformer", "bridge"):
        every = torch.arange(tokens.boxes.shape[1])
        return [Placed(0, every, boxes) for boxes in tokens.boxes]
    if made.reading is None:
        raise DataError("the bridge does not say what it read while it is trained: call model.eval() first")
    return [
        Placed(0, mask.nonzero()[:, 0], boxes, matrix[mask])
        for mask, boxes, matrix in zip(made.mask, tokens.boxes, made.reading.matrix(), strict=True)
    ]


def _in_memory(images: list[Placed], rows: list[int], most: int) -> list[Placed]:
    found = []
    for number, (row, image) in enumerate(zip(rows, images, strict=True)):
        start = most * rows[:number].count(row)
        found.append(Placed(row, image.columns + start, image.boxes, image.reading))
    return found


def placed_by_hand(boxes: Sequence[Tensor]) -> list[Placed]:
    """One image a row, whose columns from the first on are these boxes."""
    for some in boxes:
        if not isinstance(some, Tensor) or some.ndim != 2 or some.shape[1] != 4:
            raise ShapeError("boxes must be a tensor (N, 4) for each row, x0, y0, x1, y1 in [0, 1]")
    return [Placed(row, torch.arange(len(some)), some) for row, some in enumerate(boxes)]
