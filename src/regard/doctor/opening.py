"""The model in whatever wraps it, and the modules that tell what it reads."""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from regard.errors import ModelError
from regard.vlm.compose import VLM


@dataclass(frozen=True, eq=False)
class Patient:
    """A model to look into. model: without adapters' wrappers. callers: the modules that are called one within the
    other, the last of them `decoder`, the language model's; empty, and None, where a model has none.
    """

    model: nn.Module
    callers: tuple[nn.Module, ...]
    decoder: nn.Module | None
    config: Any
    vlm: VLM | None = None

    @property
    def device(self) -> torch.device:
        places = (parameter.device for parameter in self.model.parameters())
        return next((place for place in places if place.type != "meta"), torch.device("cpu"))

    @property
    def image_token(self) -> int | None:
        names = ("image_token_id", "image_token_index")
        return next((value for name in names if (value := getattr(self.config, name, None)) is not None), None)


def patient(model: nn.Module) -> Patient:
    """Find the model in `model`. Raises ModelError for one that is compiled, or cannot be looked into."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a model to capture, got {type(model).__name__}")
    compiled = next((name for name, module in model.named_modules() if _compiled(module)), None)
    if compiled is not None:
        where = f"its {compiled}" if compiled else type(model).__name__
        raise ModelError(
            f"{where} is compiled, and compiled code cannot be watched: give the model before torch.compile"
        )
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise ModelError(
            "the model is in training mode with gradient checkpointing, which runs layers twice: model.eval()"
        )
    vlm = model if isinstance(model, VLM) else None
    bare: Any = _bare(model if vlm is None else vlm.language_model)
    config = getattr(bare, "config", None)
    if config is None or not hasattr(bare, "get_decoder"):
        return Patient(model, (), None, config)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(bare).__name__} has an encoder and a decoder, whose columns differ: capture one of them"
        )
    decoder = bare.get_decoder()
    return Patient(bare if vlm is None else vlm, (bare, bare.base_model, decoder), decoder, config, vlm)


def _bare(model: nn.Module) -> nn.Module:
    peft = sys.modules.get("peft")
    return model.get_base_model() if peft is not None and isinstance(model, peft.PeftModel) else model  # pyright: ignore


def _compiled(module: nn.Module) -> bool:
    return (
        hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
    )
