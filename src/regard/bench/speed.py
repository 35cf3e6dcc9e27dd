"""Speed and memory of the main job and of the nouns: `python -m regard.bench.speed` (part of `make bench`)."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from regard import Allocation, VisualTokens
from regard.allocate import load
from regard.bench.results import Row, medians, provenance, publish

N, K, D = 2880, 576, 3584


def main() -> None:
    """Measure everything and write results/speed.json."""
    made = provenance()
    torch.manual_seed(0)
    rows = [*_start_up(), *_look(), *_divprune(), *_apply()]
    publish("speed", "python -m regard.bench.speed", rows, made, seed=0)


def _run(*line: str) -> None:
    subprocess.run(line, check=True, capture_output=True)


def _start_up() -> list[Row]:
    python = (sys.executable, "-c")
    every = "import regard\nfor name in regard.__all__: getattr(regard, name)"
    seconds = medians(
        {
            "help": lambda: _run(str(Path(sys.executable).parent / "regard"), "--help"),
            "torch": lambda: _run(*python, "import torch"),
            "regard": lambda: _run(*python, "import regard"),
            "every": lambda: _run(*python, every),
        },
        rounds=9,
    )
    return [
        Row("regard --help", seconds["help"], "s", "<= 0.4"),
        Row("import regard / import torch", seconds["regard"] / seconds["torch"], "ratio", "<= 1.3"),
        Row("import of every public name / import torch", seconds["every"] / seconds["torch"], "ratio", "<= 1.3"),
    ]


def _look() -> list[Row]:
    """A 12-megapixel photo from a cold start, in a process of its own: wall time and peak memory."""
    seconds, peaks = [], []
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        noise = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((4000, 3000), Image.Resampling.BICUBIC).save(photo, quality=92)
        line = [str(Path(sys.executable).parent / "regard"), "look", str(photo), "where is the cat?", "--quiet"]
        for turn in range(5):
            start = time.perf_counter()
            child = subprocess.Popen([*line, "--out", str(Path(folder) / str(turn))])
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            seconds.append(time.perf_counter() - start)
            peaks.append(usage.ru_maxrss / 1024**2)
            if child.returncode:
                raise SystemExit(f"regard look failed with exit code {child.returncode}")
        size = (Path(folder) / "0" / "report.html").stat().st_size / 1e6
    return [
        Row("regard look on a 12-megapixel JPEG, cold start, median of 5", sorted(seconds)[2], "s", "<= 10"),
        Row("regard look on a 12-megapixel JPEG, peak memory, worst of 5", max(peaks), "GiB", "<= 1.5"),
        Row("report.html of that photo", size, "MB", "<= 1.5"),
    ]


def _divprune() -> list[Row]:
    tokens = VisualTokens.from_grid(torch.randn(1, N, 1024), (48, 60))
    divprune, x = load("divprune"), tokens.features[0]
    seconds = medians({"all": lambda: divprune.allocate(tokens, None, 288), "product": lambda: x @ x.T}, rounds=15)
    return [
        Row(f"divprune, N={N}, K=288, D=1024", seconds["all"] * 1e3, "ms", "<= 80"),
        Row("its similarity product alone", seconds["product"] * 1e3, "ms"),
    ]


def _apply() -> list[Row]:
    rows = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        x = torch.randn(1, N, D, dtype=dtype)
        index = torch.randperm(N)[:K].sort().values[None]
        group = torch.randint(K, (1, N))
        group[0, torch.randperm(N)[:K]] = torch.arange(K)
        wide, select = index[..., None].expand(-1, -1, D), Allocation.select(index, N)
        merge = Allocation.merge(group, K, torch.rand(1, N) + 0.5)
        seconds = medians(
            {
                "select": lambda s=select, x=x: s.apply(x),
                "gather": lambda x=x, wide=wide: torch.gather(x, 1, wide),
                "merge": lambda m=merge, x=x: m.apply(x),
                "index_add": lambda x=x, g=group, t=dtype: torch.zeros(K, D, dtype=t).index_add_(0, g[0], x[0]),
            },
            rounds=31,
        )
        kind = str(dtype).removeprefix("torch.")
        rows.append(Row(f"select.apply / gather, {kind}", seconds["select"] / seconds["gather"], "ratio", "<= 1.2"))
        rows.append(Row(f"merge.apply / index_add_, {kind}", seconds["merge"] / seconds["index_add"], "ratio", "<= 2"))
    return rows


if __name__ == "__main__":
    main()
