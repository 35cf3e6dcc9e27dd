"""Every mechanism as the bridge of the pocket model, at equal budgets: `regard bench mechanisms`.

An answer is right word for word, to its end; greedy, so it is what the model says by itself. Budgets are tokens in the
prompt. Intervals are of scenes drawn again, 95 %. What it costs is of one question about one scene of the middle size;
times are medians, alternating. Of 64 questions at once, the time of each, and the memory of all beyond what is there.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from regard.bench.advise.candidates import KINDS as GROUPS
from regard.bench.results import Row, medians, provenance, publish
from regard.bench.tasks.asked.wording import KINDS
from regard.bench.tasks.seen import Batch, Sights
from regard.cost.language import LanguageModel
from regard.train.pocket import BUDGETS, taught
from regard.vlm.bridges import ALL
from regard.vlm.compose import VLM
from regard.vlm.interleaved import IMAGE, interleaved
from regard.vlm.measure import PeakMemory
from regard.vlm.pocket import MECHANISMS, Pocket

BLIND = ("pool", "grid", "random", "divprune")  # allocators that do not hear the question
DETAIL = ("colour", "read")  # kinds whose answers need the detail of one thing
AT_ONCE = 64  # questions
AGAIN = 2000  # times that scenes are drawn again


@dataclass(frozen=True, eq=False)
class Asking:
    """What came of asking all questions of a split. kinds, scenes: of each question, (Q,)."""

    kinds: np.ndarray
    scenes: np.ndarray
    right: dict[tuple[str, int | None], np.ndarray] = field(default_factory=dict)

    def rate(self, mechanism: str, budget: int | None, kinds: Iterable[str] = KINDS) -> float:
        """The percent of questions of these kinds that were answered right."""
        return 100 * float(self.right[mechanism, budget][np.isin(self.kinds, list(kinds))].mean())

    def interval(self, values: np.ndarray, kinds: Iterable[str] = KINDS, seed: int = 0) -> tuple[float, float]:
        """Of the mean of (Q,) values over the questions of these kinds, in percent; 95 %, of scenes drawn again."""
        of = np.isin(self.kinds, list(kinds))
        _, scene = np.unique(self.scenes, return_inverse=True)
        sums, counts = (np.bincount(scene, weights=of * of_each) for of_each in (values, np.ones(len(of))))
        drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), AGAIN)
        low, high = np.quantile(100 * (drawn @ sums) / np.maximum(drawn @ counts, 1), (0.025, 0.975))
        return float(low), float(high)


def amounts(model: Pocket, name: str, budgets: Sequence[int]) -> list[int | None]:
    """The tokens that a mechanism gives of these budgets: all, or no more than its bridge can."""
    most = model.bridge(name).most
    return [None] if name == ALL else list(dict.fromkeys(min(budget, most or budget) for budget in budgets))


@torch.no_grad()
def asking(
    model: Pocket,
    sights: Sights,
    mechanisms: Sequence[str] = MECHANISMS,
    budgets: Sequence[int] = BUDGETS,
    told: Callable[[str], None] = lambda line: None,
) -> Asking:
    """Ask all questions through each mechanism at each budget that its bridge can give, and through all tokens."""
    places = [place for side in sights.sides() for place in side]
    found = Asking(
        np.array([sights.scenes[scene].kinds[turn] for scene, turn in places]), np.array([s for s, _ in places])
    )
    batches = [side[start : start + AT_ONCE] for side in sights.sides() for start in range(0, len(side), AT_ONCE)]
    for name in mechanisms:
        vlm = model.vlm(name).eval()
        for budget in amounts(model, name, budgets):
            right = [taught(vlm, sights.batch(places), budget)[1] for places in batches]
            found.right[name, budget] = torch.cat(right).numpy()
            told(f"{name}, {budget or 'all'} tokens: {found.rate(name, budget):.1f} % right")
    return found


def cost(vlm: VLM, batch: Batch, budget: int | None) -> dict[str, float]:
    """Of one question: parameters of the bridge, and multiply-accumulates of bridge and decoder to the first word."""
    vlm.bridge.train()  # in which no bridge makes the reading that only reports
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        bridged = vlm.bridge(batch.tokens, batch.question, budget)
    config: Any = vlm.language_model.config
    words = len(vlm.tokenizer(batch.asks[0])["input_ids"])
    prompt = int(bridged.mask.sum()) + words
    return {
        "parameters": sum(value.numel() for value in vlm.bridge.parameters()),
        "macs": counter.get_total_flops() / 2 + LanguageModel.of(config).prefill_macs(prompt),
    }


def first_word(vlm: VLM, batch: Batch, budget: int | None) -> Callable[[], Tensor]:
    """Bridge and decoder, from the eye's tokens to the first word of each answer."""
    vlm.bridge.train()  # as in `cost`
    prompts = interleaved(vlm.tokenizer, [IMAGE + ask for ask in batch.asks], [1] * len(batch.asks))
    return lambda: vlm.generate(prompts, batch.tokens, batch.question, budget, max_new_tokens=1, do_sample=False)


def first_words(model: Pocket, sights: Sights, budgets: Sequence[int], size: int) -> dict[str, Callable[[], object]]:
    """For each mechanism and budget, by both, what makes the first words of `size` questions at once."""
    side = sights.sides()[len(sights.sides()) // 2]
    batch = sights.batch([side[place % len(side)] for place in range(size)])
    return {
        f"{name} {budget}": first_word(model.vlm(name).eval(), batch, budget)
        for name in MECHANISMS
        for budget in amounts(model, name, budgets)
    }


def peak(work: Callable[[], object]) -> float:
    """MiB that the process needs beyond what it has, at most, while it works; nan where that cannot be counted."""
    memory = PeakMemory(torch.device("cpu"))
    work()
    most = memory.peak
    return math.nan if most is None or memory.before is None else (most - memory.before) / 2**20


def compared(found: Asking, budget: int) -> list[Row]:
    """What is to be reached at a budget: relevance beside the best of the blind allocators, and beside all tokens."""

    def rate(name: str, kinds: Iterable[str] = KINDS) -> float:
        return found.rate(name, budget if name != ALL else None, kinds)

    def apart(name: str, kinds: Sequence[str]) -> tuple[float, float]:
        other = found.right[name, budget if name != ALL else None]
        return found.interval(found.right["relevance", budget].astype(float) - other, kinds)

    rows = []
    there = [kind for kind in KINDS if kind in found.kinds]
    wanted: list[tuple[str, tuple[str, ...], str]] = [(kind, (kind,), ">= -2") for kind in there]
    if set(DETAIL) & set(there):
        wanted.insert(0, ("detail", DETAIL, ">= 6"))
    for name, kinds, target in wanted:
        best = max(BLIND, key=lambda other: rate(other, kinds))
        low, high = apart(best, kinds)
        line = f"{budget} tokens, {name}: relevance less {best} (95 %: {low:+.1f} to {high:+.1f})"
        rows.append(Row(line, rate("relevance", kinds) - rate(best, kinds), "points", target))
    low, high = apart(ALL, KINDS)
    line = f"{budget} tokens, all questions: all tokens less relevance (95 %: {-high:+.1f} to {-low:+.1f})"
    rows.append(Row(line, rate(ALL) - rate("relevance"), "points", "<= 4"))
    return rows


def grouped(found: Asking, name: str, budget: int | None) -> dict[str, list[float]]:
    """Of the groups of kinds that advice is asked about, the percent that is right, and its interval."""
    there = {group: kinds for group, kinds in GROUPS.items() if set(kinds) & set(found.kinds)}
    right = found.right[name, budget]
    return {
        group: [round(x, 2) for x in (found.rate(name, budget, kinds), *found.interval(right, kinds))]
        for group, kinds in there.items()
    }


def main(
    model: Pocket,
    sights: Sights,
    split: str,
    command: str,
    told: Callable[[str], None] = lambda line: None,
    new: Sights | None = None,
) -> None:
    """Ask, measure, and write results/mechanisms.json, or, of another split than the test's, show only. new: scenes of
    things whose names no training had.
    """
    from regard.bench import trade_offs  # which reads what is asked here

    made, found = provenance(), asking(model, sights, told=told)
    there = [kind for kind in KINDS if kind in found.kinds]
    side = sights.sides()[len(sights.sides()) // 2]
    alone, rows, table, groups = sights.batch(side[:1]), [], [], {}
    one, many = (first_words(model, sights, BUDGETS, size) for size in (1, AT_ONCE))
    single, several = medians(one, 9), medians(many, 3)
    for name in MECHANISMS:
        vlm = model.vlm(name).eval()
        for budget in amounts(model, name, BUDGETS):
            costs = cost(vlm, alone, budget)
            low, high = found.interval(found.right[name, budget])
            kinds = [f"{found.rate(name, budget, (kind,)):.1f}" for kind in there]
            way = f"{name} {budget}"
            times = [f"{1e3 * single[way]:.1f}", f"{1e3 * several[way] / AT_ONCE:.1f}", f"{peak(many[way]):.0f}"]
            whole = f"{found.rate(name, budget):.1f} ({low:.1f} to {high:.1f})"
            costed = [f"{costs['parameters'] / 1e3:.0f}", f"{costs['macs'] / 1e6:.0f}"]
            table.append([name, str(budget or "all"), whole, *kinds, *costed, *times])
            groups[f"{name}, {budget or 'all'} tokens"] = grouped(found, name, budget)
    for budget in BUDGETS[:3]:
        rows += compared(found, budget)
    columns = [
        "mechanism",
        "tokens",
        "right, % (95 %)",
        *there,
        "bridge, k parameters",
        "M MACs",
        "ms alone",
        "ms of 64",
        "MiB of 64",
    ]
    tables = {"mechanisms": {"columns": columns, "rows": table}, "scenes": trade_offs.by_scene(found, sights)}
    tables["slowest answers"] = trade_offs.slowest(model, sights)
    if new is not None:
        tables["unseen names"] = trade_offs.unseen(model, new, told)
    notes = {"questions": len(found.kinds), "scenes": len(np.unique(found.scenes)), "split": split, "groups": groups}
    publish("mechanisms", command, rows, made, seed=0, notes=notes, tables=tables, write=split == "test")
