"""A model by its name, and the prompt that it is examined with."""

import json
import os
from dataclasses import dataclass
from typing import Any

import PIL.Image
from PIL import ImageDraw
from torch import nn

from regard.errors import ModelError, RegardError, loading
from regard.vlm import catalogue
from regard.vlm.chat import chat_inputs
from regard.vlm.compose import VLM
from regard.vlm.opened import Opened
from regard.vlm.processors import checked_device, load_config, load_model, load_processor, model_folder
from regard.vlm.saved import CONFIG, FORMAT

QUESTION = "What is in this picture, and which colour is each thing?"
_OWN: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True, eq=False)
class Subject:
    """inputs: None where they could not be made, and why."""

    model: nn.Module
    inputs: Any
    why: str = "no inputs were given"


def picture() -> PIL.Image.Image:
    """What is shown where no image is given: a red disc, a blue square and a green triangle on a shaded ground."""
    side = 448
    shades = [PIL.Image.linear_gradient("L").rotate(turn).resize((side, side)) for turn in (0, 90, 180)]
    ground = PIL.Image.merge("RGB", shades)
    image = PIL.Image.blend(ground, PIL.Image.new("RGB", (side, side), "white"), 0.4)
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 50, 180, 190), "red")
    draw.rectangle((260, 60, 400, 200), "blue")
    draw.polygon([(130, 400), (310, 400), (220, 250)], "green")
    return image


def subject(
    name: str | os.PathLike | None,
    image: PIL.Image.Image | None = None,
    question: str = QUESTION,
    device: str = "auto",
    dtype: str = "auto",
) -> Subject:
    """The model of this name, with inputs. name: a folder or a name on the hub of a vision-language or language model
    of Hugging Face, the folder of a `regard.VLM`, or "pocket" (and None). Raises ModelError where there is none.
    """
    shown = image or picture()
    if name is None or name == "pocket":
        from regard.vlm.pocket import pocket

        return _composed(pocket().vlm("relevance").eval(), shown, question)
    folder = model_folder(name)
    if _is_ours(folder / CONFIG):
        return _composed(VLM.from_pretrained(folder, device=device), shown, question)
    config = load_config(folder)
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return _seeing(folder, config, shown, question, device, dtype)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return _reading(folder, question, device, dtype)
    raise ModelError(
        f"a model of type {config.model_type!r} cannot be examined: give a vision-language or a causal language model"
    )


def seeing_model(name: str | os.PathLike, device: str = "auto", dtype: str = "auto") -> tuple[nn.Module, Any]:
    """A vision-language model of Hugging Face with its processor, or a `regard.VLM` and None. Raises ModelError."""
    folder = model_folder(name)
    if _is_ours(folder / CONFIG):
        return VLM.from_pretrained(folder, device=device).eval(), None
    config = load_config(folder)
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ModelError(f"a model of type {config.model_type!r} sees no image: give a vision-language model")
    return _seeing_model(folder, config, device, dtype), _seeing_processor(folder, config)


def _is_ours(path: Any) -> bool:
    try:
        return json.loads(path.read_text()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def _composed(vlm: VLM, image: PIL.Image.Image, question: str) -> Subject:
    return Subject(vlm, vlm.prepared([[image]], [question]))


def _seeing(folder: Any, config: Any, image: Any, question: str, device: str, dtype: str) -> Subject:
    model: Any = _seeing_model(folder, config, device, dtype)
    try:
        processor = _seeing_processor(folder, config)
        opened = Opened(model, model.base_model, None, config)  # pyright: ignore
        return Subject(model, chat_inputs(opened, processor, [image], question))
    except RegardError as error:
        return Subject(model, None, f"there are no inputs, as {error}")


def _seeing_model(folder: Any, config: Any, device: str, dtype: str) -> nn.Module:
    if config.model_type in catalogue():
        return load_model(folder, dtype=dtype, device=device)
    with loading(f"the model in {str(folder)!r}"):
        from transformers import AutoModelForImageTextToText

        made: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, **_OWN)
        return made.eval().to(checked_device(device))


def _seeing_processor(folder: Any, config: Any) -> Any:
    if config.model_type in catalogue():
        return load_processor(folder)
    with loading(f"the processor in {str(folder)!r}"):
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(folder, **_OWN)


def _reading(folder: Any, question: str, device: str, dtype: str) -> Subject:
    from regard.vlm.parts import named_language_model, named_tokenizer

    model = named_language_model(folder, checked_device(device), dtype).requires_grad_(True)
    try:
        tokenizer = named_tokenizer(folder)
    except RegardError as error:
        return Subject(model, None, f"there are no inputs, as {error}")
    made = tokenizer(question, return_tensors="pt").to(next(model.parameters()).device)
    return Subject(model, {name: made[name] for name in ("input_ids", "attention_mask")})
