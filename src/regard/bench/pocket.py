"""What the pocket model is made from: its eye's weights, and the scenes that it learns from and is tested on.

`python -m regard.bench.pocket eye` makes the eye's weights, from scenes that nothing else uses, and
`python -m regard.bench.pocket scenes DIR` keeps the scenes in a folder, as the eye sees them.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save

from regard.bench.tasks.asked import asked
from regard.bench.tasks.seen import Sights, seen
from regard.eyes.embedded import EmbeddedEye
from regard.eyes.pocket import WEIGHTS, PocketEye, fitted
from regard.files import write_whole

SCENES = {"train": 6000, "val": 400, "test": 1000, "new": 400}
_FITTED = range(100_000, 100_160)  # scenes of training, far behind those that are learned from


@torch.no_grad()
def fit_eye() -> None:
    """Write the pocket eye's weights into the package: about a minute."""
    eye = EmbeddedEye(pyramid=False)
    rows = []
    for index in _FITTED:
        tokens, middle = eye.detailed(asked("train", index).image)
        rows.append(torch.cat((tokens.features, middle), dim=2)[0])
    write_whole(WEIGHTS, save(fitted(torch.cat(rows))))


def scenes(folder: Path, *splits: str) -> dict[str, Sights]:
    """The splits, encoded where the folder has them not: about an hour of two cores for all."""
    eye = PocketEye()
    return {split: seen(eye, split, SCENES[split], folder, lambda line: print(line, flush=True)) for split in splits}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["eye"]:
            fit_eye()
        case ["scenes", folder, *some]:
            scenes(Path(folder), *(some or SCENES))
        case _:
            sys.exit(__doc__)
