"""A vision-language model as an eye: its own encoder looks, its own word embeddings hear the question."""

from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import nn

from regard.allocation import Allocation
from regard.tokens import Question, VisualTokens
from regard.vlm.chat import chat_inputs
from regard.vlm.opened import opened
from regard.vlm.processors import model_name
from regard.vlm.prompt import in_words
from regard.vlm.shorten import shorten


class VlmEye:
    """An Eye for `regard.look` made of a Hugging Face vision-language model.

    Tokens are as the language model gets them; `aligned` are unit vectors of them, and a question is unit vectors of
    its words' input embeddings. sign: -1 turns relevance round, where `regard calibrate` finds that it points away.
    """

    def __init__(self, model: nn.Module, processor: Any, sign: Literal[1, -1] = 1) -> None:
        self._model = model
        self._vlm = opened(model)
        self._processor = processor
        self._sign = sign

    @property
    def name(self) -> str:
        """What it is called in records."""
        return f"{self._vlm.config.model_type} {model_name(self._vlm.config.name_or_path)}".strip()

    @torch.no_grad()
    def look(self, image: Image) -> VisualTokens:
        """Encode one image: tokens with a batch of 1, with keys and attention."""
        inputs = chat_inputs(self._vlm, self._processor, [image], "image")
        return shorten(self._model, inputs, _All(), keep=1.0, question="image", processor=self._processor).tokens[0]

    def ask(self, text: str) -> Question:
        """The question in the embeddings of the language model's words, with a batch of 1."""
        return in_words(self._vlm, [text], self._processor, self._sign)


class _All:
    needs = ("question", "keys", "scores:attention")

    def allocate(self, tokens: VisualTokens, question: Question | None, budget: int) -> Allocation:
        batch, n, _ = tokens.features.shape
        return Allocation.identity(batch, n, device=tokens.features.device)
