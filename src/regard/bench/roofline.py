"""What a machine can do at most: how fast it multiplies matrices and copies memory, measured beside the work itself."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_SIDE = {"cpu": 768, "cuda": 8192}  # of the matrices, float32
_COPIED = {"cpu": 2**24, "cuda": 2**28}  # numbers, float32


def seconds(work: Callable[[], object], device: str) -> float:
    """Of one call: by the clock, on a GPU by CUDA events around it."""
    if device == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    work()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


@dataclass(frozen=True, eq=False)
class Probes:
    """The two pieces of work that everything is measured beside."""

    matrices: tuple[Tensor, Tensor, Tensor]
    buffers: tuple[Tensor, Tensor]

    @classmethod
    def on(cls, device: str) -> "Probes":
        side, count = _SIDE[device], _COPIED[device]
        left, right = (torch.randn(side, side, device=device) for _ in range(2))
        whole = torch.randn(count, device=device)
        return cls((left, right, torch.empty_like(left)), (whole, torch.empty_like(whole)))

    def multiply(self) -> None:
        left, right, out = self.matrices
        torch.mm(left, right, out=out)

    def copy(self) -> None:
        self.buffers[1].copy_(self.buffers[0])

    @property
    def macs(self) -> int:
        """Multiply-accumulates of `multiply`."""
        return len(self.matrices[0]) ** 3

    @property
    def bytes(self) -> int:
        """Read and written by `copy`."""
        return 2 * self.buffers[0].numel() * self.buffers[0].element_size()
