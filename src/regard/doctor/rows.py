"""What `regard.capture` has kept: rows of attention, on the tokens of an image, and on its pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from regard.doctor.opening import Patient
from regard.doctor.parts import AttentionLayer, chosen
from regard.doctor.pixels import pixel_map
from regard.doctor.placed import Placed, placed, placed_by_hand, placed_in_vlm
from regard.errors import DataError, ModelError
from regard.vlm.opened import opened as opened_vlm


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one layer in one call. weights: (B, h, R, S), S the columns read so far; a row sums to 1, or to
    0 where it is padding or sees nothing. columns: (B, R), of which queries, -1 for none or for all. past: columns that
    were read before this call.
    """

    weights: Float[Tensor, "b h r s"]
    columns: Int[Tensor, "b r"]
    past: int = 0


class Seen:
    """What a block of `regard.capture` kept, call by call and layer by layer; calls without a row that was asked for
    are not counted.
    """

    def __init__(self, opened: Patient, part: str, layers: Sequence[AttentionLayer]) -> None:
        self.part = part
        self.prompts: list[tuple] = []
        self.bridged: list[tuple] = []
        self._opened = opened
        self._layers = list(layers)
        self._kept: dict[int, list[Rows]] = {layer.number: [] for layer in layers}

    def __repr__(self) -> str:
        return f"Seen({self.part}, {len(self._layers)} layers, {self.calls} calls)"

    def add(self, layer: AttentionLayer, rows: Rows) -> None:
        """Keep the rows of one layer of one call."""
        self._kept[layer.number].append(rows)

    @property
    def layers(self) -> tuple[int, ...]:
        """The numbers of the layers that are kept."""
        return tuple(self._kept)

    @property
    def names(self) -> dict[int, str]:
        """The path of each layer's attention in the model."""
        return {layer.number: layer.name for layer in self._layers}

    @property
    def calls(self) -> int:
        """How many calls of the model are kept: of `generate` the prompt's and one for each token after the first."""
        return max(len(rows) for rows in self._kept.values())

    def of(self, layer: int, call: int = 0) -> Rows:
        """The rows of one layer in one call, both negative from the end. Raises ModelError, DataError for none."""
        found = chosen(self._layers, layer)[0]
        kept = self._kept[found.number]
        if not self.calls:
            raise DataError(
                "no attention was seen: run the model inside the block, in the thread that opened it, and ask for "
                "queries that it reads"
            )
        if not kept:
            raise ModelError(
                f"layer {found.number} ({found.name}, a {type(found.module).__name__}) ran no attention that can be "
                "seen: it calls neither torch's scaled_dot_product_attention nor a softmax"
            )
        if not -len(kept) <= call < len(kept):
            raise DataError(f"there is no call {call}: {len(kept)} were seen")
        return kept[call]

    def weights(self, layer: int, call: int = 0) -> Float[Tensor, "b h r s"]:
        """(B, h, R, S), as `of`."""
        return self.of(layer, call).weights

    def columns(self, call: int = 0) -> Int[Tensor, "b r"]:
        """(B, R), of which queries the rows are."""
        return self.of(self._layers[0].number, call).columns

    def received(
        self, layers: int | Sequence[int] | None = None, calls: int | Sequence[int] | None = None
    ) -> Float[Tensor, "b s"]:
        """What each column is given, (B, S): the mean over layers, heads, real rows and calls; all by default."""
        wanted = chosen(self._layers, layers if layers is None or isinstance(layers, int) else list(layers))
        numbers = range(self.calls or 1) if calls is None else [calls] if isinstance(calls, int) else calls
        total: Tensor | None = None
        for layer in wanted:
            several = [self.of(layer.number, call).weights.mean(dim=1, dtype=torch.float32) for call in numbers]
            if len({len(rows) for rows in several}) > 1:
                raise DataError("the calls were of batches of several sizes: ask for one of them, calls=0")
            longest = max(rows.shape[-1] for rows in several)
            rows = torch.cat([F.pad(rows, (0, longest - rows.shape[-1])) for rows in several], dim=1)
            real = (rows.sum(dim=-1) > 0).sum(dim=1, keepdim=True).clamp(min=1)
            mean = rows.sum(dim=1) / real
            total = mean if total is None else total + mean.to(total.device)
        assert total is not None
        return total / len(wanted)

    def placed(self, inputs: Any = None, boxes: Sequence[Tensor] | None = None) -> list[Placed]:
        """Where the tokens of each image stand. inputs: what a Hugging Face model was given (its processor's, or of
        `regard.shorten`); a `regard.VLM` has told it. boxes: (S, 4) for each row, where the family is not known.
        """
        if boxes is not None:
            return placed_by_hand(boxes)
        if self._opened.vlm is not None:
            return placed_in_vlm(self.prompts, self.bridged, self.part)
        if inputs is None:
            raise DataError("the inputs tell where the images are: give what the model was given, inputs=...")
        return placed(self._opened, inputs)

    def tokens(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        layers: int | Sequence[int] | None = None,
        calls: int | Sequence[int] | None = None,
        boxes: Sequence[Tensor] | None = None,
    ) -> list[Float[Tensor, " n"]]:
        """What each token of each image is given, (N,), as `received`; of shortened inputs, the tokens as they were
        before: what a token is given that was made of several is shared among them as it read them.

        Of a vision encoder, the mean over a token's patches. inputs, boxes: as for `placed`.
        """
        values = self.received(layers, calls)
        if self.part == "vision" and boxes is None and self._opened.vlm is None:
            return self._of_encoder(values, inputs)
        rows = len(values) if inputs is None else len(inputs["input_ids"])
        if self.prompts and self.part in ("language", "cross"):
            rows = len(self.prompts[-1][0].ids)
        return [image.on_tokens(values, rows) for image in self.placed(inputs, boxes)]

    def maps(
        self,
        sizes: Sequence[tuple[int, int]],
        inputs: Mapping[str, Any] | None = None,
        *,
        layers: int | Sequence[int] | None = None,
        calls: int | Sequence[int] | None = None,
        boxes: Sequence[Tensor] | None = None,
    ) -> list[Float[Tensor, "h w"]]:
        """What each pixel is given, (H, W) for each image, in the order of the prompt; see `tokens`, `pixel_map`.

        sizes: (height, width) of each picture as the model's processor saw it, in any resolution; where a processor
        crops, of the crop.
        """
        values = self.tokens(inputs, layers=layers, calls=calls, boxes=boxes)
        places = [image.boxes for image in self.placed(inputs, boxes)]
        if len(sizes) != len(values):
            raise DataError(f"there are {len(values)} images and {len(sizes)} sizes: give (height, width) for each")
        return [pixel_map(*image) for image in zip(values, places, sizes, strict=True)]

    def _of_encoder(self, values: Tensor, inputs: Mapping[str, Any] | None) -> list[Tensor]:
        if inputs is None:
            raise DataError("the inputs tell how the encoder's patches lie: give what the model was given, inputs=...")
        vlm = opened_vlm(self._opened.model)
        counts = [len(image.boxes) for image in self.placed(inputs)]
        return list(vlm.family.arrange(vlm.base, inputs, values[..., None]).squeeze(-1).split(counts))
