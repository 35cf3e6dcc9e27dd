"""What regard raises for a user's mistake: one line that says what was expected, what came and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

_GUESS = " If you were trying to load it from "


class RegardError(ValueError):
    """Any error that a user of regard can mend."""


class ImageError(RegardError):
    """A picture that cannot or should not be read."""


class BudgetError(RegardError):
    """A token budget that is not a whole number of at least 1, or a fraction that is not in (0, 1]."""


class ShapeError(RegardError):
    """Tensors whose shapes, dtypes or indices do not fit together."""


class ModelError(RegardError):
    """A model, allocator or eye that is unknown, not installed or of the wrong kind."""


class DataError(RegardError):
    """Content that cannot be worked with: something missing, not finite, or not as it should be."""


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Whatever another library makes of what it cannot load, as a ModelError of one line. what: is loaded."""
    try:
        yield
    except RegardError:
        raise
    except Exception as error:
        raise ModelError(f"{what} cannot be loaded: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says, without what transformers guesses of it."""
    lines = [line.strip().split(_GUESS)[0] for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
