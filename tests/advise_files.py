"""Results to change: a copy of the committed ones, and a file as `regard bench mechanisms` writes it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regard.bench.tasks.asked.wording import KINDS

RESULTS = Path(__file__).parent.parent / "results"
USED = ("allocators", "cascade", "dynamic", "foveated", "ram", "relevance", "selectors", "shorten")
BUDGETS = (16, 64)
# percent right and milliseconds at 64 tokens; at 16 both are less
BRIDGES = {"relevance": (70.0, 12.0), "pool": (60.0, 10.0), "qformer": (50.0, 14.0), "recurrent": (45.0, 40.0)}


def copied(folder: Path) -> Path:
    """The files that advice reads, the matrix with two resolutions and two batches of each mechanism among them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in USED:
        shutil.copy(RESULTS / f"{name}.json", folder)
    write_matrix(folder)
    return folder


def write_matrix(folder: Path, device: str = "cpu", faster: float = 1.0) -> None:
    """Cells whose time grows with the square of the pixels, and whose memory grows with the pixels."""
    mechanisms = ("self-attention", "Q-Former", "resampler", "gaze tokens", "FoveaTer, never sure", "recurrent (RAM)")
    lines = []
    for place, mechanism in enumerate(mechanisms, 1):
        for side, batch in ((224, 1), (448, 1), (448, 8)):
            n = (side // 16) ** 2
            seconds = place * 1e-6 * n**2 * batch / faster
            cell = {"macs": int(seconds * faster * 20e9 / batch), "tokens": n, "parameters": 1000, "seconds": seconds}
            about = {"mechanism": mechanism, "resolution": side, "batch": batch, "device": device}
            speeds = {"peak": 4000 * n * batch, "matmul": 40e9 * faster, "copy": 10e9 * faster}
            lines.append({"schema": 1, "id": f"{mechanism}/{side}/{batch}", "kind": "cell", **about, **cell, **speeds})
    name = "matrix.jsonl" if device == "cpu" else "matrix-cuda.jsonl"
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_mechanisms(folder: Path, bridges: dict[str, tuple[float, float]] | None = None) -> None:
    columns = ["mechanism", "tokens", "right, % (95 %)", *KINDS, "bridge, k parameters", "M MACs"]
    columns += ["ms alone", "ms of 64"]
    rows = []
    for name, (right, ms) in {"all": (80.0, 60.0), **(bridges or BRIDGES)}.items():
        for budget in ("all",) if name == "all" else BUDGETS:
            less = 10.0 if budget == 16 else 0.0
            value = right - less
            kinds = [f"{value - 5 * (kind in ('count', 'exists', 'missing')):.1f}" for kind in KINDS]
            rated = f"{value:.1f} ({value - 2:.1f} to {value + 2:.1f})"
            rows.append([name, str(budget), rated, *kinds, "100", "50", f"{ms - less / 5:.1f}", "1.0"])
    data = {"name": "mechanisms", "command": "regard bench mechanisms", "rows": [], "notes": {}}
    data["tables"] = {"mechanisms": {"columns": columns, "rows": rows}}
    (folder / "mechanisms.json").write_text(json.dumps(data))


def change(folder: Path, name: str, how: Callable[[Any], None]) -> None:
    """Change the content of a JSON file in place."""
    file = folder / f"{name}.json"
    data = json.loads(file.read_text())
    how(data)
    file.write_text(json.dumps(data))
