"""What a call makes, counted and not timed: a layer of linear cost makes nothing that grows faster than its tokens."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operation gave back, views of it that repeat elements not counted."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.untyped_storage().nbytes() // one.element_size())
        return out


def largest(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Elements of the largest tensor of a forward and its backward."""
    with Largest() as seen:
        run(x.clone().requires_grad_()).sum().backward()
    return seen.elements


def products(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Multiply-adds of the matrix products of a forward."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(x)
    return counter.get_total_flops()


def assert_linear(run: Callable[[Tensor], Tensor], tokens: int, dim: int) -> None:
    """Twice the tokens make no more than twice the elements and products, edges aside."""
    short, long = torch.randn(1, tokens, dim), torch.randn(1, 2 * tokens, dim)
    assert largest(run, long) <= 2.1 * largest(run, short)
    assert products(run, long) <= 2.1 * products(run, short)
