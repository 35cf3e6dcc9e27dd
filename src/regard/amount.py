"""What a budget may be: tokens for an image, or at the edge a fraction of them to keep."""

import operator

from regard.errors import BudgetError


def checked_budget(budget: int) -> int:
    """The budget as an int of at least 1. Raises BudgetError."""
    try:
        tokens = operator.index(budget)
    except TypeError:
        raise BudgetError(f"the budget must be a whole number of tokens, got {budget!r}") from None
    if isinstance(budget, bool) or tokens < 1:
        raise BudgetError(f"the budget must be at least 1 token, got {budget!r}")
    return tokens


def checked_keep(keep: float) -> float:
    """The fraction of tokens to keep, over 0 and at most 1. Raises BudgetError."""
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise BudgetError(f"the fraction to keep must be over 0 and at most 1, got {keep!r}")
    return keep


def check_amount(budget: int | None, keep: float | None) -> None:
    """Raise BudgetError where both are given, or one is none."""
    if budget is not None and keep is not None:
        raise BudgetError("give a budget in tokens or a fraction to keep, and not both")
    if budget is not None:
        checked_budget(budget)
    if keep is not None:
        checked_keep(keep)
