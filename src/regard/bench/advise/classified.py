"""Mechanisms that are trained from the encoder on, by the images that they classify right.

Each is compared with the best run of its task (of the same file, where there is one) that reads every patch: quality is
the points that it is above it. Time and memory are the matrix's, of 4 blocks of width 192; where a mechanism may stop
early, as if it never did.
"""

from functools import cache
from pathlib import Path

from regard.bench.advise.candidates import Candidate, Test
from regard.bench.advise.growth import at, cells_of
from regard.bench.advise.host import Host
from regard.bench.advise.sources import Figure

CELLS = {
    "FoveaTer": "FoveaTer, never sure",
    "A-ViT": "A-ViT, nothing halts",
    "cascade": "cascade, no exit",
}
READ = ("ram.json", "dynamic.json", "foveated.json", "cascade.json")
_POCKET = "questions on scenes"  # the pocket model's, which another test ranks
_TOLD = ("given", "random policy", "10 runs")  # runs that were told where to look, did not learn it, or look ten times
Run = tuple[str, str, str, float, str]  # mechanism, run, task, percent right, and the file


def search(host: Host) -> Test:
    """By a small thing that is found on a large photo."""
    return _classified(host, "search", "a small thing on a photo of 512 px")


def fashion(host: Host) -> Test:
    """By what the whole of a small image shows."""
    return _classified(host, "fashion", "what a whole image of 28 or 32 px shows")


def _classified(host: Host, task: str, said: str) -> Test:
    """The best run of each mechanism in a task."""
    runs = [run for run in _points(host) if run[2] == task]
    plain = [run for run in runs if run[0] == "self-attention"]
    candidates, left_out, best = [], [], {}
    for run in runs:
        twins = [one for one in plain if one[4] == run[4]] or plain
        apart = run[3] - max((one[3] for one in twins), default=float("inf"))
        if not any(word in run[1] for word in _TOLD) and apart > best.get(run[0], (float("-inf"),))[0]:
            best[run[0]] = (apart, run)
    for apart, run in best.values():
        one = _candidate(host, apart, run)
        if one is None:
            left_out.append(f"{run[0]}: results/matrix.jsonl has no time of it from which this size follows")
        else:
            candidates.append(one)
    what = f"points above the best run of {task} that reads every patch: {said}"
    return Test(f"images classified, {task}", "points", what, tuple(candidates), tuple(left_out))


def _candidate(host: Host, apart: float, run: Run) -> Candidate | None:
    mechanism, what, task, accuracy, source = run
    own = host.asked.device == "gpu" and host.results.has("matrix-cuda.jsonl")
    cells = cells_of(host.results, CELLS.get(mechanism, mechanism), "matrix-cuda.jsonl" if own else "matrix.jsonl")
    side, batch = host.asked.resolution, host.asked.batch
    time, memory = (at(cells, key, side, batch) for key in ("seconds", "peak"))
    first = min((row["batch"] for row in cells), default=1)
    tokens = at([row for row in cells if row["batch"] == first], "tokens", side, first)  # of an image
    if time is None or memory is None or tokens is None:
        return None
    moved = 1.0 if own else host.faster
    where = time.source if moved == 1 else f"{time.source}, / {moved:.3g}: products of {host.speed_source}"
    weights = 4 * cells[0]["parameters"]
    figures = (
        Figure(f"right, {task}", accuracy, "%", f"{source}: {what}"),
        Figure("time", time.value / moved, "s", where, time.kind if moved == 1 else "extrapolated"),
        Figure("memory", memory.value + weights, "bytes", f"{memory.source}, and the weights", memory.kind),
    )
    return Candidate(
        mechanism, "classifier", "", round(tokens.value), apart, None, figures[1].value, figures[2].value, figures
    )


def _points(host: Host) -> tuple[Run, ...]:
    """Of every trained run."""
    for file in READ:
        if host.results.has(file):
            host.results.data(file)  # refused here where it is no file of results
    return _read(host.results.path, tuple(_stamp(host.results.path / file) for file in READ))


@cache
def _read(path: Path, stamps: tuple[float, ...]) -> tuple[Run, ...]:
    from regard.bench.accuracy import points

    return tuple(
        (one.mechanism, one.what, one.task, one.accuracy, one.source) for one in points(path) if one.task != _POCKET
    )


def _stamp(file: Path) -> float:
    return file.stat().st_mtime if file.exists() else 0.0
