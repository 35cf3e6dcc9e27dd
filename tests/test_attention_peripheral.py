from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from attention_parity import assert_differs, assert_parity, assert_same, randomised
from regard.attention.peripheral import PeripheralAttention
from regard.errors import ShapeError

B, D, H, GRID = 2, 14, 2, (3, 5)
N = GRID[0] * GRID[1]


def drawn(*shape: int, seed: int = 0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


X = drawn(B, N, D)
SEEN = torch.arange(N) < torch.tensor([[N], [7]])


def made(grid=GRID) -> PeripheralAttention:
    return randomised(PeripheralAttention(D, H, grid))


def each_map_normed(maps, norm):
    mean = maps.mean((1, 2), keepdim=True)
    variance = ((maps - mean) ** 2).mean((1, 2), keepdim=True)
    shape = (-1, 1, 1)
    return (maps - mean) / (variance + norm.eps).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)


def region(layer, query: tuple[int, int]):
    """sigmoid(P) of one query, as published: its own padded map, two convolutions. (H, h, w)."""
    (h, w), part = layer.grid, layer.periphery
    step = 2 / max(h - 1, w - 1, 1)
    far = torch.zeros(h + 4, w + 4).double()
    for u in range(h + 4):
        for v in range(w + 4):
            far[u, v] = step * ((u - 2 - query[0]) ** 2 + (v - 2 - query[1]) ** 2) ** 0.5
    maps = part["distance"].weight.view(-1, 1, 1) * far + part["distance"].bias.view(-1, 1, 1)
    maps = each_map_normed(F.conv2d(maps, part["conv1"].weight, part["conv1"].bias), part["norm1"]).relu()
    maps = each_map_normed(F.conv2d(maps, part["conv2"].weight, part["conv2"].bias), part["norm2"])
    return 1 / (1 + (-maps).exp())


def regions(layer):
    h, w = layer.grid
    return torch.stack([region(layer, (i, j)).flatten(1) for i in range(h) for j in range(w)], dim=1)


def matrix(layer, x, seen=None):
    q, k, _ = (part.unflatten(-1, (H, D // H)).transpose(1, 2) for part in layer.qkv(x).split(D, -1))
    scores = q @ k.transpose(-1, -2) / (D // H) ** 0.5
    product = regions(layer) * (scores - scores.max(-1, keepdim=True)[0]).exp()
    if seen is not None:
        product = product * seen[:, None, None]
    return product / product.abs().sum(-1, keepdim=True).clamp(min=1e-12)


def written(layer, x, seen=None):
    v = layer.qkv(x).split(D, -1)[2].unflatten(-1, (H, D // H)).transpose(1, 2)
    return layer.out((matrix(layer, x, seen) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("grid", [GRID, (5, 3), (1, 7), (4, 4)])
def test_the_layer_is_the_rule_written_out(grid):
    layer, x = made(grid), drawn(B, grid[0] * grid[1], D, seed=1)
    assert_same(layer.position(), regions(layer))
    assert_parity(layer, lambda x: written(layer, x), x)
    seen = torch.arange(x.shape[1]) < torch.tensor([[x.shape[1]], [3]])
    assert_parity(lambda x: layer(x, seen), lambda x: written(layer, x, seen), x)


def test_parameters_have_the_gradients_of_the_rule():
    ours, factor = made(), drawn(B, N, D, seed=2)
    theirs = deepcopy(ours)
    (ours(X, SEEN) * factor).sum().backward()
    (written(theirs, X, SEEN) * factor).sum().backward()
    # a norm takes away what shifts a whole map: the biases before it have no gradient but rounding
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        if name in {f"periphery.{part}.bias" for part in ("distance", "conv1", "conv2")}:
            assert float(mine.grad.abs().max()) < 1e-9
        else:
            assert_same(mine.grad, other.grad)


def swapped(layer):
    q, k, _ = layer.qkv.weight.data.chunk(3)
    kept = q.clone()
    q.copy_(k)
    k.copy_(kept)


def no_region(layer):
    layer.periphery["norm2"].weight.data.zero_()


def another_epsilon(layer):
    layer.periphery["norm1"].eps = layer.periphery["norm2"].eps = 1e-2


def transposed(layer):
    layer.periphery["conv1"].weight.data.copy_(layer.periphery["conv1"].weight.data.transpose(2, 3).clone())


@pytest.mark.parametrize("mutation", [swapped, no_region, another_epsilon, transposed])
def test_mutations_fail(mutation):
    layer = made()
    reference = deepcopy(layer)
    mutation(layer)
    assert_differs(layer, lambda x: written(reference, x), X)


def test_more_mutations_fail():
    layer = made()
    assert_differs(layer, lambda x: written(layer, x, SEEN), X)
    with torch.no_grad():  # a region is the query's, over the keys, and not the other way about
        assert float((layer.position() - regions(layer).transpose(1, 2)).abs().max()) > 1e-3


def test_it_starts_as_published():
    layer = PeripheralAttention(D, H, GRID, spread=4.0, strength=0.01)
    part = layer.periphery
    assert (layer.qkv.bias is None, layer.out.bias is None) == (True, False)
    wanted = {"distance.weight": -0.02, "conv1.weight": 0.02, "conv2.weight": 0.02, "norm1.weight": 1.0}
    wanted |= {"norm2.weight": 0.01, "norm2.bias": 4.0}
    for name, parameter in part.named_parameters():
        assert_close(parameter.detach(), torch.full_like(parameter, wanted.get(name, 0.0)))
    near, far = PeripheralAttention(D, H, (7, 7)).double().position()[0, 24].view(7, 7)[[3, 3], [3, 6]].tolist()
    assert near > 2 * far  # the first layers look near


def test_positions_are_kept_in_evaluation_and_never_stale(monkeypatch):
    layer, calls = made(), []
    whole = PeripheralAttention._peripheral
    monkeypatch.setattr(PeripheralAttention, "_peripheral", lambda self: calls.append(1) or whole(self))
    with torch.no_grad():
        one = layer(X)
        assert_close(layer(X), one, rtol=0, atol=0)
        layer.weights(X)
        assert len(calls) == 1
        for change in (
            lambda: layer.periphery["conv2"].weight.add_(0.3),
            lambda: layer.load_state_dict(made().state_dict()),
            lambda: setattr(layer.periphery["conv1"], "weight", torch.nn.Parameter(drawn(4 * H, 4 * H, 3, 3))),
            lambda: (layer.periphery["norm2"].bias.data.add_(1), layer.eval()),
            lambda: (layer.float(), layer.double()),
        ):
            change()
            calls.clear()
            assert_same(layer(X), written(layer, X))
            assert len(calls) == 1
        copied = deepcopy(layer)
        copied.periphery["norm2"].weight.mul_(2)
        assert_same(copied(X), written(copied, X))
        calls.clear()
        layer.train()
        layer(X)
        layer(X)
        assert len(calls) == 2


def test_an_optimizer_step_is_seen_and_gradients_reach_the_periphery():
    layer = made()
    with torch.no_grad():
        before = layer(X)
    optimizer = torch.optim.SGD(layer.periphery.parameters(), lr=0.1)
    layer(X).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert float((layer(X) - before).abs().max()) > 1e-3
        assert_same(layer(X), written(layer, X))


def test_what_inference_mode_kept_does_not_meet_gradients():
    layer, x = made().requires_grad_(False), X.clone().requires_grad_()
    with torch.inference_mode():
        layer(X)
    layer(x).square().sum().backward()
    assert x.grad is not None
    layer(X)
    assert layer._kept is not None
    assert not layer._kept[3].is_inference()


def test_weights_give_the_output():
    layer = made()
    weights = layer.weights(X, SEEN)
    assert_same(weights, matrix(layer, X, SEEN))
    v = layer.qkv(X).split(D, -1)[2].unflatten(-1, (H, -1)).transpose(1, 2)
    assert_same(layer(X, SEEN), layer.out((weights @ v).transpose(1, 2).flatten(2)))


def test_rows_that_see_nothing_are_zeros():
    layer, x = made(), X.clone().requires_grad_()
    pairs = SEEN[:, None].repeat(1, N, 1)
    pairs[0, 4] = False
    out = layer(x, pairs)
    assert not out[0, 4].any()
    assert out[0, 3].any()
    weights = layer.weights(x, pairs)
    assert not weights[0, :, 4].any()
    (out.square().sum() + weights.square().sum()).backward()
    for grad in (x.grad, *(p.grad for p in layer.parameters())):
        assert grad is not None
        assert grad.isfinite().all()


def test_sizes_at_the_edge_and_half_precision():
    layer = made()
    assert layer(X[:0]).shape == (0, N, D)
    one = made((1, 1))
    assert_close(one(X[:, :1]), one.out(one.qkv(X[:, :1])[..., 2 * D :]))
    for dtype in (torch.float16, torch.bfloat16):
        out = made().to(dtype)(X.to(dtype), SEEN)
        assert out.dtype == dtype
        assert_close(out.double(), layer(X, SEEN), rtol=0.2, atol=0.3)


def test_saved_and_loaded(tmp_path):
    layer = randomised(PeripheralAttention(D, H, GRID, spread=1.0, strength=2.0))
    layer.save_pretrained(tmp_path)
    again = PeripheralAttention.from_pretrained(tmp_path).double()
    assert again.grid == GRID
    assert_close(again(X), layer.float().double()(X), rtol=0, atol=0)


@pytest.mark.usefixtures("unchecked")
def test_bad_input():
    layer = made()
    for call in (layer, layer.weights):
        for message, given in {
            "x must be floats": (X[..., 1:],),
            "x must have the 3 x 5 tokens of the grid, got 14": (X[:, 1:],),
            "mask must be bool": (X, SEEN.long()),
            "mask must be bool .* of shape": (X, SEEN[:1]),
        }.items():
            with pytest.raises(ShapeError, match=message):
                call(*given)
    with pytest.raises(ShapeError, match="dim must be divided by heads, got dim=14 and heads=3"):
        PeripheralAttention(D, 3, GRID)
    for grid in ((0, 3), (3,), (2.0, 3)):
        with pytest.raises(ShapeError, match="grid must be two whole numbers"):
            PeripheralAttention(D, H, grid)  # pyright: ignore


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside the compiler
@pytest.mark.usefixtures("compiler")
def test_compiles_whole():
    layer = made()
    compiled = torch.compile(layer, fullgraph=True)
    assert_same(compiled(X, SEEN), layer(X, SEEN))
    with torch.no_grad():
        assert_same(compiled(X), layer(X))
        layer.periphery["norm2"].weight.mul_(2)
        assert_same(compiled(X), written(layer, X))
