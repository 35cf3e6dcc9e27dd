"""What the last token of a prompt has of each column, followed back through the layers of a language model.

Rollout (Abnar and Zuidema, arXiv 2005.00928):    R = (A_L / 2 + I / 2) ... (A_1 / 2 + I / 2), A the mean over heads
Gradient x attention (Chefer et al., arXiv 2103.15679):    R <- R + mean_h((dy/dA * A)^+) R

Of R one row is wanted, so it is carried from the last layer to the first, a few rows of A at a time: memory grows with
the length of the prompt and not with its square. The gradient of a weight is that of the kernel's output times a value,
so it needs no kernel that gives its weights.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.doctor.kernel import CHUNK, Kernel, Reading
from regard.doctor.parts import attention_layers
from regard.doctor.probe import Probe
from regard.doctor.watch import watching
from regard.errors import ModelError

Rows = Callable[[Kernel, Tensor], Tensor]


def rollout(probe: Probe) -> Float[Tensor, "b s"]:
    """(B, S), rows that sum to 1."""
    with torch.no_grad():
        readings, _ = _read(probe, False)
        row = _start(probe)
        for reading in reversed(readings):
            row = (row + _through(row, reading, _mean)) / 2
    return row


def gradient(probe: Probe) -> Float[Tensor, "b s"]:
    """(B, S), at least 0: of the target's logit."""
    with torch.enable_grad():
        readings, logits = _read(probe, True)
        outs = [kernel.out for reading in readings for kernel in reading.kernels]
        if not logits.requires_grad:
            raise ModelError(
                "no gradient reaches the attention of this model: take another method, or its full weights"
            )
        value = logits.gather(1, probe.target[:, None]).sum()
        slopes = dict(zip(map(id, outs), torch.autograd.grad(value, outs), strict=True))
    row = _start(probe)
    with torch.no_grad():
        for reading in reversed(readings):

            def positive(kernel: Kernel, index: Tensor) -> Tensor:
                return (kernel.rows(index) * kernel.slopes(index, slopes[id(kernel.out)])).clamp(min=0).mean(dim=1)

            row = row + _through(row, reading, positive)
    return row


def _read(probe: Probe, differentiable: bool) -> tuple[list[Reading], Tensor]:
    """What each layer gave to its kernel, first to last, and the logits."""
    readings: dict[int, Reading] = {}
    layers = attention_layers(probe.model, "language")
    with watching(layers, lambda layer, reading: readings.update({layer.number: reading}), differentiable):
        logits = probe.said()
    silent = [layer for layer in layers if layer.number not in readings]
    if silent:
        kind = type(silent[0].module).__name__
        raise ModelError(f"{silent[0].name} ({kind}) ran no attention that can be seen, so nothing can be followed")
    return [readings[number] for number in sorted(readings)], logits


def _start(probe: Probe) -> Float[Tensor, "b s"]:
    mask = probe.inputs.mask
    return torch.zeros(mask.shape, device=mask.device).scatter(1, probe.last[:, None], 1.0)


def _mean(kernel: Kernel, index: Int[Tensor, "b r"]) -> Float[Tensor, "b r k"]:
    return kernel.rows(index).mean(dim=1)


def _through(row: Float[Tensor, "b s"], reading: Reading, rows: Rows) -> Float[Tensor, "b s"]:
    """`row` times a matrix whose rows are made a few at a time, those only that `row` has anything of."""
    kernel = reading.kernels[0]
    batch, heads, _, keys = kernel.shape
    found = torch.zeros_like(row)
    wanted = (row != 0).any(dim=0).nonzero()[:, 0]
    for part in wanted.split(max(1, CHUNK // (batch * heads * keys))):
        weights = rows(kernel, part.expand(batch, -1).to(kernel.out.device)).to(row)
        found += (row[:, None, part] @ weights)[:, 0]
    return found
