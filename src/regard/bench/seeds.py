"""The pocket model trained from several seeds: how much of its figures is the draw of its first weights and its steps.

`python -m regard.bench.seeds SCENES ANSWERS RUN...` asks the package's model and those of runs of
`regard train pocket --seed N` about the scenes to test with, and writes results/seeds.json. The folder ANSWERS keeps
what they said, so that it goes on where it stopped; `python -m regard.bench.seeds ask SCENES ANSWERS RUN` asks one.
"""

import io
import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regard.bench.mechanisms import BLIND, Asking, asking, compared
from regard.bench.pocket import restored, scenes
from regard.bench.results import provenance, publish
from regard.bench.tasks.asked.wording import KINDS
from regard.bench.tasks.seen import Sights
from regard.errors import DataError, RegardError
from regard.files import write_whole
from regard.train.checkpoint import Checkpoint, digest
from regard.vlm.bridges import ALL
from regard.vlm.pocket import FOLDER, MECHANISMS, Pocket

TENTH = 32  # tokens, about a tenth of a scene's
SPENDING = ("relevance", "fovea", "recurrent")  # and the best others, of the scenes to validate with
CELLS: tuple[tuple[str, int | None], ...] = (
    *((name, TENTH) for name in (*SPENDING, *BLIND)),
    (ALL, None),
    *((name, TENTH // 2) for name in SPENDING),
    *((name, 2 * TENTH) for name in SPENDING if name != "recurrent"),  # which has no more than 32 glimpses
)

_FREE = ("seed", "scenes")  # the package's digest of scenes is of rounding that another number of threads changes


def answers(
    model: Pocket,
    sights: Sights,
    folder: Path,
    cells: Sequence[tuple[str, int | None]] = CELLS,
    told: Callable[[str], None] = lambda line: None,
) -> Asking:
    """What a model says, a mechanism and a budget after the other; those that the folder has are not asked again."""
    decided = (*model.state_dict().values(), *model.eye.realizer.state_dict().values(), sights.digest())
    file = folder / f"{digest(decided)}.npz"
    kept = _kept(file) if file.exists() else {}
    found = asking(model, sights, ())
    for name, budget in cells:
        key = f"{name}, {budget or ALL}"
        if key not in kept:
            kept[key] = asking(model, sights, (name,), (budget or 0,), told).right[name, budget]
            held = io.BytesIO()
            np.savez_compressed(held, **kept)  # pyright: ignore[reportArgumentType]
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(file, held.getvalue())
        found.right[name, budget] = kept[key]
    return found


def _kept(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(file.read_bytes())) as held:
            return dict(held)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise DataError(f"{file} does not hold answers ({error}): delete it, and they are asked for again") from error


def averaged(each: Sequence[Asking]) -> Asking:
    """Of each question, how many of the models answered it right, as a share. Its intervals are of scenes alone."""
    cells = each[0].right
    right = {cell: np.mean([found.right[cell] for found in each], axis=0) for cell in cells}
    return Asking(each[0].kinds, each[0].scenes, right)


def tables(each: Sequence[Asking], seeds: Sequence[int]) -> dict[str, Any]:
    """What is right of each seed, in percent, by kind too, and what is to be reached, beside its own best blind one."""
    mean, rows = averaged(each), []
    for name, budget in mean.right:
        low, high = mean.interval(mean.right[name, budget])
        rates = [found.rate(name, budget) for found in each]
        whole = f"{mean.rate(name, budget):.1f} ({low:.1f} to {high:.1f})"
        rows.append([name, str(budget or ALL), whole, *(f"{rate:.1f}" for rate in rates)])
    of_seeds = [f"seed {seed}" for seed in seeds]
    reached = [[f"{row.value:+.1f}" for row in compared(found, TENTH)] for found in each]
    what = ["relevance less the best blind one, " + row.name.split(": ")[0] for row in compared(mean, TENTH)]
    what[-1] = f"all tokens less relevance, {TENTH} tokens, all questions"
    there = [kind for kind in KINDS if kind in mean.kinds]
    kinds = [
        [name, *(f"{found.rate('relevance', TENTH, (kind,)):.1f}" for kind in there)]
        for name, found in zip(of_seeds, each, strict=True)
    ]
    return {
        "kinds": {"columns": [f"relevance, {TENTH} tokens, right, %", *there], "rows": kinds},
        "right": {"columns": ["mechanism", "tokens", "mean, % (95 %, of scenes)", *of_seeds], "rows": rows},
        "reached": {"columns": ["points", *of_seeds], "rows": [list(row) for row in zip(what, *reached, strict=True)]},
    }


def losses(states: Sequence[Checkpoint]) -> dict[str, Any]:
    """Through each mechanism, the loss of what was not learned from, after each epoch in which it was taken."""
    taken = [(state, row) for state in states for row in state.history if f"validation {ALL}" in row]
    names = [f"seed {state.settings['seed']}, epoch {row['epoch']:.0f}" for state, row in taken]
    rows = [[name, *(f"{row[f'validation {name}']:.3f}" for _, row in taken)] for name in MECHANISMS]
    return {"columns": ["nats a word", *names], "rows": rows}


def states_of(runs: Sequence[Path]) -> tuple[list[int], list[Checkpoint]]:
    """The seeds of the package's model and of the runs, and those. Raises DataError where a run differs in more than
    the seed, is not done, or is of a seed that another one has.
    """
    about = json.loads((FOLDER / "about.json").read_text())
    package, seeds, states = about["settings"], [about["settings"]["seed"]], []
    for run in runs:
        state = Checkpoint.load(run)
        there = {"kind": state.kind, "words": state.arguments.get("words"), **state.settings}
        wanted = {"kind": "pocket", "words": about["words"], **package}
        other = [name for name in sorted(there | wanted) if there.get(name) != wanted.get(name) and name not in _FREE]
        if other or state.epoch != package["epochs"]:
            differs = ", ".join(other) or f"epochs: {state.epoch} are done"
            raise DataError(f"{str(run)!r} is not the package's training from another seed: it differs in {differs}")
        if there["seed"] in seeds:
            raise DataError(f"{str(run)!r} has seed {there['seed']}, as another has: give runs of other seeds")
        seeds.append(there["seed"])
        states.append(state)
    return seeds, states


def main(folder: Path, kept: Path, runs: Sequence[Path], told: Callable[[str], None] = print) -> None:
    """Ask what is not asked yet, and write results/seeds.json."""
    made, (seeds, states) = provenance(), states_of(runs)
    sights = scenes(folder, "test", told=told)["test"]
    each = [answers(restored(run), sights, kept, told=told) for run in (None, *runs)]
    notes = {"seeds": seeds, "questions": len(each[0].kinds), "scenes": len(np.unique(each[0].scenes)), "split": "test"}
    command = f"python -m regard.bench.seeds SCENES ANSWERS {' '.join(run.name for run in runs)}"
    shown = tables(each, seeds) | {"validation loss": losses(states)}
    publish("seeds", command, compared(averaged(each), TENTH), made, notes=notes, tables=shown)


def command(*line: str) -> None:
    """What a line asks for. Raises DataError, and SystemExit where it asks for nothing."""
    match line:
        case ["ask", folder, kept, run]:
            states_of([Path(run)])
            answers(restored(Path(run)), scenes(Path(folder), "test")["test"], Path(kept), told=print)
        case [folder, kept, *runs] if runs:
            main(Path(folder), Path(kept), [Path(run) for run in runs])
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    try:
        command(*sys.argv[1:])
    except RegardError as error:
        sys.exit(f"regard: {error}")
