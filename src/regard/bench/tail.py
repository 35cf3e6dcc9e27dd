"""How long single images take in a cascade, as percentiles: the survey's "avoid when real-time requirements"."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regard.bench.cells import cascade, pixels
from regard.bench.roofline import seconds
from regard.mechanisms.exits import confidence, for_shares

SIDE, RESULTS = 448, Path("results")
TAIL = f"tail/cascade/{SIDE}"
PERCENTILES = (50, 90, 95, 99)


@torch.no_grad()
def measured_tail(device: str, spend: float) -> dict[str, Any]:
    """Single images through a cascade of two stages, and each through a network that reads all at once.

    spend: 100 images for each second that it is given. As large a share stops at the first stage as on the test images
    of the trained cascade in results/cascade.json.
    """
    share = stopping(RESULTS)
    row: dict[str, Any] = {"kind": "tail", "mechanism": "cascade", "resolution": SIDE, "batch": 1}
    if share is None:
        return row | {"skipped": "no results/cascade.json says how many images stop at stage 0", "limits": None}
    torch.manual_seed(0)
    two, all_at_once = (cascade(SIDE, stages).to(device).eval() for stages in (2, 1))
    images = pixels(SIDE, max(20, round(100 * spend)), device).split(1)
    sure = torch.cat([confidence(two(image)[0]) for image in images])
    two.set_thresholds(for_shares(sure[:, None].expand(-1, 2).cpu(), [share, 1 - share]))
    spent = np.empty((len(images), 2))
    for place, image in enumerate(images):
        for kind in (0, 1)[:: 1 - 2 * (place % 2)]:
            spent[place, kind] = seconds(lambda kind=kind, image=image: (two, all_at_once)[kind].look(image), device)
    taken = dict(zip(("cascade", "all"), np.percentile(spent, PERCENTILES, axis=0).T.tolist(), strict=True))
    times = {name: dict(zip(map(str, PERCENTILES), of, strict=True)) for name, of in taken.items()}
    means = dict(zip(("cascade", "all"), spent.mean(axis=0).tolist(), strict=True))
    return row | {"images": len(images), "first": share, "times": times, "means": means}


def stopping(results: Path) -> float | None:
    """The share of images that stop at the first of two stages, of Fashion-MNIST; None without results."""
    file = results / "cascade.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    found = [
        row["value"] for row in rows if re.search(r"^fashion, 2 stages .*: images that stop at stage 0$", row["name"])
    ]
    return found[0] / 100 if found else None
