"""docs/claims.md, from the rows and the results: `python -m regard.bench.claims`, and with --check compared."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from regard.bench.claims.claim import VERDICTS, Ruled, claims, ruled

PLACE = Path("docs") / "claims.md"
_HEAD = """# The survey's claims, checked

Every checkable statement of the survey of attention mechanisms in vision-language models: what it says, what its source
says, what was measured with which command, and a verdict.

```sh
regard claims --verdict refuted    # the same, for results of your own; also --only TEXT, --json
regard claims --run                # measures again what is trained or timed for it
```

A verdict that rests on figures follows from them by the rule in the last column: another measurement, another verdict.
Figures are of small models and generated or packaged data, on one machine; what they say of large ones is in the
column of the source. Where a source was not read for this table, it says "not checked". An interval in brackets is of
95 % over seeds. This page is generated: `python -m regard.bench.claims`.
"""


def document(rows: Sequence[Ruled]) -> str:
    """The page."""
    counts = Counter(row.verdict for row in rows)
    summary = [
        "| verdict | claims |",
        "|---|---:|",
        *(f"| {one} | {counts[one]} |" for one in VERDICTS),
        f"| all | {len(rows)} |",
    ]
    parts = [_HEAD, "\n".join(summary) + "\n"]
    for section, some in groupby(rows, lambda row: row.claim.section):
        lines = ["| the survey says | its source | measured | verdict | why |", "|---|---|---|---|---|"]
        lines += [_line(row) for row in some]
        title = f"Section {section}" if section[0].isdigit() else section
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(row: Ruled) -> str:
    one = row.claim
    cells = (f"{one.says} <br>`{one.id}`", one.source, row.measured, f"**{row.verdict}**", row.why)
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def generated(results: Path = Path("results")) -> str:
    """The page, as results are now."""
    return document([ruled(claim, results) for claim in claims()])
