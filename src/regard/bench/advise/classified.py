"""Mechanisms that are trained from the encoder on, by the images that they classify right.

Each is compared with the best run of its task (of the same file, where there is one) that reads everything: quality is
the points that it is above it. Of small images time and memory are the matrix's, of 4 blocks of width 192; where a
mechanism may stop early, as if it never did. Of a thing on a large photo they are those of the networks that were
trained, which the same file has at the size of the photo; what it has not timed is not ranked.
"""

from functools import cache
from pathlib import Path

from regard.bench.advise.candidates import Candidate, Test
from regard.bench.advise.growth import at, cells_of
from regard.bench.advise.host import Host
from regard.bench.advise.sources import Figure, Kind

CELLS = {
    "FoveaTer": "FoveaTer, never sure",
    "A-ViT": "A-ViT, nothing halts",
    "cascade": "cascade, no exit",
}
# of the search task's networks: their row of time and memory, and whether these grow with the pixels
_OWN = {
    "all tokens": ("gaze-all", True),
    "gaze predicted": ("gaze", False),
    "foveater": ("foveater", True),
    "foveater-all": ("foveater-all", True),
}
READS_ALL = "FoveaTer, reading all"  # FoveaTer's twin
_PLAIN = ("self-attention", READS_ALL)
_SIDE = 512  # pixels of a side of the search task's photos
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
    plain = [run for run in runs if run[0] in _PLAIN]
    candidates, left_out, best = [], [], {}
    for run in runs:
        twins = [one for one in plain if one[4] == run[4]] or plain
        apart = run[3] - max((one[3] for one in twins), default=float("inf"))
        left = any(word in run[1] for word in _TOLD) or (task == "search" and run[1] not in _OWN)
        if not left and apart > best.get(run[0], (float("-inf"),))[0]:
            best[run[0]] = (apart, run)
    for apart, run in best.values():
        one = (_own if task == "search" else _of_matrix)(host, apart, run)
        if one is None:
            left_out.append(f"{run[0]}: no results have a time and memory of it from which this size follows")
        else:
            candidates.append(one)
    what = f"points above the best run of {task} that reads everything: {said}"
    return Test(f"images classified, {task}", "points", what, tuple(candidates), tuple(left_out))


def _own(host: Host, apart: float, run: Run) -> Candidate | None:
    """By the run's own network, at the size that it was trained for."""
    mechanism, what, task, accuracy, source = run
    file, (row, grows) = "foveated.json", _OWN[what]
    names = [f"{task}, {row}: one image", f"{task}, {row}: memory of one image", f"{task}, {what}: tokens"]
    found = [host.results.row(file, name) for name in names]
    if None in found:
        return None
    took, held, tokens = (value or 0.0 for value in found)
    pixels, batch = (host.asked.resolution / _SIDE) ** 2 if grows else 1.0, host.asked.batch
    same = pixels == batch == 1 and host.faster == 1
    how = "" if pixels == 1 else f", x {pixels:.3g} for the pixels"
    how += "" if batch == 1 else f", x {batch} for the batch"
    moved = "" if host.faster == 1 else f", / {host.faster:.3g}: products of matrices of {host.speed_source}"
    kind: Kind = "measured" if same else "extrapolated"
    figures = (
        Figure(f"right, {task}", accuracy, "%", f"{source}: {what}"),
        Figure("time", took / 1e3 * pixels * batch / host.faster, "s", f"results/{file}: {names[0]}{how}{moved}", kind),
        Figure("memory", held * 2**20 * pixels * batch, "bytes", f"results/{file}: {names[1]}{how}", kind),
    )
    seconds, held = figures[1].value, figures[2].value
    return Candidate(mechanism, "classifier", what, round(tokens * pixels), apart, None, seconds, held, figures)


def _of_matrix(host: Host, apart: float, run: Run) -> Candidate | None:
    """By the same mechanism as the matrix measured it."""
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
