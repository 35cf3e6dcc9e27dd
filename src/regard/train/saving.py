"""A run on disk: what learns, the optimizer and the history in one safetensors file, and one run a folder at a time."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from regard.errors import DataError, ModelError
from regard.files import locked as held
from regard.files import write_whole
from regard.train.checkpoint import optimizer_tensors, read, restore_optimizer

LAST, BEST = "last.safetensors", "best.safetensors"  # in a run's folder
FORMAT = "regard-vlm-run-1"

Learned = Mapping[str, Mapping[str, nn.Parameter]]


@dataclass(frozen=True)
class Saved:
    """decides: all that decides the run's losses. step: steps that were made. best: the least loss of held-out rows.
    history: a row for each line of history.csv.
    """

    decides: dict[str, Any]
    step: int = 0
    best: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)

    def write(self, path: Path, learned: Learned, optimizer: Optimizer | None) -> None:
        """Write it with all weights that learn, all or nothing. Raises DataError where the disk does not allow it."""
        tensors = {f"weights.{key}": value.detach() for key, value in flat(learned).items()}
        if optimizer is not None:
            tensors |= optimizer_tensors(optimizer)
        about = {"decides": self.decides, "step": self.step, "best": self.best, "history": self.history}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = {name: value.contiguous() for name, value in tensors.items()}
            save_file(whole, temporary, {"format": FORMAT, "run": json.dumps(about)})
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"cannot write {str(path)!r}: {error}: choose another place, or make room") from error
        finally:
            temporary.unlink(missing_ok=True)

    def write_history(self, folder: Path) -> None:
        """history.csv, a row for each that was noted."""
        if self.history:
            text = io.StringIO()
            names = dict.fromkeys(name for row in self.history for name in row)
            writer = csv.DictWriter(text, list(names), lineterminator="\n", restval="")
            writer.writeheader()
            writer.writerows(self.history)
            write_whole(folder / "history.csv", text.getvalue())


def found(folder: Path, decides: dict[str, Any]) -> Saved:
    """The run to go on with: the folder's last, or a new one. Raises DataError where it is cut short, or another."""
    if not (folder / LAST).exists():
        return Saved(decides)
    saved, _ = load(folder / LAST)
    there, asked = _flat(saved.decides), _flat(decides)
    other = [
        f"{name} {there.get(name)} (asked for {asked.get(name)})"
        for name in dict.fromkeys((*asked, *there))
        if there.get(name) != asked.get(name)
    ]
    if other:
        more = f" and {len(other) - 4} more" if len(other) > 4 else ""
        raise DataError(
            f"{str(folder)!r} holds a run with {', '.join(other[:4])}{more}: choose another folder, or remove it"
        )
    return saved


def load(path: Path) -> tuple[Saved, dict[str, Tensor]]:
    """What `Saved.write` wrote, and its tensors. Raises DataError where it is cut short, or something else."""
    run, tensors = read(path, FORMAT)
    try:
        return Saved(**run), tensors
    except TypeError as error:
        raise DataError(f"the checkpoint {str(path)!r} cannot be read, it may be cut short: {error}") from error


@torch.no_grad()
def restore(path: Path, learned: Learned, optimizer: Optimizer | None = None) -> None:
    """Give weights, and the optimizer, what they held. Raises DataError as `load`, ModelError where it does not fit."""
    _, tensors = load(path)
    mine = flat(learned)
    theirs = {name.removeprefix("weights."): value for name, value in tensors.items() if name.startswith("weights.")}
    wrong = sorted(
        name
        for name in mine.keys() | theirs.keys()
        if name not in mine or name not in theirs or mine[name].shape != theirs[name].shape
    )
    if wrong:
        raise ModelError(f"{str(path)!r} does not fit the model, such as {wrong[0]}: build the model as it was")
    for name, value in theirs.items():
        mine[name].copy_(value)
    if optimizer is not None:
        restore_optimizer(optimizer, tensors)


def flat(learned: Learned) -> dict[str, nn.Parameter]:
    """All that learns, by part and name."""
    return {f"{part}.{name}": value for part, some in learned.items() for name, value in some.items()}


@contextmanager
def locked(path: Path, team: Any, wait: bool = False) -> Iterator[None]:
    """Hold a file for this run alone, by its main process; a lock goes with its process, however that ends.

    wait: until another run lets go; else DataError is raised, in all processes.
    """
    from accelerate.utils import broadcast_object_list

    with ExitStack() as stack:
        problem = ""
        if team.is_main_process:
            try:
                stack.enter_context(held(path, wait))
            except DataError as error:
                problem = str(error)
        problem = broadcast_object_list([problem])[0]
        if problem:
            raise DataError(problem)
        yield


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings by their whole names, as JSON has them."""
    whole: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(values)).items():
        whole |= _flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return whole
