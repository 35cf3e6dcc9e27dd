"""ConvNeXt's block is held to Hugging Face's, the hybrid block to its parts composed by hand."""

import copy

import pytest
import torch
from transformers import ConvNextConfig, ConvNextV2Config
from transformers.models.convnext.modeling_convnext import ConvNextLayer
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2Layer

from attention_parity import assert_differs, assert_parity, assert_same, randomised
from regard.attention.convnext import ConvNeXtBlock
from regard.attention.hybrid import HybridBlock
from regard.errors import ModelError, ShapeError

DIM = 13


def tokens(grid, batch: int = 2, dim: int = DIM, dtype=torch.float64):
    return torch.randn(batch, grid[0] * grid[1], dim, generator=torch.Generator().manual_seed(7), dtype=dtype)


def reference(**kwargs) -> ConvNextLayer:
    return randomised(ConvNextLayer(ConvNextConfig(**kwargs), DIM))


def theirs(module, grid):
    """The reference is of maps, (B, D, h, w)."""
    return lambda x: module(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)


class TestConvNeXt:
    @pytest.mark.parametrize("grid", [(7, 11), (3, 2), (1, 1), (1, 17)])
    def test_the_block_is_the_references(self, grid):
        module = reference()
        block = ConvNeXtBlock.from_transformers(module)
        assert_parity(lambda x: block(x, grid), theirs(module, grid), tokens(grid))

    @pytest.mark.parametrize("act", ["gelu", "relu", "quick_gelu", "gelu_pytorch_tanh"])
    def test_other_activations_and_no_layer_scale(self, act):
        module = reference(hidden_act=act, layer_scale_init_value=0.0)
        block = ConvNeXtBlock.from_transformers(module)
        assert block.scale is None
        assert_parity(lambda x: block(x, (7, 5)), theirs(module, (7, 5)), tokens((7, 5)))

    def test_gradients_of_parameters_are_the_references(self):
        module, x, grid = reference(), tokens((7, 11)), (7, 11)
        block = ConvNeXtBlock.from_transformers(module)
        factor = torch.randn_like(x)
        (block(x, grid) * factor).sum().backward()
        (theirs(module, grid)(x) * factor).sum().backward()
        assert block.scale is not None
        assert block.narrow.bias is not None
        for ours, other in (
            (block.scale, module.layer_scale_parameter),
            (block.conv.weight, module.dwconv.weight),
            (block.narrow.bias, module.pwconv2.bias),
        ):
            assert other is not None
            assert ours.grad is not None
            assert other.grad is not None
            assert_same(ours.grad, other.grad)

    @pytest.mark.parametrize(
        "change",
        [
            lambda block: block.scale.data.fill_(1),
            lambda block: setattr(block, "scale", None),
            lambda block: setattr(block.norm, "eps", 1e-2),
            lambda block: setattr(block, "activation", "quick_gelu"),
            lambda block: block.conv.weight.data.copy_(block.conv.weight.transpose(2, 3).clone()),
            lambda block: block.conv.weight.data[:, :, 0].zero_(),
        ],
    )
    def test_mutations_fail(self, change):
        module, grid = reference(), (7, 11)
        block = ConvNeXtBlock.from_transformers(module)
        change(block)
        assert_differs(lambda x: block(x, grid), theirs(module, grid), tokens(grid))

    def test_a_grid_whose_axes_are_swapped_fails(self):
        module = reference()
        block = ConvNeXtBlock.from_transformers(module)
        assert_differs(lambda x: block(x, (11, 7)), theirs(module, (7, 11)), tokens((7, 11)))

    def test_what_cannot_be_lifted_is_named(self):
        with pytest.raises(ModelError, match="ConvNextV2Layer has no layer_scale_parameter"):
            ConvNeXtBlock.from_transformers(ConvNextV2Layer(ConvNextV2Config(), DIM))
        with pytest.raises(ModelError, match="no activation is known"):
            ConvNeXtBlock.from_transformers(ConvNextLayer(ConvNextConfig(hidden_act="tanh"), DIM))

    def test_bad_input_is_named(self):
        block = ConvNeXtBlock(DIM)
        with pytest.raises(ShapeError, match=r"x must be floats of shape \(B, N, 13\)"):
            block(torch.randn(2, 12, 11), (3, 4))
        with pytest.raises(ShapeError, match=r"grid must be \(h, w\) with h \* w = 12 tokens, got \(3, 5\)"):
            block(torch.randn(2, 12, DIM), (3, 5))
        with pytest.raises(ShapeError, match="kernel must be odd"):
            ConvNeXtBlock(DIM, kernel=4)
        with pytest.raises(ModelError, match="no activation is named 'tanh'"):
            ConvNeXtBlock(DIM, activation="tanh")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_and_empty_batch(self, dtype):
        block, grid = randomised(ConvNeXtBlock(DIM), dtype=torch.float32), (7, 5)
        x = tokens(grid, dtype=torch.float32)
        assert_same(copy.deepcopy(block).to(dtype)(x.to(dtype), grid).float(), block(x, grid), 0.05)
        assert block(x[:0], grid).shape == (0, 35, DIM)

    def test_saved_and_loaded(self, tmp_path):
        block, x = randomised(ConvNeXtBlock(DIM, 20, 5, 1.0, "relu", 1e-3)), tokens((7, 5))
        block.save_pretrained(tmp_path)
        assert torch.equal(ConvNeXtBlock.from_pretrained(tmp_path).double()(x, (7, 5)), block(x, (7, 5)))

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of the compiler itself
    @pytest.mark.usefixtures("compiler")
    def test_compiled(self):
        block, x = randomised(ConvNeXtBlock(DIM), dtype=torch.float32), tokens((7, 5), dtype=torch.float32)
        whole = torch.compile(block, fullgraph=True)
        assert_parity(lambda x: whole(x, (7, 5)), lambda x: block(x, (7, 5)), x, 1e-5)


def composed(block: HybridBlock, x, grid, mask=None, drop: str = ""):
    """The block from its parts, image by image and latent by latent."""
    y = x if drop == "window" else x + block.window(block.norm1(x), grid, mask)
    out = []
    for i in range(len(x)):
        tokens, own = block.norm2(y[i]), block.latent_norm(block.latents)
        shown = torch.ones(len(tokens), dtype=torch.bool) if mask is None else mask[i]
        if not shown.any():
            out.append(y[i])
            continue
        seen = tokens[shown]  # what is hidden is not there at all
        latents = block.latents + plain(block.gather, own, seen)
        latents = block.latents if drop == "gather" else latents
        out.append(y[i] if drop == "read" else y[i] + plain(block.read, tokens, latents))
    y = torch.stack(out)
    mlp = block.narrow(torch.nn.functional.gelu(block.widen(block.norm3(y))))
    return y if drop == "mlp" else y + mlp


def plain(attention, x, context):
    """Cross-attention of one image, head by head."""
    heads, (k, v) = attention.heads, attention.kv(context).chunk(2, dim=-1)
    parts = zip(attention.q(x).chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True)
    return attention.out(torch.cat([(q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v for q, k, v in parts], dim=-1))


def hybrid(seed: int = 0) -> HybridBlock:
    return randomised(HybridBlock(10, 2, 3, 17, latents=5, shift=1), seed)


def hidden(count: int) -> torch.Tensor:
    mask = torch.rand(2, count, generator=torch.Generator().manual_seed(3)) < 0.4
    mask[1] = False
    return mask


class TestHybrid:
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("grid", [(6, 9), (7, 11), (2, 5), (1, 1)])
    def test_the_block_is_its_parts(self, grid, masked):
        block, x = hybrid(), tokens(grid, dim=10)
        mask = hidden(x.shape[1]) if masked else None
        assert_parity(lambda x: block(x, grid, mask), lambda x: composed(block, x, grid, mask), x)

    @pytest.mark.parametrize("drop", ["window", "gather", "read", "mlp"])
    def test_every_part_matters(self, drop):
        block, grid = hybrid(), (6, 9)
        x = tokens(grid, dim=10)
        assert_differs(lambda x: block(x, grid), lambda x: composed(block, x, grid, drop=drop), x)
        assert_differs(lambda x: block(x, grid, hidden(54)), lambda x: composed(block, x, grid), x)

    def test_every_token_hears_of_every_other(self):
        block, x = hybrid(), tokens((6, 9), dim=10).requires_grad_()
        block(x, (6, 9))[0, 0].sum().backward()
        assert x.grad is not None
        assert (x.grad[0].abs().sum(dim=-1) > 0).all()
        assert (x.grad[1] == 0).all()

    def test_an_image_that_shows_nothing_is_told_nothing(self):
        block, x = hybrid(), tokens((6, 9), dim=10).requires_grad_()
        mask = hidden(54)
        y = block(x, (6, 9), mask)
        plain = x + block.narrow(torch.nn.functional.gelu(block.widen(block.norm3(x))))
        assert_same(y[1], plain[1])
        for part in ("window", "gather", "read"):
            assert (block.weights(x, (6, 9), mask, part)[1] == 0).all()
        y[1].sum().backward()
        assert block.latents.grad is not None
        assert (block.latents.grad == 0).all()
        assert x.grad is not None
        assert x.grad.isfinite().all()

    @pytest.mark.parametrize("masked", [False, True])
    def test_weights_are_what_the_fast_path_used(self, masked):
        block, grid = hybrid(), (6, 9)
        x = tokens(grid, dim=10)
        mask = hidden(54) if masked else None
        window, gather, read = (block.weights(x, grid, mask, part) for part in ("window", "gather", "read"))
        assert window.shape == (2, 2, 54, 54)
        assert gather.shape == (2, 2, 5, 54)
        assert read.shape == (2, 2, 54, 5)

        def applied(weights, layer, values):
            values = values.unflatten(-1, (2, -1)).transpose(1, 2)
            y = layer.out((weights @ values).transpose(1, 2).flatten(2))
            return y.masked_fill(weights.sum(-1)[:, 0, :, None] == 0, 0)

        y = x + applied(window, block.window, block.window.qkv(block.norm1(x)).chunk(3, -1)[2])
        seen = block.norm2(y)
        latents = block.latents + applied(gather, block.gather, block.gather.kv(seen).chunk(2, -1)[1])
        y = y + applied(read, block.read, block.read.kv(latents).chunk(2, -1)[1])
        y = y + block.narrow(torch.nn.functional.gelu(block.widen(block.norm3(y))))
        assert_same(block(x, grid, mask), y)

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input_is_named(self):
        block, x = HybridBlock(10, 2, 3, 17), torch.randn(2, 54, 10)
        for call, match in (
            (lambda: block(x, (6, 8)), "grid must be"),
            (lambda: block(x[..., :9], (6, 9)), "x must be floats"),
            (lambda: block(x, (6, 9), torch.ones(2, 54)), "mask must be bool"),
            (lambda: block(x, (6, 9), torch.ones(2, 54, 54, dtype=torch.bool)), "mask must be of shape"),
            (lambda: block.weights(x, (6, 9), part="none"), "part must be"),  # pyright: ignore
            (lambda: HybridBlock(10, 2, 3, 17, latents=0), "latents must be"),
            (lambda: HybridBlock(10, 3, 3, 17), "heads"),
        ):
            with pytest.raises(ShapeError, match=match):
                call()
        with pytest.raises(ModelError, match="no activation is named 'tanh'"):
            HybridBlock(10, 2, 3, 17, activation="tanh")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_empty_batch_and_saving(self, dtype, tmp_path):
        block, grid = randomised(HybridBlock(10, 2, 3, 17, 5, 1, "relu", 1e-3), dtype=torch.float32), (7, 5)
        x = tokens(grid, dim=10, dtype=torch.float32)
        assert_same(copy.deepcopy(block).to(dtype)(x.to(dtype), grid).float(), block(x, grid), 0.05)
        assert block(x[:0], grid, torch.ones(0, 35, dtype=torch.bool)).shape == (0, 35, 10)
        block.save_pretrained(tmp_path)
        assert torch.equal(HybridBlock.from_pretrained(tmp_path)(x, grid), block(x, grid))

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of the compiler itself
    @pytest.mark.usefixtures("compiler")
    def test_compiled(self):
        block, x = hybrid().float(), tokens((7, 5), dim=10, dtype=torch.float32)
        whole = torch.compile(block, fullgraph=True)
        with torch.no_grad():
            assert_same(whole(x, (7, 5)), block(x, (7, 5)), 1e-5)
            assert_same(whole(x, (7, 5), hidden(35)), block(x, (7, 5), hidden(35)), 1e-5)
