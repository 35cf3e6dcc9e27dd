"""The norms and feed-forward layers around attention that reads images, and how they are lifted from transformers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention.scaled import ACTIVATIONS, NAMES, copy_into, first
from regard.errors import ModelError

NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def norm_layer(kind: str, dim: int, eps: float) -> nn.Module:
    """LayerNorm of "layer", RMSNorm (arXiv 1910.07467) of "rms". Raises ModelError for another name."""
    if kind not in NORMS:
        raise ModelError(f"no norm is named {kind!r}: there are {', '.join(NORMS)}")
    return NORMS[kind](dim, eps=eps)


class FeedForward(nn.Module):
    """narrow(activation(widen(norm(x)))); of "swiglu" (arXiv 2002.05202) narrow(silu(a) * b), [a, b] = widen(norm(x)).

    Raises ModelError for an unknown activation or norm.
    """

    def __init__(self, dim: int, hidden: int, activation: str, norm: str, eps: float, bias: bool = False) -> None:
        super().__init__()
        if activation != "swiglu" and activation not in ACTIVATIONS:
            raise ModelError(f"no activation is named {activation!r}: there are {', '.join(ACTIVATIONS)}, swiglu")
        self.activation = activation
        self.norm = norm_layer(norm, dim, eps)
        self.widen = nn.Linear(dim, 2 * hidden if activation == "swiglu" else hidden, bias=bias)
        self.narrow = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.widen(self.norm(x))
        if self.activation == "swiglu":
            gate, y = y.chunk(2, dim=-1)
            return self.narrow(F.silu(gate) * y)
        return self.narrow(ACTIVATIONS[self.activation](y))

    @classmethod
    def lifted(cls, norm: nn.Module, mlp: Any, activation: str | None = None) -> "FeedForward":
        """Of a norm and an MLP of transformers. activation: its configuration's name, if the MLP does not say."""
        wide, narrow = _parts(mlp)
        name = _named(mlp, activation)
        hidden, dim, bias = narrow.weight.shape[1], narrow.weight.shape[0], narrow.bias is not None
        layer = cls(dim, hidden, name, kind_of(norm), eps_of(norm), bias).to(narrow.weight)
        copy_norm(layer.norm, norm)
        copy_into(
            layer.widen,
            torch.cat([part.weight for part in wide]),
            torch.cat([part.bias for part in wide]) if bias else None,
        )
        copy_into(layer.narrow, narrow.weight, narrow.bias)
        return layer


def kind_of(norm: nn.Module) -> str:
    return "layer" if isinstance(norm, nn.LayerNorm) else "rms"


def eps_of(norm: Any) -> float:
    return norm.eps if isinstance(norm, nn.LayerNorm) else norm.variance_epsilon


def copy_norm(mine: nn.Module, theirs: Any) -> None:
    copy_into(mine, theirs.weight, getattr(theirs, "bias", None))


def _parts(mlp: Any) -> tuple[list[nn.Linear], nn.Linear]:
    if hasattr(mlp, "gate_proj"):
        return [mlp.gate_proj, mlp.up_proj], mlp.down_proj
    return [first(mlp, ("fc", "dense1"))], first(mlp, ("c_proj", "dense2"))


def _named(mlp: Any, activation: str | None) -> str:
    if activation is None:
        activation = type(first(mlp, ("act", "act_fn"))).__name__.lower().removesuffix("activation")
    if not hasattr(mlp, "gate_proj"):
        return NAMES.get(activation, activation)
    if activation not in ("silu", "swish"):
        raise ModelError(f"a gated MLP must be of silu to be lifted, got {activation}")
    return "swiglu"
