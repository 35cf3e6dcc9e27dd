"""The cascade's times, image by image, beside one pass over everything: what exits do to the mean and to the slowest.

Sizes are those of the cascade on Fashion-MNIST. Weights are random, as the time of an image depends on where it stops
alone; the threshold is set so that as many stop at the first stage as `regard bench cascade` found.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regard.bench.claims.experiments._shared import Series
from regard.bench.tail import stopping
from regard.errors import DataError
from regard.mechanisms.cascade import Cascade
from regard.mechanisms.exits import confidence, exits, for_shares
from regard.train.cascade import sizes


def run(images: int = 300, results: Path = Path("results")) -> list[Series]:
    """Percentiles of the milliseconds of one image, of the processor on one thread, and how they stand to one pass over
    everything. Raises DataError where results/cascade.json does not say how many stop.
    """
    stop = stopping(results)
    if stop is None:
        raise DataError("no results/cascade.json says how many images stop at stage 0: run regard bench cascade")
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    two, whole = (Cascade(**sizes("fashion", stages, keep)).eval() for stages, keep in ((2, "6"), (1, None)))
    pixels = torch.randint(0, 256, (images, 1, 32, 32), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        sure = confidence(torch.stack(two(pixels), dim=1))
    two.set_thresholds(for_shares(sure, (stop, 1 - stop)))
    stopped = exits(sure, two.thresholds).numpy()
    cascade, full = timed((two.look, whole.look), pixels)
    found = [Series("images that stop at the first stage", "%", (100 * float((stopped == 0).mean()),))]
    for name, values in (("cascade", cascade), ("all at the finest", full)):
        found += [
            Series(f"{name}: p{point} of one image", "ms", (1000 * float(np.percentile(values, point)),))
            for point in (50, 95, 99)
        ]
    middle = [float(np.median(values)) for values in (cascade[stopped == 0], cascade[stopped == 1], full)]
    mean, tail = cascade.mean() / full.mean(), np.percentile(cascade, 99) / np.percentile(full, 99)
    return [
        *found,
        Series("mean time of the cascade / all at the finest", "ratio", (float(mean),)),
        Series("p99 of the cascade / p99 of all at the finest", "ratio", (float(tail),)),
        Series("p99 / p50 of the cascade", "ratio", (float(np.divide(*np.percentile(cascade, (99, 50)))),)),
        Series("p99 / p50 of all at the finest", "ratio", (float(np.divide(*np.percentile(full, (99, 50)))),)),
        Series("median image that stops early / all at the finest", "ratio", (middle[0] / middle[2],)),
        Series("median image that goes on / all at the finest", "ratio", (middle[1] / middle[2],)),
        Series("MACs of an image that goes on / all at the finest", "ratio", (two.costs[1] / whole.costs[0],)),
    ]


def timed(looks: Sequence[Callable[[Tensor], object]], pixels: Tensor) -> list[np.ndarray]:
    """Seconds of each image alone, each way in turn: the processor's time, and the least of three, so that what else
    the machine does is left out.
    """
    seconds = np.full((len(looks), len(pixels)), np.inf)
    for image in pixels[:20]:
        for look in looks:
            look(image[None])
    for place, image in enumerate(pixels.repeat(3, 1, 1, 1)):
        for way, look in enumerate(looks):
            start = time.process_time()
            look(image[None])
            spent = time.process_time() - start
            seconds[way, place % len(pixels)] = min(spent, seconds[way, place % len(pixels)])
    return list(seconds)
