"""What goes wrong in training parts of a model together, watched: frozen weights that change, gradients that do not
flow, rates that do not match, gates that stay shut.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from regard.errors import ModelError
from regard.vlm.compose import VLM
from regard.vlm.fusion.fusion import base_of
from regard.vlm.fusion.late import Late
from regard.vlm.saved import is_own

PARTS = ("eye", "bridge", "fusion", "language_model")
_PATIENCE = 3  # steps: gates that begin at 0 let no gradient through in the first


def parts_of(vlm: VLM) -> dict[str, nn.Module]:
    """The parts of a model that have weights, by the names that rates go by. An eye may be no module at all."""
    found = {name: getattr(vlm, name) for name in PARTS}
    return {name: part for name, part in found.items() if isinstance(part, nn.Module) and list(part.parameters())}


def freeze_all_but(parts: Mapping[str, nn.Module], learn: Iterable[str]) -> dict[str, dict[str, nn.Parameter]]:
    """What learns, by part and name, in float32; the rest needs no gradient and is in evaluation mode.

    Of a language model with LoRA only what peft left to learn does; where that was frozen since, the adapters.
    """
    learn, found = set(learn), {}
    for name, part in parts.items():
        part.train(name in learn)
        if name not in learn:
            part.requires_grad_(False)
            continue
        if base_of(part) is part:
            part.requires_grad_(True)
        elif not any(value.requires_grad for value in part.parameters()):
            for key, value in part.named_parameters():
                value.requires_grad_(not is_own(key))
        chosen = {key: value for key, value in part.named_parameters() if value.requires_grad}
        for value in chosen.values():
            value.data = value.data.float()
        if chosen:
            found[name] = chosen
    return found


def fingerprint(parts: Mapping[str, nn.Module]) -> str:
    """A hash of all that is frozen, weights and buffers, bit by bit."""
    total = hashlib.sha256()
    for name, part in sorted(parts.items()):
        learned = {key for key, value in part.named_parameters() if value.requires_grad}
        buffers = part.named_buffers() if not learned else ()
        frozen = [(key, value) for key, value in part.named_parameters() if key not in learned]
        for key, value in [*frozen, *buffers]:
            total.update(f"{name}.{key}".encode())
            if value.numel():
                total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def check_frozen(before: str, parts: Mapping[str, nn.Module]) -> None:
    """Raise ModelError where frozen weights are not, bit for bit, as they were."""
    if fingerprint(parts) != before:
        raise ModelError("weights that are frozen have changed: what was trained is not to be trusted, train it again")


def norms(learned: Mapping[str, Mapping[str, nn.Parameter]]) -> dict[str, float]:
    """The gradient's norm of each part."""
    found = {}
    for name, parameters in learned.items():
        squares = [value.grad.float().square().sum() for value in parameters.values() if value.grad is not None]
        found[name] = math.sqrt(float(torch.stack(squares).sum())) if squares else 0.0
    return found


class Flow:
    """Watches the first steps: each part that learns, and whose rate is not 0, must get a gradient in one of them."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        self.parts, self.silent, self.steps = parts, set[str](), 0

    def check(self, found: Mapping[str, float]) -> None:
        """found: the norms of a step. Raises ModelError where what is frozen has a gradient, or a part has none."""
        self.steps += 1
        if self.steps > _PATIENCE:
            return
        self.silent = {name for name, norm in found.items() if norm == 0} & (
            self.silent if self.steps > 1 else {*found}
        )
        for name, part in self.parts.items():
            if any(value.grad is not None for value in part.parameters() if not value.requires_grad):
                raise ModelError(f"{name} is frozen and has a gradient: leave its weights to the recipe")
        if self.steps == _PATIENCE and self.silent:
            name = sorted(self.silent)[0]
            raise ModelError(
                f"no gradient has reached the {name} in {_PATIENCE} steps: let the language model compute with "
                "gradients, and give the images more than 1 token"
            )


def gates(vlm: VLM) -> dict[str, float]:
    """How far the gates of late fusion are open, |tanh| of each layer's cross-attention."""
    if not isinstance(vlm.fusion, Late):
        return {}
    values: list[Tensor] = [block.get_parameter("attention_gate") for block in vlm.fusion.blocks]
    pairs = zip(vlm.fusion.places, values, strict=True)
    return {f"gate {place}": float(value.detach().tanh().abs().mean()) for place, value in pairs}
