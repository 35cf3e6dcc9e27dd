"""The model inside whatever wraps it, and what has to hold before its inputs can be shortened."""

import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard.errors import DataError, ModelError
from regard.vlm import Family, family_of

OLDEST = (5, 19)  # 5.18 takes encoded images too, and gives beams of a prompt with two images the wrong ones


@dataclass(frozen=True, eq=False)
class Opened:
    """A vision-language model. model: without adapters' wrappers; base: without its head; text: its text config."""

    model: nn.Module
    base: nn.Module
    family: Family
    config: Any

    @property
    def text(self) -> Any:
        return self.config.get_text_config()

    @property
    def device(self) -> torch.device:
        """Where inputs go: where the first weights are that are in memory."""
        places = (parameter.device for parameter in self.model.parameters())
        return next((place for place in places if place.type != "meta"), torch.device("cpu"))

    @property
    def image_token(self) -> int:
        return self.config.image_token_id


def opened(model: nn.Module) -> Opened:
    """Find the Hugging Face model in `model`. Raises ModelError where there is none that can be shortened."""
    bare = _unwrapped(model)
    config = getattr(bare, "config", None)
    if config is None:
        raise ModelError(f"expected a Hugging Face vision-language model, got {type(model).__name__}")
    family = family_of(config)
    version = sys.modules["transformers"].__version__
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        raise ModelError(
            f"transformers {version} is too old to be given encoded images: pip install 'transformers>=5.19'"
        )
    if bare.training and any(getattr(module, "gradient_checkpointing", False) for module in bare.modules()):
        raise ModelError("the model is in training mode with gradient checkpointing: call model.eval() first")
    return Opened(bare, bare.base_model, family, config)  # pyright: ignore[reportArgumentType]


def _unwrapped(model: nn.Module) -> nn.Module:
    if hasattr(model, "_orig_mod"):  # of torch.compile
        model = model._orig_mod  # pyright: ignore[reportAssignmentType]
    peft = sys.modules.get("peft")
    wrapped = peft is not None and isinstance(model, peft.PeftModel)
    return model.get_base_model() if wrapped else model  # pyright: ignore[reportCallIssue]


def checked_inputs(vlm: Opened, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs as a dict of its own. Raises DataError where they cannot be shortened."""
    if not isinstance(inputs, Mapping):
        raise DataError(f"the inputs must be what the processor returns, a mapping, got {type(inputs).__name__}")
    given = {name: value for name, value in inputs.items() if value is not None}
    if "mm_encoder_outputs" in given:
        raise DataError("these inputs are shortened already: shorten the processor's own inputs")
    if "pixel_values_videos" in given:
        raise DataError("the inputs have a video: shorten takes images only")
    for name in ("vision_feature_layer", "vision_feature_select_strategy"):
        if name in given:
            raise DataError(f"{name} among the inputs is not followed: set model.config.{name}")
    for name in ("input_ids", "attention_mask", *vlm.family.encoder_inputs):
        if name in given and not isinstance(given[name], Tensor) and name != "image_sizes":
            got = type(given[name]).__name__
            raise DataError(f"{name} must be a tensor, got {got}: call the processor with return_tensors='pt'")
    if "pixel_values" not in given or not len(given["pixel_values"]):
        raise DataError("the inputs have no image (no pixel_values): there is nothing to shorten")
    for name in vlm.family.required:
        if name not in given:
            raise DataError(
                f"the inputs have no {name}, which the images of {vlm.config.model_type} need: take the processor's"
            )
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    if ids is None or ids.ndim != 2:
        raise DataError("the inputs need input_ids of shape (B, L): call the processor with return_tensors='pt'")
    if mask is not None and mask.shape != ids.shape:
        raise DataError(f"attention_mask must have the shape of input_ids {tuple(ids.shape)}, got {tuple(mask.shape)}")
    _check_devices(vlm, given)
    return given


def _check_devices(vlm: Opened, inputs: dict[str, Any]) -> None:
    places = {name: value.device for name, value in inputs.items() if isinstance(value, Tensor)}
    model = vlm.device
    spread = getattr(vlm.model, "hf_device_map", None) is not None  # its own hooks move what it is given
    wrong = [f"{name} on {place}" for name, place in places.items() if place != places["input_ids"]]
    if wrong or (not spread and places["input_ids"] != model):
        where = ", ".join(wrong) or f"input_ids on {places['input_ids']}"
        raise DataError(
            f"the inputs and the model ({model}) are on different devices ({where}): inputs.to(model.device)"
        )


def window_of(vlm: Opened) -> int | None:
    """Tokens that a layer of the language model sees at most; None where every layer sees all."""
    text = vlm.text
    kinds = getattr(text, "layer_types", None) or []
    if kinds and "sliding_attention" not in kinds:
        return None
    return getattr(text, "sliding_window", None)


def caution(vlm: Opened) -> str | None:
    """What cannot be promised of this model, in one line; None where all is exact."""
    window = window_of(vlm)
    if window is None:
        return None
    return (
        f"{vlm.config.model_type}'s language model attends within windows of {window} tokens: where prompt and answer "
        "are longer, a window with fewer tokens reaches further back, so the result is near, but not equal, to masking "
        "the dropped tokens"
    )


class Clock:
    """Seconds of each stage, after all the work that the device was given for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._last = self._now()

    def lap(self, stage: str) -> None:
        """The stage that ends now."""
        now = self._now()
        self.seconds[stage] = now - self._last
        self._last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
