"""A vision-language model of parts: an eye, a mechanism as the bridge, a fusion, and any causal language model.

    tokens = eye(images);    K tokens an image = bridge(tokens, question, budget);    answer = language_model(fused)

The language model is never changed: what fusion does to its layers is done while it runs, and gone after it.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.errors import DataError, ModelError
from regard.eyes import SizedEye
from regard.tokens import Question, VisualTokens
from regard.vlm import bridges, saved
from regard.vlm import fusion as fusions
from regard.vlm.bridges import Bridge, Bridged, bridged_together
from regard.vlm.fusion import Fusion
from regard.vlm.fusion.fusion import decoder_of, learned_positions, takes_positions, words_of
from regard.vlm.interleaved import IMAGE, UNLEARNED, Interleaved, Spliced, Splicer, interleaved, without_images
from regard.vlm.parts import check_devices, described_eye, named_eye, named_language_model, named_tokenizer, plain
from regard.vlm.processors import checked_device
from regard.vlm.together import asked_together, seen_together

Tokens = VisualTokens | Sequence[VisualTokens] | Bridged

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
    """eye: what gives `VisualTokens`, "embedded", or a vision tower of Hugging Face by its folder or name. mechanism: a
    name of `regard.vlm.bridges.catalogue`, or a `Bridge`. language_model: any causal language model of transformers, or
    its folder or name; tokenizer: its, needed where the model has no name. fusion: "early", "late" or "deep", a
    `Fusion`, or "hybrid": early, of learned queries. eye_arguments, bridge_arguments, fusion_arguments: of those given
    by name.

    An eye or a language model that is given by name is frozen; one that is given as it is stays as it is. Raises
    ModelError for an unknown name or argument, a model that is not causal, for parts on two devices or of widths that
    do not fit, or for a hybrid without queries.
    """

    def __init__(
        self,
        eye: SizedEye | str,
        mechanism: str | Bridge,
        language_model: nn.Module | str | os.PathLike,
        tokenizer: Any = None,
        fusion: str | Fusion = "early",
        *,
        eye_arguments: dict[str, Any] | None = None,
        bridge_arguments: dict[str, Any] | None = None,
        fusion_arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(language_model, nn.Module):
            language_model = named_language_model(language_model, checked_device("auto"))
        decoder_of(language_model)
        self.language_model: nn.Module = language_model
        self.tokenizer = named_tokenizer(_name(language_model)) if tokenizer is None else tokenizer
        words = words_of(language_model)
        named = eye if isinstance(eye, str) else None
        self.eye = named_eye(eye, words.weight.device, eye_arguments or {}) if isinstance(eye, str) else eye
        self.described_eye = described_eye(self.eye, named, eye_arguments or {})
        self.bridge = _bridge(mechanism, self.eye, words.embedding_dim, bridge_arguments or {})
        self.mechanism = mechanism if isinstance(mechanism, str) else mechanism.name
        if fusion == "hybrid" and self.mechanism not in LEARNED:
            raise ModelError(f"hybrid fusion needs learned queries ({' or '.join(LEARNED)}), got {self.mechanism!r}")
        self.fusion = _fusion(fusion, language_model, fusion_arguments or {})
        self.splice = Splicer()
        self.described = {
            "mechanism": _described(bridges.complete, mechanism, bridge_arguments),
            "fusion": _described(fusions.complete, fusion, fusion_arguments),
        }
        self.started = saved.versions(language_model)
        self.longest = learned_positions(language_model)  # that it can read, None where there is no such end
        self.eye_trained = False
        self.bridge.to(words.weight.device, words.weight.dtype)
        self.fusion.to(words.weight.device, words.weight.dtype)
        check_devices(self.eye, language_model)

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return words_of(self.language_model).weight.device

    save_pretrained = saved.save_pretrained
    push_to_hub = saved.push_to_hub
    from_pretrained = classmethod(saved.from_pretrained)

    def forward(
        self,
        prompts: Interleaved,
        tokens: Tokens = (),
        question: Question | None = None,
        budget: int | None = None,
    ) -> Output:
        """prompts: of a batch. tokens: of all its images, in order, in several parts where their grids are not one, or
        what the bridge made of them before. question: of each image, what its prompt asks. budget: tokens an image.
        Raises as `Bridge.forward`, and DataError where images and tokens differ in number.
        """
        bridged, prompt, memory, shown = self._read(prompts, tokens, question, budget)
        self._check_length(prompt)
        learned = prompt.labels != UNLEARNED
        first = int(learned.any(dim=0).int().argmax()) if bool(learned.any()) else prompt.labels.shape[1]
        keep = min(prompt.labels.shape[1] - first + 1, prompt.labels.shape[1])
        with self.fusion.within(self.language_model, prompt, memory, shown):
            logits = self.language_model(
                inputs_embeds=prompt.embeddings,
                attention_mask=prompt.mask.long(),
                use_cache=False,
                logits_to_keep=keep,
                **self._positions(prompt),
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
        """New token ids, (B, T). generation: arguments of the model's own `generate`. An answer ends where the model's
        do, or with the tokenizer's end of the text. The rest as for `forward`.
        """
        if not generation.setdefault("use_cache", True):
            raise ModelError("answers are made with a cache of the prompt: leave use_cache out")
        _, prompt, memory, shown = self._read(prompts, tokens, question, budget)
        model: Any = self.language_model
        self._check_length(prompt, generation.get("max_new_tokens") or 0)
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        if end is not None:
            own = model.generation_config.eos_token_id
            ends = own if isinstance(own, list) else [own]
            generation.setdefault("eos_token_id", sorted({end, *ends} - {None}))
        generation.setdefault("pad_token_id", end if pad is None else pad)
        with self.fusion.within(model, prompt, memory, shown):
            return model.generate(
                inputs_embeds=prompt.embeddings,
                attention_mask=prompt.mask.long(),
                **self._positions(prompt),
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
        `<image>`s; a prompt without any of those gets its images first. Raises as `prepared` and `generate`.
        """
        several = [list(some) if isinstance(some, list | tuple) else [some] for some in images]
        prompts, tokens, question = self.prepared(several, texts)
        ids = self.generate(prompts, tokens, question, budget, max_new_tokens=max_new_tokens, **generation)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def prepared(
        self, images: Sequence[Sequence[Any]], texts: Sequence[str], answers: Sequence[str] | None = None
    ) -> tuple[Interleaved, list[VisualTokens], Question | None]:
        """Prompts, the tokens of all images in parts of one grid, and what each image's prompt asks: for `forward`.

        images: PIL, of each prompt. answers: to be learned. Raises DataError as `interleaved`.
        """
        if len(images) != len(texts):
            raise DataError(f"{len(texts)} prompts need as many lists of images, got {len(images)}")
        counts = [len(some) for some in images]
        whole = [_with_markers(text, count) for text, count in zip(texts, counts, strict=True)]
        prompts = interleaved(self.tokenizer, whole, counts, answers).to(self.device)
        flat = [image for some in images for image in some]
        if not flat:
            return prompts, [], None
        asks = [without_images(text) for text, count in zip(texts, counts, strict=True) for _ in range(count)]
        question = asked_together([self.eye.ask(text) for text in asks]) if self._asks else None
        seen = [self.eye.look(image).to(self.device) for image in flat]
        parts = [seen_together(list(part)) for _, part in groupby(seen, lambda tokens: tokens.grid)]
        return prompts, parts, None if question is None else question.to(self.device)

    def _read(
        self, prompts: Interleaved, tokens: Tokens, question: Question | None, budget: int | None
    ) -> tuple[Bridged | None, Spliced, Tensor | None, Tensor | None]:
        """The prompts as the language model reads them, and the memory of each prompt's images where they are one."""
        words = words_of(self.language_model)(prompts.ids)
        bridged = tokens if isinstance(tokens, Bridged) else self._bridged(tokens, question, budget)
        count, given = int(prompts.image.sum()), 0 if bridged is None else len(bridged.features)
        if count != given:
            raise DataError(f"the prompts have {count} images and there are tokens of {given}: give one each")
        if bridged is None:
            return None, _some(self.splice(prompts, words)), None, None
        if self.fusion.in_prompt:
            return bridged, _some(self.splice(prompts, words, bridged.features, bridged.mask)), None, None
        _check_ends(prompts)
        return bridged, _some(self.splice(prompts, words)), *_memory(prompts, bridged)

    def _bridged(
        self, tokens: VisualTokens | Sequence[VisualTokens], question: Question | None, budget: int | None
    ) -> Bridged | None:
        """What the bridge makes of all images; None where there are none."""
        bridged, first = [], 0
        for part in [tokens] if isinstance(tokens, VisualTokens) else tokens:
            rows = torch.arange(first, first + len(part.features), device=part.features.device)
            bridged.append(self.bridge(part, None if question is None else question.images(rows), budget))
            first += len(rows)
        return bridged_together(bridged) if bridged else None

    def _check_length(self, prompt: Spliced, new: int = 0) -> None:
        """Raise DataError where the language model has learned positions, and fewer than it would read. new: tokens
        that may follow, of which it does not read the last.
        """
        most, length = self.longest, prompt.mask.shape[1] + max(0, new - 1)
        if most is not None and length > most:
            less = "lower the budget" if bool(prompt.image.any()) else "shorten the text"
            less += " or max_new_tokens" if new else ""
            raise DataError(f"the language model has {most} positions and would read {length} tokens: {less}")

    @property
    def _asks(self) -> bool:
        """Whether a question is to be heard: by the bridge, of an eye that can hear."""
        return self.eye.asked > 0 and self.bridge.hears

    def _positions(self, prompt: Spliced) -> dict[str, Tensor]:
        return {"position_ids": self.fusion.positions(prompt)} if takes_positions(self.language_model) else {}


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


def blind_at(prompts: Interleaved) -> int | None:
    """The first prompt of which an image is the last, so that an answer begins before a word has seen it."""
    learned = F.pad((prompts.labels != UNLEARNED)[:, 1:], (0, 1), value=True)
    blind = (prompts.image & learned).nonzero()
    return int(blind[0, 0]) if len(blind) else None


def _check_ends(prompts: Interleaved) -> None:
    if (row := blind_at(prompts)) is not None:
        raise DataError(f"prompt {row} ends with an image, which no word sees where it is a memory: end it with a word")


def _some(prompt: Spliced) -> Spliced:
    """Raise DataError where a prompt has nothing for the language model to read."""
    bare = (~prompt.mask.any(dim=1)).nonzero()
    if len(bare):
        raise DataError(f"prompt {int(bare[0])} has no word, which the language model needs to begin: give it one")
    return prompt


def _name(language_model: Any) -> str:
    name = language_model.config.name_or_path
    if not name:
        raise ModelError("the language model has no name to find its tokenizer by: give tokenizer=...")
    return name


def _bridge(given: str | Bridge, eye: SizedEye, dim: int, arguments: dict[str, Any]) -> Bridge:
    if isinstance(given, str):
        return bridges.load(given, eye.width, dim, **arguments)
    if (given.width, given.dim) != (eye.width, dim):
        raise ModelError(f"the bridge must go from {eye.width} to {dim} wide, got {given.width} to {given.dim}")
    return given


def _fusion(given: str | Fusion, language_model: nn.Module, arguments: dict[str, Any]) -> Fusion:
    if isinstance(given, Fusion):
        return given
    return fusions.load("early" if given == "hybrid" else given, language_model, **arguments)


def _described(complete: Callable[..., dict], given: Any, arguments: dict[str, Any] | None) -> dict | None:
    """The name and all arguments of a part that was given by name, so that a later default does not change it."""
    if not isinstance(given, str):
        return None
    whole = complete("early" if given == "hybrid" else given, **(arguments or {}))
    return {"name": given, "arguments": plain(given, whole)}
