"""One safetensors file for a run at the end of an epoch: weights, optimizer, settings and history."""

import hashlib
import inspect
import json
import os
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

import regard.mechanisms
from regard.attention.vision import VisionTransformer
from regard.errors import DataError, ModelError
from regard.files import write_whole
from regard.mechanisms.looker import Looker

LAST = "last.safetensors"  # in a run's folder
FORMAT = "regard-checkpoint-1"


@dataclass(frozen=True)
class Checkpoint:
    """kind: the mechanism. arguments: all of its `__init__`. settings: of the run: task, epochs, seed and all that
    decides its losses. history: a row for each epoch. tensors: "model.NAME", and "optimizer.I.NAME" of parameter I.
    labels: names of the classes.
    """

    kind: str
    arguments: dict[str, Any]
    settings: dict[str, Any]
    history: list[dict[str, float]]
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)
    labels: tuple[str, ...] = ()

    @property
    def epoch(self) -> int:
        """Epochs that were trained."""
        return len(self.history)

    @property
    def digest(self) -> str:
        """What tells the weights of one run from another's."""
        return digest(self.tensors[name] for name in sorted(self.tensors) if name.startswith("model."))

    def holding(self, model: nn.Module, optimizer: Optimizer, row: dict[str, float]) -> Self:
        """The next one: a copy of what the model and the optimizer hold now."""
        tensors = {f"model.{name}": value.detach().clone() for name, value in model.state_dict().items()}
        tensors |= {name: value.detach().clone() for name, value in optimizer_tensors(optimizer).items()}
        return replace(self, history=[*self.history, row], tensors=tensors)

    def restore(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Give both what they held. Raises ModelError where the weights are another model's."""
        weights = {name[6:]: value for name, value in self.tensors.items() if name.startswith("model.")}
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelError(f"the checkpoint of {self.kind} does not fit: {str(error).splitlines()[-1]}") from error
        if optimizer is not None:
            restore_optimizer(optimizer, {name: value.clone() for name, value in self.tensors.items()})

    def save(self, path: str | os.PathLike) -> None:
        """Write it, all or nothing. Raises DataError."""
        about = {name: getattr(self, name) for name in ("kind", "arguments", "settings", "history", "labels")}
        whole = {name: value.contiguous() for name, value in self.tensors.items()}
        write_whole(path, save(whole, {"format": FORMAT, "run": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Checkpoint":
        """Read what `save` wrote, a file, or a run's folder with it. Raises DataError where there is none, it is cut
        short, or it is something else.
        """
        path = Path(path) / LAST if Path(path).is_dir() else Path(path)
        run, tensors = read(path, FORMAT)
        try:
            return cls(**{**run, "labels": tuple(run.get("labels", ()))}, tensors=tensors)
        except TypeError as error:
            raise DataError(f"the checkpoint {str(path)!r} cannot be read, it may be cut short: {error}") from error


def read(path: Path, form: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a safetensors file says of a run, and its tensors. form: what the file calls itself.

    Raises DataError where there is none, it is cut short, or it is something else.
    """
    if not path.is_file():
        raise DataError(f"there is no checkpoint {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != form:
                raise DataError(f"{str(path)!r} is not a checkpoint ({form}) as regard train writes it")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(about["run"]), tensors
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the checkpoint {str(path)!r} cannot be read, it may be cut short: {error}") from error


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """What an optimizer holds, "optimizer.I.NAME" of parameter I."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{place}.{name}": value for place, of in state.items() for name, value in of.items()}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer what `optimizer_tensors` gave; other names are passed over."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, place, key = name.split(".")
            state.setdefault(int(place), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def complete(kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments that a class is made with, as JSON has them: those given, and today's defaults of the others.

    A vision transformer that is given by its arguments has all of its own. Raises TypeError for a name that the class
    does not have, or one that it needs and does not get.
    """
    bound = inspect.signature(kind.__init__).bind(None, **arguments)
    bound.apply_defaults()
    _, *found = bound.arguments.items()
    whole = dict(found)
    if isinstance(whole.get("vision"), Mapping):
        whole["vision"] = complete(VisionTransformer, whole["vision"])
    return json.loads(json.dumps(whole))


def looker(path: str | os.PathLike) -> tuple[Looker, tuple[str, ...]]:
    """The trained mechanism of a run's folder or checkpoint, and the names of its classes.

    Raises DataError where there is none, ModelError where it is of a mechanism that is not known.
    """
    state = Checkpoint.load(path)
    for module in pkgutil.iter_modules(regard.mechanisms.__path__):
        for kind in vars(import_module(f"regard.mechanisms.{module.name}")).values():
            if (
                isinstance(kind, type)
                and issubclass(kind, Looker)
                and not inspect.isabstract(kind)
                and kind.name == state.kind
            ):
                try:
                    model = kind(**state.arguments)
                except TypeError as error:
                    raise ModelError(f"{str(path)!r} is of another version of {state.kind}: {error}") from error
                state.restore(model)
                return model.eval(), state.labels
    raise ModelError(f"{str(path)!r} is of the mechanism {state.kind!r}, which this version of regard does not know")


def digest(parts: Iterable[Any]) -> str:
    """What tells tensors and words from others."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.numpy().tobytes() if isinstance(part, Tensor) else json.dumps(part).encode())
    return total.hexdigest()[:16]
