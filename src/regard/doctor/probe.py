"""Prompts and what the model says next, asked again with columns of their images hidden from attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.doctor.opening import patient
from regard.doctor.placed import Placed, placed
from regard.errors import DataError, ModelError
from regard.vlm.columns import last_real
from regard.vlm.shorten import shorten
from regard.vlm.shortened import Shortened


@dataclass(frozen=True, eq=False)
class Probe:
    """model: of Hugging Face, in evaluation. inputs: with the images encoded. images: where their tokens stand."""

    model: nn.Module
    inputs: Shortened
    images: tuple[Placed, ...]
    asked: Tensor | None = None

    @classmethod
    def of(cls, model: nn.Module, inputs: Mapping[str, Any], target: int | Sequence[int] | None = None) -> "Probe":
        """Encodes the images once. inputs: of the model's processor, or as `regard.shorten` made them. target: the
        token to be explained, one or one for each prompt; by default what the model says next. Raises ModelError,
        DataError.
        """
        found = patient(model)
        if found.vlm is not None or found.decoder is None:
            kind = type(model).__name__
            raise ModelError(f"importance is measured on vision-language models of Hugging Face, got {kind}")
        if found.model.training:
            raise ModelError("the model is in training mode: call model.eval() first")
        if not isinstance(inputs, Shortened):
            inputs = shorten(found.model, inputs, "random", keep=1.0)
        count = len(inputs["input_ids"])
        asked = None if target is None else torch.as_tensor(target).reshape(-1)
        if asked is not None and len(asked) not in (1, count):
            raise DataError(f"target must be one token id, or one for each of {count} prompts, got {len(asked)}")
        asked = None if asked is None else asked.expand(count)
        made = cls(found.model, inputs, tuple(placed(found, inputs)), asked)
        size = made.logits.shape[1]
        if asked is not None and (asked.is_floating_point() or int(asked.min()) < 0 or int(asked.max()) >= size):
            raise DataError(f"target must be token ids from 0 to {size - 1}, got {target}")
        return made

    @property
    def last(self) -> Int[Tensor, " b"]:
        """The column from which each prompt's next token is said."""
        return last_real(self.inputs.mask)

    @cached_property
    def logits(self) -> Float[Tensor, "b v"]:
        with torch.no_grad():
            return self.said()

    @property
    def target(self) -> Int[Tensor, " b"]:
        return self.logits.argmax(dim=1) if self.asked is None else self.asked.to(self.logits.device)

    def said(self, gone: Bool[Tensor, "b s"] | None = None) -> Float[Tensor, "b v"]:
        """Logits of each prompt's next token. gone: columns that no token attends to; all keep their positions."""
        given = dict(self.inputs)
        if gone is not None:
            given["attention_mask"] = given["attention_mask"].masked_fill(gone.to(self.inputs.mask.device), 0)
        at_end = bool((self.last == self.inputs.mask.shape[1] - 1).all())
        keep = {"logits_to_keep": 1} if at_end else {}
        logits = self.model(**given, **keep, use_cache=False).logits
        return logits[:, -1] if at_end else logits[torch.arange(len(logits)), self.last]

    @torch.no_grad()
    def likely(self, gone: Bool[Tensor, "b s"] | None = None) -> Float[Tensor, " b"]:
        """The logarithm of the probability of each prompt's target, in nats."""
        logits = self.logits if gone is None else self.said(gone)
        return logits.double().log_softmax(dim=1).gather(1, self.target[:, None])[:, 0]
