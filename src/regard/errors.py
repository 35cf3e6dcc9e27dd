"""What regard raises for a user's mistake: one line that says what was expected, what came and what to do."""


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
