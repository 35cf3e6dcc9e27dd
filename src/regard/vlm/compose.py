"""A vision-language model of parts: an eye, a mechanism as the bridge, a fusion, and any causal language model.

    tokens = eye(images);    K tokens an image = bridge(tokens, question, budget);    answer = language_model(fused)

The language model is never changed: what fusion does to its layers is done while it runs, and gone after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.errors import DataError, ModelError
from regard.eyes import Eye
from regard.tokens import Question, VisualTokens
from regard.vlm import bridges, fusion
from regard.vlm.bridges import Bridge, Bridged
from regard.vlm.fusion import Fusion
from regard.vlm.interleaved import IMAGE, UNLEARNED, Interleaved, Spliced, interleaved, spliced, without_images
from regard.vlm.together import asked_together, bridged_together, seen_together

Tokens = VisualTokens | Sequence[VisualTokens]

LEARNED = ("qformer", "resampler")  # mechanisms whose tokens are learned queries


@dataclass(frozen=True, eq=False)
class Output:
    """loss: the mean over what is to be learned, None where nothing is. logits: of the last tokens, from the one before
    the first that is to be learned. bridged: what the images became, None where there are none.
    """

    loss: Float[Tensor, ""] | None
    logits: Float[Tensor, "b t v"]
    bridged: Bridged | None


class VLM(nn.Module):
    """eye: what gives `VisualTokens`. mechanism: a name of `regard.vlm.bridges.catalogue`, or a `Bridge`.
    language_model: any causal language model of transformers; tokenizer: its. fusion: "early", "late" or "deep", a
    `Fusion`, or "hybrid": early, of learned queries. bridge_arguments, fusion_arguments: of those given by name.

    Raises ModelError for an unknown name or argument, for parts on two devices, or for a hybrid without queries.
    """

    def __init__(
        self,
        eye: Eye,
        mechanism: str | Bridge,
        language_model: nn.Module,
        tokenizer: Any,
        fusion: str | Fusion = "early",
        *,
        bridge_arguments: dict[str, Any] | None = None,
        fusion_arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.eye, self.language_model, self.tokenizer = eye, language_model, tokenizer
        config: Any = language_model.config
        given = dict(bridge_arguments or {})
        if isinstance(mechanism, str):
            self.bridge = bridges.load(mechanism, eye.width, config.hidden_size, eye.asked, **given)
        else:
            self.bridge = mechanism
        self.mechanism = mechanism if isinstance(mechanism, str) else mechanism.name
        if fusion == "hybrid" and self.mechanism not in LEARNED:
            raise ModelError(f"hybrid fusion needs learned queries ({' or '.join(LEARNED)}), got {self.mechanism!r}")
        self.fusion = _fusion(fusion, language_model, fusion_arguments or {})
        self.described = {"mechanism": self.mechanism, "bridge": given, "fusion": fusion, "fusing": fusion_arguments}
        like = next(language_model.parameters())
        self.bridge.to(like.device, like.dtype)
        self.fusion.to(like.device, like.dtype)
        _check_devices(eye, language_model)

    @property
    def device(self) -> torch.device:
        return next(self.language_model.parameters()).device

    def forward(
        self,
        prompts: Interleaved,
        tokens: Tokens = (),
        question: Question | None = None,
        budget: int | None = None,
    ) -> Output:
        """prompts: of a batch. tokens: of all its images, in order, in several parts where their grids are not one;
        question: of each image, what its prompt asks.
        budget: tokens an image. Raises as `Bridge.forward`, and DataError where images and tokens differ in number.
        """
        bridged, prompt, memory, shown = self._read(prompts, tokens, question, budget)
        learned = prompt.labels != UNLEARNED
        first = int(learned.any(dim=0).int().argmax()) if bool(learned.any()) else prompt.labels.shape[1]
        keep = min(prompt.labels.shape[1] - first + 1, prompt.labels.shape[1])
        with self.fusion.within(self.language_model, prompt, memory, shown):
            logits = self.language_model(
                inputs_embeds=prompt.embeddings,
                attention_mask=prompt.mask.long(),
                position_ids=self.fusion.positions(prompt),
                use_cache=False,
                logits_to_keep=keep,
            ).logits
        labels = prompt.labels[:, -keep:][:, 1:]
        loss = None
        if bool((labels != UNLEARNED).any()):
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=UNLEARNED)
        return Output(loss, logits, bridged)

    @torch.no_grad()
    def generate(
        self,
        prompts: Interleaved,
        tokens: Tokens = (),
        question: Question | None = None,
        budget: int | None = None,
        **generation: Any,
    ) -> Tensor:
        """New token ids, (B, T). generation: arguments of the model's own `generate`. The rest as for `forward`."""
        _, prompt, memory, shown = self._read(prompts, tokens, question, budget)
        if "pad_token_id" not in generation and self.tokenizer.pad_token_id is None:
            generation["pad_token_id"] = self.tokenizer.eos_token_id
        model: Any = self.language_model
        with self.fusion.within(model, prompt, memory, shown):
            return model.generate(
                inputs_embeds=prompt.embeddings,
                attention_mask=prompt.mask.long(),
                position_ids=self.fusion.positions(prompt),
                **generation,
            )

    def answer(
        self,
        images: Sequence[Any],
        texts: Sequence[str],
        budget: int | None = None,
        *,
        max_new_tokens: int = 32,
        **generation: Any,
    ) -> list[str]:
        """What the model says after each prompt. images: of each prompt an image or a list of them, in the order of its
        `<image>`s; a prompt without any gets its images first. Raises as `generate`.
        """
        several = [list(some) if isinstance(some, list | tuple) else [some] for some in images]
        if len(several) != len(texts):
            raise DataError(f"{len(texts)} prompts need as many images or lists of images, got {len(several)}")
        prompts, tokens, question = self.prepared(several, texts)
        ids = self.generate(prompts, tokens, question, budget, max_new_tokens=max_new_tokens, **generation)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def prepared(
        self, images: Sequence[Sequence[Any]], texts: Sequence[str], answers: Sequence[str] | None = None
    ) -> tuple[Interleaved, list[VisualTokens], Question | None]:
        """Prompts, the tokens of all images in parts of one grid, and what each image's prompt asks: for `forward`.

        images: PIL, of each prompt. answers: to be learned.
        """
        counts = [len(some) for some in images]
        whole = [_with_markers(text, count) for text, count in zip(texts, counts, strict=True)]
        prompts = interleaved(self.tokenizer, whole, counts, answers).to(self.device)
        flat = [image for some in images for image in some]
        if not flat:
            return prompts, [], None
        asks = [without_images(text) for text, count in zip(texts, counts, strict=True) for _ in range(count)]
        question = asked_together([self.eye.ask(text) for text in asks]) if self.eye.asked else None
        seen = [self.eye.look(image).to(self.device) for image in flat]
        parts = [seen_together(list(part)) for _, part in groupby(seen, lambda tokens: tokens.grid)]
        return prompts, parts, None if question is None else question.to(self.device)

    def _read(
        self, prompts: Interleaved, tokens: Tokens, question: Question | None, budget: int | None
    ) -> tuple[Bridged | None, Spliced, Tensor | None, Tensor | None]:
        """The prompts as the language model reads them, and the memory of each prompt's images where they are one."""
        words = self.language_model.get_input_embeddings()(prompts.ids)  # pyright: ignore[reportCallIssue]
        parts = [tokens] if isinstance(tokens, VisualTokens) else list(tokens)
        count, given = int(prompts.image.sum()), sum(len(part.features) for part in parts)
        if count != given:
            raise DataError(f"the prompts have {count} images and there are tokens of {given}: give one each")
        if not parts:
            return None, spliced(prompts, words), None, None
        bridged, first = [], 0
        for part in parts:
            rows = torch.arange(first, first + len(part.features), device=part.features.device)
            bridged.append(self.bridge(part, None if question is None else question.images(rows), budget))
            first += len(rows)
        bridged = bridged_together(bridged)
        if self.fusion.in_prompt:
            return bridged, spliced(prompts, words, bridged.features, bridged.mask), None, None
        return bridged, spliced(prompts, words), *_memory(prompts, bridged)


def _memory(prompts: Interleaved, bridged: Bridged) -> tuple[Tensor, Tensor]:
    """Each prompt's images, (B, I, K, D), and which of their tokens are real, (B, I, K)."""
    counts = prompts.image.sum(dim=1)
    row = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(dim=0) - counts)[row]
    shape = (len(counts), int(counts.max()))
    memory = bridged.features.new_zeros(*shape, *bridged.features.shape[1:]).index_put((row, place), bridged.features)
    return memory, bridged.mask.new_zeros(*shape, bridged.mask.shape[1]).index_put((row, place), bridged.mask)


def _with_markers(text: str, images: int) -> str:
    return text if IMAGE in text else IMAGE * images + text


def _fusion(given: str | Fusion, language_model: nn.Module, arguments: dict[str, Any]) -> Fusion:
    if isinstance(given, Fusion):
        return given
    return fusion.load("early" if given == "hybrid" else given, language_model, **arguments)


def _check_devices(eye: Eye, language_model: nn.Module) -> None:
    if not isinstance(eye, nn.Module):
        return
    places = {next(iter(part.parameters())).device for part in (eye, language_model)}
    if len(places) > 1:
        where = " and ".join(sorted(map(str, places)))
        raise ModelError(f"the eye and the language model are on {where}: move both to one device first")
