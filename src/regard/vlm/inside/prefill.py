"""A batch of prompts on its way through the layers of a language model: what is left of it, and from where on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.allocate import top_slots
from regard.allocation import Allocation
from regard.errors import DataError, ModelError
from regard.vlm.columns import Columns, last_real, pads_left
from regard.vlm.inside.cut import Cut, rows_at
from regard.vlm.opened import Opened


@dataclass(eq=False)
class Prefill:
    """image: (B, L), True for image tokens. alive: (B, L), True for what is left, padding excluded. last: (B,), the
    column of each prompt's last token. cuts: (from layer, what its columns are), none before something is dropped.
    steps: for each prompt, (from layer, Allocation, scores). fresh: nothing was read after the prompt yet.
    """

    image: Bool[Tensor, "b l"]
    alive: Bool[Tensor, "b l"]
    last: Int[Tensor, " b"]
    pad_left: bool
    cuts: list[tuple[int, Cut]] = field(default_factory=list)
    steps: list[list[tuple[int, Allocation, Tensor]]] = field(default_factory=list)
    fresh: bool = True
    _scores: Tensor | None = None

    @classmethod
    def of(cls, vlm: Opened, ids: Tensor | None, mask: Tensor | None) -> "Prefill | None":
        """None where there is no image token. Raises ModelError or DataError where a prompt cannot be pruned."""
        if ids is None:
            raise ModelError("pruning inside finds the image tokens in input_ids: inputs_embeds alone will not do")
        if mask is not None and (not isinstance(mask, Tensor) or mask.shape != ids.shape):
            raise ModelError("pruning inside needs attention_mask in the shape of input_ids")
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool().to(ids.device)
        image = (ids == vlm.image_token) & real
        if not bool(image.any()):
            return None
        last = last_real(real)
        if bool(image.gather(1, last.clamp(min=0)[:, None]).any()):
            raise DataError(
                "a prompt ends with an image token: text must follow, as its last token's attention decides"
            )
        return cls(image, real, last, pads_left(real), steps=[[] for _ in ids])

    @property
    def columns(self) -> Columns:
        """Where what is left stands."""
        if self.cuts:
            return self.cuts[-1][1].columns
        places = torch.arange(self.image.shape[1], device=self.image.device)
        return Columns(torch.where(self.alive, places, -1))

    def asks(self) -> Int[Tensor, " b"]:
        """Where the last token of each prompt stands now."""
        return self._place(self.columns).gather(1, self.last[:, None]).squeeze(1)

    def cut(self, given: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of a layer that reads what is left."""
        return self.cuts[-1][1].prompt(given) if self.cuts else given

    def cut_later(self, number: int, given: dict[str, Any], hidden: Tensor, cached: int) -> dict[str, Any]:
        """The keyword arguments of a layer that reads what comes after the prompt."""
        here = [cut for layer, cut in self.cuts if layer <= number]
        return here[-1].later(given, hidden, cached, self.image.shape[1]) if here else given

    def forget(self) -> None:
        """Let go of the tensors of the call before."""
        for _, cut in self.cuts:
            cut.forget()

    def judged(self, attention: Float[Tensor, "b k"]) -> None:
        """Take the attention to what is left, by which the next stage decides."""
        place = self._place(self.columns).to(attention.device)
        self._scores = attention.gather(1, place.clamp(min=0)).to(self.image.device)

    def dropped(self, layer: int, count: Callable[[int], int], hidden: Float[Tensor, "b k d"]) -> Tensor:
        """Drop what was attended to least; what is left of the hidden states. count: of a prompt's tokens, how many."""
        assert self._scores is not None
        before, alive = self.columns, self.alive.clone()
        totals = self.image.sum(dim=1).tolist()
        for row, total in enumerate(totals):
            here = (self.image[row] & self.alive[row]).nonzero().squeeze(1)
            scores = self._scores[row, here]
            if not bool(scores.isfinite().all()):
                raise DataError(f"the attention to the image at layer {layer} is not finite: check the model's dtype")
            kept = min(count(total), len(here))
            index = top_slots(scores[None], torch.ones_like(scores[None], dtype=torch.bool), kept)
            identity = kept == len(here)
            step = Allocation.identity(1, kept, device=here.device) if identity else Allocation.select(index, len(here))
            self.steps[row].append((layer, step, scores))
            alive[row, here] = False
            alive[row, here[index[0]]] = True
        if torch.equal(alive, self.alive):
            return hidden
        self.alive = alive
        after = Columns.kept(alive, self.pad_left)
        self.cuts.append((layer, Cut(after)))
        return rows_at(hidden, after.gather(self._place(before)))

    def _place(self, columns: Columns) -> Int[Tensor, "b l"]:
        """Where each column of the prompt stands among these, -1 where it does not."""
        place = torch.full_like(self.image, -1, dtype=torch.long)
        rows, slots = columns.mask.nonzero().unbind(1)
        place[rows, columns.index[rows, slots]] = slots
        return place
