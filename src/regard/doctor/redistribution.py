"""Attention that sinks get, moved to the tokens of the image that show something (VAR, arXiv 2503.03321), for a while.

    a_sink <- (1 - moved) a_sink;    a_i <- a_i + (moved sum of a_sink) a_i / sum a    over visual tokens i, no sinks

In heads that look at the image (visual tokens get `visual` or more) and past its sinks (those that are none get `share`
or more of that), of queries that are words, in the third to the last but one layer. Each row sums to what it did. The
published code calls what stays p where the paper calls so what is moved; here it is always what is moved.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regard.doctor.case import Case
from regard.doctor.image_ignored import divergence
from regard.doctor.kernel import Kernel, tokens_read
from regard.doctor.parts import attention_layers
from regard.doctor.sinks import FIRST, Sinks, found_in
from regard.errors import DataError, ModelError

_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}


def redistribute(
    weights: Float[Tensor, "b h r k"],
    sinks: Bool[Tensor, "b k"],
    visual: Bool[Tensor, "b k"],
    moved: float = 0.6,
    share: float = 0.8,
    least: float = 0.2,
) -> Float[Tensor, "b h r k"]:
    """Rows with attention moved from sinks to visual tokens that are none; rows keep their sums.

    weights: (B, H, R, K). sinks, visual: (B, K). moved: what fraction of a sink's attention. share: of a row's visual
    attention that must be on tokens that are no sinks, and least: of all its attention that must be visual, for it to
    be changed. Raises DataError for a fraction that is not in [0, 1].
    """
    if not 0 <= moved <= 1:
        raise DataError(f"the fraction that is moved must be from 0 to 1, got {moved}")
    sink, seen, good = (x[:, None, None] for x in (sinks, visual, visual & ~sinks))
    to_image = (weights * seen).sum(dim=-1, keepdim=True)
    to_good = (weights * good).sum(dim=-1, keepdim=True)
    chosen = (to_image >= least) & (to_good >= share * to_image) & (to_good > 0)
    taken = moved * (weights * sink).sum(dim=-1, keepdim=True)
    changed = weights * torch.where(sink, 1 - moved, 1.0) + weights * good * (taken / to_good.clamp(min=1e-12))
    return torch.where(chosen, changed, weights)


@dataclass(eq=False)
class Moved:
    """What a block of `redistributed` did. before, after: of the attention of words, what sinks got, layer by layer."""

    sinks: tuple[int, ...]
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)


@contextmanager
def redistributed(
    model: nn.Module, inputs: Any, moved: float = 0.6, share: float = 0.8, least: float = 0.2
) -> Iterator[Moved]:
    """While the block lasts, the model attends with its sinks' attention moved, in `forward` and in `generate`.

    inputs: one prompt with an image, in which the sinks are found, and which the block runs on. moved, share, least: of
    `redistribute`. Under SDPA and eager. Raises DataError where there is no sink or no image in the prompt.
    """
    case = Case(model, inputs)
    with within(case, found_in(case)[0], moved, share, least) as done:
        yield done


@contextmanager
def within(case: Case, found: Sinks, moved: float = 0.6, share: float = 0.8, least: float = 0.2) -> Iterator[Moved]:
    """As `redistributed`, with sinks that are known."""
    if len(case.real) > 1:
        raise DataError(f"attention is moved in one prompt at a time, got {len(case.real)}")
    if not bool(case.image.any()):
        raise DataError("no token of an image stands in the prompt")
    if not found.columns:
        raise DataError("there is no sink whose attention could be moved")
    layers = attention_layers(case.patient.model, "language")
    sinks = torch.zeros_like(case.image)
    sinks[0, list(found.columns)] = True
    done, handles = Moved(found.columns), []
    try:
        for layer in layers[min(FIRST, len(layers) - 1) : max(len(layers) - 1, 1)]:
            mover = _Mover(sinks, case.image, (moved, share, least), done)
            handles.append(layer.module.register_forward_pre_hook(mover.begin, with_kwargs=True))
            handles.append(layer.module.register_forward_hook(mover.end, prepend=True, always_call=True))
        yield done
    finally:
        for handle in handles:
            handle.remove()


class _Mover:
    """In one module."""

    def __init__(self, sinks: Tensor, visual: Tensor, how: tuple[float, float, float], done: Moved) -> None:
        self.sinks, self.visual, self.how, self.done = sinks, visual, how, done
        self.thread, self.open = threading.get_ident(), list[_Changed]()
        self.read = 0  # columns

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == self.thread:
            self.open.append(_Changed(self, tokens_read(args, kwargs)))
            self.open[-1].__enter__()

    def end(self, module: nn.Module, args: tuple, result: Any) -> None:
        if threading.get_ident() == self.thread and self.open:
            self.open.pop().__exit__(None, None, None)

    def rows(self, queries: int, keys: int) -> Tensor:
        """The numbers of the queries that are words. keys: columns that are kept when these are read."""
        first = queries >= min(keys, self.visual.shape[1])
        self.read = queries if first else self.read + queries
        columns = torch.arange(self.read - queries, self.read, device=self.visual.device)
        known = columns.clamp(max=self.visual.shape[1] - 1)
        return ((columns >= self.visual.shape[1]) | ~self.visual[0, known]).nonzero()[:, 0]

    def moved(self, weights: Tensor) -> Tensor:
        keys = weights.shape[-1]
        first = max(0, self.read - keys)  # of a sliding window, whose cache forgets
        end = first + keys
        sinks, visual = (F.pad(x, (0, max(0, end - x.shape[1])))[:, first:end] for x in (self.sinks, self.visual))
        after = redistribute(weights, sinks, visual, *self.how)
        for rows, told in ((weights, self.done.before), (after, self.done.after)):
            told.append(float((rows * sinks[:, None, None]).sum(dim=-1).mean()))
        return after


class _Changed(TorchFunctionMode):
    """Adds to what the kernel gives what the change of its weights makes of it."""

    def __init__(self, mover: _Mover, tokens: int | None) -> None:
        super().__init__()
        self.mover, self.tokens = mover, tokens

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._fused(Kernel.fused(args, kwargs, out, self.tokens)).reshape(out.shape)
        if func in _SOFTMAX and out.ndim == 4:
            rows = self.mover.rows(out.shape[2], out.shape[3])
            out = out.clone()
            out[:, :, rows] = self.mover.moved(out[:, :, rows].float()).to(out.dtype)
        return out

    def _fused(self, kernel: Kernel) -> Tensor:
        queries, keys = kernel.q.shape[2], kernel.k.shape[2]
        rows = self.mover.rows(queries, keys)
        if kernel.out.shape[:3] != kernel.q.shape[:3]:
            raise ModelError("the kernel's heads are laid out in a way that attention cannot be moved in")
        weights = kernel.rows(rows.expand(kernel.shape[0], -1))
        change = self.mover.moved(weights) - weights
        values = kernel.v.float().repeat_interleave(kernel.q.shape[1] // kernel.v.shape[1], dim=1)
        out = kernel.out.clone()
        out[:, :, rows] += (change @ values).to(out.dtype)
        return out


@torch.no_grad()
def compared(case: Case, found: Sinks) -> tuple[float, float, float]:
    """The sinks' share of the words' attention before and after, and how far the next word moves, in bits."""
    plain = case.run(case.seen)
    with within(case, found) as done:
        other = case.run(case.seen)
    last = int(case.real[0].nonzero()[-1]) - case.real.shape[1]
    moved = float(divergence(plain.logits[0, last], other.logits[0, last]))
    return sum(done.before) / len(done.before), sum(done.after) / len(done.after), moved
