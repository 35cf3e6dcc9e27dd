"""Learn where in a picture a question is answered, from scenes that say so: the pocket eye's `Grounding`.

    loss = - log sum_i c_i softmax([<t_i, q> + r_i, 0])_i

c_i is how much of token i the answer's things fill, by the most of all; where nothing shows, the last place is meant,
"nowhere". r_i is how much of the classes that are meant the token shows, which needs no learning.

Then, from scenes with other pictures, the few parameters of relevance (`realizer`): loss = - log sum_i c_i f_i,
f the field, sum 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from regard.eyes.grounding import Grounding
from regard.relevance.realizer import Realizer
from regard.tokens import Question, VisualTokens, grid_boxes
from regard.train.checkpoint import Checkpoint, digest
from regard.train.guide import drawn
from regard.train.loop import Recipe, Tell, fit, settings, silent

SHOWN = 0.1  # of a token, that a thing must fill to be seen there


class Batch(Protocol):
    """Questions about scenes of one grid. covered: (B, N), how much of each token the answer's things fill."""

    @property
    def tokens(self) -> VisualTokens: ...
    @property
    def question(self) -> Question: ...
    @property
    def covered(self) -> Tensor: ...


class Scene(Protocol):
    """features: (N, D) of tokens, classes: (N, E). questions: (Q, E) as classes, heard: (Q, S). covered: (Q, N)."""

    @property
    def side(self) -> int: ...
    @property
    def features(self) -> Tensor: ...
    @property
    def classes(self) -> Tensor: ...
    @property
    def questions(self) -> Tensor: ...
    @property
    def heard(self) -> Tensor: ...
    @property
    def covered(self) -> Tensor: ...


def train(scenes: Sequence[Scene], recipe: Recipe, folder: Path, tell: Tell = silent) -> Grounding:
    """recipe.batch: scenes of a step, of one grid, with all their questions. Raises as `fit`."""
    torch.manual_seed(recipe.seed)
    model = Grounding(scenes[0].features.shape[1], scenes[0].heard.shape[1])
    sides = sorted({scene.side for scene in scenes})
    groups = [[scene for scene in scenes if scene.side == side] for side in sides]
    sizes = torch.tensor([float(len(group)) for group in groups])

    def step(index: Tensor, generator: torch.Generator, done: float) -> tuple[Tensor, Tensor]:
        group = groups[int(sizes.multinomial(1, generator=generator))]
        chosen = [group[place] for place in torch.randint(len(group), index.shape, generator=generator).tolist()]
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))  # of the dropout
        logits, covered = found(model, chosen), torch.cat([scene.covered for scene in chosen]).float()
        right = covered.gather(1, logits.argmax(dim=1, keepdim=True)) > SHOWN
        return grounded(logits, covered), right.double().mean() * len(index)

    about = Checkpoint(
        "grounding", {}, settings(recipe, scenes=digest(part for scene in scenes for part in _learned_from(scene))), []
    )
    fit(model, step, len(scenes), recipe, folder, about, tell)
    return model


def _learned_from(scene: Scene) -> tuple[Tensor, ...]:
    return scene.features, scene.classes, scene.questions, scene.heard, scene.covered


def found(model: Grounding, scenes: Sequence[Scene]) -> Float[Tensor, "q n"]:
    """The logits of all questions about scenes of one grid, (Q, N)."""
    edges = torch.linspace(0, 1, scenes[0].side + 1)
    boxes = grid_boxes(edges, edges).expand(len(scenes), -1, -1)
    tokens = model.tokens(torch.stack([scene.features for scene in scenes]).float(), boxes)
    asked = model.questions(torch.cat([scene.heard for scene in scenes])).split([len(s.heard) for s in scenes])
    return torch.cat(
        [
            question @ own.T + scene.questions @ scene.classes.float().T
            for question, own, scene in zip(asked, tokens, scenes, strict=True)
        ]
    )


def realizer(batches: Sequence[Batch], epochs: int = 6, rate: float = 0.1) -> Realizer:
    """The temperatures of the participatory way and of the field, and how much each way counts."""
    model = Realizer()
    with torch.no_grad():
        model.participatory.log_temperature.zero_()  # 1: what is likely is not yet certain
        measured = [model.measure(batch.tokens, batch.question) for batch in batches]
    learned = [model.participatory.log_temperature, *model.field.parameters()]
    optimizer = torch.optim.Adam(learned, lr=rate)
    for _ in range(epochs):
        for batch, known in zip(batches, measured, strict=True):
            seen = torch.stack((*known.seen[:, :2].unbind(1), model.participatory(batch.tokens, batch.question)), dim=1)
            field, _, _ = model.field(seen, batch.tokens.valid)
            most = batch.covered.amax(dim=1, keepdim=True)
            shown = most[:, 0] > SHOWN
            loss = drawn(field[shown], (batch.covered / most.clamp(min=1e-6))[shown].double())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return model.requires_grad_(False).eval()


def grounded(logits: Float[Tensor, "q n"], covered: Float[Tensor, "q n"]) -> Float[Tensor, ""]:
    """The loss; see the module."""
    most = covered.amax(dim=1, keepdim=True)
    nowhere = (most < SHOWN).to(logits.dtype)
    wanted = torch.cat((covered / most.clamp(min=1e-6) * (1 - nowhere), nowhere), dim=1)
    scores = torch.cat((logits, logits.new_zeros(len(logits), 1)), dim=1).log_softmax(dim=1)
    return -(scores + wanted.clamp(min=1e-9).log()).logsumexp(dim=1).mean()
