"""Tokenizers and image processors for the tiny models, saved beside them as the hub has them."""

import json
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

import tiny_vlms
from tiny_vlms import END, FAKE, GLOBAL, IMAGE, NEWLINE, PAD, START, VOCAB

WORDS = "where is the cat what colour has it user: assistant: USER: ASSISTANT: a cup of coffee and red blue ?".split()
PICTURE = {"qwen": "<|vision_start|><|image_pad|><|vision_end|>", "internvl": "<IMG_CONTEXT>\n"}
TILES = {f"<row_{row + 1}_col_{column + 1}>": 40 + 6 * row + column for row in range(6) for column in range(6)}
SPECIAL: dict[str, dict[str, int]] = {
    "qwen": {"<|image_pad|>": IMAGE, "<|video_pad|>": 93, "<|vision_start|>": START, "<|vision_end|>": END},
    "internvl": {"<IMG_CONTEXT>": IMAGE, "<img>": START, "</img>": END, "<video>": 93},
    "tiles": {
        "<image>": IMAGE,
        "<fake_token_around_image>": FAKE,
        "<global-img>": GLOBAL,
        "<end_of_utterance>": 92,
        **TILES,
    },
    "plain": {"<image>": IMAGE},
}


def kin(name: str) -> str:
    if "qwen" in name:
        return "qwen"
    return "tiles" if name in ("smolvlm", "idefics3") else name if name == "internvl" else "plain"


def tokenizer(name: str) -> Any:
    """One word a token; what is not a word is `<unk>`."""
    special = {"<pad>": PAD, "<bos>": 1, "<eos>": 2, "<unk>": 3, **SPECIAL[kin(name)]}
    fixed = {**special, "\n": NEWLINE}
    free = [i for i in range(VOCAB) if i not in fixed.values()]
    words = [*WORDS, *(f"w{i}" for i in range(VOCAB))]
    vocabulary = fixed | dict(zip(words, free, strict=False))
    made = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = Split(Regex(r"\n|\S+"), "removed", invert=True)
    more: dict[str, Any] = {"extra_special_tokens": list(SPECIAL[kin(name)])}
    if name == "internvl":
        names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
        more = {"extra_special_tokens": {**names, "video_token": "<video>"}}
    ends = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **ends, **more)


def image_processor(name: str) -> Any:
    kind: Any
    seen: Any
    if name in ("llava", "llava_next"):
        grids: dict[str, Any] = {} if name == "llava" else {"image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]]}
        kind = transformers.CLIPImageProcessor if name == "llava" else transformers.LlavaNextImageProcessor
        return kind(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, **grids)
    if "qwen" in name:
        return transformers.Qwen2VLImageProcessor(
            patch_size=4, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 40 * 40}
        )
    if name in ("smolvlm", "idefics3"):
        kind = transformers.SmolVLMImageProcessor if name == "smolvlm" else transformers.Idefics3ImageProcessor
        return kind(size={"longest_edge": 48}, max_image_size={"longest_edge": 24})
    if name == "internvl":
        return transformers.GotOcr2ImageProcessor(size={"height": 24, "width": 24}, crop_to_patches=True, max_patches=6)
    seen = transformers.SiglipImageProcessor(size={"height": 28, "width": 28})
    seen.image_seq_length = 49
    return seen


SETTINGS = {
    "llava": {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    "llava_next": {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    "smolvlm": {"image_seq_len": 9},
    "idefics3": {"image_seq_len": 9},
    "internvl": {"image_seq_length": 9},
}
WITHOUT_TEMPLATE = ("llava", "paligemma")


def template(name: str) -> str:
    picture = PICTURE.get(kin(name), "<image>").replace("\n", "\\n")
    content = f"{{% if c['type'] == 'image' %}}{{{{ '{picture}' }}}}{{% else %}} {{{{ c['text'] }}}}{{% endif %}}"
    return (
        "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
        + content
        + "{% endfor %}{% endfor %}{% if add_generation_prompt %} assistant:{% endif %}"
    )


def build(name: str, folder: Path) -> Path:
    """A tiny model with all that belongs to it, saved."""
    place = tiny_vlms.build(name, folder)
    tokenizer(name).save_pretrained(place)
    image_processor(name).save_pretrained(place)
    if name in SETTINGS:
        (place / "processor_config.json").write_text(json.dumps(SETTINGS[name]))
    if name not in WITHOUT_TEMPLATE:
        (place / "chat_template.jinja").write_text(template(name))
    return place
