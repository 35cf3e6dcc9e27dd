"""When each new token was there, and the memory that was in use at the peak."""

import ctypes
import time
from pathlib import Path

import torch
from torch import Tensor

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class TokenTimes:
    """A streamer for `generate` that only looks at the clock: each token is stamped when it has reached the CPU."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.stamps: list[float] = []
        self._prompt = True

    def put(self, value: Tensor) -> None:
        """Called by `generate` with the prompt, then with each token."""
        if self._prompt:
            self._prompt = False
        else:
            self.stamps.append(time.perf_counter())

    def end(self) -> None:
        """Called by `generate` at its end."""

    @property
    def prefill(self) -> float:
        """Seconds to the first token."""
        return self.stamps[0] - self.start

    @property
    def decode(self) -> float:
        """Seconds from the first token to the last."""
        return self.stamps[-1] - self.stamps[0]


class PeakMemory:
    """Bytes in use when made, and the most in use since.

    On a GPU what torch allocated there. Else the resident memory of the whole process, as Linux counts it; what was
    freed before is given back to the system first, so that it does not hide what is needed. None where neither counts.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before: int | None = torch.cuda.memory_allocated(device)
        else:
            self.before = _resident("VmRSS") if device.type == "cpu" and _forgotten() else None

    @property
    def peak(self) -> int | None:
        """The most in use since, in bytes."""
        if self.before is None:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _resident("VmHWM")

    @staticmethod
    def kind(device: torch.device) -> str:
        """What is counted, in words."""
        return {"cuda": "allocated on the GPU", "cpu": "resident, of the process"}.get(device.type, "not measured")


def _forgotten() -> bool:
    """Make the process's peak start again from now; False where the system cannot."""
    try:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        _RESET.write_text("5")
    except OSError:
        return False
    return True


def _resident(name: str) -> int | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
