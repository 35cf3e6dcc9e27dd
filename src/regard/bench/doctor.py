"""How long the doctor takes: `python -m regard.bench.doctor`, all checks on a LLaVA with SmolLM2-135M's language model.

Random weights, a CLIP-B encoder, 576 visual tokens; on all cores of the machine, seconds by the clock and of the
processor, as other programs may run beside.
"""

import statistics
import time

import torch

from regard.bench.results import Row, provenance, publish
from regard.bench.shorten import CLIP, build
from regard.doctor import examine


def main(rounds: int = 3) -> None:
    """Measure, and write results/doctor.json."""
    made = provenance()
    torch.manual_seed(0)
    model, inputs = build(CLIP, "cpu")
    clock, processor, checks = list[float](), list[float](), list[dict[str, float]]()
    for _ in range(rounds):
        start, work = time.perf_counter(), time.process_time()
        found = examine(model, inputs)
        clock.append(time.perf_counter() - start)
        processor.append(time.process_time() - work)
        checks.append(found.seconds)
    size = sum(value.numel() for value in model.parameters()) / 1e6
    rows = [
        Row(f"all checks, {size:.0f} M parameters, median of {rounds}", statistics.median(clock), "s", "<= 60"),
        Row("processor time of all checks", statistics.median(processor), "s"),
        *(Row(f"check {name}", statistics.median(of[name] for of in checks), "s") for name in checks[0]),
    ]
    publish("doctor", "python -m regard.bench.doctor", rows, made, seed=0)


if __name__ == "__main__":
    main()
