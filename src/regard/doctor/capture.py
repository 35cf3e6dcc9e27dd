"""Rows of attention of a real model, taken while it runs as always: `regard.capture`.

The model runs its own kernel on its own tensors, so what it says is the same to the last bit; the rows that are asked
for are made beside it, layer by layer, and kept: rows x length numbers, never length x length. Works under SDPA and
eager, in `forward` and in `generate`, with any cache, adapters and quantised weights.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.doctor.kernel import Reading
from regard.doctor.opening import Patient, patient
from regard.doctor.parts import AttentionLayer, attention_layers, chosen
from regard.doctor.queries import Queries, Step, checked, rows_of
from regard.doctor.rows import Rows, Seen
from regard.doctor.watch import refuse_compiling, watching
from regard.errors import DataError, ModelError
from regard.vlm.inside.hooks import Inside

Heads = int | Sequence[int] | Literal["mean"] | None


@contextmanager
def capture(
    model: nn.Module,
    layers: int | Sequence[int] | None = None,
    heads: Heads = None,
    queries: Queries | None = None,
    *,
    part: str = "language",
    dtype: torch.dtype = torch.float32,
) -> Iterator[Seen]:
    """Keep rows of attention of what `model` reads while the block lasts.

    model: a language or vision-language model of Hugging Face, or a `regard.VLM`. layers: numbers, negative from the
    end; all by default. heads: numbers, or "mean" to keep only their mean; each by default. part: "language", "vision",
    "cross" (text that reads images: `regard.VLM` with late fusion, Mllama), "qformer", "qformer-self" or "bridge".

    queries: whose rows. "last": the last token of each call: of the prompt and then of each token of the answer.
    "question": the words after the last image. "answer": the tokens from which the answer is said: in a forward with
    labels those before each label, else as "last". Columns of the prompt, (R,) or (B, R), negative from its end, and
    after its end those of the answer. "mean": the mean over all, one row. "all": every one. By default "last" where
    text asks, "all" of a Q-Former, "mean" of a vision encoder.

    dtype: what rows are kept in; torch.float16 takes half the memory.

    What another thread runs is not seen. A block in a block sees the same. Raises ModelError or DataError in one line
    for what cannot be reached, when the block is opened where that can be known.
    """
    opened = patient(model)
    every = chosen(attention_layers(opened.model, part), layers if layers is None else _numbers(layers))
    for layer in every:
        _check(layer)
    if not dtype.is_floating_point:
        raise ModelError(f"rows are kept in floating point: give torch.float32 or torch.float16, not {dtype}")
    watcher = _Watcher(opened, Seen(opened, part, every), checked(queries, part), heads, _Shelf(len(every), dtype))
    handles = watcher.hooked()
    try:
        with watching(every, watcher.tell):
            yield watcher.seen
    finally:
        for handle in handles:
            handle.remove()
    watcher.check_read()


class _Shelf:
    """Memory for rows of one shape, of all layers in one piece: in pieces of their own they would lie between what the
    model frees after each layer, which then could not serve the next.
    """

    def __init__(self, layers: int, dtype: torch.dtype) -> None:
        self.layers, self.dtype = layers, dtype
        self.room: dict[tuple[int, ...], list[Tensor]] = {}

    def put(self, rows: Tensor) -> Tensor:
        """The rows, in `dtype`."""
        if rows.device.type != "cpu":  # whose allocator puts sizes apart
            return rows.to(self.dtype)
        room = self.room.setdefault(rows.shape, [])
        if not room:
            room.extend(torch.empty(self.layers, *rows.shape, dtype=self.dtype))
        return room.pop().copy_(rows)


class _Watcher:
    """Knows what the model is reading, and takes the rows that are asked for."""

    def __init__(self, opened: Patient, seen: Seen, queries: Queries, heads: Heads, shelf: _Shelf) -> None:
        self.opened, self.seen, self.queries, self.shelf = opened, seen, queries, shelf
        self.heads: Any = [heads] if isinstance(heads, int) else heads
        if self.heads is not None and self.heads != "mean":
            self.heads = list(self.heads)
            if not self.heads or not all(type(head) is int for head in self.heads):
                raise ModelError(f"heads must be whole numbers or 'mean', got {heads!r}")
        self.thread = threading.get_ident()
        self.known: dict[str, Any] = {}
        self.step: Step | None = None
        self.asked: dict[tuple, tuple[Tensor | None, Tensor | None]] = {}
        self.reached = -1

    def hooked(self) -> list[Any]:
        """Start; gives the handles of the hooks."""
        handles = [
            module.register_forward_pre_hook(self._before, with_kwargs=True)
            for module in {id(module): module for module in self.opened.callers}.values()
        ]
        if self.opened.vlm is not None:
            handles.append(self.opened.vlm.splice.register_forward_hook(self._spliced))
            handles.append(self.opened.vlm.bridge.register_forward_hook(self._bridged))
        return handles

    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """What the model, then its language model, is about to read."""
        refuse_compiling()
        if threading.get_ident() != self.thread:
            return
        first = args[0] if args and isinstance(args[0], Tensor) else None
        ids = kwargs.get("input_ids", first if first is not None and first.ndim == 2 else None)
        mask = kwargs.get("attention_mask")
        self.known |= {} if ids is None else {"ids": ids}
        self.known |= {"mask": mask} if isinstance(mask, Tensor) and mask.ndim == 2 else {}
        self.known |= {} if kwargs.get("labels") is None else {"labels": kwargs["labels"]}
        if any(isinstance(getattr(hook, "__self__", None), Inside) for hook in module._forward_pre_hooks.values()):
            raise ModelError("this model is pruned inside, so its layers read other columns: leave that block first")
        if module is not self.opened.decoder:
            return
        read = next(x for x in (kwargs.get("inputs_embeds"), ids, first) if x is not None)
        shape = read.shape[:2]
        cache = kwargs.get("past_key_values")
        self.step = self._step(tuple(shape), 0 if cache is None else int(cache.get_seq_length()))
        self.asked = {}
        self.reached = max(self.reached, self.step.total - 1)
        self.known = {name: value for name, value in self.known.items() if name == "spliced"}

    def _step(self, shape: tuple[int, ...], past: int) -> Step:
        known, tokens = self.known, shape[1]
        ids, labels = (x if x is None or x.shape == shape else None for x in (known.get("ids"), known.get("labels")))
        mask, spliced = known.get("mask"), known.get("spliced")
        device = self.opened.device
        if mask is None or mask.shape[1] < tokens:
            real = torch.ones(shape, dtype=torch.bool, device=device)
        else:  # of what was read and is read; of a static cache also of what comes
            end = min(past + tokens, mask.shape[1])
            real = mask[:, end - tokens : end].bool().expand(shape)
        image = None
        if spliced is not None and self.seen.part == "cross":  # what has no image before it goes by
            places = torch.arange(past, past + tokens, device=device).clamp(max=spliced.seen.shape[1] - 1)
            reads = spliced.seen[:, places] > 0
            real = real & reads.repeat_interleave(shape[0] // len(reads), dim=0)
        if spliced is not None and spliced.image.shape[1] == tokens and past == 0:
            before = spliced.image | (spliced.seen < spliced.seen[:, -1:])  # an image may stand at no column
            image = before.repeat_interleave(shape[0] // len(before), dim=0)
        elif ids is not None and self.opened.image_token is not None:
            image = ids == self.opened.image_token
        return Step(past, real, ids, image, labels)

    def _spliced(self, module: nn.Module, args: tuple, result: Any) -> None:
        if threading.get_ident() == self.thread:
            self.known["spliced"] = result
            self.seen.prompts.append((args[0], result))

    def _bridged(self, module: nn.Module, args: tuple, result: Any) -> None:
        if threading.get_ident() == self.thread:
            self.seen.bridged.append((args[0], result))

    @torch.no_grad()
    def tell(self, layer: AttentionLayer, reading: Reading) -> None:
        """Keep what is asked for of one call of a layer."""
        batch, count, queries, keys = reading.shape
        step = self.step if layer.part in ("language", "cross") else None
        if step is not None and step.real.shape[1] != queries:
            raise ModelError(f"{layer.name} attends from {queries} tokens and the model reads {step.real.shape[1]}")
        mean, heads = self.heads == "mean", None if self.heads == "mean" else _heads(self.heads, count, layer)
        key = (batch, queries, reading.device)
        if key not in self.asked:
            self.asked[key] = self._asked(step, *key)
        index, columns = self.asked[key]
        if columns is None:
            return
        if index is None:
            weights = reading.mean(None if step is None else step.real.to(reading.device), heads)
        else:
            weights = reading.rows(index, heads)
        weights = weights.mean(dim=1, keepdim=True) if mean else weights
        if step is not None and layer.part == "language":
            weights = weights[..., : step.total] if keys > step.total else F.pad(weights, (step.total - keys, 0))
        self.seen.add(layer, Rows(self.shelf.put(weights), columns, 0 if step is None else step.past))

    def _asked(
        self, step: Step | None, batch: int, queries: int, device: torch.device
    ) -> tuple[Tensor | None, Tensor | None]:
        """Which queries, None for the mean of all, and their columns, None where nothing is asked for: of all layers
        of a call the same tensors, as even small ones that stay would break up what the model frees.
        """
        if self.queries == "mean":
            return None, torch.full((batch, 1), -1, device=device)
        index = self._index(step, batch, queries, device)
        if index is None:
            return None, None
        return index, torch.where(index < 0, -1, index + (0 if step is None else step.past))

    def _index(self, step: Step | None, batch: int, queries: int, device: torch.device) -> Tensor | None:
        if step is not None:
            index = rows_of(self.queries, step, self.opened.config)
            return None if index is None else index.to(device)
        place = torch.arange(queries, device=device)
        if isinstance(self.queries, Tensor):
            lowest, highest = int(self.queries.min()), int(self.queries.max())
            if lowest < -queries or highest >= queries:
                wrong = highest if highest >= queries else lowest
                raise DataError(f"there is no query {wrong}: the part {self.seen.part!r} has {queries} in this model")
            place = place[self.queries.to(device)]
        elif self.queries != "all":
            raise DataError(f"queries {self.queries!r} need a language model that is known: ask for columns")
        return place.expand(batch, -1)

    def check_read(self) -> None:
        """Raise DataError where a column was asked for that the model never read."""
        if not isinstance(self.queries, Tensor) or self.step is None or self.seen.part not in ("language", "cross"):
            return
        if (asked := int(self.queries.max())) > self.reached:
            raise DataError(f"column {asked} was asked for, and the model read columns 0 to {self.reached} only")


def _numbers(layers: int | Sequence[int]) -> Any:
    return layers if isinstance(layers, int) else list(layers)


def _heads(wanted: list[int] | None, count: int, layer: AttentionLayer) -> list[int] | None:
    if wanted is None:
        return None
    wrong = [head for head in wanted if not -count <= head < count]
    if wrong:
        raise ModelError(f"there is no head {wrong[0]}: {layer.name} has heads 0 to {count - 1}")
    return [head % count for head in wanted]


def _check(layer: AttentionLayer) -> None:
    """Raise ModelError where the kernel of a layer cannot be watched."""
    config = getattr(layer.module, "config", None)
    kernel = str(getattr(config, "_attn_implementation", None) or "")
    if any(word in kernel for word in ("flash", "flex", "paged")):
        raise ModelError(
            f"the kernel {kernel!r} of {layer.name} does not show what it attends to: "
            "model.set_attn_implementation('sdpa') first"
        )
