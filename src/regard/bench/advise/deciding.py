"""How long allocators take to decide: as measured, and at other sizes by a fitted exponent or the cost model."""

import math
import re

from regard.bench.advise.host import Host
from regard.bench.advise.models import MEASURED, MODELS
from regard.bench.advise.sources import Figure
from regard.cost.allocators import DECIDING

AS_ON_CPU = "as on the CPU: nobody has measured it on a GPU"  # many small steps, which no roofline tells
_SIZES = re.compile(r"(.+), N=(\d+), K=\d+, D=\d+")
_KEPT, _WIDTH, _WORDS = 0.25, 1024, 16  # of what the cost model is asked where one size alone was measured


def deciding(host: Host, name: str) -> Figure | None:
    """Seconds of an allocator over all tokens of the batch, None where no time of it was measured."""
    at = _measured(host, name)
    if at is None:
        return None
    before, took, source = at
    tokens = host.tokens
    power, how = growing(host, name, before, tokens)
    seconds = took * (tokens / before) ** power * host.asked.batch
    moved = host.asked.device == "gpu" and "-cuda" not in source
    same = tokens == before and host.asked.batch == 1 and not moved
    if tokens != before:
        source += f", x (N / {before})^{power:.2f} {how}"
    if moved:
        source += f", {AS_ON_CPU}"
    return Figure(f"decide, {name}", seconds, "s", source, "measured" if same else "extrapolated")


def _measured(host: Host, name: str) -> tuple[int, float, str] | None:
    """Tokens, seconds, and where it says so; the reading of attention among them where there is some."""
    results, file = host.results, host.file or "shorten.json"
    row = f"deciding / prefill, {name}"
    share = results.row(file, row)
    if share is not None:
        return MODELS[MEASURED].window, share * host.whole, f"results/{file}: {row}"
    if name == "relevance" and results.has("relevance.json"):
        row = "decision, N=1024, D=1024, 16 words"
        took = results.row("relevance.json", row)
        if took is not None:
            return 1024, took / 1e3, f"results/relevance.json: {row}"
    return next(((n, took, f"results/selectors.json: {row}") for n, took, row in _rows(host, name)), None)


def _rows(host: Host, name: str) -> list[tuple[int, float, str]]:
    """Tokens and seconds that were measured alone, the fewest tokens first, and the row of each."""
    if not host.results.has("selectors.json"):
        return []
    found = []
    for row in host.results.data("selectors.json")["rows"]:
        about = _SIZES.fullmatch(str(row.get("name")))
        if about is not None and about[1] == name:
            found.append((int(about[2]), host.results.must("selectors.json", row["name"]) / 1e3, row["name"]))
    return sorted(found)


def growing(host: Host, name: str, before: int, tokens: int) -> tuple[float, str]:
    """The power of time over tokens, and where it is from."""
    rows = _rows(host, name)
    if len(rows) > 1 and rows[0][0] != rows[-1][0]:
        (small, quick, _), (large, slow, _) = rows[0], rows[-1]
        return math.log(slow / quick) / math.log(large / small), f"fitted to N={small} and {large} of selectors.json"
    macs = [
        DECIDING[name](n, max(1, int(n * _KEPT)), _WIDTH, _WORDS) if name in DECIDING else 0 for n in (before, tokens)
    ]
    if before == tokens or not all(macs):
        return 1.0, "of the cost model"
    return math.log(macs[1] / macs[0]) / math.log(tokens / before), "of the cost model"
