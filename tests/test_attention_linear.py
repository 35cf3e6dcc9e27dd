"""Linear attention against its recurrence, written here as a plain loop over tokens."""

import pytest
import torch
from torch import nn

from attention_cost import assert_linear
from attention_parity import EXACT, assert_differs, assert_parity, assert_same, randomised
from regard.attention.linear import LinearAttention
from regard.errors import ShapeError

BATCH, TOKENS, HEADS, WIDTH = 3, 23, 2, 5
DIM = HEADS * WIDTH


@pytest.fixture
def x():
    return torch.randn(BATCH, TOKENS, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture
def mask():
    """Gaps, another length in each row, and a row whose first tokens see nothing."""
    seen = torch.rand(BATCH, TOKENS, generator=torch.Generator().manual_seed(3)) < 0.7
    seen[0, :4] = False
    seen[1, 17:] = False
    seen[2] = True
    return seen


def apart(layer, x):
    """Queries, keys and values of a token and head, written without the layer's own forward."""
    q, k, v = nn.functional.linear(x, layer.qkv.weight, layer.qkv.bias).chunk(3, dim=-1)
    return (part.reshape(*x.shape[:2], layer.heads, -1) for part in (q, k, v))


def phi(x):
    return torch.where(x > 0, x + 1, x.exp())


def linear_loop(layer, x, mask, eps=1e-6, strict=False, norm=True):
    """S += phi(k) v', z += phi(k), read after each token; where not causal, after all of them."""
    q, k, v = apart(layer, x)
    state = x.new_zeros(len(x), layer.heads, WIDTH, WIDTH)
    total = x.new_zeros(len(x), layer.heads, WIDTH)
    states, totals = [], []
    for i in range(x.shape[1]):
        if strict:
            states.append(state)
            totals.append(total)
        key = phi(k[:, i]) * mask[:, i, None, None]
        state, total = state + key[..., :, None] * v[:, i, :, None, :], total + key
        if not strict:
            states.append(state)
            totals.append(total)
    rows = []
    for i in range(x.shape[1]):
        j = i if layer.causal else x.shape[1] - 1
        read = (phi(q[:, i])[..., None] * states[j]).sum(-2)
        below = (phi(q[:, i]) * totals[j]).sum(-1, keepdim=True) + eps
        y = nn.functional.linear((read / below if norm else read).flatten(1), layer.out.weight, layer.out.bias)
        rows.append(y * mask[:, : j + 1].any(1, keepdim=True))
    return torch.stack(rows, 1)


class TestLinear:
    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("chunk", [1, 7, 23, 64])
    def test_is_its_recurrence(self, x, mask, causal, chunk):
        layer = randomised(LinearAttention(DIM, HEADS, causal, chunk=chunk))
        assert_parity(lambda t: layer(t, mask), lambda t: linear_loop(layer, t, mask), x)
        assert_parity(layer, lambda t: linear_loop(layer, t, torch.ones_like(mask)), x)

    def test_slabs_are_its_recurrence_too(self, x, mask, monkeypatch):
        monkeypatch.setattr("regard.attention.linear.SLAB", 7 * BATCH)  # 23 tokens in slabs of 7
        layer = randomised(LinearAttention(DIM, HEADS))
        assert_parity(lambda t: layer(t, mask), lambda t: linear_loop(layer, t, mask), x)

    @pytest.mark.parametrize("causal", [False, True])
    def test_gradients_of_parameters(self, x, mask, causal):
        layer = randomised(LinearAttention(DIM, HEADS, causal, chunk=7))
        found = []
        for run in (layer, lambda t, m: linear_loop(layer, t, m)):
            loss = run(x, mask).pow(2).sum()
            found.append(list(torch.autograd.grad(loss, list(layer.parameters()))))
        for mine, theirs in zip(*found, strict=True):
            assert_same(mine, theirs)

    def test_a_mutation_is_seen(self, x, mask):
        layer = randomised(LinearAttention(DIM, HEADS, True, chunk=7))
        swapped = randomised(LinearAttention(DIM, HEADS, True, chunk=7))
        with torch.no_grad():
            swapped.qkv.weight.copy_(layer.qkv.weight.view(3, DIM, DIM)[[1, 0, 2]].flatten(0, 1))

        def ours(t):
            return layer(t, mask)

        assert_differs(ours, lambda t: linear_loop(swapped, t, mask), x)
        assert_differs(ours, lambda t: linear_loop(layer, t, torch.ones_like(mask)), x)
        assert_differs(ours, lambda t: linear_loop(layer, t, mask, strict=True), x)
        assert_differs(ours, lambda t: linear_loop(layer, t, mask, norm=False), x)
        assert_differs(ours, lambda t: linear_loop(layer, t, mask, eps=1e-3), x)
        both = LinearAttention(DIM, HEADS, False).double()
        both.load_state_dict(layer.state_dict())
        assert_differs(lambda t: both(t, mask), lambda t: linear_loop(layer, t, mask), x)

    def test_tokens_one_by_one_and_in_parts(self, x, mask):
        layer = randomised(LinearAttention(DIM, HEADS, True, chunk=4))

        def in_parts(sizes):
            def run(t):
                state, rows = None, []
                for part, seen in zip(t.split(sizes, 1), mask.split(sizes, 1), strict=True):
                    row, state = layer.extend(part, state, seen)
                    rows.append(row)
                return torch.cat(rows, 1)

            return run

        assert_parity(in_parts(1), lambda t: layer(t, mask), x)
        assert_parity(in_parts([11, 5, 7]), lambda t: layer(t, mask), x)
        assert_differs(lambda t: torch.cat([layer(one) for one in t.split(11, 1)], 1), layer, x)

    @pytest.mark.parametrize("causal", [False, True])
    def test_weights_are_of_the_fast_path(self, x, mask, causal):
        layer = randomised(LinearAttention(DIM, HEADS, causal, chunk=7))
        weights = layer.weights(x, mask)
        assert weights.shape == (BATCH, HEADS, TOKENS, TOKENS)
        _, _, v = apart(layer, x)
        read = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)
        seen = mask.cumsum(1).bool() if causal else mask.any(1, keepdim=True).expand_as(mask)
        assert_same(layer(x, mask), layer.out(read) * seen[..., None])
        assert (weights >= 0).all()
        assert not weights.masked_select(~mask[:, None, None]).any()
        assert not causal or not weights.triu(1).any()
        rows = weights.sum(-1)
        assert (rows - seen[:, None].double()).abs().max() < 1e-5

    @pytest.mark.parametrize("causal", [False, True])
    def test_what_sees_nothing_is_zero(self, x, causal):
        layer = randomised(LinearAttention(DIM, HEADS, causal, chunk=7))
        seen = torch.ones(BATCH, TOKENS, dtype=torch.bool)
        seen[1] = False
        x.requires_grad_()
        y = layer(x, seen)
        assert not y[1].any()
        assert not layer.weights(x, seen)[1].any()
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert not x.grad[1].any()
        assert x.grad[0].any()

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, x):
        layer = LinearAttention(DIM, HEADS).double()
        with pytest.raises(ShapeError, match="dim=11 and heads=2"):
            LinearAttention(11, 2)
        with pytest.raises(ShapeError, match="chunk must be 1 token or more, got 0"):
            LinearAttention(DIM, HEADS, chunk=0)
        with pytest.raises(ShapeError, match=r"x must be floats of shape \(B, N, 10\)"):
            layer(x[..., :9])
        for wrong in (
            torch.ones(BATCH, TOKENS),
            torch.ones(1, TOKENS).bool(),
            torch.ones(BATCH, TOKENS, TOKENS).bool(),
        ):
            with pytest.raises(ShapeError, match="mask must be bool"):
                layer(x, wrong)
            with pytest.raises(ShapeError, match="mask must be bool"):
                layer.weights(x, wrong)
        _, (state, total) = layer.extend(x)
        with pytest.raises(ShapeError, match="state must have shapes"):
            layer.extend(x, (state[:1], total))
        with pytest.raises(ShapeError, match="state must have shapes"):
            layer.extend(x, (state, total[..., :1]))

    @pytest.mark.parametrize("causal", [False, True])
    def test_few_tokens_and_half_precision(self, causal):
        layer = randomised(LinearAttention(DIM, HEADS, causal), dtype=torch.float32)
        assert layer(torch.zeros(0, 7, DIM)).shape == (0, 7, DIM)
        assert layer(torch.ones(2, 1, DIM)).isfinite().all()
        long = torch.randn(1, 20_011, DIM, generator=torch.Generator().manual_seed(4))
        wanted = layer(long)
        for dtype in (torch.float16, torch.bfloat16):
            half = LinearAttention(DIM, HEADS, causal).to(dtype)
            half.load_state_dict(layer.state_dict())
            assert half.weights(long[:, :5].to(dtype)).dtype == dtype
            got = half(long.to(dtype))
            assert got.dtype == dtype
            assert (got.float() - wanted).abs().max() < 0.1

    def test_round_trip(self, x, tmp_path):
        layer = randomised(LinearAttention(DIM, HEADS, True, bias=False, chunk=7, eps=1e-5))
        layer.save_pretrained(tmp_path)
        again = LinearAttention.from_pretrained(tmp_path, local_files_only=True).double()
        assert (again.causal, again.chunk, again.eps, again.qkv.bias) == (True, 7, 1e-5, None)
        assert_same(again(x), layer(x), EXACT)

    @pytest.mark.parametrize("causal", [False, True])
    def test_cost_is_linear(self, causal):
        assert_linear(LinearAttention(16, 2, causal), 1024, 16)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, while it compiles
    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.usefixtures("compiler")
    def test_compiles_whole(self, x, mask, causal):
        layer = randomised(LinearAttention(DIM, HEADS, causal, chunk=7))
        compiled = torch.compile(layer, fullgraph=True)
        assert_same(compiled(x, mask), layer(x, mask))
