"""Fast weights by the delta rule against their recurrence, token by token, and against the published equations."""

import copy
import math

import pytest
import torch
from torch import nn

from attention_cost import assert_linear
from attention_parity import EXACT, assert_differs, assert_parity, assert_same, randomised
from regard.attention.delta import DeltaAttention, delta_rule
from regard.attention.linear import LinearAttention
from regard.errors import ModelError, ShapeError

BATCH, TOKENS, HEADS, WIDTH = 3, 23, 2, 5
DIM = HEADS * WIDTH
FEATURES = [("elu", 1), ("dpfp", 1), ("dpfp", 3)]


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


def made(feature="elu", nu=1, **kwargs) -> DeltaAttention:
    return randomised(DeltaAttention(DIM, HEADS, feature=feature, nu=nu, **kwargs))


def phi(row, feature, nu, norm=True):
    """Of the numbers of one head, by their indices."""
    if feature == "elu":
        found = torch.where(row > 0, row + 1, row.exp())
    else:
        r = torch.cat((row.clamp(min=0), -row.clamp(max=0)), dim=-1)
        width = r.shape[-1]
        places = [[(j - step) % width for j in range(width)] for step in range(1, nu + 1)]
        found = torch.cat([r * r[..., order] for order in places], dim=-1)
    return found / found.sum().clamp(min=1e-30) if norm else found  # DPFP may be all 0, and stays


def loop(layer, x, mask, norm=True, share=True, old=True, strict=False, scale=True):
    """One image, one head and one token after another: S += k (b (v - S' k))', then y = S' q / sqrt(d)."""
    rows = []
    for image, seen in zip(x, mask, strict=True):
        q, k, v = (image @ layer.qkv.weight.T + layer.qkv.bias).reshape(len(image), 3, HEADS, WIDTH).unbind(1)
        much = 1 / (1 + (-(image @ layer.share.weight.T + layer.share.bias)).exp())
        heads = []
        for h in range(HEADS):
            state, read = 0.0, []
            for i in range(len(image)):
                key, query = (phi(part[i, h], layer.feature, layer.nu, norm) for part in (k, q))
                state = state if i else torch.zeros(len(key), WIDTH, dtype=x.dtype)
                before = state
                if seen[i]:
                    held = key @ state if old else 0
                    state = state + torch.outer(key, (much[i, h] if share else 1) * (v[i, h] - held))
                read.append(query @ (before if strict else state) / (math.sqrt(WIDTH) if scale else 1))
            heads.append(torch.stack(read))
        y = torch.cat(heads, dim=-1) @ layer.out.weight.T + layer.out.bias
        rows.append(y * torch.tensor([bool(seen[: i + 1].any()) for i in range(len(image))])[:, None])
    return torch.stack(rows)


@pytest.mark.parametrize(("feature", "nu"), FEATURES)
@pytest.mark.parametrize("chunk", [1, 7, 23, 64])
def test_is_its_recurrence(x, mask, chunk, feature, nu):
    layer = made(feature, nu, chunk=chunk)
    assert_parity(lambda t: layer(t, mask), lambda t: loop(layer, t, mask), x)
    assert_parity(layer, lambda t: loop(layer, t, torch.ones_like(mask)), x)


@pytest.mark.parametrize(("feature", "nu"), FEATURES)
def test_gradients_of_parameters(x, mask, feature, nu):
    layer = made(feature, nu, chunk=7)
    runs = (layer, lambda t, m: loop(layer, t, m))
    found = [torch.autograd.grad(run(x, mask).pow(2).sum(), list(layer.parameters())) for run in runs]
    for mine, theirs in zip(*found, strict=True):
        assert_same(mine, theirs)


def test_a_mutation_is_seen(x, mask):
    layer = made(chunk=7)
    for change in ("norm", "share", "old", "strict", "scale"):
        wrong = {change: change == "strict"}
        assert_differs(lambda t: layer(t, mask), lambda t, wrong=wrong: loop(layer, t, mask, **wrong), x)
    assert_differs(lambda t: layer(t, mask), lambda t: loop(layer, t, torch.ones_like(mask)), x)
    for feature, nu in FEATURES[1:]:
        other = DeltaAttention(DIM, HEADS, feature=feature, nu=nu).double()
        other.load_state_dict(layer.state_dict())
        assert_differs(layer, lambda t, other=other: loop(other, t, torch.ones_like(mask)), x)
    swapped = copy.deepcopy(layer)
    with torch.no_grad():
        swapped.qkv.weight.copy_(layer.qkv.weight.view(3, DIM, DIM)[[1, 0, 2]].flatten(0, 1))
    assert_differs(lambda t: layer(t, mask), lambda t: loop(swapped, t, mask), x)


@pytest.mark.parametrize("feature", ["elu", "dpfp"])
def test_tokens_one_by_one_and_in_parts(x, mask, feature):
    layer = made(feature, chunk=4)

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
    _, before = layer.extend(x, None, mask)
    y, after = layer.extend(x[:, :0], before)  # no tokens: nothing changes
    assert y.shape == (BATCH, 0, DIM)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(("feature", "nu"), FEATURES)
def test_weights_are_of_the_fast_path(x, mask, feature, nu):
    layer = made(feature, nu, chunk=7)
    weights = layer.weights(x, mask)
    assert weights.shape == (BATCH, HEADS, TOKENS, TOKENS)
    v = layer.qkv(x)[..., 2 * DIM :].unflatten(-1, (HEADS, WIDTH))
    read = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)
    assert_same(layer(x, mask), layer.out(read) * mask.cumsum(1).bool()[..., None])
    assert not weights.masked_select(~mask[:, None, None]).any()
    assert not weights.triu(1).any()
    assert (weights < -1e-3).any()
    assert ((weights.sum(-1) - 1).abs() > 1e-3).all()


def test_what_is_written_again_is_written_over():
    """A key that only it has, written whole: the value read is the last one, where linear attention has the mean."""
    k = torch.eye(4, dtype=torch.float64)[[0, 1, 0, 2, 0]][None, None]
    v = torch.randn(1, 1, 5, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    y, state = delta_rule(k, k, v, torch.ones(1, 1, 5, dtype=torch.float64), torch.zeros(1, 1, 4, 3).double(), 2)
    assert_same(y * 3**0.5, v)
    assert_same(state[0, 0], torch.stack((v[0, 0, 4], v[0, 0, 1], v[0, 0, 3], torch.zeros(3).double())))


def test_what_sees_nothing_is_zero(x):
    layer = made(chunk=7)
    seen = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    seen[1], seen[2, :9] = False, False
    x.requires_grad_()
    y = layer(x, seen)
    assert not y[1].any()
    assert not y[2, :9].any()
    assert y[2, 9].any()
    weights = layer.weights(x, seen)
    assert not weights[1].any()
    assert not weights[2, :, :9].any()
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not x.grad[1].any()
    assert not x.grad[2, :9].any()
    assert x.grad[0].any()


def test_a_value_of_zero_was_seen_too():
    """What was seen is remembered apart from what was written."""
    layer = made(bias=False)
    zeros = torch.zeros(1, 2, DIM, dtype=torch.float64)
    assert_same(layer(zeros, torch.ones(1, 2).bool())[0, 1], layer.out.bias)
    _, state = layer.extend(zeros)
    assert_same(layer.extend(zeros, state, torch.zeros(1, 2).bool())[0][0, 1], layer.out.bias)


@pytest.mark.parametrize("feature", ["elu", "dpfp"])
def test_features_that_vanish_stay_finite(feature):
    """In single precision elu(x) + 1 is 0 far below 0, and DPFP of one number is 0."""
    layer = made(feature).float()
    x = torch.full((1, 9, DIM), -1e4).requires_grad_()
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.eye(DIM).repeat(3, 1))
        layer.qkv.bias.zero_()
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.usefixtures("unchecked")
def test_bad_input(x):
    layer = DeltaAttention(DIM, HEADS).double()
    with pytest.raises(ShapeError, match="dim=11 and heads=2"):
        DeltaAttention(11, 2)
    for chunk, nu in ((0, 1), (64, 0)):
        with pytest.raises(ShapeError, match=f"chunk and nu must be 1 or more, got chunk={chunk} and nu={nu}"):
            DeltaAttention(DIM, HEADS, chunk=chunk, nu=nu)
    with pytest.raises(ModelError, match="no feature is named 'relu': there are elu, dpfp"):
        DeltaAttention(DIM, HEADS, feature="relu")
    with pytest.raises(ShapeError, match=r"x must be floats of shape \(B, N, 10\)"):
        layer(x[..., :9])
    for wrong in (torch.ones(BATCH, TOKENS), torch.ones(1, TOKENS).bool(), torch.ones(BATCH, TOKENS, TOKENS).bool()):
        for call in (layer, layer.weights):
            with pytest.raises(ShapeError, match="mask must be bool"):
                call(x, wrong)
    _, (state, seen) = layer.extend(x)
    for wrong in ((state[:1], seen), (state[..., :1], seen), (state, seen[:1])):
        with pytest.raises(ShapeError, match="state must have shapes"):
            layer.extend(x, wrong)


@pytest.mark.parametrize(("feature", "nu"), [("elu", 1), ("dpfp", 3)])  # DPFP of a few small numbers is a steep sum
def test_few_tokens_and_half_precision(feature, nu):
    layer = made(feature, nu).float()
    assert layer(torch.zeros(0, 7, DIM)).shape == (0, 7, DIM)
    assert layer(torch.zeros(2, 0, DIM)).shape == (2, 0, DIM)
    assert layer.weights(torch.zeros(0, 7, DIM)).shape == (0, HEADS, 7, 7)
    one = torch.ones(2, 1, DIM)
    assert_same(layer(one), loop(layer, one, torch.ones(2, 1).bool()), 1e-5)
    long = torch.randn(1, 4001, DIM, generator=torch.Generator().manual_seed(4))
    wanted = layer(long)
    for dtype in (torch.float16, torch.bfloat16):
        half = copy.deepcopy(layer).to(dtype)
        assert half.weights(long[:, :5].to(dtype)).dtype == dtype
        got, (state, _) = half.extend(long.to(dtype))
        assert (got.dtype, state.dtype) == (dtype, torch.float32)
        assert_same(got.float(), wanted, 0.05)
        half.extend(long[:, :5].to(dtype), (state, torch.ones(1).bool()))[0].sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(layer(long).float(), wanted, 0.05)
        assert_same(layer.weights(long[:, :50]), layer.double().weights(long[:, :50].double()).float(), 0.05)


def test_round_trip(x, tmp_path):
    layer = made("dpfp", 2, bias=False, chunk=7)
    layer.save_pretrained(tmp_path)
    again = DeltaAttention.from_pretrained(tmp_path, local_files_only=True).double()
    assert (again.feature, again.nu, again.chunk, again.qkv.bias, again.share.bias) == ("dpfp", 2, 7, None, None)
    assert_same(again(x), layer(x), EXACT)


def test_cost_is_linear():
    assert_linear(DeltaAttention(16, 2), 1024, 16)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.usefixtures("compiler")
def test_compiles_whole(x, mask):
    layer = made(chunk=7)
    compiled = torch.compile(layer, fullgraph=True)
    assert_same(compiled(x, mask), layer(x, mask))


class TestPublished:
    """The equations as flash-linear-attention states them: (B, T, H, D), a scale, and no feature map inside."""

    T, K, V = 70, 6, 5

    def drawn(self, *shape, seed=0):
        return torch.randn(BATCH, self.T, HEADS, *shape, generator=torch.Generator().manual_seed(seed)).double()

    def linear(self, q, k, v, scale, normalize):
        """o_t = scale q_t S_t, S_t = sum_{s <= t} k_s v_s'; normalised, over scale q_t sum_{s <= t} k_s + 1e-10."""
        states = torch.einsum("bthk,bthv->bthkv", k, v).cumsum(dim=1)
        o = torch.einsum("bthk,bthkv->bthv", q, states) * scale
        return o / (torch.einsum("bthk,bthk->bth", q, k.cumsum(dim=1)) * scale + 1e-10)[..., None] if normalize else o

    def delta(self, q, k, v, beta, scale, state):
        """S_t = (I - beta_t k_t k_t') S_{t-1} + beta_t k_t v_t', o_t = scale S_t' q_t."""
        rows, eye = [], torch.eye(k.shape[-1], dtype=k.dtype)
        for t in range(self.T):
            kept = eye - torch.einsum("bh,bhk,bhl->bhkl", beta[:, t], k[:, t], k[:, t])
            state = kept @ state + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], v[:, t])
            rows.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], state))
        return torch.stack(rows, dim=1), state

    @pytest.mark.parametrize("chunk", [16, 64])
    def test_the_delta_rule_is_theirs(self, chunk):
        """Of any queries and keys, of another width than the values; keys of length 1, as they train with."""
        q, v, beta = self.drawn(self.K), self.drawn(self.V, seed=1), self.drawn(seed=2).sigmoid()
        state = torch.randn(BATCH, HEADS, self.K, self.V, generator=torch.Generator().manual_seed(4)).double()

        def run(k, last):
            k = nn.functional.normalize(k, dim=-1)
            turned = (part.transpose(1, 2) for part in (q, k, v, beta))
            y, held = delta_rule(*turned, state=state, chunk=chunk)
            return held if last else y.transpose(1, 2)

        def theirs(k, last):
            k = k / k.pow(2).sum(dim=-1, keepdim=True).sqrt()
            return self.delta(q, k, v, beta, self.V**-0.5, state)[last]

        for last in (False, True):
            assert_parity(lambda k, last=last: run(k, last), lambda k, last=last: theirs(k, last), self.drawn(self.K))
        assert_differs(lambda k: run(k, False), lambda k: theirs(k, False) * 1.01, self.drawn(self.K))

    @pytest.mark.parametrize("kind", [LinearAttention, DeltaAttention])
    def test_the_layers_are_theirs_behind_their_features(self, kind):
        layer = randomised(DeltaAttention(DIM, HEADS) if kind is DeltaAttention else LinearAttention(DIM, HEADS, True))
        scale = WIDTH**-0.5
        if isinstance(layer, LinearAttention):
            layer.eps = 1e-10 / scale  # theirs is added to what is scaled

        def theirs(t):
            q, k, v = layer.qkv(t).unflatten(-1, (3, HEADS, WIDTH)).unbind(2)
            q, k = nn.functional.elu(q) + 1, nn.functional.elu(k) + 1
            if isinstance(layer, LinearAttention):
                return layer.out(self.linear(q, k, v, scale, True).flatten(2))
            q, k = (part / part.sum(dim=-1, keepdim=True) for part in (q, k))
            nothing = torch.zeros(BATCH, HEADS, WIDTH, WIDTH, dtype=torch.float64)
            return layer.out(self.delta(q, k, v, layer.share(t).sigmoid(), scale, nothing)[0].flatten(2))

        t = self.drawn(WIDTH).flatten(2)
        assert_parity(layer, theirs, t)
        assert_differs(layer, lambda t: theirs(t.flip(1)).flip(1), t)

    def test_linear_attention_without_its_denominator_is_theirs(self):
        """Its state, read by any query."""
        layer = randomised(LinearAttention(DIM, HEADS, True, chunk=16))
        t, q = self.drawn(WIDTH).flatten(2), self.drawn(WIDTH, seed=3)

        def run(t):
            return torch.einsum("bhk,bhkv->bhv", q[:, -1], layer.extend(t)[1][0]) / 2

        def theirs(t):
            _, k, v = layer.qkv(t).unflatten(-1, (3, HEADS, WIDTH)).unbind(2)
            return self.linear(q, nn.functional.elu(k) + 1, v, 0.5, False)[:, -1]

        assert_parity(run, theirs, t)
