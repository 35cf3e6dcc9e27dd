"""The parts of a vision-language model by their names: eyes, language models, tokenizers."""

import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
from torch import nn

from regard.errors import ModelError, loading
from regard.eyes import SizedEye

PACKAGED = ("embedded", "pocket")  # eyes that install with a package


def named_eye(name: str, device: torch.device, arguments: dict[str, Any]) -> SizedEye:
    """The eye "embedded" or "pocket", or a vision tower of Hugging Face by its folder or its name on the hub, frozen.

    arguments: of the eye, as `HuggingFaceEye.load` has them. Raises ModelError where it cannot be loaded.
    """
    with loading(f"the eye {name!r}"):
        if name in PACKAGED:
            return eye_kind(name)(**arguments)
        return eye_kind(name)(name, **{"device": device, **arguments}).requires_grad_(False)


def eye_kind(name: str) -> Callable[..., Any]:
    """What makes the eye of this name, from its arguments; of Hugging Face's, from its name first."""
    if name == "embedded":
        from regard.eyes.embedded import EmbeddedEye

        return EmbeddedEye
    if name == "pocket":
        from regard.eyes.pocket import PocketEye

        return PocketEye
    from regard.eyes.huggingface import HuggingFaceEye

    return HuggingFaceEye.load


def arguments_of(name: str) -> dict[str, Any]:
    """The arguments of the eye of this name, as they are where none is given."""
    known = inspect.signature(eye_kind(name)).parameters.values()
    return {each.name: each.default for each in known if each.default is not inspect.Parameter.empty}


def described_eye(eye: SizedEye, name: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
    """What says which eye it is, as JSON has it. name: by which it was asked for; None: it was given as it is.

    Raises ModelError for arguments that a file cannot keep.
    """
    if name is not None and name not in PACKAGED:
        kept = {key: value for key, value in arguments.items() if key != "device"}  # of this machine alone
        return {"kind": "huggingface", "name_or_path": name, **plain("the eye", kept)}
    kind = _packaged(eye)
    if kind is not None and is_dataclass(eye) and not isinstance(eye, type):
        fields = asdict(eye)
        if not any(isinstance(value, dict) for value in fields.values()):
            return {"kind": kind, **fields}
        if eye == type(eye)():
            return {"kind": kind}
    return {"kind": "given", "name": eye.name, "width": eye.width, "asked": eye.asked}


def plain(what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON has them: sequences as lists, dtypes and paths as text. what: they are of.

    Raises ModelError for what is none of these.
    """
    found = {}
    for name, value in arguments.items():
        if isinstance(value, torch.dtype | os.PathLike):
            value = str(value).removeprefix("torch.")
        elif isinstance(value, tuple | range | list):
            value = list(value)
        try:
            found[name] = json.loads(json.dumps(value))
        except TypeError as error:
            raise ModelError(f"{what}: {name} cannot be saved with the model, got {value!r}") from error
    return found


def _packaged(eye: SizedEye) -> str | None:
    home, _, name = type(eye).__module__.rpartition(".")
    return name if home == "regard.eyes" and name in PACKAGED else None


def named_language_model(
    name: str | os.PathLike, device: torch.device, dtype: str | torch.dtype = "auto", revision: str | None = None
) -> nn.Module:
    """A causal language model of Hugging Face by its folder or its name on the hub, frozen, ready to answer.

    Raises ModelError where it cannot be loaded. Code that comes with a model is never run.
    """
    with loading(f"the language model {str(name)!r}"):
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, revision=revision, trust_remote_code=False)
        return model.requires_grad_(False).eval().to(device)


def named_tokenizer(name: str | os.PathLike) -> Any:
    """The tokenizer in a folder, or of a model by its name on the hub. Raises ModelError where it cannot be loaded."""
    with loading(f"the tokenizer {str(name)!r}"):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def all_arguments(what: str, kind: type, first: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a class after its `first`: those given, and the defaults of the others. Numbers among them count
    something, and are 1 or more. Raises ModelError.
    """
    try:
        bound = inspect.signature(kind).bind(*[None] * first, **arguments)
    except TypeError as error:
        raise ModelError(f"{what}: {error}") from error
    bound.apply_defaults()
    whole = dict(list(bound.arguments.items())[first:])
    for name, value in whole.items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ModelError(f"{what}: {name} must be 1 or more, got {value}")
    return whole


def check_devices(eye: Any, language_model: nn.Module) -> None:
    """Raise ModelError where the eye is on another device than the language model."""
    place = next(eye.parameters(), None) if isinstance(eye, nn.Module) else None
    where = next(language_model.parameters()).device
    if place is not None and place.device != where:
        raise ModelError(f"the eye is on {place.device} and the language model on {where}: move both to one device")
