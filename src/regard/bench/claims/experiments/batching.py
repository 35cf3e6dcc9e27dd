"""What a batch gives: images a second of RAM, whose glimpses come one after another, and of a transformer."""

from collections.abc import Sequence

import torch

from regard.bench.claims.experiments._shared import Series
from regard.bench.results import medians
from regard.mechanisms.recurrent import RecurrentAttention, noise
from regard.mechanisms.vit import StaticViT

BATCHES = (1, 4, 16, 64)
SIDE, GLIMPSES = 28, 6


def run(batches: Sequence[int] = BATCHES, rounds: int = 31) -> list[Series]:
    """Images a second of both, all sizes alternating, and what the largest batch gives over one image."""
    torch.manual_seed(0)
    ram = RecurrentAttention(glimpses=GLIMPSES).eval()
    vit = StaticViT(
        {"image_size": SIDE, "channels": 1, "patch_size": 4, "dim": 64, "depth": 8, "heads": 2, "hidden": 256}
    )
    images = {size: torch.randint(0, 256, (size, 1, SIDE, SIDE), dtype=torch.uint8) for size in batches}
    draws = {size: noise(size, GLIMPSES) for size in batches}
    work = {f"RAM {size}": lambda size=size: ram(images[size], draws[size]) for size in batches}
    work |= {f"transformer {size}": lambda size=size: vit.eval()(images[size]) for size in batches}
    with torch.no_grad():
        seconds = medians(work, rounds)
    found = []
    for name in ("RAM", "transformer"):
        rates = {size: size / seconds[f"{name} {size}"] for size in batches}
        found += [Series(f"{name}: images a second, batch {size}", "images/s", (rates[size],)) for size in batches]
        gain = rates[max(batches)] / rates[min(batches)]
        found.append(Series(f"{name}: what a batch of {max(batches)} gives over one image", "times", (gain,)))
    return found
