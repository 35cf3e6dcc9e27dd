"""What the tests of attention layers share: parameters that hide nothing, and comparisons that see gradients too."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

EXACT, SINGLE = 1e-9, 1e-5  # of float64 references, and of those that go through float32


Run = Callable[[Tensor], Tensor]


def randomised(module, seed: int = 0, dtype: torch.dtype = torch.float64):
    """Every parameter and bias table at N(0, 0.4), gates, latents and layer scales too; norms' weights about 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(0, 0.4, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1)
    return module.to(dtype).eval()


def assert_same(ours: Tensor, theirs: Tensor, limit: float = EXACT) -> None:
    """Equal to `limit`, relative to the size of the reference, which must not be 0."""
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
    ours, theirs = ours.detach(), theirs.detach()
    size = float(theirs.abs().max())
    assert size > 1e-3, "the reference is 0: the comparison would say nothing"
    assert float((ours - theirs).abs().max()) <= limit * max(size, 1)


def assert_parity(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor, limit: float = EXACT
):
    """The same outputs and the same gradient of the input, of a loss that weighs every output differently."""
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, reference = ours(mine), theirs(other)
    assert_same(out, reference, limit)
    factor = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    (out * factor).sum().backward()
    (reference * factor).sum().backward()
    assert mine.grad is not None
    assert other.grad is not None
    assert_same(mine.grad, other.grad, limit)


def assert_differs(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor, limit: float = 1e-4
):
    """What a mutation must do: the comparison fails, and not by rounding."""
    with pytest.raises(AssertionError):
        assert_parity(ours, theirs, x, limit)
