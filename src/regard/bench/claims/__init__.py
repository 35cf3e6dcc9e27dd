"""The survey's statements, one a row: what it says, what its source says, what was measured, and a verdict.

Rows are data, one TOML file a section. A figure is never written there: it is named, and read from results/, from the
cost model, or computed when the table is made. A verdict that rests on figures follows from them by the row's rule.
"""

from regard.bench.claims.claim import VERDICTS, Claim, Ruled, checked_verdict, claims, ruled, select

__all__ = ["VERDICTS", "Claim", "Ruled", "checked_verdict", "claims", "ruled", "select"]
