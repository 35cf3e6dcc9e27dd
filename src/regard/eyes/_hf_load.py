"""A vision model of Hugging Face from a folder or by its name on the hub, its image processor and its tokenizer.

Code that comes with a model is never run. Of BLIP-2 the vision tower alone is read.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from regard.errors import ModelError, loading
from regard.eyes._hf_towers import SUPPORTED

_TWO_TOWERS = ("clip", "siglip", "siglip2")
_CLASSES = {
    "clip": "CLIPModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2": "Siglip2Model",
    "siglip2_vision_model": "Siglip2VisionModel",
    "blip-2": "Blip2VisionModel",
    "blip_2_vision_model": "Blip2VisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "vit": "ViTModel",
    "swin": "SwinModel",
    "convnext": "ConvNextModel",
    "convnextv2": "ConvNextV2Model",
}
_UNUSED = ("pooler", "mask_token")  # a checkpoint may lack them


class Loaded(NamedTuple):
    model: Any
    processor: Any
    tokenizer: Any


def loaded(name: str | os.PathLike, dtype: str | torch.dtype, device: str | torch.device, revision: str) -> Loaded:
    """dtype: "auto" is that of the files. device: "auto" is a GPU if any. Raises ModelError."""
    import transformers

    folder = Path(name).expanduser()
    source = str(folder) if folder.exists() else str(name)
    own = {"revision": revision, "trust_remote_code": False}
    with loading(f"the configuration of {source!r}"):
        config = transformers.AutoConfig.from_pretrained(source, **own)
    if config.model_type not in _CLASSES:
        raise ModelError(f"the model {source!r} is of type {config.model_type}: take one of {SUPPORTED}")
    kind = getattr(transformers, _CLASSES[config.model_type])
    options: dict[str, Any] = {"add_pooling_layer": False} if config.model_type == "vit" else {}
    if config.model_type == "blip-2":
        config, options = config.vision_config, {"key_mapping": {r"^vision_model\.": ""}}
    with loading(f"the model of {source!r}"), _without_report(transformers):
        made = kind.from_pretrained(source, config=config, dtype=dtype, output_loading_info=True, **own, **options)
        model, info = made
    missing = sorted(key for key in info["missing_keys"] if not any(part in key for part in _UNUSED))
    if missing:
        raise ModelError(f"the files of {source!r} lack {len(missing)} of the weights, such as {missing[0]}")
    with loading(f"the image processor of {source!r}"):
        processor = transformers.AutoImageProcessor.from_pretrained(source, **own)
    tokenizer = None
    if config.model_type in _TWO_TOWERS:
        with loading(f"the tokenizer of {source!r}"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **own)
    with loading(f"on the device {device}, the model of {source!r}"):
        place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        return Loaded(model.eval().to(place), processor, tokenizer)


@contextmanager
def _without_report(transformers: Any) -> Iterator[None]:
    """Without the list of weights that are in the files and not wanted; those that lack are asked for above."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
