"""What is asked of a named model, and what is answered."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from regard.cost.counted import Cost
from regard.errors import ShapeError

Convention = Literal["published", "exact", "divprune"]
CONVENTIONS: dict[str, str] = {
    "published": "as the model's source counts: MACs, FLOPs = 2 x MACs, and what its notes say",
    "exact": "every product of matrices and every convolution: MACs, FLOPs = 2 x MACs",
    "divprune": "of language models n layers (4 n d^2 + 2 n^2 d + 2 n d m) MACs: a feed-forward of two matrices",
}
BYTES = 2  # a number's, in half precision


@dataclass(frozen=True)
class Asked:
    """resolution: pixels of a square image's side. tokens: visual ones that are kept. text: tokens of the prompt's
    text. layer: of the language model, the first that reads the kept ones alone. None: as the model has it.
    """

    resolution: int | None = None
    batch: int = 1
    tokens: int | None = None
    text: int | None = None
    layer: int | None = None
    convention: Convention = "published"


@dataclass(frozen=True)
class Answer:
    """values: of each quantity, in the unit that `units` has for it. notes: rules and conventions that were applied."""

    name: str
    values: Mapping[str, float]
    units: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __getitem__(self, what: str) -> float:
        return self.values[what]


@dataclass
class Facts:
    """An answer in the making."""

    values: dict[str, float] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, what: str, count: float, unit: str) -> None:
        """count: in ones; it is kept in its unit."""
        scaled = count / SCALES.get(unit, 1)
        self.values[what] = int(scaled) if scaled == int(scaled) else round(scaled, 9)
        self.units[what] = unit

    def add_cost(self, cost: Cost, batch: int, tokens: int | None = None) -> None:
        """Of one image, asked for so many at once."""
        whole = cost.batch(batch)
        self.add("params", cost.params, "M")
        self.add("macs", whole.macs, "G")
        self.add("flops", whole.flops, "G")
        self.add("backward_macs", whole.backward, "G")
        if tokens is not None:
            self.add("tokens", tokens, "tokens")
        self.add("activation_bytes", BYTES * whole.peak, "bytes")
        self.add("training_bytes", BYTES * whole.saved, "bytes")
        self.add("kv_cache_bytes", BYTES * whole.cache, "bytes")


SCALES = {"M": 1e6, "G": 1e9, "T": 1e12}


class Named(Protocol):
    """A model with a name. applies: which of resolution, tokens, text and layer it can be asked with."""

    @property
    def applies(self) -> frozenset[str]: ...

    def facts(self, asked: Asked) -> Facts:
        """Raises RegardError for a resolution or a count of tokens that cannot be."""
        ...


def checked_side(asked: int | None, native: int, unit: int, rule: str) -> int:
    """Pixels of a side. native: taken where none is asked for. Raises ShapeError where the unit does not divide it."""
    if asked is None or asked == native:
        return native
    if asked < unit or asked % unit:
        low = max(unit, asked // unit * unit)
        near = str(low) if asked < unit else f"{low} or {low + unit}"
        raise ShapeError(f"resolution must be a multiple of {unit} pixels, {rule}, got {asked}: take {near}")
    return asked
