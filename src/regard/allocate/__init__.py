"""Allocators: each decides how a budget of tokens reads the tokens of an image. One a file, found by its name.

A new allocator is one new file here with one `Allocator` in it, or an entry point of the group `regard.allocate` in
another package: `name = "package.module:Class"`.
"""

from dataclasses import asdict, fields, replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from typing import Any

from regard.allocate._base import Allocates, Allocator, Explains, missing_needs, top_slots
from regard.amount import check_amount, checked_budget, checked_keep
from regard.errors import ModelError
from regard.relevance.tensions import States

__all__ = [
    "Allocates",
    "Allocator",
    "Explains",
    "catalogue",
    "check_amount",
    "checked_budget",
    "checked_keep",
    "load",
    "made",
    "missing_needs",
    "name_of",
    "top_slots",
]


def catalogue() -> tuple[str, ...]:
    """The names of all allocators, in alphabetical order; none of their modules is imported."""
    return tuple(sorted({*_own(), *_others()}))


def load(name: str, **fields: Any) -> Allocator:
    """The allocator of this name, made with these fields. Raises ModelError where there is no such name or field."""
    if name in _own():
        module = import_module(f"{__name__}.{name}")
        found = [value for value in vars(module).values() if _is_own(value, module.__name__)]
        assert len(found) == 1, f"{module.__name__} must hold one allocator, not {len(found)}"
        kind = found[0]
    elif name in _others():
        kind = _loaded(_others()[name])
    else:
        raise ModelError(f"no allocator is named {name!r}: the names are {', '.join(catalogue())}")
    try:
        return kind(**fields)
    except TypeError as error:
        raise ModelError(f"allocator {name}: {error}") from error


def made(allocator: Any, seed: int, states: States | None = None, fixation: tuple[float, float] | None = None) -> Any:
    """An allocator as it is, or the one of this name, which draws from `seed` if it draws, is held at `states` if it
    has tensions, and rests at `fixation` if it has one.
    """
    if not isinstance(allocator, str):
        return allocator
    loaded = load(allocator)
    has = {field.name for field in fields(loaded)}
    given = {"seed": seed, "fixation": fixation, **(asdict(states) if states else {})}
    return replace(loaded, **{name: value for name, value in given.items() if name in has})


def name_of(allocator: Allocates) -> str:
    """The name that the catalogue has for an allocator; where it has none its own, or that of its class."""
    kind = type(allocator)
    home, _, name = kind.__module__.rpartition(".")
    if home == __name__:
        return name
    value = f"{kind.__module__}:{kind.__qualname__}"
    own = allocator.name if isinstance(allocator, Allocator) else kind.__name__
    return next((name for name, entry in _others().items() if entry.value == value), own)


def _is_own(value: Any, module: str) -> bool:
    return isinstance(value, type) and issubclass(value, Allocator) and value.__module__ == module


def _loaded(entry: EntryPoint) -> type[Allocator]:
    try:
        kind = entry.load()
    except Exception as error:  # whatever another package does when it is imported
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        which = f"allocator {entry.name} ({entry.value})"
        raise ModelError(f"{which} cannot be loaded ({reason}): mend it, or name the others") from error
    if not isinstance(kind, type) or not issubclass(kind, Allocator):
        raise ModelError(f"allocator {entry.name} ({entry.value}) is not a subclass of regard.allocate.Allocator")
    return kind


@cache
def _own() -> tuple[str, ...]:
    return tuple(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def _others() -> dict[str, EntryPoint]:
    own = _own()
    return {entry.name: entry for entry in entry_points(group="regard.allocate") if entry.name not in own}
