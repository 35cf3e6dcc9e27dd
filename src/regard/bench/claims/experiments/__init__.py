"""What the claims' figures of training and of time are measured with: `regard claims --run`. One file an experiment."""

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from regard.bench.claims.experiments._shared import Series

# in the order in which they run: what is timed first, before the machine is warm of trainings
EXPERIMENTS = ("tails", "batching", "memory", "reinforce", "linear", "queries", "sinks", "fusion")


def main(told: Callable[[str], None] = lambda stage: None, **changed: Mapping[str, Any]) -> None:
    """Run them all; each is added to results/claims.json when it ends. changed: arguments of some, by name."""
    from regard.bench.results import Row, provenance, publish

    for name in EXPERIMENTS:
        told(f"experiment {name}")
        made, start = provenance(), time.perf_counter()
        found: list[Series] = import_module(f"{__name__}.{name}").run(**changed.get(name, {}))
        notes: dict[str, Any] = {one.name: noted(one) for one in found}
        notes[f"experiment {name}"] = {"seconds": round(time.perf_counter() - start, 1)}
        rows = [Row(one.name, one.mean, one.unit) for one in found]
        publish("claims", "regard claims --run", rows, made, seed=0, notes=notes, add=True)


def noted(one: Series) -> dict[str, list[float]]:
    """The values of all seeds, and their interval."""
    ends = one.interval
    return {"seeds": list(one.values)} | ({} if ends is None else {"interval": list(ends)})
