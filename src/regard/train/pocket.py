"""The pocket model's recipe: one decoder and all its bridges, trained together, each step through another mechanism.

A step draws a mechanism and a budget, and questions about scenes of one size; the loss is that of the answers' words.
So all mechanisms have the same reader and the same data, none an adapted decoder, and in expectation as many steps, but
for those of `SHARES`, which cost several times as much: half, those of all tokens of fewer questions.

What needs no scene to look at is learned first, in some minutes (`regard.train.words`).

Kinds of questions join one after the other (`JOIN`): to look at a thing and say what is seen there is learned from
colours alone in some hundred steps, and serves the other kinds, which learned together from the start do not find it.

Scenes say where an answer's things are, so where tokens are a reading of the eye's, two losses help to ground words:

    loss = CE(answer) + GUIDE * -log sum_i a_i c_i + NAMING * sum_{c_i > 1/2} CE(first word | token i)

a_i is the attention of one layer from the word before the answer to visual token i, c_i how much of it the things fill;
the third is of what is there, such as a name or a colour, not of how many.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from regard.allocation import Allocation
from regard.train.checkpoint import LAST, Checkpoint, digest
from regard.train.grounding import Batch as Placed
from regard.train.guide import GUIDE, drawn
from regard.train.loop import Recipe, Tell, fit, settings, silent
from regard.train.words import Things, named, repeated
from regard.vlm.bridges import ALL
from regard.vlm.compose import VLM, Output
from regard.vlm.interleaved import IMAGE, UNLEARNED, Interleaved, Spliced, interleaved
from regard.vlm.pocket import MECHANISMS, SELECTING, Pocket

BUDGETS = (16, 32, 64, 128)
LIKELY = torch.tensor([1 / budget for budget in BUDGETS])  # all budgets cost a run as much
SHARES = {ALL: 0.5, "recurrent": 0.5}  # of the draws that another mechanism gets
NAMING = 0.5  # weight of the loss of the words at the things' tokens
NAMED = ("what", "next", "colour", "read", "where")  # kinds whose answer is there to be seen
JOIN = {  # when a kind is asked from, as a share of all steps
    "missing": 0.0,
    "colour": 0.0,
    "where": 0.02,
    "read": 0.05,
    "exists": 0.08,
    "count": 0.1,
    "what": 0.14,
    "next": 0.17,
}
_GUIDED = 3  # layer whose attention is drawn to the things
_FEWER = 4  # times smaller batches of all tokens
_HELD_OUT = 64, 16, 32  # questions about scenes of each size, of a batch, and tokens, of what is not learned from


class Batch(Placed, Protocol):
    """With words. answered: (B, N), how much of each token the things fill that the answer is about."""

    @property
    def answered(self) -> Tensor: ...

    @property
    def asks(self) -> list[str]: ...

    @property
    def answers(self) -> list[str]: ...

    @property
    def kinds(self) -> list[str]: ...


class Scenes(Protocol):
    """What is learned from."""

    def things(self) -> Things:
        """Of all scenes."""
        ...

    def sides(self, *kinds: str) -> list[list[tuple[int, int]]]:
        """For each size of grid, the places of all questions, or of those kinds: scene and question."""
        ...

    def batch(self, places: Sequence[tuple[int, int]]) -> Batch: ...

    def texts(self, kind: str) -> list[tuple[str, str]]:
        """The questions of a kind and their answers."""
        ...

    def digest(self) -> str:
        """Of all that is learned from."""
        ...


def train(
    words: Iterable[str],
    scenes: Scenes,
    recipe: Recipe,
    folder: Path,
    tell: Tell = silent,
    others: Scenes | None = None,
) -> Pocket:
    """Train the pocket model, or go on. recipe.batch: questions of a step. others: scenes to validate with, of which
    the history has each mechanism's loss. Raises as `fit`.
    """
    torch.manual_seed(recipe.seed)
    words = list(words)
    model = Pocket(words)
    vlms = {name: model.vlm(name) for name in MECHANISMS}
    decoder: Any = model.decoder
    shares = torch.tensor([SHARES.get(name, 1.0) for name in MECHANISMS])
    asked = {kind: sides for kind in JOIN if any(sides := scenes.sides(kind))}
    sizes = torch.tensor([float(len(side)) for side in scenes.sides()])

    def drawn_places(count: int, generator: torch.Generator, done: float) -> list[tuple[int, int]]:
        """Questions about scenes of one grid, each kind as often."""
        side = int(sizes.multinomial(1, generator=generator))
        there = [kind for kind, sides in asked.items() if sides[side]]
        kinds = [kind for kind in there if JOIN[kind] <= done] or there
        places = []
        for turn in torch.randint(len(kinds), (count,), generator=generator).tolist():
            of = asked[kinds[turn]][side]
            places.append(of[int(torch.randint(len(of), (), generator=generator))])
        return places

    def step(index: Tensor, generator: torch.Generator, done: float) -> tuple[Tensor, Tensor]:
        name = MECHANISMS[int(shares.multinomial(1, generator=generator))]
        budget = BUDGETS[int(LIKELY.multinomial(1, generator=generator))]
        batch = scenes.batch(drawn_places(max(1, len(index) // (_FEWER if name == ALL else 1)), generator, done))
        guided = name in SELECTING and name != ALL
        decoder.set_attn_implementation("eager" if guided else "sdpa")  # which shows no attention
        loss, right = (grounded if guided else taught)(vlms[name], batch, budget)
        return loss, right.double().mean() * len(index)

    if not (folder / LAST).exists():
        repeated(model, scenes.texts("missing"), recipe.seed)
        named(model, scenes.things(), recipe.seed)
    about = Checkpoint("pocket", {"words": words}, _settings(model, scenes, recipe), [])
    held_out = None if others is None else partial(held_out_losses, vlms, others)
    fit(model, step, sum(map(len, scenes.sides())), recipe, folder, about, tell, held_out)
    return model


def _settings(model: Pocket, scenes: Scenes, recipe: Recipe) -> dict[str, Any]:
    """All that decides a run's losses."""
    learned = {"scenes": scenes.digest(), "realizer": digest(model.eye.realizer.state_dict().values()), "join": JOIN}
    draws = {"budgets": list(BUDGETS), "likely": LIKELY.tolist(), "shares": SHARES, "fewer": _FEWER}
    return settings(recipe, **learned, **draws, guide=GUIDE, naming=NAMING)


@torch.no_grad()
def held_out_losses(vlms: dict[str, VLM], scenes: Scenes) -> dict[str, float]:
    """Through each mechanism, the answers' loss, of the same part of the questions: the mean of batches."""
    count, size, budget = _HELD_OUT
    for vlm in vlms.values():
        decoder: Any = vlm.language_model
        decoder.set_attn_implementation("sdpa")
    sides = [side[:: -(-len(side) // count)] for side in scenes.sides()]
    batches = [scenes.batch(side[at : at + size]) for side in sides for at in range(0, len(side), size)]
    return {
        f"validation {name}": float(torch.stack([taught(vlm, batch, budget)[0] for batch in batches]).mean())
        for name, vlm in vlms.items()
    }


def taught(vlm: VLM, batch: Batch, budget: int | None) -> tuple[Tensor, Bool[Tensor, " b"]]:
    """The loss of the answers' words, and which answers the model would give by itself, word for word to the end."""
    prompts = _prompts(vlm, batch)
    output = vlm(prompts, batch.tokens, batch.question, budget)
    return output.loss, _right(output, prompts)


def grounded(vlm: VLM, batch: Batch, budget: int | None) -> tuple[Tensor, Bool[Tensor, " b"]]:
    """As `taught`, the loss with those of where the answer's things are, for a bridge whose tokens are a reading."""
    prompts = _prompts(vlm, batch)
    with watched(vlm) as seen:
        output = vlm(prompts, batch.tokens, batch.question, budget)
    loss, reading = output.loss, output.bridged.reading
    if isinstance(reading, Allocation):
        covered = (reading.matrix() @ batch.answered[..., None])[..., 0]
        loss = loss + sum(grounding(vlm, seen, covered[output.bridged.mask], batch.kinds))
    return loss, _right(output, prompts)


@dataclass(eq=False)
class Watched:
    """What the decoder read, one layer's attention (B, H, T, T), and what it ends with (B, T, D)."""

    prompt: list[Spliced] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)


@contextmanager
def watched(vlm: VLM) -> Iterator[Watched]:
    """See what the decoder does in the next pass, while attention is eager."""
    seen, model, splice = Watched(), vlm.language_model, vlm.splice
    decoder: Any = getattr(model, "model")  # noqa: B009
    hooked: list[tuple[Any, Callable[[Any], None]]] = [
        (splice, seen.prompt.append),
        (decoder.layers[_GUIDED].self_attn, lambda made: seen.attention.append(made[1])),
        (decoder.norm, seen.hidden.append),
    ]
    handles = [part.register_forward_hook(lambda _, args, made, keep=keep: keep(made)) for part, keep in hooked]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def grounding(
    vlm: VLM, seen: Watched, covered: Float[Tensor, " m"], kinds: Sequence[str]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The weighted losses of where the decoder looks, and of the words at the things' tokens; 0 where nothing is there.

    covered: of all visual tokens of the batch, in order.
    """
    prompt, attention, hidden = seen.prompt[0], seen.attention[0], seen.hidden[0]
    there = torch.zeros_like(prompt.embeddings[..., 0]).masked_scatter(prompt.image, covered)
    rows, asking = torch.arange(len(there)), (prompt.labels[:, 1:] != UNLEARNED).int().argmax(dim=1)
    most = there.amax(dim=1, keepdim=True)
    shown = most[:, 0] > 0.1
    looking = attention[rows, :, asking].mean(dim=1)[shown]
    guided = drawn(looking, (there / most.clamp(min=1e-6))[shown]) if bool(shown.any()) else there.new_zeros(())
    named = (there > 0.5) & torch.tensor([kind in NAMED for kind in kinds])[:, None]
    if not bool(named.any()):
        return GUIDE * guided, there.new_zeros(())
    words = prompt.labels[rows, asking + 1]
    head: Any = vlm.language_model.get_output_embeddings()  # pyright: ignore
    return GUIDE * guided, NAMING * F.cross_entropy(head(hidden[named]), words[named.nonzero()[:, 0]])


def _prompts(vlm: VLM, batch: Batch) -> Interleaved:
    return interleaved(vlm.tokenizer, [IMAGE + ask for ask in batch.asks], [1] * len(batch.asks), batch.answers)


def _right(output: Output, prompts: Interleaved) -> Bool[Tensor, " b"]:
    keep = output.logits.shape[1]
    labels = prompts.labels[:, -keep:][:, 1:]
    return ((output.logits[:, :-1].argmax(dim=2) == labels) | (labels == UNLEARNED)).all(dim=1)
