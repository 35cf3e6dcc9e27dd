"""Tiny causal language models with random weights, a tokenizer of words, and an eye that sees what it is told."""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import nn

from regard.tokens import Question, VisualTokens

WORDS = "what is this a red blue green cat dog one two three near the left right yes no : ? .".split()
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
VOCAB = 29
NAMES = ("llama", "qwen2", "gpt2", "opt")


def tokenizer(bos: bool = True, eos: bool = True, pad: bool = True) -> Any:
    """Of WORDS; with what it puts before a text, at its end and in its gaps, or without."""
    inner = Tokenizer(WordLevel({word: place for place, word in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    if bos:
        inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # pyright: ignore
    given: dict[str, Any] = {"bos_token": "<s>" if bos else None, "eos_token": "</s>" if eos else None}
    given |= {"pad_token": "<pad>" if pad else None}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **given)


def config(name: str, layers: int = 3) -> Any:
    ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 6,
        "vocab_size": VOCAB,
        **ends,
    }
    near: dict[str, Any] = {"intermediate_size": 40, "num_key_value_heads": 2, "max_position_embeddings": 128}
    if name == "llama":
        return transformers.LlamaConfig(**sizes, **near)
    if name == "qwen2":
        return transformers.Qwen2Config(**sizes, **near)
    if name == "gpt2":
        return transformers.GPT2Config(n_embd=24, n_layer=layers, n_head=6, n_positions=128, vocab_size=VOCAB, **ends)
    if name == "opt":
        return transformers.OPTConfig(**sizes, ffn_dim=40, max_position_embeddings=128, word_embed_proj_dim=16)
    assert name == "bloom"
    return transformers.BloomConfig(hidden_size=24, n_layer=layers, n_head=6, vocab_size=VOCAB, **ends)


def language_model(name: str, layers: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """Random and far from degenerate: what it says depends on what it reads."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config(name, layers)).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.normal_(0, 0.4)
    return model.requires_grad_(False).to(dtype)


@dataclass(frozen=True)
class ToyEye:
    """A token for every 8 x 8 pixels of an image, the same for the same image; a question is its number of words."""

    width: int = 11
    asked: int = 5

    @property
    def name(self) -> str:
        return "toy"

    def look(self, image: Image.Image) -> VisualTokens:
        columns, rows = image.width // 8, image.height // 8
        small = image.convert("RGB").resize((columns, rows))
        values = torch.tensor(list(small.tobytes()), dtype=torch.float32).view(1, rows * columns, 3) / 255
        spread = torch.linspace(1, 9, 3 * self.width).view(3, self.width)
        place = torch.arange(rows * columns, dtype=torch.float32)[None, :, None]
        features = (values @ spread + place * torch.linspace(0.1, 1, self.width)).sin()
        return VisualTokens.from_grid(features, (rows, columns), aligned=features[..., : self.asked])

    def ask(self, text: str) -> Question:
        if not text.strip():
            raise ValueError("the toy eye cannot hear nothing")
        return Question(torch.full((1, 1, self.asked), len(text.split()) / 7.0).cos())


class ToyTower(nn.Module):
    """An eye that can be trained."""

    name = "tower"
    asked = 0

    def __init__(self, width: int = 11) -> None:
        super().__init__()
        self.width, self.eye, self.map = width, ToyEye(width), nn.Linear(width, width)

    def look(self, image: Image.Image) -> VisualTokens:
        seen = self.eye.look(image)
        return VisualTokens(self.map(seen.features).detach(), seen.boxes, grid=seen.grid)

    def ask(self, text: str) -> Question:
        raise AssertionError("it hears nothing")


def tokens(
    images: int, rows: int = 3, columns: int = 4, width: int = 11, asked: int = 5, seed: int = 1
) -> VisualTokens:
    """With all that any allocator needs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    n = rows * columns
    return VisualTokens.from_grid(
        draw(images, n, width),
        (rows, columns),
        aligned=draw(images, n, asked),
        keys=draw(images, n, 7),
        scores={"attention": draw(images, n).softmax(dim=1)},
        segment=torch.zeros(images, n, dtype=torch.long),
    )


def question(images: int, asked: int = 5, seed: int = 2) -> Question:
    return Question(torch.randn(images, 2, asked, generator=torch.Generator().manual_seed(seed)))
