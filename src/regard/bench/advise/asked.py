"""What advice is asked for: the images, the questions, the machine, and what may be spent."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from regard.bench.advise.models import MODELS
from regard.errors import DataError

Questions = Literal["detail", "global", "mixed"]
Device = Literal["cpu", "gpu"]
Train = Literal["none", "bridge", "all"]
LARGEST = 16_384  # pixels of a side, and images at once: beyond it a figure would be of no use

_SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0}
_BYTES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*")


@dataclass(frozen=True)
class Asked:
    """resolution: pixels of a side of the image. questions: "detail" (what something small is, what is written),
    "global" (counting, what is missing) or "mixed". latency: seconds until the first word, memory: bytes of weights,
    cache and activations; None where there is no limit. train: "none", "bridge" or "all", from the encoder on. batch:
    questions at once. model: a name of `MODELS`.

    Raises DataError for what is out of range.
    """

    resolution: int = 1344
    questions: Questions = "mixed"
    device: Device = "cpu"
    latency: float | None = None
    memory: float | None = None
    train: Train = "none"
    batch: int = 1
    model: str = "smollm2_135m"

    def __post_init__(self) -> None:
        for name, options in (("questions", Questions), ("device", Device), ("train", Train)):
            if getattr(self, name) not in get_args(options):
                known = ", ".join(get_args(options))
                raise DataError(f"--{name} must be one of {known}, got {getattr(self, name)!r}")
        if self.model not in MODELS:
            raise DataError(f"--model must be one of {', '.join(MODELS)}, got {self.model!r}")
        for name in ("resolution", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
                raise DataError(f"--{name} must be a whole number from 1 to {LARGEST}, got {value!r}")
        for name, example in (("latency", "300ms"), ("memory", "8GB")):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise DataError(f"--{name} must be more than 0, such as {example}, got {value!r}")


def seconds(text: str) -> float:
    """Of a time such as 300ms, 0.3s or 2min. Raises DataError."""
    return _amount(text, _SECONDS, "--latency must be a number with its unit, ms, s or min, such as 300ms or 0.3s")


def size(text: str) -> float:
    """Of a size in bytes such as 8GB (10^9) or 8GiB (2^30). Raises DataError."""
    return _amount(text, _BYTES, "--memory must be a number with its unit, MB, GB, MiB or GiB, such as 8GB or 512MB")


def _amount(text: str, units: dict[str, float], expected: str) -> float:
    found = _AMOUNT.fullmatch(text)
    if found is None or found[2].lower() not in units or not float(found[1]) > 0:
        raise DataError(f"{expected}, got {text!r}")
    return float(found[1]) * units[found[2].lower()]
