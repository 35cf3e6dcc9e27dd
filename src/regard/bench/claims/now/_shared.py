"""How what is computed for the claims is named, counted and kept.

An exponent is of the second figure over the first, log(b / a) / log(n_b / n_a). Products are those of matrices, by
torch's counter, with attention written out.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from regard.attention._base import attend, split

DIM, HEADS = 32, 2
Now = Callable[[], tuple[float, str]]
NOWS: dict[str, Now] = {}


def now(name: str, unit: str = "") -> Callable[[Callable[[], float]], Callable[[], float]]:
    """Register a figure: computed once, from seed 0, without touching the caller's draws."""

    def registered(compute: Callable[[], float]) -> Callable[[], float]:
        @cache
        def value() -> tuple[float, str]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return float(compute()), unit

        NOWS[name] = value
        return compute

    return registered


def exponent(sizes: tuple[int, int], price: Callable[[int], float]) -> float:
    """How the price grows from one size to the other."""
    small, large = sizes
    return math.log(price(large) / price(small)) / math.log(large / small)


def products(work: Callable[[], object]) -> int:
    """Multiply-adds of matrices."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops() // 2


def parameters(module: nn.Module) -> int:
    """How many."""
    return sum(value.numel() for value in module.parameters())


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """A module without weights, for counting."""
    with torch.device("meta"):
        return make()


def x(count: int, dim: int = DIM) -> Tensor:
    return torch.randn(1, count, dim)


def scores(queries: int, keys: int) -> int:
    """Products of the core of attention alone: scores and their use."""
    q, k = (split(x(count), HEADS) for count in (queries, keys))
    return products(lambda: attend(q, k, k))


def counted(layer: nn.Module, count: int) -> int:
    """Products of a layer over so many tokens."""
    layer.requires_grad_(False)  # the counter follows modules that learn through their backward pass
    return products(lambda: layer(x(count)))


def pairs(layer: Any, count: int, *arguments: Any) -> float:
    """Pairs of tokens of which one sees the other."""
    with torch.no_grad():
        return float((layer.weights(x(count), *arguments)[0, 0] > 0).sum())


def reach(layer: Any, side: int, *arguments: Any) -> float:
    """The share of tokens that move the token in the middle."""
    given = x(side * side).requires_grad_()
    out = layer(given, *arguments)
    out[0, side * side // 2 + side // 2].sum().backward()
    assert given.grad is not None
    return float((given.grad[0].abs().sum(dim=1) > 0).double().mean())
