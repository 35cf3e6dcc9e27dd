"""What a check has found."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note", "skipped"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note", "skipped")  # gravest first


@dataclass(frozen=True)
class Finding:
    """check: its name. severity: "error": what the model says cannot be trusted; "warning": look at it; "note": good to
    know, and normal; "skipped": could not be checked. evidence: what was measured, or why it was not. advice: what to
    do.
    """

    check: str
    severity: Severity
    evidence: str
    advice: str


def listed(names: list[str], most: int = 4) -> str:
    """Some of these, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
