"""The first paradigm (Flamingo, BLIP-2, LLaVA's first stage): eye and language model frozen, the bridge is trained.

What the fusion adds learns too. Gradients flow through the frozen language model to the bridge; its weights, and the
eye's, are the same after it, bit for bit. What the eye makes of an image is computed once.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from regard.tokens import VisualTokens
from regard.train.feed import Feed
from regard.train.guards import Flow, check_frozen, fingerprint, freeze_all_but, gates, parts_of
from regard.train.learner import Learner, check_precision, shared, validated
from regard.train.rows import Source
from regard.train.run import Run, Tell, feeds, made_of, silent, team_of
from regard.train.saving import locked
from regard.train.settings import Recipe
from regard.vlm.bridges.queried import Queried
from regard.vlm.compose import VLM
from regard.vlm.together import seen_together

CACHE = "regard-cache"
MODEL = "model"  # of a run's folder: what `VLM.from_pretrained` reads
_BEGIN = 64  # images that queries begin with


class Trained(NamedTuple):
    """The model with the best weights, which the folder holds too, and what metrics.json has."""

    vlm: VLM
    metrics: dict[str, Any]


def train(
    vlm: VLM,
    rows: Source,
    folder: str | Path,
    recipe: Recipe | None = None,
    *,
    held: Source | None = None,
    cache: str | Path = CACHE,
    tell: Tell = silent,
    start: str = "",
) -> Trained:
    """Train the bridge and the fusion of a model, or go on. rows: to learn from; held: to validate with, every so
    often: the best weights are kept. folder: of the run; cache: of what eyes saw, for any number of runs. start: what
    the bridge begins with, where that is another run's.

    Raises DataError for rows that cannot be used, or a folder that holds another run or is in use, and ModelError where
    a loss is not finite, frozen weights change, or no gradient reaches a part.
    """
    recipe, folder = recipe or Recipe(), Path(folder)
    check_precision(vlm, recipe)
    team = team_of(recipe, folder)
    with locked(folder / "lock", team):
        feed, held_feed = feeds(vlm, rows, held, Path(cache), team, tell)
        parts = parts_of(vlm)
        learned = freeze_all_but(parts, ("bridge", "fusion"))
        before = fingerprint(parts)
        decides = {"paradigm": "bridge", "frozen": before, "start": start, "held": held_feed and held_feed.rows.digest}
        decides["parts"] = made_of(vlm, "mechanism", "fusion")
        if not start:
            begun(vlm, feed)
        run = Run(folder, recipe, team, learned, feed, decides, tell)
        return by_answers(vlm, run, held_feed, parts, before)


def by_answers(vlm: VLM, run: Run, held: Feed | None, parts: dict[str, nn.Module], frozen: str) -> Trained:
    """The loop of what learns from answers, this recipe and `regard.train.full`. frozen: the parts' `fingerprint`."""
    feed, team, learner = run.feed, run.team, Learner(vlm, run.recipe)
    model, flow = shared(learner, team), Flow(parts)
    for step in run.steps():
        batches = [feed.batch(places).to(team.device) for places in run.rows(step)]
        (total,) = run.summed(sum(batch.learned for batch in batches))
        budget, sums = run.budget(step), list(torch.zeros(2, device=team.device))
        for number, batch in enumerate(batches, 1):
            with run.sharing(model, number == len(batches)):
                loss, read = model(batch, budget)
                share = batch.learned / total  # of the step's loss, which is a mean over all tokens of answers
                (loss * share * team.num_processes).backward()
            sums = [sums[0] + loss.detach() * share, sums[1] + read]
        loss, read, images = run.summed(*sums, sum(batch.images for batch in batches))
        lengths = run.stepped(step, loss, flow)
        watched = {f"gradient_{name}": length for name, length in lengths.items()} | gates(vlm)
        run.note(step, loss, read, images, **watched, **({} if budget is None else {"budget": budget}))
        if run.due(step):
            run.keep(step, validated(learner, held, run))
    check_frozen(frozen, parts)
    metrics = run.finish(held, paradigm=run.state.decides["paradigm"], frozen_unchanged=True)
    if team.is_main_process:
        vlm.eval().save_pretrained(run.folder / MODEL)
    team.wait_for_everyone()
    return Trained(vlm, metrics)


@torch.no_grad()
def begun(vlm: VLM, feed: Feed) -> None:
    """Queries that begin from vision do so from the first images, once."""
    bridge = vlm.bridge
    if not isinstance(bridge, Queried) or bridge.start != "vision" or bridge.began:
        return
    keys = list(dict.fromkeys(key for uses in feed.rows.uses[:_BEGIN] for key in uses))[:_BEGIN]
    several: list[VisualTokens] = [feed.tokens(key) for key in keys]
    bridge.begin(seen_together(several).to(next(bridge.parameters()).device))
