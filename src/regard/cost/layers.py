"""Layers of `regard.attention` that read tokens, named as their classes, with sizes named as their arguments.

Of n tokens of one image or text. Layers on grids stand in `swin.py`, `convnext.py` and `pervit.py`, those of linear and
sparse cost in `linear.py` and `sparse.py`, whole stacks of queries in `qformer.py` and `perceiver.py`.
"""

from regard.cost.counted import Cost
from regard.cost.parts import activation, attention, linear, norm, parameters


def self_attention(n: int, dim: int, heads: int, bias: bool = True) -> Cost:
    """MultiHeadAttention: 4 n d^2 + 2 n^2 d."""
    return linear(n, dim, 3 * dim, bias) + attention(n, n, heads, dim // heads) + linear(n, dim, dim)


def mlp(n: int, dim: int, hidden: int, gated: bool = False, bias: bool = True) -> Cost:
    """Widen, activate, narrow; gated (SwiGLU): the wide one is two."""
    wide = linear(n, dim, (1 + gated) * hidden, bias)
    return wide + activation(n, (3 if gated else 1) * hidden) + linear(n, hidden, dim, bias)


def transformer_block(
    n: int, dim: int, heads: int, hidden: int, bias: bool = True, layer_scale: bool = False, gated: bool = False
) -> Cost:
    """TransformerBlock, pre-norm. bias: of the joint projection of queries, keys and values."""
    read = norm(n, dim) + self_attention(n, dim, heads, bias)
    fed = norm(n, dim) + mlp(n, dim, hidden, gated)
    scales = Cost(2 * dim, saved=2 * n * dim) if layer_scale else Cost()
    return (read + fed).beside(n * dim) + scales


def cross_attention(
    queries: int,
    keys: int,
    dim: int,
    heads: int,
    context_dim: int | None = None,
    qk_dim: int | None = None,
    v_dim: int | None = None,
    kv_heads: int | None = None,
    bias: bool = True,
    qk_norm: bool = False,
) -> Cost:
    """CrossAttention. What it caches are the keys and values of the context."""
    qk_dim = dim if qk_dim is None else qk_dim
    v_dim = qk_dim if v_dim is None else v_dim
    kv_heads, head, value = heads if kv_heads is None else kv_heads, qk_dim // heads, v_dim // heads
    wide = kv_heads * (head + value)
    read = linear(queries, dim, qk_dim, bias) + linear(keys, context_dim or dim, wide, bias)
    if qk_norm:
        read += Cost(4 * head, saved=queries * qk_dim + keys * kv_heads * head)
    read += attention(queries, keys, heads, head, value, kv_heads) + linear(queries, v_dim, dim, bias)
    return read + Cost(cache=keys * wide)


def gated_cross_attention_block(
    text: int, keys: int, dim: int, heads: int, hidden: int, context_dim: int | None = None, qk_dim: int | None = None
) -> Cost:
    """GatedCrossAttentionBlock (Flamingo): two gates of one number each, no biases."""
    read = norm(text, dim) + cross_attention(text, keys, dim, heads, context_dim, qk_dim, bias=False)
    fed = norm(text, dim) + mlp(text, dim, hidden, bias=False)
    return (read + fed).beside(text * dim) + Cost(2, saved=2 * text * dim)


def visual_expert_block(visual: int, text: int, dim: int, heads: int, hidden: int) -> Cost:
    """VisualExpertBlock (CogVLM): each token goes through its own expert, visual ones but the last of a run through
    that of vision; one attention over all, counted whole though it is causal.
    """
    n = visual + text
    both = norm(n, dim, bias=False) * 2 + attention(n, n, heads, dim // heads)
    experts = (_expert(count, dim, hidden) for count in (visual, text))
    return sum(experts, both).beside(n * dim) + Cost(cache=2 * n * dim)


def visual_expert_attention(visual: int, text: int, dim: int, heads: int) -> Cost:
    """VisualExpertAttention alone."""
    n = visual + text
    read = attention(n, n, heads, dim // heads)
    for count in (visual, text):
        read += linear(count, dim, 3 * dim, bias=False) + linear(count, dim, dim, bias=False)
    return read + Cost(cache=2 * n * dim)


def _expert(n: int, dim: int, hidden: int) -> Cost:
    projected = linear(n, dim, 3 * dim, bias=False) + linear(n, dim, dim, bias=False)
    return projected + mlp(n, dim, hidden, gated=True, bias=False)


def perceiver_resampler(
    n: int,
    dim: int,
    heads: int,
    latents: int,
    depth: int,
    hidden: int,
    qk_dim: int | None = None,
    kv_heads: int | None = None,
    rms: bool = False,
    gated: bool = False,
) -> Cost:
    """PerceiverResampler (Flamingo): n tokens to `latents`, which are keys too. rms, gated: Idefics2's."""
    read = norm(n, dim, not rms) + norm(latents, dim, not rms)
    read += cross_attention(latents, n + latents, dim, heads, qk_dim=qk_dim, kv_heads=kv_heads, bias=False)
    fed = norm(latents, dim, not rms) + mlp(latents, dim, hidden, gated, bias=False)
    blocks = (read + fed).beside(latents * dim) * depth
    return parameters(latents * dim) + blocks + norm(latents, dim, not rms) + Cost(cache=-blocks.cache)
