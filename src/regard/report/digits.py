"""Numbers in few characters."""


def short(value: float, digits: int = 5) -> float | int:
    """The number with so many significant digits, an integer where it is one."""
    value = float(f"{value:.{digits}g}")
    return int(value) if value.is_integer() else value
