"""Images and a question as a model's own inputs: through the chat template, or in the words it was trained with."""

from collections.abc import Sequence
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from regard.errors import DataError, ModelError, RegardError
from regard.vlm.opened import Opened

_WITHOUT_TEMPLATE = {  # {0}: the images' tokens; {1}: the question
    "llava": "USER: {0}\n{1} ASSISTANT:",
    "llava_next": "USER: {0}\n{1} ASSISTANT:",
    "paligemma": "{0}{1}",
}


def chat_inputs(
    vlm: Opened, processor: Any, images: Sequence[PIL.Image.Image], question: str, *, resize: bool = True
) -> dict[str, Any]:
    """What the processor returns for one prompt, on the model's device: the images first, then the question.

    resize: False for images that have the size that the model should see. Raises ModelError or DataError where the
    processor cannot make it.
    """
    if not callable(processor) or not hasattr(processor, "tokenizer"):
        raise ModelError(f"expected the model's processor, which takes images and text, got {type(processor).__name__}")
    from jinja2 import TemplateError

    options = {} if resize else {"images_kwargs": {"do_resize": False}}
    try:
        if getattr(processor, "chat_template", None):
            made = _templated(processor, images, question, options)
        else:
            made = _plain(vlm, processor, images, question, options)
    except RegardError:
        raise
    except (TemplateError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise DataError(f"{type(processor).__name__} cannot make a prompt of this: {''.join(reason)[:300]}") from error
    dtype = next(vlm.model.parameters()).dtype
    return {name: _moved(value, vlm.device, dtype) for name, value in made.items() if name != "labels"}


def _templated(processor: Any, images: Sequence[PIL.Image.Image], question: str, options: dict[str, Any]) -> Any:
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **({"processor_kwargs": options} if options else {}),
    )


def _plain(
    vlm: Opened, processor: Any, images: Sequence[PIL.Image.Image], question: str, options: dict[str, Any]
) -> Any:
    kind = vlm.config.model_type
    if kind not in _WITHOUT_TEMPLATE:
        raise ModelError(
            f"the processor of this {kind} model has no chat template, so it is not known how to put a question: "
            "set processor.chat_template, or add chat_template.jinja to the model's folder"
        )
    text = _WITHOUT_TEMPLATE[kind].format(processor.image_token * len(images), question)
    return processor(images=list(images), text=[text], return_tensors="pt", **options)


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype if torch.is_floating_point(value) else value.dtype)
