"""Layers of `regard.attention` that read tokens, named as their classes, with sizes named as their arguments.

Of n tokens of one image or text. Layers on grids stand in `swin.py`, `convnext.py` and `pervit.py`, those of linear and
sparse cost in `linear.py` and `sparse.py`, whole stacks of queries in `qformer.py` and `perceiver.py`.
"""

from regard.cost.counted import Cost
from regard.cost.parts import activation, attention, linear, norm, parameters


def self_attention(n: int, dim: int, heads: int, bias: bool = True) -> Cost:
    """MultiHeadAttention: 4 n d^2 + 2 n^2 d."""
    read = attention(n, n, heads, dim // heads) + linear(n, dim, dim).beside(3 * n * dim)
    return linear(n, dim, 3 * dim, bias) + read.beside(n * dim)


def mlp(n: int, dim: int, hidden: int, gated: bool = False, bias: bool = True) -> Cost:
    """Widen, activate, narrow; gated (SwiGLU): the wide one is two."""
    wide = linear(n, dim, (1 + gated) * hidden, bias)
    active = Cost(saved=3 * n * hidden, peak=4 * n * hidden) if gated else activation(n, hidden)
    return wide + active + linear(n, hidden, dim, bias)


def transformer_block(
    n: int, dim: int, heads: int, hidden: int, bias: bool = True, layer_scale: bool = False, gated: bool = False
) -> Cost:
    """TransformerBlock, pre-norm. bias: of the joint projection of queries, keys and values."""
    scales = Cost(2 * dim, saved=2 * n * dim) if layer_scale else Cost()
    return pre_norm(n, dim, self_attention(n, dim, heads, bias), mlp(n, dim, hidden, gated)) + scales


def pre_norm(n: int, dim: int, attention: Cost, fed: Cost, bias: bool = True) -> Cost:
    """X + attention(norm(x)), then y + fed(norm(y)). x waits for both, y for the second. bias: of the norms."""
    normed = norm(n, dim, bias)
    return (normed + attention).beside(n * dim) + (normed + fed).beside(2 * n * dim)


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
    held = queries * qk_dim + keys * wide
    attended = attention(queries, keys, heads, head, value, kv_heads) + linear(queries, v_dim, dim, bias).beside(held)
    return read + attended.beside(queries * dim + keys * (context_dim or dim)) + Cost(cache=keys * wide)


def gated_cross_attention_block(
    text: int, keys: int, dim: int, heads: int, hidden: int, context_dim: int | None = None, qk_dim: int | None = None
) -> Cost:
    """GatedCrossAttentionBlock (Flamingo): two gates of one number each, no biases."""
    read = cross_attention(text, keys, dim, heads, context_dim, qk_dim, bias=False)
    fed = mlp(text, dim, hidden, bias=False)
    return pre_norm(text, dim, read, fed) + Cost(2, saved=2 * text * dim)


def visual_expert_block(visual: int, text: int, dim: int, heads: int, hidden: int) -> Cost:
    """VisualExpertBlock (CogVLM): each token goes through its own expert, visual ones but the last of a run through
    that of vision; one attention over all, counted whole though it is causal.
    """
    n = visual + text
    fed = mlp(visual, dim, hidden, gated=True, bias=False) + mlp(text, dim, hidden, gated=True, bias=False)
    return pre_norm(n, dim, visual_expert_attention(visual, text, dim, heads), fed, bias=False)


def visual_expert_attention(visual: int, text: int, dim: int, heads: int) -> Cost:
    """VisualExpertAttention alone. What goes to one expert and comes back is copied."""
    n = visual + text
    into, out = (linear(visual, dim, wide, bias=False) + linear(text, dim, wide, bias=False) for wide in (3 * dim, dim))
    copied = Cost(saved=n * dim)
    attended = attention(n, n, heads, dim // heads) + copied + out.beside(4 * n * dim)
    return into.beside(3 * n * dim) + attended.beside(n * dim) + Cost(cache=2 * n * dim)


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
    read = read.beside(latents * dim + n * dim)
    fed = norm(latents, dim, not rms) + mlp(latents, dim, hidden, gated, bias=False)
    blocks = (read + fed.beside(2 * latents * dim + n * dim)) * depth
    again = Cost(saved=-max(depth - 1, 0) * n * dim, cache=-blocks.cache)  # the same media are kept once
    return parameters(latents * dim) + blocks + norm(latents, dim, not rms) + again
