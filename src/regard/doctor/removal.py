"""Heads of attention taken out of a model while a block lasts.

Where a layer puts its heads together, by a linear map, the part of those that are removed is replaced: by nothing, or
by what they give on average. So what a removed head adds does not follow the prompt any more, and everything else of
the model runs as it is (after Michel et al., arXiv 1905.10650).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.doctor.finding import listed
from regard.doctor.kernel import Reading
from regard.doctor.parts import AttentionLayer, output_map
from regard.doctor.watch import watching
from regard.errors import DataError, ModelError


@dataclass(frozen=True, eq=False)
class Joint:
    """Where the heads of a layer are put together. out: the map that does. width: of what it is given. heads: None
    where its kernel does not show how many there are.
    """

    layer: AttentionLayer
    out: nn.Module
    width: int
    heads: int | None

    def checked(self, head: int) -> int:
        """Raises ModelError where there is no such head, or none can be told from the others."""
        if self.heads is None:
            raise ModelError(
                f"the heads of {self.layer.name} cannot be told apart: its kernel does not show them: "
                "model.set_attn_implementation('sdpa'), or remove the whole layer"
            )
        if not 0 <= head < self.heads:
            raise ModelError(f"there is no head {head}: {self.layer.name} has heads 0 to {self.heads - 1}")
        return head


def joints(layers: Sequence[AttentionLayer], run: Callable[[], object]) -> tuple[list[Joint], list[str]]:
    """Those of layers that can be reached, and the names of the others. run: runs the model once.

    Raises ModelError where no layer can be reached.
    """
    outs = {layer.number: out for layer in layers if (out := output_map(layer.module)) is not None}
    widths, counts = dict[int, int](), dict[int, int]()

    def tell(layer: AttentionLayer, reading: Reading) -> None:
        counts[layer.number] = reading.shape[1]

    def width(number: int) -> Callable[[nn.Module, tuple], None]:
        return lambda module, args: widths.update({number: args[0].shape[-1]})

    handles = [out.register_forward_pre_hook(width(number)) for number, out in outs.items()]
    try:
        with torch.no_grad(), watching(layers, tell):
            run()
    finally:
        for handle in handles:
            handle.remove()
    found, missed = [], []
    for layer in layers:
        if layer.number not in widths:
            missed.append(layer.name)
            continue
        count, wide = counts.get(layer.number), widths[layer.number]
        known = count if count is not None and wide % count == 0 else None
        found.append(Joint(layer, outs[layer.number], wide, known))
    if not found:
        kind = type(layers[0].module).__name__
        raise ModelError(
            f"the attention of {listed(missed)} ({kind}) cannot be reached: it did not run, or it has no map that puts "
            "its heads together"
        )
    return found, missed


@contextmanager
def removed(
    taken: Iterable[tuple[Joint, Sequence[int] | None]], means: Mapping[int, Float[Tensor, " d"]] | None = None
) -> Iterator[None]:
    """Without some heads, or without all of a layer's (None), while the block lasts.

    means: what takes their place, by the layer's number: (heads x size,); nothing by default.
    """
    handles = []
    try:
        for joint, heads in taken:
            mean = None if means is None else means[joint.layer.number]
            handles.append(joint.out.register_forward_pre_hook(_Taker(joint, heads, mean)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, eq=False)
class _Taker:
    """A hook before the map of a layer."""

    joint: Joint
    heads: Sequence[int] | None
    mean: Tensor | None

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        given = args[0]
        instead = torch.zeros_like(given) if self.mean is None else self.mean.to(given).expand_as(given)
        if self.heads is None:
            return instead, *args[1:]
        shape, heads = (self.joint.heads or 1, -1), list(self.heads)
        parts = given.unflatten(-1, shape).clone()
        parts[..., heads, :] = instead.unflatten(-1, shape)[..., heads, :]
        return parts.flatten(-2), *args[1:]


def means_of(
    several: Sequence[Joint], runs: Iterable[tuple[Callable[[], object], Tensor | None]]
) -> dict[int, Float[Tensor, " d"]]:
    """What the heads of each layer give on average over all tokens, by the layer's number. runs: of the model, each
    with which of its tokens are no padding, (B, T), None where all are. Raises DataError where nothing ran.
    """
    sums, counts, real = dict[int, Tensor](), dict[int, int](), list[Tensor | None]()

    def hear(number: int) -> Callable[[nn.Module, tuple], None]:
        def keep(module: nn.Module, args: tuple) -> None:
            given, mask = args[0].detach(), real[-1]
            rows = given[mask] if mask is not None and mask.shape == given.shape[:-1] else given.flatten(0, -2)
            sums[number] = rows.double().sum(dim=0) + sums.get(number, 0)
            counts[number] = counts.get(number, 0) + len(rows)

        return keep

    handles = [joint.out.register_forward_pre_hook(hear(joint.layer.number)) for joint in several]
    try:
        for run, mask in runs:
            real.append(mask)
            run()
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise DataError("there is no row whose average could be taken")
    return {number: total / counts[number] for number, total in sums.items()}
