"""The contract of an allocator, as tests that any package can run on its own: `check_allocator(MyAllocator())`.

Each rule draws tokens of many shapes (ragged masks, exact ties, one image or several) with hypothesis, which has to be
installed, and supplies just what the allocator says it `needs`. An object with `allocate` is enough to be checked.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from regard.allocate import Allocates
from regard.contract import RULES, Case
from regard.tokens import Question, VisualTokens

__all__ = ["RULES", "check_allocator"]


def check_allocator(allocator: Allocates, rules: Iterable[str] | None = None, examples: int = 40) -> None:
    """Try every rule (or those named) on `examples` drawn cases each. Raises AssertionError where one is broken."""
    drawn = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow],
    )
    for name in RULES if rules is None else rules:
        check = RULES[name]
        try:
            drawn(given(_draws)(_drawn(check, allocator)))()
        except AssertionError as error:
            error.add_note(f"rule {name} of the allocator contract: {check.__doc__}")
            raise
        except Exception as error:  # of whatever kind: the allocator is somebody else's
            kind = type(error).__name__
            raise AssertionError(f"rule {name} of the allocator contract: {kind}: {error}") from error


@dataclass(frozen=True)
class Draw:
    """What a case is made from.

    words: of the question, with one more that is masked and not finite. masked: the share of tokens that are real,
    1 for no mask. share: the budget in N.
    """

    images: int
    frames: int
    height: int
    width: int
    words: int
    seed: int
    ties: bool
    masked: float
    share: float


_draws = st.builds(
    Draw,
    images=st.integers(1, 3),
    frames=st.integers(1, 2),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    words=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    ties=st.booleans(),
    masked=st.sampled_from([1.0, 0.2, 0.7, 0.95]),
    share=st.floats(0, 1.1),
)


def _drawn(check: Callable[[Case], None], allocator: Allocates) -> Callable[[Draw], None]:
    def holds(draw: Draw) -> None:
        check(case(allocator, draw))

    return holds


def case(allocator: Allocates, draw: Draw) -> Case:
    """Tokens on a grid, with ties or without, masks or none, and just what the allocator needs."""
    batch, n = draw.images, draw.frames * draw.height * draw.width
    generator = torch.Generator().manual_seed(draw.seed)

    def values(*shape: int) -> Tensor:
        if draw.ties:  # one-hot times a power of two: norms and inner products are exact
            hot = torch.nn.functional.one_hot(torch.randint(shape[-1], shape[:-1], generator=generator), shape[-1])
            return hot * 2.0 ** torch.randint(-1, 2, (*shape[:-1], 1), generator=generator)
        return torch.randn(*shape, generator=generator)

    uses = getattr(allocator, "uses", ()) if draw.seed % 3 else ()  # what is optional is there, or is not
    needs = (*getattr(allocator, "needs", ()), *uses)
    mask = torch.rand(batch, n, generator=generator) < draw.masked
    tokens = VisualTokens.from_grid(
        values(batch, n, 13),
        (draw.frames * draw.height, draw.width),
        mask=None if draw.masked == 1 else mask,
        aligned=values(batch, n, 5) if "aligned" in needs else None,
        keys=values(batch, n, 11) if "keys" in needs else None,
        segment=torch.randint(3, (batch, n), generator=generator) if "segment" in needs else None,
        scores={need[7:]: values(batch, n, 2).sum(dim=2) for need in needs if need.startswith("scores:")},
    )
    tokens = dataclasses.replace(tokens, grid=(draw.frames, draw.height, draw.width) if "grid" in needs else None)
    question = None
    if "question" in needs:
        words = values(batch, draw.words + 1, 5 if "aligned" in needs else 13)
        words[:, -1] = torch.nan
        question = Question(words, (torch.arange(draw.words + 1) < draw.words).expand(batch, -1))
    return Case(allocator, tokens, question, max(1, round(draw.share * n)))
