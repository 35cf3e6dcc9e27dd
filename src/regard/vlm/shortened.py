"""What `shorten` returns: inputs for the model, and what was decided about them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.allocate import Allocates, name_of
from regard.allocation import Allocation
from regard.cost.language import LanguageModel
from regard.errors import DataError, ShapeError
from regard.record import Picture, Record
from regard.recorded import blank_picture, boxes_of, explained, look_of, made_by, relevance_of
from regard.tokens import Question, VisualTokens
from regard.vlm.opened import Opened
from regard.vlm.prompt import tokenizer_of


@dataclass(frozen=True, eq=False)
class Decision:
    """One image. tokens: B = 1, as the allocator got them. row: its prompt. budget: at most its tokens."""

    tokens: VisualTokens
    row: int
    allocation: Allocation
    budget: int


class Shortened(Mapping[str, Any]):
    """Inputs with fewer visual tokens: a mapping for `model(**short)` and `model.generate(**short)`.

    seconds: "place" (finding the images in the prompt), "encode" (the vision encoder), "attention" (what an allocator
    needs from it), "decide", "shorten". caution: in one line, what is not exact for this model; None where all is.
    """

    def __init__(
        self,
        inputs: dict[str, Any],
        vlm: Opened,
        allocator: Allocates,
        decisions: list[Decision],
        ask: Callable[..., tuple[Question | None, tuple[str, ...]]],
        lengths: list[int],
        seconds: dict[str, float],
        caution: str | None,
        processor: Any,
    ) -> None:
        self._inputs = inputs
        self._vlm = vlm
        self._allocator = allocator
        self._decisions = decisions
        self._ask = ask
        self._lengths = lengths
        self._processor = processor
        self.seconds = seconds
        self.caution = caution

    def __getitem__(self, name: str) -> Any:
        value = self._inputs[name]
        if name == "mm_encoder_outputs":  # generate writes into it when it has beams
            return {modality: copy(output) for modality, output in value.items()}
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)

    def __repr__(self) -> str:
        return f"Shortened({self.tokens_in} -> {self.tokens_out} visual tokens, prompt {tuple(self.mask.shape)})"

    @property
    def mask(self) -> Tensor:
        """(B, L'), the attention mask of the shortened prompt."""
        return self._inputs["attention_mask"]

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """One for each image, in the order of the prompt, each of a batch of one."""
        return tuple(decision.allocation for decision in self._decisions)

    @property
    def tokens(self) -> tuple[VisualTokens, ...]:
        """The images as the allocator got them, each a batch of one."""
        return tuple(decision.tokens for decision in self._decisions)

    @property
    def tokens_in(self) -> int:
        """Visual tokens before, of all images."""
        return sum(decision.allocation.n_in for decision in self._decisions)

    @property
    def tokens_out(self) -> int:
        """Visual tokens left, of all images."""
        return sum(decision.allocation.n_out for decision in self._decisions)

    def new_tokens(self, output: Any) -> Tensor:
        """What `generate` added to the shortened prompt, (B, T). output: its tensor, or its output with `sequences`."""
        sequences = output if isinstance(output, Tensor) else output.sequences
        return sequences[:, self.mask.shape[1] :]

    def decode(self, output: Any) -> list[str]:
        """The answers in words, one for each prompt (and beam). output: what `generate` returned."""
        return tokenizer_of(self._vlm, self._processor).batch_decode(self.new_tokens(output), skip_special_tokens=True)

    def continued(self, sequences: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Inputs of a later turn: `generate(**short.continued(ids), past_key_values=...)` with this prompt's cache.

        sequences: (B, L' + T), what `generate` returned with the next turn's tokens after it. mask: (B, T), 0 for those
        of the T new tokens that are padding, as after an answer that ended early; None: none is.
        """
        before, positions = self.mask, self._inputs["position_ids"]
        more = sequences.shape[1] - before.shape[1]
        if more < 1 or len(sequences) != len(before):
            want = f"({len(before)}, over {before.shape[1]})"
            raise ShapeError(f"sequences must go on from the shortened prompt, {want}, got {tuple(sequences.shape)}")
        new = before.new_ones(len(before), more) if mask is None else mask.to(before)
        if new.shape != (len(before), more):
            raise ShapeError(f"mask must have shape {(len(before), more)}, got {tuple(new.shape)}")
        steps = new.long().cumsum(dim=1)
        return {
            "input_ids": sequences,
            "attention_mask": torch.cat((before, new), dim=1),
            "position_ids": torch.cat((positions, positions.amax(dim=-1, keepdim=True) + steps), dim=-1),
        }

    @property
    def record(self) -> Record:
        """What was done, for pictures and tables, where there is one image; `records` has one for each image."""
        if len(self._decisions) != 1:
            raise DataError(f"there are {len(self._decisions)} images: take .records, which has one Record for each")
        return self.records()[0]

    def records(self, pictures: Sequence[Picture] | None = None) -> list[Record]:
        """One Record an image; seconds are those of all images. pictures: one for each; by default grey stand-ins.

        Relevance is that of unit vectors, whatever the allocator was given, so that records can be compared.
        """
        if pictures is not None and len(pictures) != len(self._decisions):
            raise DataError(f"{len(pictures)} pictures for {len(self._decisions)} images: one each is needed")
        question, texts = self._ask(must=False)
        return [self._record(number, question, texts, pictures) for number in range(len(self._decisions))]

    def _record(
        self, number: int, question: Question | None, texts: Sequence[str], pictures: Sequence[Picture] | None
    ) -> Record:
        model, decision = LanguageModel.of(self._vlm.config), self._decisions[number]
        unit = F.normalize(decision.tokens.features.float(), dim=-1)
        tokens = replace(decision.tokens, aligned=unit)
        blank = Question(torch.zeros_like(unit[:, :1]))  # a prompt without text asks for nothing
        asked = blank if question is None else question.images(torch.tensor([decision.row])).to(unit.device)
        look = look_of(
            tokens,
            asked,
            decision.allocation,
            number=0,
            name=name_of(self._allocator),
            allocator=self._allocator,
            budget=decision.budget,
            seconds=self.seconds["decide"],
            model=model,
            prompt_tokens=self._lengths[decision.row] - decision.allocation.n_in,
            read=[int(self.mask[decision.row].sum())] * model.layers,
            why=explained(self._allocator, tokens, None if question is None else asked, decision.budget),
        )
        return Record(
            picture=blank_picture(f"image {number + 1}", tokens.grid) if pictures is None else pictures[number],
            eye=f"{self._vlm.config.model_type} vision encoder",
            questions=(texts[decision.row] or "no question",),
            boxes=boxes_of(tokens),
            relevance=relevance_of(tokens, [asked]),
            grid=tokens.grid,
            looks=(look,),
            language_model=model.name,
            prompt_tokens=self._lengths[decision.row] - decision.allocation.n_in,
            seconds=dict(self.seconds),
            made=made_by(getattr(self._allocator, "seed", 0)),
        )
