"""Where allocators spend a budget on one sight, and why relevance does: what a Record holds, without a model."""

import time
from collections.abc import Sequence

import torch

from regard.allocate import catalogue, load, made, missing_needs
from regard.app.sight import Heard, Spent
from regard.cost.language import QWEN2_5_7B
from regard.record import Look
from regard.recorded import PROMPT_TOKENS, look_of
from regard.relevance.tensions import States

RELEVANCE = "relevance"
_KEPT = 8  # decisions of a question


def served(heard: Heard) -> tuple[str, ...]:
    """The allocators of the catalogue that the eye's tokens suffice for."""
    return tuple(
        name for name in catalogue() if not missing_needs(load(name).needs, heard.sight.tokens, heard.question)
    )


def looks(heard: Heard, names: Sequence[str], budget: int, states: States) -> tuple[Look, ...]:
    """One of each name, and one of relevance after them where it is not among them. budget: tokens, at least 1."""
    return tuple(_look(heard, name, budget, states) for name in dict.fromkeys((*names, RELEVANCE)))


@torch.no_grad()
def spent(heard: Heard, name: str, budget: int, states: States) -> Spent:
    """How one allocator spends the budget, decided once for the maps and for the answers."""
    key = (name, budget, states)
    decided = heard.spent.get(key)
    if decided is None:
        start = time.perf_counter()
        if name == RELEVANCE:  # what was measured of this question serves every budget
            found = heard.realizer.decide(heard.measured, min(budget, heard.sight.count), states)
            allocation, why = found.allocation, found.record(heard.transjectivity, states.fixed)
        else:
            allocation, why = made(name, 0, states).allocate(heard.sight.tokens, heard.question, budget), None
        seconds = time.perf_counter() - start + heard.seconds * (name == RELEVANCE)
        for old in list(heard.spent)[: 1 - _KEPT]:  # another event of the same user may do so at once
            heard.spent.pop(old, None)
        decided = heard.spent[key] = Spent(allocation, why, seconds)
    return decided


def _look(heard: Heard, name: str, budget: int, states: States) -> Look:
    allocation, why, seconds = spent(heard, name, budget, states)
    return look_of(
        heard.sight.tokens,
        heard.question,
        allocation,
        number=0,
        name=name,
        allocator=made(name, 0, states),
        budget=budget,
        seconds=seconds,
        model=QWEN2_5_7B,
        prompt_tokens=PROMPT_TOKENS,
        why=why,
    )
