"""Where allocators spend a budget on one sight, and why relevance does: what a Record holds, without a model."""

import time
from collections.abc import Sequence

import torch

from regard.allocate import catalogue, load, made, missing_needs
from regard.allocation import Allocation
from regard.app.sight import Heard
from regard.cost.language import QWEN2_5_7B
from regard.record import Look, Realization
from regard.recorded import PROMPT_TOKENS, look_of
from regard.relevance.tensions import States

RELEVANCE = "relevance"


def served(heard: Heard) -> tuple[str, ...]:
    """The allocators of the catalogue that the eye's tokens suffice for."""
    return tuple(
        name for name in catalogue() if not missing_needs(load(name).needs, heard.sight.tokens, heard.question)
    )


def looks(heard: Heard, names: Sequence[str], budget: int, states: States) -> tuple[Look, ...]:
    """One of each name, and one of relevance after them where it is not among them. budget: tokens, at least 1."""
    return tuple(_look(heard, name, budget, states) for name in dict.fromkeys((*names, RELEVANCE)))


@torch.no_grad()
def _look(heard: Heard, name: str, budget: int, states: States) -> Look:
    tokens = heard.sight.tokens
    allocator = made(name, 0, states)
    start = time.perf_counter()
    if name == RELEVANCE:  # what was measured of this question serves every budget
        allocation, why = _realized(heard, min(budget, heard.sight.count), states)
    else:
        allocation, why = allocator.allocate(tokens, heard.question, budget), None
    return look_of(
        tokens,
        heard.question,
        allocation,
        number=0,
        name=name,
        allocator=allocator,
        budget=budget,
        seconds=time.perf_counter() - start,
        model=QWEN2_5_7B,
        prompt_tokens=PROMPT_TOKENS,
        why=why,
    )


def _realized(heard: Heard, budget: int, states: States) -> tuple[Allocation, Realization]:
    found = heard.realizer.decide(heard.measured, budget, states)
    return found.allocation, found.record(heard.transjectivity, states.fixed)
