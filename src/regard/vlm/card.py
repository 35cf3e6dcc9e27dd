"""The model card of a vision-language model of parts: what it is made of, what was trained, how to use it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from regard.vlm.compose import VLM

_CARD = """---
library_name: regard
pipeline_tag: image-text-to-text
tags:
{tags}{bases}---

# A vision-language model made with regard

| part | |
|---|---|
| eye | {eye} |
| mechanism | {mechanism} |
| fusion | {fusion} |
| language model | {language_model} |

Saved here: {trained}.

```python
import regard
from PIL import Image

model = regard.VLM.from_pretrained("THIS_REPOSITORY"{give})
print(model.answer([Image.open("photo.jpg")], ["What is in the picture?"], budget=64))
```

`budget` is the number of visual tokens that an image may have. Neither a licence nor figures are given here: they are
for who publishes the model to add.
"""


def card(vlm: "VLM", config: dict[str, Any]) -> str:
    """The text of README.md. config: as it is saved."""
    eye, said = config["eye"], config["language_model"]
    named = [eye.get("name_or_path"), said.get("name_or_path")]
    bases = [name for name in named if name and not Path(name).exists()]
    parts: dict[str, Any] = {"the bridge": vlm.bridge, "the fusion": vlm.fusion}
    if config["eye_weights"]:
        parts["the eye"] = vlm.eye
    counts = [f"{name} ({_size(part)} parameters)" for name, part in parts.items() if _size(part)]
    counts += ["the language model"] if "name_or_path" not in said else []
    counts += ["an adapter of the language model"] if config["adapter"] else []
    fusion = (config["fusion"] or {"name": vlm.fusion.name})["name"]
    model = type(vlm.language_model).__name__ if "name_or_path" not in said else f"`{said['name_or_path']}`"
    return _CARD.format(
        tags="".join(f"- {tag}\n" for tag in ("regard", "vision-language-model", vlm.mechanism, fusion)),
        bases="base_model:\n" + "".join(f"- {name}\n" for name in bases) if bases else "",
        eye=f"`{eye.get('name_or_path') or vlm.eye.name}`",
        mechanism=f"`{vlm.mechanism}`",
        fusion=f"`{fusion}`",
        language_model=model,
        trained=", ".join(counts),
        give=", eye=your_eye" if eye["kind"] == "given" else "",
    )


def _size(module: nn.Module) -> str:
    count = sum(value.numel() for value in module.parameters())
    return f"{count:,}" if count else ""
