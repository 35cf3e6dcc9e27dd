"""The third paradigm, BLIP-2's two stages (arXiv 2301.12597): first pictures and texts, then the language model.

In the first a Q-Former learns what of a picture is said of it, by ITC, ITM and ITG, without the language model. In the
second, which is `regard.train.bridge`, it goes on from there, through the frozen language model.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regard.errors import DataError, ModelError
from regard.train.alignment import Aligner, Losses
from regard.train.bridge import CACHE, Trained, begun
from regard.train.bridge import train as train_bridge
from regard.train.feed import Batch, Feed
from regard.train.guards import Flow, check_frozen, fingerprint, freeze_all_but, parts_of
from regard.train.learner import check_precision, shared
from regard.train.rows import Rows, Source
from regard.train.run import Run, Tell, feeds, made_of, silent, team_of
from regard.train.saving import locked
from regard.train.settings import Curriculum, Rates, Recipe
from regard.vlm.bridges.qformer import QueryBridge
from regard.vlm.compose import VLM
from regard.vlm.together import seen_together

FIRST, SECOND = "stage1", "stage2"  # in a run's folder
FIRST_RECIPE = Recipe(rates=Rates(bridge=1e-4), decay=0.05)  # BLIP-2's


class Both(NamedTuple):
    """The model after the second stage, with the metrics of both."""

    vlm: VLM
    first: dict[str, Any]
    second: dict[str, Any]


def train(
    vlm: VLM,
    rows: Source,
    folder: str | Path,
    recipe: Recipe | None = None,
    *,
    first: Recipe | None = None,
    held: Source | None = None,
    cache: str | Path = CACHE,
    tell: Tell = silent,
) -> Both:
    """Both stages, or go on with the one that was cut. recipe: of the second; first: of the first, which learns at
    `rates.bridge`. The rest as for `regard.train.bridge.train`.

    Raises as that, and ModelError for another bridge than the Q-Former.
    """
    folder = Path(folder)
    check_precision(vlm, recipe or Recipe())  # of the second, before the first has begun
    started = align(vlm, rows, folder / FIRST, first, held=held, cache=cache, tell=tell)
    bridge: Any = vlm.bridge
    bridge.requires_grad_(False)
    learned = fingerprint({"read": bridge.read, "former": bridge.former})  # what the first stage teaches
    second = train_bridge(vlm, rows, folder / SECOND, recipe, held=held, cache=cache, tell=tell, start=learned)
    return Both(second.vlm, started.metrics, second.metrics)


def align(
    vlm: VLM,
    rows: Source,
    folder: str | Path,
    recipe: Recipe | None = None,
    *,
    held: Source | None = None,
    cache: str | Path = CACHE,
    tell: Tell = silent,
) -> Trained:
    """The first stage alone. A picture's text is its row's answer, after the question where it has one; rows of several
    images are left out. A curriculum has no meaning here. Raises as `train`.
    """
    recipe, folder, bridge = recipe or FIRST_RECIPE, Path(folder), vlm.bridge
    if not isinstance(bridge, QueryBridge):
        raise ModelError(f"two stages train a Q-Former, got the mechanism {vlm.mechanism!r}: take mechanism='qformer'")
    if recipe.curriculum != Curriculum(short_first=recipe.curriculum.short_first):
        raise DataError("the first stage has no budgets or warm-up of parts: give curricula to the second")
    team = team_of(recipe, folder)
    with locked(folder / "lock", team):
        feed, held_feed = feeds(vlm, rows, held, Path(cache), team, tell)
        for some in (feed, held_feed):
            if some is not None:
                _single_images(some.rows)
        parts = {name: part for name, part in parts_of(vlm).items() if name != "fusion"}  # which it does not use
        freeze_all_but(parts, ("bridge",))
        begun(vlm, feed)
        aligner = Aligner(bridge, len(vlm.tokenizer)).to(team.device)
        parts |= {"bridge": aligner}
        learned = freeze_all_but(parts, ("bridge",))
        before = fingerprint(parts)
        decides = {"paradigm": "align", "frozen": before, "held": held_feed and held_feed.rows.digest}
        decides["parts"] = made_of(vlm, "mechanism")
        run = Run(folder, recipe, team, learned, feed, decides, tell)
        learner = _Learner(aligner, vlm, recipe, team)
        model, flow = shared(learner, team), Flow(parts)
        for step in run.steps():
            batches = [feed.batch(places).to(team.device) for places in run.rows(step)]
            sums = torch.zeros(3, device=team.device)
            for number, batch in enumerate(batches, 1):
                with run.sharing(model, number == len(batches)):
                    losses = model(batch)
                    (losses.sum() / len(batches)).backward()
                sums = sums + losses.detach() / len(batches) / team.num_processes
            itc, itm, itg, images = run.summed(*sums, sum(batch.images for batch in batches))
            lengths = run.stepped(step, itc + itm + itg, flow)
            watched = {f"gradient_{name}": length for name, length in lengths.items()}
            watched |= {"itc": itc, "itm": itm, "itg": itg, "temperature": float(aligner.temperature.detach())}
            run.note(step, itc + itm + itg, sum(batch.learned for batch in batches), images, **watched)
            if run.due(step):
                run.keep(step, _validated(learner, held_feed, run))
        check_frozen(before, parts)
        metrics = run.finish(held_feed, paradigm="align", frozen_unchanged=True)
        aligner.hand_over(bridge)
    return Trained(vlm, metrics)


class _Learner(nn.Module):
    """The first stage as its processes share it: a batch's three losses, (3,)."""

    def __init__(self, aligner: Aligner, vlm: VLM, recipe: Recipe, team: Any) -> None:
        super().__init__()
        self.aligner, self.tokenizer, self.team = aligner, vlm.tokenizer, team
        self.narrow = recipe.mixed_precision == "bf16"

    def forward(self, batch: Batch, alone: bool = False) -> Tensor:
        ids, valid = (part.to(self.team.device) for part in self.aligner.encoded(self.tokenizer, batch.texts))
        tokens = seen_together(batch.tokens)
        given = {} if alone else {"gather": self._gathered, "place": self.team.process_index * len(ids)}
        with torch.autocast(self.team.device.type, torch.bfloat16, enabled=self.narrow):
            losses: Losses = self.aligner(tokens, ids, valid, **given)
        return torch.stack(losses)

    def _gathered(self, value: Tensor) -> Tensor:
        """The batches of all processes, with this one's gradients."""
        if self.team.num_processes == 1:
            return value
        parts = list(self.team.gather(value.detach().contiguous()).split(len(value)))
        parts[self.team.process_index] = value
        return torch.cat(parts)


@torch.no_grad()
def _validated(learner: _Learner, held: Feed | None, run: Run) -> float | None:
    """The mean of the three losses' sum over held-out rows, a batch at a time; None where there are none."""
    if held is None:
        return None
    learner.eval()
    torch.manual_seed(run.recipe.seed)  # of the hard negatives; each step sets its own
    total = count = 0.0
    for places in _chunks(held, run):
        batch = held.batch(places).to(run.team.device)
        total, count = total + float(learner(batch, alone=True).sum()) * len(batch.texts), count + len(batch.texts)
    learner.train()
    total, count = run.summed(total, count)
    if not count:
        raise DataError("the first stage validates with 2 held-out rows or more: give more, or none")
    return total / count


def _chunks(held: Feed, run: Run) -> Iterable[Any]:
    order = held.buckets.argsort(kind="stable")
    size, team = run.recipe.batch, run.team
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    return [places for places in chunks if len(places) > 1][team.process_index :: team.num_processes]


def _single_images(rows: Rows) -> None:
    """Leave out rows of several images. Raises DataError where none is left."""
    several = [place for place, uses in enumerate(rows.uses) if len(uses) != 1]
    rows.leave_out(dict.fromkeys(several, "it has several images"))
    if not len(rows):
        raise DataError("the first stage learns from rows of one image each, and there are none: give some")
