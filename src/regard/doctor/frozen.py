"""Whether gradients reach all that is to learn: one backward pass through the whole model.

What a training run does to weights over time is watched by `regard.doctor.Watch`.
"""

from collections.abc import Iterable

import torch
from torch import nn

from regard.doctor.case import Case, gradients
from regard.doctor.finding import Finding, listed
from regard.errors import DataError

_SOME_ROWS = (".experts.",)  # what a batch does not choose gets none


def check(case: Case) -> list[Finding]:
    """Parameters that take gradients and get none. Raises DataError where nothing takes any."""
    learned = {name: value for name, value in case.model.named_parameters() if value.requires_grad}
    if not learned:
        raise DataError("all parameters are frozen: let those that are to learn take gradients (requires_grad_(True))")
    ran = _Ran(case.model)
    with torch.enable_grad(), ran:
        loss = case.loss()
    slopes = gradients(loss, list(learned.values()))
    silent = [name for name, slope in zip(learned, slopes, strict=True) if slope is None or not bool(slope.any())]
    read = [name for name in learned if not _unread(case.model, name)]
    silent = [name for name in silent if name in read and not any(part in name for part in _SOME_ROWS)]
    unused = [name for name in silent if not ran.of(name)]
    return [*_silent([name for name in silent if name not in unused], read), *_unused(unused)]


def _silent(names: list[str], read: list[str]) -> list[Finding]:
    found = []
    for part, several in _by_part(names).items():
        whole = sum(_part(name) == part for name in read)
        evidence = f"no gradient reaches {len(several)} of {whole} parameters of {part}: {listed(several)}"
        grave = len(several) == whole
        advice = "look for no_grad, detach, a rounding or a shut gate between them and the loss"
        found.append(Finding("frozen", "error" if grave else "warning", evidence, advice))
    return found


def _unused(names: list[str]) -> list[Finding]:
    if not names:
        return []
    evidence = f"{len(names)} parameters that take gradients are in modules that never ran: {listed(names)}"
    return [Finding("frozen", "note", evidence, "freeze what is not used, so that no optimizer decays it")]


def _by_part(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_part(name), []).append(name)
    return found


def _part(name: str) -> str:
    """The part of a model that a parameter is of: what stands first in its name, `model.` aside."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "model" and len(pieces) > 2 else pieces[0]


def _unread(model: nn.Module, name: str) -> bool:
    """Whether a parameter is of a vision encoder behind the layer that is read, as LLaVA's last layer is."""
    config = getattr(model, "config", None)
    chosen, vision = getattr(config, "vision_feature_layer", None), getattr(config, "vision_config", None)
    depth = getattr(vision, "num_hidden_layers", None)
    if chosen is None or depth is None or not any(word in name for word in ("vision", "visual")):
        return False
    numbers = [number if number >= 0 else depth + 1 + number for number in _several(chosen)]
    pieces = name.split(".")
    layer = next((int(piece) for piece in pieces if piece.isdecimal()), None)
    if layer is None:
        return any(word in name for word in ("post_layernorm", "layernorm_after", "head", "pool"))
    return layer >= max(numbers)


def _several(chosen: int | list[int]) -> list[int]:
    return [chosen] if isinstance(chosen, int) else list(chosen)


class _Ran:
    """Which modules are called while it lasts."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.names, self.handles = model, set[str](), list[torch.utils.hooks.RemovableHandle]()

    def __enter__(self) -> "_Ran":
        for name, module in self.model.named_modules():
            self.handles.append(module.register_forward_pre_hook(lambda *_, name=name: self.names.add(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def of(self, parameter: str) -> bool:
        """Whether the module that holds a parameter ran, or one around it that is not the model itself."""
        return parameter.rpartition(".")[0] in self.names
