"""The attention of one token of each prompt in one layer of a language model, under any attention kernel.

Only that token's query is made again, and the keys; with the layer's own norm, projections and rotation.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.errors import ModelError


def check_layer(layer: nn.Module) -> None:
    """Raise ModelError where attention cannot be made again from this layer's parts."""
    attention = getattr(layer, "self_attn", None)
    parts = ("q_proj", "k_proj", "head_dim", "scaling")
    missing = [name for name in parts if not hasattr(attention, name)]
    missing += [] if hasattr(layer, "input_layernorm") else ["input_layernorm"]
    missing += [] if attention is None or _rotation(attention) else ["apply_rotary_pos_emb"]
    if missing:
        raise ModelError(
            f"the language model's {type(layer).__name__} has no {', '.join(missing)} to read attention by"
        )


def _rotation(attention: nn.Module) -> Callable | None:
    """The rotation that the layer itself uses, from the module that defines its class or a parent of it."""
    homes = (sys.modules.get(kind.__module__) for kind in type(attention).__mro__)
    found = (getattr(home, "apply_rotary_pos_emb", None) for home in homes)
    return next((turn for turn in found if turn is not None), None)


@torch.no_grad()
def attention_of(
    layer: Any, hidden: Float[Tensor, "b s d"], given: dict[str, Any], rows: Int[Tensor, " b"]
) -> Float[Tensor, "b s"]:
    """What the token in column `rows` of each prompt attends to, (B, S), averaged over heads; sums to 1.

    given: the keyword arguments of the layer: position_embeddings and attention_mask.
    """
    attention = layer.self_attn
    hidden = hidden.to(attention.q_proj.weight.device)
    rows = rows.to(hidden.device)
    turn = _rotation(attention)
    assert turn is not None
    normed = layer.input_layernorm(hidden)
    cos, sin = (x.to(hidden.device).expand(len(hidden), -1, -1) for x in given["position_embeddings"])

    def at_row(x: Tensor) -> Tensor:
        return x.gather(1, rows[:, None, None].expand(-1, 1, x.shape[-1]))

    q = attention.q_proj(at_row(normed)).unflatten(-1, (-1, attention.head_dim))
    k = attention.k_proj(normed).unflatten(-1, (-1, attention.head_dim))
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    q = turn(q, q, at_row(cos), at_row(sin))[0].float()
    k = turn(k, k, cos, sin)[1].float()
    logits = q.unflatten(1, (k.shape[1], -1)).squeeze(3) @ k.transpose(2, 3) * attention.scaling  # (B, kv, group, S)
    cap = getattr(attention, "attn_logit_softcapping", None)
    if cap is not None:
        logits = (logits / cap).tanh() * cap
    return _masked(logits, given.get("attention_mask"), rows).softmax(dim=-1).mean(dim=(1, 2))


def _masked(logits: Tensor, mask: Tensor | None, rows: Tensor) -> Tensor:
    """logits: (B, kv, group, S). mask: (B or 1, 1, S, S), True or 0 where visible; None: what came before is."""
    batch, s = len(logits), logits.shape[-1]
    if mask is None:
        seen = torch.arange(s, device=rows.device) <= rows[:, None]
        return logits.masked_fill(~seen[:, None, None], -torch.inf)
    row = mask[:, 0].expand(batch, -1, -1)[torch.arange(batch), rows][:, None, None].to(logits.device)
    return logits.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else logits + row
