"""Top-k attention against its rule by brute force, and against dense attention where nothing is left out."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ViTConfig
from transformers.models.vit.modeling_vit import ViTAttention

from attention_parity import EXACT, assert_differs, assert_parity, assert_same, randomised
from regard.attention.scaled import MultiHeadAttention
from regard.attention.topk import TopKAttention, best
from regard.errors import ShapeError

BATCH, TOKENS, HEADS, WIDTH = 3, 23, 2, 5
DIM = HEADS * WIDTH


@pytest.fixture
def x():
    return torch.randn(BATCH, TOKENS, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture
def mask():
    seen = torch.rand(BATCH, TOKENS, TOKENS, generator=torch.Generator().manual_seed(3)) < 0.6
    seen[0, 4] = False
    seen[1, 5, 3:] = False
    return seen


def first_of_the_highest(scores: list[float], k: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:k])


def by_hand(layer, mask, k, lowest=False):
    """Query by query: sort the visible keys, keep k, softmax over them, weigh their values."""

    def run(x):
        q, key, v = layer.qkv(x).unflatten(-1, (3, HEADS, WIDTH)).unbind(2)
        rows = []
        for b in range(len(x)):
            for i in range(x.shape[1]):
                for h in range(HEADS):
                    seen = [j for j in range(x.shape[1]) if mask[b, i, j]]
                    scores = {j: (q[b, i, h] * key[b, j, h]).sum() / WIDTH**0.5 for j in seen}
                    kept = sorted(seen, key=lambda j: (float(scores[j].detach()) * (1 if lowest else -1), j))[:k]
                    if not kept:
                        rows.append(x.new_zeros(WIDTH))
                        continue
                    shares = torch.stack([scores[j] for j in kept]).softmax(0)
                    rows.append(sum(share * v[b, j, h] for share, j in zip(shares, kept, strict=True)))
        return layer.out(torch.stack(rows).view(*x.shape[:2], DIM)) * mask.any(-1)[..., None]

    return run


@pytest.mark.parametrize("k", [1, 4])
def test_is_the_rule(x, mask, k):
    layer = randomised(TopKAttention(DIM, HEADS, k))
    assert_parity(lambda t: layer(t, mask), by_hand(layer, mask, k), x)
    full = torch.ones_like(mask)
    assert_parity(layer, by_hand(layer, full, k), x)
    keys = mask[:, 7]
    assert_parity(lambda t: layer(t, keys), by_hand(layer, keys[:, None].expand(-1, TOKENS, -1), k), x)


def test_a_mutation_of_the_rule_is_seen(x, mask):
    layer = randomised(TopKAttention(DIM, HEADS, 4))
    for other in (by_hand(layer, torch.ones_like(mask), 4), by_hand(layer, mask, 5), by_hand(layer, mask, 4, True)):
        assert_differs(lambda t: layer(t, mask), other, x)


@pytest.mark.parametrize("k", [TOKENS, TOKENS + 8])
def test_is_dense_attention_where_all_are_kept(x, mask, k):
    layer, dense = randomised(TopKAttention(DIM, HEADS, k)), MultiHeadAttention(DIM, HEADS).double()
    dense.load_state_dict(layer.state_dict())
    assert_parity(lambda t: layer(t, mask), lambda t: dense(t, mask), x)
    fewer = TopKAttention(DIM, HEADS, TOKENS - 1).double()
    fewer.load_state_dict(layer.state_dict())
    assert_differs(fewer, dense, x)


def test_lifts_a_real_layer(x):
    config = ViTConfig(hidden_size=DIM, num_attention_heads=HEADS)
    config._attn_implementation = "sdpa"  # the eager one takes its softmax in float32
    module: Any = randomised(ViTAttention(config))

    def theirs(t):
        y = module(t)
        return y[0] if isinstance(y, tuple) else y

    assert_parity(TopKAttention.from_transformers(module, TOKENS), theirs, x)
    assert_differs(TopKAttention.from_transformers(module, 3), theirs, x)
    swapped: Any = randomised(ViTAttention(config))
    swapped.q_proj, swapped.k_proj = swapped.k_proj, swapped.q_proj
    assert_differs(TopKAttention.from_transformers(swapped, TOKENS), theirs, x)


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=9), st.data())
@settings(max_examples=60, deadline=None)
def test_ties_fall_to_the_first(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    seen = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    values = torch.tensor(scores).double()
    assert set(best(values, k).nonzero()[:, 0].tolist()) == first_of_the_highest(scores, k)
    visible = [j for j, may in enumerate(seen) if may]
    kept = {visible[j] for j in first_of_the_highest([scores[j] for j in visible], k)}
    assert set(best(values, k, torch.tensor(seen)).nonzero()[:, 0].tolist()) == kept


def test_equal_tokens_keep_the_first_slots():
    layer = randomised(TopKAttention(DIM, HEADS, 3))
    weights = layer.weights(torch.zeros(1, 7, DIM, dtype=torch.float64))
    assert (weights[..., :3] == 1 / 3).all()
    assert not weights[..., 3:].any()


def test_weights_are_of_the_fast_path(x, mask):
    layer = randomised(TopKAttention(DIM, HEADS, 4))
    weights = layer.weights(x, mask)
    v = layer.qkv(x)[..., 2 * DIM :].unflatten(-1, (HEADS, WIDTH))
    read = layer.out(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))
    assert_same(layer(x, mask), read * mask.any(-1)[..., None])
    kept = mask.sum(-1).clamp(max=4)[:, None].expand(-1, HEADS, -1)
    assert torch.equal((weights > 0).sum(-1), kept)
    assert not weights.masked_select(~mask[:, None]).any()


@pytest.mark.parametrize("k", [3, TOKENS])
def test_what_sees_nothing_is_zero(x, k):
    layer: Any = randomised(TopKAttention(DIM, HEADS, k))
    seen = torch.ones(BATCH, TOKENS, TOKENS, dtype=torch.bool)
    seen[0], seen[1, 5] = False, False
    x.requires_grad_()
    y = layer(x, seen)
    assert not y[0].any()
    assert not y[1, 5].any()
    assert y[1, 6].any()
    assert not layer.weights(x, seen)[1, :, 5].any()
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not x.grad[0].any()


@pytest.mark.usefixtures("unchecked")
def test_bad_input(x, mask):
    layer = TopKAttention(DIM, HEADS, 3).double()
    with pytest.raises(ShapeError, match="dim=11 and heads=2"):
        TopKAttention(11, 2, 3)
    with pytest.raises(ShapeError, match="k must be 1 key or more, got 0"):
        TopKAttention(DIM, HEADS, 0)
    with pytest.raises(ShapeError, match=r"x must be floats of shape \(B, N, 10\)"):
        layer(x[..., :9])
    for wrong in (mask.double(), mask[:1], mask[:, :5]):
        with pytest.raises(ShapeError, match="mask must be bool"):
            layer(x, wrong)


def test_few_tokens_and_half_precision(x):
    layer = randomised(TopKAttention(DIM, HEADS, 3), dtype=torch.float32)
    assert layer(torch.zeros(0, 7, DIM)).shape == (0, 7, DIM)
    assert layer(torch.ones(2, 1, DIM)).isfinite().all()
    for dtype in (torch.float16, torch.bfloat16):
        half = TopKAttention(DIM, HEADS, 3).to(dtype)
        assert half(x.to(dtype)).dtype == dtype
        assert ((half.weights(x.to(dtype)) > 0).sum(-1) <= 3).all()


def test_round_trip(x, tmp_path):
    layer = randomised(TopKAttention(DIM, HEADS, 5, bias=False))
    layer.save_pretrained(tmp_path)
    again = TopKAttention.from_pretrained(tmp_path, local_files_only=True).double()
    assert again.k == 5
    assert_same(again(x), layer(x), EXACT)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.usefixtures("compiler")
def test_compiles_whole(x, mask):
    layer = randomised(TopKAttention(DIM, HEADS, 3))
    assert_same(torch.compile(layer, fullgraph=True)(x, mask), layer(x, mask))
