"""Figures in words."""

_SIZES = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def amount(value: float, unit: str) -> str:
    """Three figures, in a unit that is read with ease."""
    if unit == "s":
        if value < 1:
            return f"{value * 1e3:.3g} ms"
        return f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"
    if unit == "bytes":
        name, scale = next(((name, scale) for name, scale in _SIZES if value >= scale), ("B", 1))
        return f"{value / scale:.3g} {name}"
    return long(value, unit)


def measure(value: float, unit: str) -> str:
    """A quality, without a unit where it is a share."""
    if unit == "share":
        return f"{value:.3f}"
    return f"{value:+.1f}" if unit == "points" else f"{value:.1f} %"


def long(value: float, unit: str) -> str:
    """A quality with its unit."""
    return measure(value, unit) + {"share": " of 1", "points": " points"}.get(unit, "")
