"""What the claims' figures of training and of time are measured with: `regard claims --run`. One file an experiment."""

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from regard.bench.claims.experiments._shared import Series

# in the order in which they run: what is timed first, while nothing else has warmed the machine
EXPERIMENTS = ("tails", "batching", "memory", "reinforce", "linear", "queries", "sinks", "fusion")


def main(told: Callable[[str], None] = lambda stage: None, **changed: Mapping[str, Any]) -> None:
    """Run them all and write results/claims.json. changed: arguments of some, by the experiment's name."""
    from regard.bench.results import Row, provenance, publish

    made, rows, intervals, seeds, seconds = provenance(), [], {}, {}, {}
    for name in EXPERIMENTS:
        told(f"experiment {name}")
        start = time.perf_counter()
        found: list[Series] = import_module(f"{__name__}.{name}").run(**changed.get(name, {}))
        seconds[name] = round(time.perf_counter() - start, 1)
        for one in found:
            rows.append(Row(one.name, one.mean, one.unit))
            seeds[one.name] = list(one.values)
            if one.interval is not None:
                intervals[one.name] = list(one.interval)
    notes = {"seconds": seconds, "intervals": intervals, "seeds": seeds}
    publish("claims", "regard claims --run", rows, made, seed=0, notes=notes)
