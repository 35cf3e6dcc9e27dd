"""What one run did and cost, as plain data: JSON in and out. Every picture and table is drawn from it."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from regard.allocation import Allocation
from regard.errors import DataError
from regard.files import write_whole
from regard.trace import Trace

FORMAT = "regard-record-1"


@dataclass(frozen=True)
class Picture:
    """The image a run looked at. preview: a small JPEG in base64. notes: what reading it changed."""

    name: str
    width: int
    height: int
    preview: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One allocation and the language model's layer that it acts from: 0 is before the first."""

    layer: int
    allocation: dict[str, Any]

    def rebuilt(self) -> Allocation:
        """The Allocation itself."""
        return Allocation.from_dict(self.allocation)


WAYS = ("propositional", "perspectival", "participatory")
TERMS = ("relevant", "explore", "diversify")
STATES = ("scope", "tempering", "prioritization")


@dataclass(frozen=True)
class Realization:
    """Why `relevance` spent its tokens as it did. (N,): one value for each token.

    ways: (N,) each, in [0, 1]. mix: the weight of each way in the field; sums to 1. field: (N,), the relevance; sums
    to 1. terms: (N,) each, the parts of a token's weight; all of them together sum to 1. detail: (N,), how far a token
    is from the mean of the image, as a multiple of the average. states: in [0, 1]. drives: of each state, what pulls
    it to 1 and what pulls it to 0. fixed: the states that were given, not driven. transjectivity: the share of the
    relevance that belongs to neither the image nor the question alone; None where nothing was asked. line: the tokens
    in an order in which every region is an interval. cuts: places in it, the first made first: with K tokens, line is
    cut before each of the first K - 1 of them, at the states above. fixations: x and y in [0, 1], where earlier looks
    led, in order.
    """

    ways: dict[str, tuple[float, ...]]
    mix: dict[str, float]
    field: tuple[float, ...]
    terms: dict[str, tuple[float, ...]]
    detail: tuple[float, ...]
    states: dict[str, float]
    drives: dict[str, tuple[float, float]]
    fixed: tuple[str, ...]
    transjectivity: float | None
    line: tuple[int, ...]
    cuts: tuple[int, ...]
    fixations: tuple[tuple[float, float], ...] = ()

    @property
    def image_only(self) -> bool:
        """Whether nothing was asked, so that relevance is the image's alone."""
        return self.transjectivity is None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From JSON's lists. Raises KeyError, TypeError or ValueError where it is none."""
        many = {
            name: {key: tuple(value) for key, value in data.pop(name).items()} for name in ("ways", "terms", "drives")
        }
        flat = {name: tuple(data.pop(name)) for name in ("field", "detail", "fixed", "line", "cuts")}
        fixations = tuple((x, y) for x, y in data.pop("fixations", ()))
        return cls(**many, **flat, fixations=fixations, **data)

    def _check(self, n: int) -> None:
        """Raise ValueError where it does not fit n tokens."""
        maps = (*self.ways.values(), *self.terms.values(), self.field, self.detail)
        if any(len(values) != n for values in maps) or set(self.ways) != set(WAYS) or set(self.terms) != set(TERMS):
            raise ValueError("the maps of a realization must have a value for each token")
        if set(self.states) != set(STATES) or not all(0 <= state <= 1 for state in self.states.values()):
            raise ValueError("the states of a realization must be in [0, 1]")
        if len(set(self.line)) != len(self.line) or any(slot not in range(n) for slot in self.line):
            raise ValueError("the line of a realization must name tokens, each once")
        if sorted(self.cuts) != list(range(1, len(self.line))):
            raise ValueError("the cuts of a realization must come between all tokens of its line")


@dataclass(frozen=True)
class Look:
    """One allocator's answer to one question.

    question: an index into `Record.questions`. budget: tokens asked for. seconds: to decide.
    nearest_quarter: the share of the budget spent on the quarter of the image nearest to the question.
    macs: multiply-accumulates of the language model's prefill with all tokens and with those left.
    realization: why, where the allocator can say.
    """

    question: int
    allocator: str
    fields: dict[str, Any]
    budget: int
    tokens_in: int
    tokens_out: int
    seconds: float
    nearest_quarter: float
    macs_before: int
    macs_after: int
    steps: tuple[Step, ...]
    realization: Realization | None = None

    @property
    def allocation(self) -> Allocation:
        """All steps in one, from the image's tokens to what the last layer sees."""
        whole = self.steps[0].rebuilt()
        for step in self.steps[1:]:
            whole = whole.then(step.rebuilt())
        return whole


STAGES = ("vision", "decide", "prefill", "decode")
SHORT = ("answer", "tokens_in", "tokens_out")


@dataclass(frozen=True)
class Answer:
    """What a language model answered to the first question, and what it took.

    allocator: None where the model got all visual tokens. prompt_tokens: all that the language model read, the
    visual ones among them. seconds: "vision" (the encoder), "decide" (all that shortening adds), "prefill" (to the
    first token), "decode" (the other tokens). memory: bytes in use before and at the peak, None where not counted.
    """

    allocator: str | None
    text: str
    visual_tokens: int
    prompt_tokens: int
    new_tokens: int
    seconds: dict[str, float]
    memory_before: int | None = None
    memory_peak: int | None = None

    @property
    def first_token(self) -> float:
        """Seconds from the image's pixels to the first token."""
        return self.seconds["vision"] + self.seconds["decide"] + self.seconds["prefill"]

    @property
    def per_token(self) -> float | None:
        """Seconds for each token after the first; None where there is none."""
        return self.seconds["decode"] / (self.new_tokens - 1) if self.new_tokens > 1 else None

    def _check(self) -> None:
        """Raise ValueError where the parts do not fit together."""
        times = [self.seconds[stage] for stage in STAGES]
        if not all(isinstance(value, int | float) and 0 <= value < math.inf for value in times):
            raise ValueError("the seconds of an answer must be finite and not negative")
        if not isinstance(self.text, str) or not isinstance(self.allocator, str | None):
            raise ValueError("an answer must be text, by an allocator or by none")
        if not 0 <= self.visual_tokens <= self.prompt_tokens or self.new_tokens < 1:
            raise ValueError("the tokens of an answer do not fit together")
        if any(not isinstance(size, int | None) for size in (self.memory_before, self.memory_peak)):
            raise ValueError("memory must be in bytes")


@dataclass(frozen=True)
class Record:
    """One run: one picture, some questions, some allocators at one budget.

    boxes: one (x0, y0, x1, y1) in [0, 1] for each token. relevance: for each question, one value a token.
    grid: (T, H, W) of the tokens. language_model: whose prefill is counted, with prompt_tokens of text.
    seconds: what took how long ("read", "load", "encode"). made: versions, seed and machine.
    answers: a model's, where one was asked, the first with all visual tokens. notes: what to know of them, a line each.
    trace: of a mechanism that chooses where to look.
    """

    picture: Picture
    eye: str
    questions: tuple[str, ...]
    boxes: tuple[tuple[float, ...], ...]
    relevance: tuple[tuple[float, ...], ...]
    grid: tuple[int, int, int] | None
    looks: tuple[Look, ...]
    language_model: str
    prompt_tokens: int
    seconds: dict[str, float]
    made: dict[str, str]
    answers: tuple[Answer, ...] = ()
    notes: tuple[str, ...] = ()
    trace: Trace | None = None

    def to_json(self) -> str:
        """The record as one JSON object, with the last answer in short beside it where there is one: `answer`, and
        `tokens_in` and `tokens_out`, the visual tokens that there were and that it was given.
        """
        short = {}
        if self.answers:
            last, whole = self.answers[-1], self.answers[0]
            short = dict(zip(SHORT, (last.text, whole.visual_tokens, last.visual_tokens), strict=True))
        return json.dumps({"format": FORMAT, **short, **asdict(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The record that `to_json` wrote. Raises DataError where the text is not one."""
        try:
            data = json.loads(text)
            if data.pop("format") != FORMAT:
                raise KeyError("format")
            for name in SHORT:
                data.pop(name, None)
            looks = []
            for look in data.pop("looks"):
                steps = tuple(Step(**step) for step in look.pop("steps"))
                why = look.pop("realization", None)
                looks.append(Look(**look, steps=steps, realization=why and Realization.from_dict(why)))
            picture = data.pop("picture")
            picture["notes"] = tuple(picture["notes"])
            for name in ("boxes", "relevance"):
                data[name] = tuple(tuple(row) for row in data[name])
            grid = data.pop("grid")
            data["questions"] = tuple(data["questions"])
            data["answers"] = tuple(Answer(**answer) for answer in data.pop("answers", ()))
            data["notes"] = tuple(data.pop("notes", ()))
            trace = data.pop("trace", None)
            data["trace"] = trace and Trace.from_dict(trace)
            record = cls(Picture(**picture), looks=tuple(looks), grid=None if grid is None else tuple(grid), **data)
            record._check()
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise DataError(f"not a record ({FORMAT}) as regard writes it: {error!r}") from error
        return record

    def _check(self) -> None:
        """Raise ValueError where the parts do not fit together."""
        n = len(self.boxes)
        if any(len(box) != 4 or not all(0 <= side <= 1 for side in box) for box in self.boxes):
            raise ValueError("boxes must be of four numbers in [0, 1]")
        if [len(values) for values in self.relevance] != [n] * len(self.questions):
            raise ValueError("relevance must have a value for each question and token")
        for look in self.looks:
            if look.question not in range(len(self.questions)) or not look.steps or not 0 <= look.tokens_out <= n:
                raise ValueError(f"the look of {look.allocator} fits neither the questions nor the tokens")
            if look.steps[0].allocation["n_in"] != n:
                raise ValueError(f"the look of {look.allocator} reads {look.steps[0].allocation['n_in']} of {n} tokens")
            if look.realization is not None:
                look.realization._check(n)
        for answer in self.answers:
            answer._check()
        if self.trace is not None:
            self.trace.check(n)

    def save(self, path: str | os.PathLike) -> None:
        """Write record.json, all of it or nothing."""
        write_whole(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Read what `save` wrote. Raises DataError where there is none or it is not a record."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the record {str(path)!r}: {error.strerror}") from error
        return cls.from_json(content)
