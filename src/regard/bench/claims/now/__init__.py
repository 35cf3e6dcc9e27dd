"""What is computed when the table is made, from the modules themselves: counts, shares and exponents, no times."""

from regard.bench.claims.now import layers, models  # noqa: F401
from regard.bench.claims.now._shared import NOWS

__all__ = ["NOWS"]
