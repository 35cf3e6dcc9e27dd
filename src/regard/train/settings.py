"""What decides a training run of a vision-language model, as frozen dataclasses, read from a file or `--set`."""

import difflib
import math
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from regard.errors import DataError


@dataclass(frozen=True)
class Rates:
    """The highest learning rate of each module. A bridge alone learns at LLaVA's 1e-3 (arXiv 2304.08485)."""

    eye: float = 2e-6
    bridge: float = 1e-3
    fusion: float = 1e-4
    language_model: float = 2e-5

    def __post_init__(self) -> None:
        for name, rate in asdict(self).items():
            if not 0 <= rate < math.inf:
                raise DataError(f"rates.{name} must be a number of 0 or more, got {rate}")


@dataclass(frozen=True)
class Curriculum:
    """budgets: the least and the most tokens an image, drawn anew for each step; None: the recipe's. short_first: the
    first epoch goes from short answers to long. fusion_warmup: share of the steps in which the fusion's rate rises from
    0. bridge_first: share of the steps in which only bridge and fusion learn.
    """

    budgets: tuple[int, int] | None = None
    short_first: bool = False
    fusion_warmup: float = 0.0
    bridge_first: float = 0.0

    def __post_init__(self) -> None:
        if self.budgets is not None and not 1 <= self.budgets[0] <= self.budgets[1]:
            raise DataError(f"budgets must be two numbers, 1 <= least <= most, got {list(self.budgets)}")
        for name in ("fusion_warmup", "bridge_first"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"curriculum.{name} must be from 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Recipe:
    """batch: rows that a process reads at once; accumulate: so many batches make a step. budget: tokens an image, all
    by default. decay: of weights that are matrices (AdamW). warmup: share of the steps in which rates rise; they fall
    by a cosine. clip: of the gradient's norm, 0 for none. mixed_precision: "bf16" computes in 16 bits, weights that
    learn stay in 32. every: steps between a validation with a checkpoint, by default a tenth of all, 200 at most; log:
    between rows of history.csv. log_with: a tracker of accelerate.
    """

    epochs: int = 1
    batch: int = 16
    accumulate: int = 1
    seed: int = 0
    budget: int | None = None
    rates: Rates = field(default_factory=Rates)
    curriculum: Curriculum = field(default_factory=Curriculum)
    decay: float = 0.0
    warmup: float = 0.03
    clip: float = 1.0
    mixed_precision: Literal["no", "bf16"] = "no"
    every: int | None = None
    log: int = 10
    log_with: str | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulate", "every", "log", "budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"{name} must be 1 or more, got {value}")
        for name in ("decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise DataError(f"{name} must be a number of 0 or more, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise DataError(f"the seed must be a whole number from 0 to 2^63 - 1, got {self.seed}")
        if not 0 <= self.warmup < 1:
            raise DataError(f"warmup must be from 0 to less than 1, got {self.warmup}")

    def rate(self, part: str, done: float) -> float:
        """The learning rate of a module when this share of the steps is made, that of the step's end."""
        highest = getattr(self.rates, part)
        if part in ("eye", "language_model") and done <= self.curriculum.bridge_first:
            return 0.0
        if part == "fusion" and done < self.curriculum.fusion_warmup:
            highest *= done / self.curriculum.fusion_warmup
        if done < self.warmup:
            return highest * done / self.warmup
        return highest * 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))

    @property
    def decides(self) -> dict[str, Any]:
        """All that decides losses, as JSON has it."""
        kept = asdict(self)
        for name in ("log", "log_with"):
            del kept[name]
        return kept


def settled(kind: type, values: Mapping[str, Any], path: str = "", base: Any = None) -> Any:
    """A dataclass of nested values, such as a TOML file's. path: where they stand in it. base: what has the values that
    are not given, the dataclass's own by default.

    Raises DataError for a name that is not known, one that is missing, or a value of another type.
    """
    known, hints = {f.name: f for f in fields(kind)}, get_type_hints(kind)
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            guess = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise DataError(f"there is no setting {path}{name}: {guess}")
        start = None if base is None else getattr(base, name)
        given[name] = fitting(hints[name], value, f"{path}{name}", start)
    for name, known_field in known.items():
        if name not in given and base is not None:
            given[name] = getattr(base, name)
        elif name not in given and _needed(known_field):
            raise DataError(f"the setting {path}{name} is missing: give it in the file, or as --set {path}{name}=...")
    return kind(**given)


def _needed(known: Field) -> bool:
    return known.default is MISSING and known.default_factory is MISSING


def fitting(kind: Any, value: Any, path: str, base: Any = None) -> Any:
    """A value as its type wants it: a list as a tuple, a whole number as a float. path: its name, for errors.

    Raises DataError for a value of another type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        kinds = [one for one in inner if one is not type(None)]
        for one in kinds[:-1]:
            with suppress(DataError):
                return fitting(one, value, path, base)
        return fitting(kinds[-1], value, path, base)
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise DataError(f"{path} must be a table of settings, got {value!r}")
        return settled(kind, value, f"{path}.", base)
    if origin is Sequence:
        return _several((*inner, ...), value, path)
    if origin is tuple:
        return _several(inner, value, path)
    if origin is Literal and value in inner:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = dict if origin is dict else kind
    if isinstance(plain, type) and isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
        return value
    wanted = " or ".join(map(repr, inner)) if origin is Literal else getattr(plain, "__name__", str(kind))
    raise DataError(f"{path} must be {_ARTICLES.get(wanted, wanted)}, got {value!r}")


_ARTICLES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "dict": "a table",
}


def _several(inner: tuple, value: Any, path: str) -> tuple:
    """A tuple; text where texts are wanted is one of them."""
    if inner[0] is str and isinstance(value, str):
        value = [value]
    count = None if inner[-1] is Ellipsis else len(inner)
    if not isinstance(value, list | tuple) or count not in (None, len(value)):
        raise DataError(f"{path} must be a list{'' if count is None else f' of {count}'}, got {value!r}")
    return tuple(fitting(inner[0], one, f"{path}[{place}]") for place, one in enumerate(value))
