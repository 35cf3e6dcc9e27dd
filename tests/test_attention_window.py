"""Windows are held to Hugging Face's Swin, layer by layer, and to a dense oracle where masks hide tokens."""

import copy

import pytest
import torch
from transformers import SwinConfig, SwinModel, ViTConfig, ViTModel
from transformers.models.swin.modeling_swin import SwinAttention, SwinLayer, SwinPatchMerging

from attention_parity import assert_differs, assert_parity, assert_same, randomised
from regard.attention import window
from regard.attention.swin import SwinTransformer
from regard.attention.window import PatchMerging, SwinBlock, WindowAttention
from regard.errors import ModelError, ShapeError

DIM, HEADS, WINDOW = 30, 3, 5
# several windows; windows that do not divide; one row of windows, no shift; one window
GRIDS = [(10, 15), (7, 11), (5, 13), (5, 5)]


def config(kernel: str = "sdpa", **kwargs) -> SwinConfig:
    built = SwinConfig(embed_dim=DIM, num_heads=[HEADS], depths=[2], window_size=WINDOW, **kwargs)
    built._attn_implementation = kernel
    return built


def reference(shift: int, seed: int = 0, **kwargs) -> SwinLayer:
    return randomised(SwinLayer(config(**kwargs), DIM, (99, 99), HEADS, shift_size=shift), seed)


def theirs(module: SwinLayer, grid):
    """A fresh copy for each call: the reference remembers the first grid that was small."""
    return lambda x: copy.deepcopy(module)(x, grid)[0]


def tokens(grid, batch: int = 2, dim: int = DIM, dtype=torch.float64):
    return torch.randn(batch, grid[0] * grid[1], dim, generator=torch.Generator().manual_seed(7), dtype=dtype)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shift", [0, 2])
def test_the_block_is_the_references(shift, grid, learned):
    module = reference(shift)
    block = SwinBlock.from_transformers(module).requires_grad_(learned)  # another kernel where nothing is learned
    assert block.attention.shift == shift
    assert_parity(lambda x: block(x, grid), theirs(module, grid), tokens(grid))


@pytest.mark.parametrize(("grid", "shift"), [((7, 11), 2), ((10, 15), 2), ((10, 15), 0)])
def test_gradients_of_parameters_are_the_references(grid, shift):
    module, x = reference(shift), tokens(grid)
    block = SwinBlock.from_transformers(module)
    factor = torch.randn_like(x)
    (block(x, grid) * factor).sum().backward()
    (module(x, grid)[0] * factor).sum().backward()
    own, inner = block.attention, module.attention
    assert own.qkv.weight.grad is not None
    for part, rows in zip((inner.q_proj, inner.k_proj, inner.v_proj), own.qkv.weight.grad.chunk(3), strict=True):
        assert part.weight.grad is not None
        assert_same(rows, part.weight.grad)
    for ours, theirs in (
        (own.table, inner.relative_position_bias.relative_position_bias_table),
        (own.out.weight, inner.o_proj.weight),
        (block.norm1.weight, module.layernorm_before.weight),
        (block.narrow.weight, module.mlp.fc2.weight),
    ):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert_same(ours.grad, theirs.grad)


def test_mutations_fail():
    grid, module = (10, 15), reference(2)
    x = tokens(grid)

    def fails(change, shift=2):
        block = SwinBlock.from_transformers(module, shift)
        with torch.no_grad():
            change(block)
        assert_differs(lambda x: block(x, grid), theirs(module, grid), x)

    def swapped(block):
        q, k, v = block.attention.qkv.weight.chunk(3)
        block.attention.qkv.weight.copy_(torch.cat((k, q, v)))

    fails(lambda block: None, shift=0)
    fails(lambda block: None, shift=1)
    fails(swapped)
    fails(lambda block: block.attention.table.copy_(block.attention.table.flip(0)))
    fails(lambda block: block.attention.table.zero_())
    fails(lambda block: setattr(block, "activation", "quick_gelu"))
    fails(lambda block: setattr(block.norm1, "eps", 1e-2))


def test_without_the_mask_of_the_shift_the_comparison_fails(monkeypatch):
    grid, module = (10, 15), reference(2)
    block = SwinBlock.from_transformers(module)
    monkeypatch.setattr(window, "apart_of", lambda *args: torch.zeros(6, 1, 1, 1, dtype=torch.float64))
    assert_differs(lambda x: block(x, grid), theirs(module, grid), tokens(grid))


def test_a_grid_whose_axes_are_swapped_fails():
    module = reference(2)
    block = SwinBlock.from_transformers(module)
    assert_differs(lambda x: block(x, (15, 10)), theirs(module, (10, 15)), tokens((10, 15)))


def test_one_window_is_the_references_attention():
    module = randomised(SwinAttention(config(), DIM, HEADS, WINDOW))
    layer = WindowAttention.from_transformers(module)
    x = tokens((WINDOW, WINDOW), 3)
    assert_parity(lambda x: layer(x, (WINDOW, WINDOW)), lambda x: module(x)[0], x)
    eager = copy.deepcopy(module)
    eager.config = config("eager")
    # the reference's softmax of readable weights is in float32
    assert_same(layer.weights(x, (WINDOW, WINDOW)), eager(x)[1], 1e-6)


def test_no_bias_and_other_activations():
    module = reference(2, qkv_bias=False, hidden_act="relu")
    block = SwinBlock.from_transformers(module)
    assert block.attention.qkv.bias is None
    assert_parity(lambda x: block(x, (10, 15)), theirs(module, (10, 15)), tokens((10, 15)))


@pytest.mark.parametrize("grid", [(6, 10), (7, 11), (1, 1), (2, 5)])
def test_merging_is_the_references(grid):
    module = randomised(SwinPatchMerging(DIM))
    layer = PatchMerging.from_transformers(module)
    assert_parity(lambda x: layer(x, grid), lambda x: module(x, grid), tokens(grid))
    if min(grid) > 1:
        order = torch.arange(4 * DIM).view(2, 2, DIM).transpose(0, 1).flatten()  # rows before columns
        with torch.no_grad():
            layer.reduce.weight.copy_(layer.reduce.weight[:, order])
        assert_differs(lambda x: layer(x, grid), lambda x: module(x, grid), tokens(grid))
        other = PatchMerging.from_transformers(module)
        other.norm.eps = 1e-2
        assert_differs(lambda x: other(x, grid), lambda x: module(x, grid), tokens(grid))


def dense(layer: WindowAttention, x, grid, mask):
    """The layer by its definition, pair by pair: which pairs see each other, and what is added."""
    h, w = grid
    small = min(grid) <= layer.window
    side, shift = min(layer.window, h, w), 0 if small else layer.shift
    ph, pw = -(-h // side) * side, -(-w // side) * side
    place = [(i, j) for i in range(ph) for j in range(pw)]

    def cell(size, p):  # the window of a place after the shift, and whether the cycle brought it there
        moved = (p - shift) % size
        return moved // side, p < shift

    n = len(place)
    allowed, bias = torch.zeros(len(x), n, n, dtype=torch.bool), torch.zeros(layer.heads, n, n, dtype=x.dtype)
    for a, (i, j) in enumerate(place):
        for b, (k, m) in enumerate(place):
            if cell(ph, i) == cell(ph, k) and cell(pw, j) == cell(pw, m):
                allowed[:, a, b] = True
                bias[:, a, b] = layer.table[
                    (i - k + layer.window - 1) * (2 * layer.window - 1) + j - m + layer.window - 1
                ]
    real = torch.tensor([i < h and j < w for i, j in place])
    full = x.new_zeros(len(x), n, x.shape[2])
    full[:, real] = x
    shown = torch.ones(len(x), n, n, dtype=torch.bool)
    inner = shown[:, real]
    inner[:, :, real] = mask[:, None, :].expand(-1, h * w, -1) if mask.ndim == 2 else mask
    shown[:, real] = inner
    seen = (allowed & shown)[:, :, real].any(dim=-1)
    q, k, v = layer.qkv(full).unflatten(-1, (3, layer.heads, -1)).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / (q.shape[-1] ** 0.5) + bias
    scores = scores.masked_fill(~(allowed & shown)[:, None], -1e9)
    y = layer.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    return y.masked_fill(~seen[..., None], 0)[:, real]


def random_mask(batch, count, pairs):
    shape = (batch, count, count) if pairs else (batch, count)
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.3


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(("grid", "window"), [((6, 9), 3), ((7, 5), 3), ((3, 8), 3), ((2, 5), 3)])
def test_masks_are_the_dense_definition(grid, window, pairs):
    layer = randomised(WindowAttention(10, 2, window, 1, shrink=True))
    x = tokens(grid, dim=10)
    mask = random_mask(2, grid[0] * grid[1], pairs)
    mask[0, ..., torch.arange(x.shape[1]) % grid[1] < 6] = False  # whole windows that see nothing
    assert_parity(lambda x: layer(x, grid, mask), lambda x: dense(layer, x, grid, mask), x)
    assert_differs(lambda x: layer(x, grid), lambda x: dense(layer, x, grid, mask), x)
    nothing = ~(layer.weights(x, grid, mask) > 0).any(dim=-1).any(dim=1)
    assert nothing.any()
    assert (layer(x, grid, mask)[nothing] == 0).all()


@pytest.mark.parametrize("grid", [(6, 9), (7, 5), (2, 5), (1, 1)])
def test_a_mask_that_shows_all_changes_nothing(grid):
    layer = randomised(WindowAttention(10, 2, 3, 1, shrink=True))
    x = tokens(grid, dim=10)
    everything = torch.ones(x.shape[:2], dtype=torch.bool)
    assert_parity(lambda x: layer(x, grid, everything), lambda x: layer(x, grid), x)
    assert_parity(lambda x: layer(x, grid), lambda x: dense(layer, x, grid, everything), x)


def test_rows_that_see_nothing_are_zero_and_so_are_their_gradients():
    layer, grid = randomised(WindowAttention(10, 2, 3, 1)), (6, 9)
    x = tokens(grid, dim=10).requires_grad_()
    nothing = torch.zeros(x.shape[:2], dtype=torch.bool)
    y = layer(x, grid, nothing)
    assert (y == 0).all()
    assert (layer.weights(x, grid, nothing) == 0).all()
    y.sum().backward()
    assert x.grad is not None
    assert (x.grad == 0).all()
    assert all((p.grad == 0).all() for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grid", [(6, 9), (7, 5), (2, 5)])
def test_weights_are_what_the_fast_path_used(grid, masked):
    layer = randomised(WindowAttention(10, 2, 3, 1, shrink=True))
    x = tokens(grid, dim=10)
    mask = random_mask(2, x.shape[1], False) if masked else None
    weights = layer.weights(x, grid, mask)
    assert weights.shape == (2, 2, x.shape[1], x.shape[1])
    v = layer.qkv(x).chunk(3, dim=-1)[2].unflatten(-1, (2, -1)).transpose(1, 2)
    padding = layer.qkv.bias.chunk(3)[2].view(1, 2, 1, -1)  # the value of a token of zeros
    total = weights.sum(dim=-1, keepdim=True)
    seen = total > 0
    if grid == (6, 9):
        assert torch.allclose(total[seen], torch.ones_like(total[seen]))
    y = weights @ v + (1 - total) * padding
    y = layer.out(y.transpose(1, 2).flatten(2)).masked_fill(~seen[:, 0], 0)
    assert_same(layer(x, grid, mask), y)
    if mask is not None:
        assert (weights.transpose(2, 3)[(~mask)[:, None].expand(-1, 2, -1)] == 0).all()


def test_a_window_larger_than_the_grid_shrinks_to_the_middle_of_the_table():
    layer = randomised(WindowAttention(10, 2, 5, 2, shrink=True))
    small = WindowAttention(10, 2, 3).double()
    middle = layer.table.view(9, 9, 2)[2:7, 2:7].reshape(25, 2)
    small.load_state_dict({**layer.state_dict(), "table": middle})
    x = tokens((3, 7), dim=10)
    assert_parity(lambda x: layer(x, (3, 7)), lambda x: small(x, (3, 7)), x)
    assert_differs(lambda x: layer(x, (7, 3)), lambda x: small(x, (3, 7)), x)
    block = SwinBlock(10, 2, 5, 20, 2).double()
    block.attention.load_state_dict(layer.state_dict())
    assert_same(block.weights(x, (3, 7)), layer.weights(block.norm1(x), (3, 7)))


@pytest.mark.parametrize("grid", [(2, 5), (5, 2), (2, 2), [1, 10]])
@pytest.mark.usefixtures("unchecked")
def test_a_window_larger_than_the_grid_is_named_where_it_is_used_alone(grid):
    layer, x = WindowAttention(10, 2, 3, 1), torch.randn(2, grid[0] * grid[1], 10)
    for call in (layer, layer.weights):
        wanted = rf"window is larger than the grid: got window=3 and grid=\({grid[0]}, {grid[1]}\)"
        with pytest.raises(ShapeError, match=f"{wanted}; take a window of {min(grid)} or less, or shrink=True"):
            call(x, grid)
    assert WindowAttention(10, 2, min(grid))(x, grid).shape == x.shape
    assert WindowAttention(10, 2, 3, 1, shrink=True)(x, grid).shape == x.shape


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda a, x: a(x, (6, 8)), r"grid must be \(h, w\) with h \* w = 54"),
        (lambda a, x: a(x, (-6, -9)), "grid"),
        (lambda a, x: a(x, 54), "grid"),
        (lambda a, x: a(x, (6.0, 9)), "grid"),
        (lambda a, x: a(x[..., :9], (6, 9)), r"x must be floats of shape \(B, N, 10\)"),
        (lambda a, x: a(x[0], (6, 9)), "x must be"),
        (lambda a, x: a(x.long(), (6, 9)), "int64"),
        (lambda a, x: a(x, (6, 9), torch.ones(2, 54)), "mask must be bool"),
        (lambda a, x: a(x, (6, 9), torch.ones(1, 54, dtype=torch.bool)), "mask must be bool"),
        (lambda a, x: a(x, (6, 9), torch.ones(2, 9, 9, dtype=torch.bool)), "mask must be bool"),
        (lambda a, x: a.weights(x, (9, 7)), "grid"),
        (lambda a, x: a.weights(x, (6, 9), torch.ones(2, 53, dtype=torch.bool)), "mask must be bool"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named(call, match):
    with pytest.raises(ShapeError, match=match):
        call(WindowAttention(10, 2, 3, 1), torch.randn(2, 54, 10))


def test_bad_arguments_are_named():
    for arguments in ((10, 3, 3, 0), (10, 2, 0, 0), (10, 2, 3, 3), (10, 2, 3, -1), (10, 0, 3, 0)):
        with pytest.raises(ShapeError, match="heads|window"):
            WindowAttention(*arguments)
    with pytest.raises(ModelError, match="no activation is named 'tanh'"):
        SwinBlock(10, 2, 3, 20, activation="tanh")
    with pytest.raises(ShapeError, match="x must be"):
        SwinBlock(10, 2, 3, 20)(torch.randn(1, 9, 11), (3, 3))
    with pytest.raises(ShapeError, match="grid"):
        PatchMerging(10)(torch.randn(1, 9, 10), (2, 4))
    with pytest.raises(ShapeError, match="x must be"):
        PatchMerging(10)(torch.randn(1, 9, 11), (3, 3))


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (6, 9), (7, 5)])
@pytest.mark.parametrize("batch", [0, 1])
def test_empty_batch_one_token_and_lines(grid, batch):
    block = SwinBlock(10, 2, 3, 20, shift=1).eval()
    x = torch.randn(batch, grid[0] * grid[1], 10)
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    for learned in (True, False):
        block.requires_grad_(learned)
        assert block(x, grid).shape == block(x, grid, mask).shape == x.shape
    assert block.weights(x, grid).shape == block.weights(x, grid, mask).shape == (batch, 2, x.shape[1], x.shape[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    block = randomised(SwinBlock(10, 2, 3, 20, shift=1), dtype=torch.float32)
    x = tokens((7, 9), dim=10, dtype=torch.float32)
    half = copy.deepcopy(block).to(dtype)
    for learned in (True, False):
        half.requires_grad_(learned)
        y = half(x.to(dtype), (7, 9))
        assert y.dtype == dtype
        assert_same(y.float(), block(x, (7, 9)), 0.05)


def test_inference_then_learning():
    """What is kept for a grid in inference mode can be learned through."""
    layer = SwinBlock(6, 2, 3, 8, shift=1)
    x = torch.randn(1, 11 * 13, 6)
    with torch.inference_mode():
        y = layer(x, (11, 13), torch.ones(1, 143, dtype=torch.bool))
    z = layer(x, (11, 13), torch.ones(1, 143, dtype=torch.bool))
    z.sum().backward()
    assert torch.allclose(y, z, atol=1e-6)


def test_saved_and_loaded(tmp_path):
    x = tokens((7, 9), dim=10)
    layers = (WindowAttention(10, 2, 3, 1, False, True), SwinBlock(10, 2, 3, 20, 1, "relu", 1e-3))
    for number, layer in enumerate(layers):
        randomised(layer).save_pretrained(tmp_path / str(number))
        loaded = type(layer).from_pretrained(tmp_path / str(number)).double()
        assert torch.equal(loaded(x, (7, 9)), layer(x, (7, 9)))
        assert torch.equal(loaded(x, (63, 1)), layer(x, (63, 1)))  # the window shrinks
        assert "relative" not in " ".join(layer.state_dict())
    merging = randomised(PatchMerging(10, eps=1e-3))
    merging.save_pretrained(tmp_path / "merging")
    assert torch.equal(PatchMerging.from_pretrained(tmp_path / "merging").double()(x, (7, 9)), merging(x, (7, 9)))


def swin(**kwargs) -> SwinModel:
    sizes = {"image_size": 60, "patch_size": 3, "embed_dim": 12, "depths": [2, 3], "num_heads": [2, 3]}
    return randomised(SwinModel(SwinConfig(**sizes, window_size=5, layer_norm_eps=1e-6, mlp_ratio=1.5, **kwargs)))


# stages of several windows, all shifted; of windows that do not divide; shift off in stage 2; odd pixels and grids
@pytest.mark.parametrize("size", [(60, 90), (51, 69), (30, 57), (41, 80)])
def test_the_tower_is_the_references(size):
    module = swin()
    tower = SwinTransformer.from_transformers(module)
    pixels = torch.randn(2, 3, *size, dtype=torch.float64)
    assert_parity(tower, lambda x: copy.deepcopy(module)(x).last_hidden_state, pixels)
    for learned in (True, False):
        assert_same(tower.requires_grad_(learned)(pixels), copy.deepcopy(module)(pixels).last_hidden_state)


def test_mutations_of_the_tower_fail():
    module = swin()
    pixels = torch.randn(2, 3, 60, 90, dtype=torch.float64)
    for stage, place, shift in ((0, 1, 0), (0, 0, 2), (1, 1, 0), (1, 2, 2)):
        tower = SwinTransformer.from_transformers(module)
        tower.stages[stage][place].attention.shift = shift  # pyright: ignore
        assert_differs(tower, lambda x: module(x).last_hidden_state, pixels)
    for norm in ("norm", "patch_norm"):
        tower = SwinTransformer.from_transformers(module)
        getattr(tower, norm).eps = 1e-1
        assert_differs(tower, lambda x: module(x).last_hidden_state, pixels)


def test_learned_positions_are_the_references():
    module = swin(use_absolute_embeddings=True)
    tower = SwinTransformer.from_transformers(module)
    pixels = torch.randn(2, 3, 60, 60, dtype=torch.float64)
    assert_parity(tower, lambda x: module(x).last_hidden_state, pixels)
    with pytest.raises(ShapeError, match="pixels must make 400 patches, got 600"):
        tower(torch.randn(1, 3, 60, 90).double())
    assert tower.positions is not None
    tower.positions.data.zero_()
    assert_differs(tower, lambda x: module(x).last_hidden_state, pixels)


def test_the_towers_weights_are_of_the_block_asked_for():
    tower = SwinTransformer.from_transformers(swin())
    pixels = torch.randn(1, 3, 60, 90, dtype=torch.float64)
    seen = []
    for layer, heads, count in ((1, 2, 600), (-5, 2, 600), (2, 3, 150), (-1, 3, 150)):
        weights = tower.weights(pixels, layer)
        assert weights.shape == (1, heads, count, count)
        assert torch.allclose(weights.sum(-1), torch.ones(1, 1, 1, dtype=torch.float64))
        seen.append((weights > 0)[0, 0, 0].sum())
    assert seen == [4, 25, 25, 25]  # the first window of a shifted block is cut to 2 x 2 where the cycle meets itself
    with pytest.raises(ShapeError, match=r"layer must be in \[-5, 5\), got 5"):
        tower.weights(pixels, 5)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_to_the_tower_is_named(tmp_path):
    with pytest.raises(ShapeError, match="depths and heads"):
        SwinTransformer(4, 8, [2, 2], [2], 3)
    tower = SwinTransformer(4, 8, [2, 1], [2, 4], 3, mlp_ratio=2.0).eval()
    for shape in ((1, 1, 8, 8), (3, 8, 8), (1, 3, 0, 8)):
        with pytest.raises(ShapeError, match="pixels must have shape"):
            tower(torch.randn(shape))
    with pytest.raises(ModelError, match="ViTModel is no Swin"):
        SwinTransformer.from_transformers(
            ViTModel(ViTConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
        )
    assert tower(torch.randn(0, 3, 16, 20)).shape == (0, 6, 16)
    assert tower(torch.randn(1, 3, 3, 1)).shape == (1, 1, 16)
    tower.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 24, 36)
    assert torch.equal(SwinTransformer.from_pretrained(tmp_path)(pixels), tower(pixels))
    assert tower.bfloat16()(pixels.bfloat16()).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of the compiler itself
@pytest.mark.usefixtures("compiler")
def test_compiled():
    grid = (7, 11)
    block = randomised(SwinBlock(10, 2, 3, 20, shift=1), dtype=torch.float32)
    x = tokens(grid, dim=10, dtype=torch.float32)
    mask = random_mask(2, x.shape[1], False)
    whole = torch.compile(block, fullgraph=True)
    assert_parity(lambda x: whole(x, grid), lambda x: block(x, grid), x, 1e-5)
    with torch.no_grad():
        assert_same(whole(x, grid, mask), block(x, grid, mask), 1e-5)
        merging = randomised(PatchMerging(10), dtype=torch.float32)
        assert_same(torch.compile(merging, fullgraph=True)(x, grid), merging(x, grid), 1e-5)
        tower = randomised(SwinTransformer(4, 8, [2, 1], [2, 2], 3), dtype=torch.float32)
        pixels = torch.randn(1, 3, 28, 36)
        assert_same(torch.compile(tower, fullgraph=True)(pixels), tower(pixels), 1e-5)
