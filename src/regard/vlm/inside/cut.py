"""What a decoder layer is given for the whole prompt, cut to the columns that are left of it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from regard.vlm.columns import Columns


class Cut:
    """The arguments of the layers that read these columns. What one call of the model gives to many is cut once."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self._done: dict[int, tuple[Tensor | None, Tensor | None]] = {}

    def prompt(self, given: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of a layer that reads the prompt."""
        index = self.columns.index
        new = {**given, "attention_mask": self._once(given.get("attention_mask"), self._square)}
        if given.get("position_ids") is not None:
            new["position_ids"] = self._once(given["position_ids"], lambda x: rows_at(x[..., None], index).squeeze(-1))
        turns = given["position_embeddings"]
        new["position_embeddings"] = tuple(self._once(x, lambda x: rows_at(x, index)) for x in turns)
        return new

    def later(self, given: dict[str, Any], hidden: Float[Tensor, "b t d"], cached: int, length: int) -> dict[str, Any]:
        """The keyword arguments of a layer that reads tokens after the prompt.

        cached: how many columns the layer's cache holds. length: columns of the whole prompt.
        """
        make = partial(self._oblong, hidden=hidden, cached=cached, length=length)
        return {**given, "attention_mask": self._once(given.get("attention_mask"), make)}

    def forget(self) -> None:
        """Let go of the tensors of a call."""
        self._done.clear()

    def _once(self, x: Tensor | None, cut: Callable[[Any], Tensor | None]) -> Tensor | None:
        if id(x) not in self._done:
            self._done[id(x)] = (x, cut(x))  # x is held, so that its id stays its own
        return self._done[id(x)][1]

    def _square(self, mask: Tensor | None) -> Tensor | None:
        """(B or 1, 1, L, L) -> (B, 1, K, K); None is causal."""
        real = self.columns.mask
        if mask is None:
            if bool(real.all()):
                return None
            seen = torch.ones(2 * real.shape[-1:], dtype=torch.bool, device=real.device).tril()
            new = seen.expand(len(real), 1, -1, -1)
        else:
            index = self.columns.index
            new = columns_at(rows_at(mask.expand(len(index), -1, -1, -1).transpose(0, 1), index).transpose(0, 1), index)
        real = real.to(new.device)
        new = without(new, ~real)
        if new.dtype == torch.bool:  # padding sees itself, so that no row is left with nothing to see
            new = new | (torch.eye(real.shape[-1], dtype=torch.bool, device=new.device) & ~real[:, None, :, None])
        return new

    def _oblong(self, mask: Tensor | None, hidden: Tensor, cached: int, length: int) -> Tensor | None:
        """(B or 1, 1, T, L + new) -> (B, 1, T, K + new); None is causal."""
        tokens, real = hidden.shape[1], self.columns.mask.to(hidden.device)
        if mask is None:
            if tokens == 1 and bool(real.all()):
                return None
            seen = torch.ones(tokens, cached + tokens, dtype=torch.bool, device=hidden.device).tril(cached)
            old, new = seen.expand(len(real), 1, -1, -1).split([real.shape[1], cached + tokens - real.shape[1]], dim=-1)
        else:
            mask = mask.expand(len(real), -1, -1, -1)
            old, new = columns_at(mask[..., :length], self.columns.index), mask[..., length:]
        return torch.cat((without(old, ~real), new), dim=-1)


def rows_at(x: Shaped[Tensor, "... b l d"], index: Int[Tensor, "b k"]) -> Shaped[Tensor, "... b k d"]:
    """The rows of each prompt in these columns (in column 0 where it is -1); one prompt may stand for all."""
    x = x.expand(*x.shape[:-3], len(index), *x.shape[-2:])
    at = index.clamp(min=0).to(x.device)[..., None]
    return x.gather(-2, at.expand(*x.shape[:-2], at.shape[-2], x.shape[-1]))


def columns_at(mask: Shaped[Tensor, "b h q l"], index: Int[Tensor, "b k"]) -> Shaped[Tensor, "b h q k"]:
    """The same columns of a mask (column 0 where it is -1)."""
    at = index.clamp(min=0).to(mask.device)[:, None, None]
    return mask.gather(-1, at.expand(*mask.shape[:-1], -1))


def without(mask: Shaped[Tensor, "b h q k"], gone: Bool[Tensor, "b k"]) -> Shaped[Tensor, "b h q k"]:
    """A mask that hides these columns too, whether it is of booleans or to be added."""
    lowest = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return mask.masked_fill(gone[:, None, None].to(mask.device), lowest)
