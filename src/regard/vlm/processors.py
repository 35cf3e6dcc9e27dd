"""Models and processors of Hugging Face, from a folder or by their name on the hub, without torchvision.

Code that comes with a model is never run (`trust_remote_code` is off). transformers has no video processor without
torchvision and makes no processor that lacks one, so such processors are made here from their parts, for images only.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regard.errors import ModelError, first_line, loading
from regard.vlm import family_of

_NEEDED = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors")
_TWICE = ("consolidated*", "original/*")  # the same weights in another form
_OWN: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def model_folder(name: str | os.PathLike) -> Path:
    """The folder of a model: the one named, or the hub's, downloaded where it is not yet in the cache.

    Raises ModelError where there is none.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(f"the model {str(name)!r} is a file: give the folder that holds its config.json")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    offers: dict[str, Any] = {"allow_patterns": list(_NEEDED), "ignore_patterns": list(_TWICE)}
    try:
        cached = _cached(str(name), offers)
        return cached or Path(snapshot_download(str(name), **offers))
    except HFValidationError as error:
        raise ModelError(f"there is no model folder {str(name)!r}, and no model of the hub is named so") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"there is no model folder {str(name)!r} here and no whole copy in the cache, and the hub cannot be "
            "reached: check the name, or download it where there is a network"
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no answer")
        raise ModelError(
            f"there is no model folder {str(name)!r} here and the hub gives no such model ({status}): check the name; "
            "a model behind a licence needs `hf auth login`"
        ) from error
    except OSError as error:
        raise ModelError(f"the model {str(name)!r} cannot be downloaded: {first_line(error)}") from error


def _cached(name: str, offers: dict[str, Any]) -> Path | None:
    """The folder in the cache where it has what a model needs."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True, **offers))
    except LocalEntryNotFoundError:
        return None
    whole = (folder / "config.json").exists() and any(folder.glob("tokenizer*")) and any(folder.glob("*.safetensors"))
    return folder if whole else None


def model_name(folder: str | os.PathLike) -> str:
    """What a model is called: its hub name where the folder is the hub's cache, else the folder's name."""
    path = Path(folder)
    cached = [part for part in path.parts if part.startswith("models--")]
    return cached[-1].removeprefix("models--").replace("--", "/") if cached else path.name


def load_config(name: str | os.PathLike) -> Any:
    """The configuration of a model, none of its weights. Raises ModelError where there is none."""
    return _config(model_folder(name))


def load_model(name: str | os.PathLike, *, dtype: str | torch.dtype = "auto", device: str = "auto") -> nn.Module:
    """A vision-language model, ready to answer. dtype: "auto" is that of its files. device: "auto" is a GPU if any.

    Raises ModelError where there is none, or none that can be shortened.
    """
    place = checked_device(device)
    folder = model_folder(name)
    config = _config(folder)
    family_of(config)
    with loading(f"the model in {str(folder)!r}"):
        from transformers import AutoModelForImageTextToText

        model: Any = AutoModelForImageTextToText.from_pretrained(folder, config=config, dtype=dtype, **_OWN)
        return model.eval().to(place)


def load_processor(name: str | os.PathLike) -> Any:
    """The processor of a vision-language model, for images; one of videos only where torchvision is installed.

    Raises ModelError where there is none.
    """
    folder = model_folder(name)
    config = _config(folder)
    family_of(config)
    with loading(f"the processor in {str(folder)!r}"):
        from transformers import PROCESSOR_MAPPING, AutoProcessor
        from transformers.utils.import_utils import is_torchvision_available

        kind: Any = PROCESSOR_MAPPING.get(type(config), None)
        if kind is None or "video_processor" not in kind.get_attributes() or is_torchvision_available():
            return AutoProcessor.from_pretrained(folder, **_OWN)
        return _for_images(kind, folder)


def _for_images(kind: Any, folder: Path) -> Any:
    """A processor without the part for videos."""
    from transformers import AutoImageProcessor, AutoTokenizer

    loaders = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
    parts = [
        loaders[name].from_pretrained(folder, **_OWN) if name in loaders else None for name in kind.get_attributes()
    ]
    settings, _ = kind.get_processor_dict(folder, local_files_only=True)
    settings.pop("video_processor", None)
    return images_only(kind).from_args_and_dict(parts, settings)


@cache
def images_only(kind: Any) -> Any:
    """A processor class like `kind`, which stays as it is, without the part for videos."""
    from transformers import ProcessorMixin

    parts = [name for name in kind.get_attributes() if name != "video_processor"]
    changed = {
        "get_attributes": classmethod(lambda cls: parts),
        "apply_chat_template": ProcessorMixin.apply_chat_template,  # SmolVLM's own asks the video processor
        "__module__": kind.__module__,
    }
    return type(kind.__name__, (kind,), changed)


def checked_device(device: str) -> torch.device:
    """Raises ModelError where there is no such device."""
    gpu = torch.cuda.is_available()
    try:
        place = torch.device(("cuda" if gpu else "cpu") if device == "auto" else device)
    except RuntimeError as error:
        raise ModelError(f"no device is named {device!r}: give auto, cpu or cuda") from error
    if place.type == "cuda" and (not gpu or (place.index or 0) >= torch.cuda.device_count()):
        raise ModelError(f"there is no GPU {device!r} that torch can use: give --device cpu, or auto")
    return place


def _config(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise ModelError(f"the folder {str(folder)!r} has no config.json: it holds no model")
    if b'"regard-vlm"' in (folder / "config.json").read_bytes():
        raise ModelError(f"{str(folder)!r} is a model of parts: VLM.from_pretrained loads it, and its `answer` answers")
    with loading(f"the configuration in {str(folder)!r}"):
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(folder, **_OWN)
