"""A model with what it is given, as the checks run it: the whole, or its language model with one thing changed."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.doctor.finding import Finding
from regard.doctor.opening import Patient, patient
from regard.errors import DataError, ModelError, RegardError, first_line
from regard.vlm import catalogue
from regard.vlm.compose import VLM
from regard.vlm.fusion.fusion import decoder_layers
from regard.vlm.interleaved import UNLEARNED
from regard.vlm.opened import opened
from regard.vlm.prompt import special_ids

_PADDED = ("attention_mask", "token_type_ids", "mm_token_type_ids")


class Case:
    """model: of Hugging Face or a `regard.VLM`, in evaluation mode. inputs: what its processor returns (or
    `regard.shorten`), or of a `regard.VLM` what `prepared` returns; None: only what needs none can be checked, and
    why there are none.
    """

    def __init__(self, model: nn.Module, inputs: Any = None, why: str = "no inputs were given") -> None:
        self.model: Any = model
        self._inputs, self._why = inputs, why
        self.vlm = model if isinstance(model, VLM) else None

    @property
    def inputs(self) -> Any:
        """Raises DataError where there are none, or none of this model; ModelError for a model of another kind."""
        if self._inputs is None:
            raise DataError(f"{self._why}, and this check runs the model")
        if self.vlm is None and not hasattr(getattr(self.model, "config", None), "get_text_config"):
            raise ModelError(f"{type(self.model).__name__} is no model of Hugging Face and no regard.VLM")
        if self.vlm is None and not isinstance(self._inputs, Mapping):
            raise DataError(f"the inputs must be what the processor returns, got {type(self._inputs).__name__}")
        if self.vlm is not None and not isinstance(self._inputs, tuple):
            raise DataError(f"the inputs must be what VLM.prepared returns, got {type(self._inputs).__name__}")
        return self._inputs

    @cached_property
    def patient(self) -> Patient:
        """Raises ModelError where the model cannot be looked into."""
        found = patient(self.model)
        if found.decoder is None:
            raise ModelError(f"{type(self.model).__name__} has no language model that is known (no get_decoder)")
        return found

    @property
    def runs(self) -> bool:
        """Whether there are inputs to run it with."""
        return self._inputs is not None

    def without(self, check: str) -> Finding:
        """Of a check that has found nothing in the weights, where there are no inputs to look further with."""
        reason = f"{self._why}: of this check only the weights were looked at, and nothing is wrong with them"
        return Finding(check, "skipped", reason, "give a prompt with an image, or a folder with a processor")

    @property
    def images(self) -> bool:
        """Whether there are images among the inputs."""
        if self.vlm is not None:
            return bool(self.inputs[0].image.any())
        return "pixel_values" in self.inputs or "mm_encoder_outputs" in self.inputs

    @property
    def shortened(self) -> bool:
        return self.vlm is None and "mm_encoder_outputs" in self.inputs

    @cached_property
    def seen(self) -> Any:
        """The inputs with images encoded, once for all runs that leave these alone; as they are in unknown families."""
        given = self.inputs
        if self.vlm is not None or "pixel_values" not in given or self.model.config.model_type not in catalogue():
            return given
        vlm = opened(self.model)
        with torch.no_grad(), ran("its vision encoder"):
            encoded = {"mm_encoder_outputs": {"image": vlm.family.encode(vlm.base, given)}}
        return {name: value for name, value in given.items() if name != "pixel_values"} | encoded

    @cached_property
    def _first(self) -> tuple[dict[str, Any], Tensor]:
        """What the language model's layers were given in one run of the whole, by name, and what they gave."""
        decoder: Any = self.patient.decoder
        heard: list[tuple[dict[str, Any], Tensor]] = []

        def listen(module: nn.Module, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
            bound = inspect.signature(decoder.forward).bind_partial(*args, **kwargs).arguments
            flat = {**bound, **bound.get("kwargs", {})}
            heard.append(({name: x for name, x in flat.items() if name != "kwargs" and x is not None}, result[0]))

        handle = decoder.register_forward_hook(listen, with_kwargs=True)
        try:
            with torch.no_grad():
                self.run(self.seen, last=1)
        finally:
            handle.remove()
        if not heard:
            raise ModelError(f"{type(self.model).__name__} ran and never called its {type(decoder).__name__}")
        given, result = heard[0]
        given.pop("past_key_values", None)
        if "inputs_embeds" not in given:
            with torch.no_grad():
                given["inputs_embeds"] = decoder.get_input_embeddings()(given["input_ids"])
        given.pop("input_ids", None)
        return given, result

    @property
    def call(self) -> dict[str, Any]:
        """What the language model's layers were given, by name."""
        return self._first[0]

    @property
    def embeddings(self) -> Float[Tensor, "b l d"]:
        return self.call["inputs_embeds"]

    @property
    def hidden(self) -> Float[Tensor, "b l d"]:
        """What the language model's layers gave."""
        return self._first[1]

    @cached_property
    def _within(self) -> Any:
        return None if self.vlm is None else self.vlm._read(*self._spread(self.inputs))[1:]

    def decoded(self, **changed: Any) -> Float[Tensor, "b l d"]:
        """What the language model's layers give when something of their `call` is another."""
        around = nullcontext() if self.vlm is None else self.vlm.fusion.within(self.vlm.language_model, *self._within)
        decoder: Any = self.patient.decoder
        with around, ran("its language model"):
            return decoder(**{**self.call, **changed})[0]

    @property
    def spread(self) -> float:
        """Of what the language model's layers give: the size that a change is compared with."""
        return float(self.hidden.float().square().mean().sqrt()) or 1.0

    @property
    def noise(self) -> float:
        """A relative change that rounding may make."""
        return 1e-3 if self.hidden.dtype in (torch.float32, torch.float64) else 0.1

    def change(self, after: Tensor, before: Tensor | None = None) -> Float[Tensor, "b l"]:
        """How far each column moved, against what columns are like."""
        before = self.hidden if before is None else before
        return (after.float() - before.float()).abs().amax(dim=-1) / self.spread

    @cached_property
    def real(self) -> Bool[Tensor, "b l"]:
        """Which columns are no padding."""
        if self.vlm is not None:
            return self._within[0].mask
        mask, shape = self.inputs.get("attention_mask"), self.embeddings.shape[:2]
        fits = isinstance(mask, Tensor) and mask.shape == shape
        return mask.bool() if fits else torch.ones(shape, dtype=torch.bool, device=self.embeddings.device)

    @cached_property
    def image(self) -> Bool[Tensor, "b l"]:
        """Which columns are tokens of images."""
        if self.vlm is not None:
            return self._within[0].image
        ids, token = self.inputs.get("input_ids"), self.patient.image_token
        if ids is None or token is None:
            return torch.zeros_like(self.real)
        return (ids == token) & self.real

    def words(self, row: int = 0) -> list[int]:
        """Columns of a prompt's words after its last image; of a prompt without one, the second half."""
        real = self.real[row].nonzero()[:, 0].tolist()
        seen = self.image[row].nonzero()[:, 0].tolist()
        return [column for column in real if column > seen[-1]] if seen else real[len(real) // 2 :]

    @property
    def layers(self) -> nn.ModuleList:
        """Of the language model."""
        return decoder_layers(self.model if self.vlm is None else self.vlm.language_model)

    def run(self, inputs: Any = None, last: int | None = None, **more: Any) -> Any:
        """The model's own output. last: of how many columns logits are wanted, where the model can be told."""
        given = self.inputs if inputs is None else inputs
        if last is not None and self.vlm is None and takes(self.model, "logits_to_keep"):
            more["logits_to_keep"] = last
        with ran("the model"):
            return self.model(*self._spread(given)) if self.vlm is not None else self.model(**given, **more)

    @staticmethod
    def _spread(inputs: tuple) -> tuple:
        return (*inputs, None, None)[:4]  # with the question and the budget that may be left out

    def outputs(self, inputs: Any) -> Float[Tensor, "b l d"]:
        """What the language model's layers give in a run of the whole with other inputs."""
        return Case(self.model, inputs).hidden

    def loss(self) -> Float[Tensor, ""]:
        """Of guessing each word of the prompt from those before it."""
        if self.vlm is not None:
            prompts, *more = self.inputs
            learned = prompts.mask & ~prompts.image
            learned[:, 0] = False
            learned[:, 1:] &= ~prompts.image[:, :-1]  # an image as a memory says nothing next
            taught = replace(prompts, labels=prompts.ids.where(learned, torch.tensor(UNLEARNED)))
            loss = self.run((taught, *more)).loss
        else:
            ids = self.inputs["input_ids"]
            known = torch.tensor(sorted(special_ids(self.model.config)), device=ids.device)
            labels = ids.masked_fill(torch.isin(ids, known), UNLEARNED)
            if "attention_mask" in self.inputs:
                labels = labels.masked_fill(self.inputs["attention_mask"] == 0, UNLEARNED)
            loss = self.run(labels=labels).loss
        if loss is None or not loss.requires_grad:
            raise ModelError("no gradient can be had: nothing of the model takes one, or it runs without (no_grad)")
        return loss

    def padded(self, count: int) -> Any:
        """Inputs of twice the prompts: each with `count` columns of padding before it, then each with as many words."""
        if self.vlm is not None:
            return self._padded_prompts(count)
        given = dict(self.inputs)
        ids = given["input_ids"]
        given["attention_mask"] = given.get("attention_mask", torch.ones_like(ids))
        twice = {}
        for name, value in given.items():
            if not isinstance(value, Tensor) or name == "position_ids":
                raise DataError(f"how to repeat {name} for a second prompt is not known")
            first = second = value
            if name in ("input_ids", *_PADDED) and value.shape == ids.shape:
                word = self._words(ids, count) if name == "input_ids" else torch.full_like(ids[:, :1], 0)
                second = torch.cat((word.expand(len(ids), count) + (name == "attention_mask"), value), dim=1)
                fill = _pad(self.model.config) if name == "input_ids" else 0
                first = F.pad(value, (count, 0), value=fill)
            twice[name] = torch.cat((first, second))
        if self.patient.image_token is None and takes(self.model, "position_ids"):
            twice["position_ids"] = (twice["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        return twice

    def _words(self, ids: Tensor, count: int) -> Tensor:
        """(1, count) words of the first prompt."""
        words = ids[0, self.words()]
        return words.repeat(-(-count // len(words)))[:count][None]

    def _padded_prompts(self, count: int) -> tuple:
        prompts, tokens, question, budget = self._spread(self.inputs)
        none, real = F.pad(prompts.mask, (count, 0)), F.pad(prompts.mask, (count, 0), value=True)
        words = prompts.ids[0][prompts.mask[0] & ~prompts.image[0]]
        more = words.repeat(-(-count // len(words)))[:count].expand(len(prompts.ids), -1)
        ids = torch.cat((F.pad(prompts.ids, (count, 0)), torch.cat((more, prompts.ids), dim=1)))
        image = F.pad(prompts.image, (count, 0)).repeat(2, 1)
        labels = F.pad(prompts.labels, (count, 0), value=UNLEARNED).repeat(2, 1)
        both = replace(prompts, ids=ids, mask=torch.cat((none, real)), image=image, labels=labels)
        several = list(tokens) if isinstance(tokens, list | tuple) else [tokens]
        count_images = len(question.features) if question is not None else 0
        asked = None if question is None else question.images(torch.arange(count_images).repeat(2))
        return both, [*several, *several], asked, budget


def _pad(config: Any) -> int:
    text = config.get_text_config()
    pad = text.pad_token_id
    return pad if isinstance(pad, int) and pad >= 0 else 0


def takes(model: Any, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


@contextmanager
def ran(what: str) -> Iterator[None]:
    """Whatever a model makes of inputs that it cannot work with, as a ModelError of one line."""
    try:
        yield
    except RegardError:
        raise
    except Exception as error:
        raise ModelError(f"{what} cannot be run so: {first_line(error)}") from error


@contextmanager
def learning(values: list[nn.Parameter]) -> Iterator[None]:
    """These alone take gradients while the block lasts."""
    before = [(value, value.requires_grad) for value in values]
    try:
        for value in values:
            value.requires_grad_(True)
        yield
    finally:
        for value, learned in before:
            value.requires_grad_(learned)


def gradients(loss: Tensor, values: list[Any]) -> list[Tensor | None]:
    """Of a loss, by some tensors; None where it does not depend on one. Raises ModelError where none can be had."""
    with ran("the model's backward pass"):
        return list(torch.autograd.grad(loss, values, allow_unused=True, retain_graph=True))
