"""Perceiver: against `PerceiverModel` without a preprocessor, outputs, gradients and attention."""

import pytest
import torch
from torch import Tensor
from transformers import PerceiverConfig, PerceiverModel

from attention_parity import assert_differs, assert_parity, assert_same, randomised
from regard.attention.perceiver import Perceiver
from regard.errors import ModelError, ShapeError

B, N, L, D, C = 2, 11, 3, 15, 14  # batch, inputs, latents, their width, that of inputs
SHAPES = {
    "as published by default": {},
    "of the language model": {"qk_channels": 35, "v_channels": D},
    "as wide as latents": {"cross_attention_shape_for_attention": "q"},
    "no residual": {"use_query_residual": False, "self_attention_widening_factor": 2, "hidden_act": "relu"},
}


def reference(heads: int = 1, **other) -> PerceiverModel:
    config = PerceiverConfig(
        num_latents=L,
        d_latents=D,
        d_model=C,
        num_blocks=2,
        num_self_attends_per_block=2,
        num_self_attention_heads=5,
        num_cross_attention_heads=heads,
        cross_attention_widening_factor=3,
        **other,
    )
    return randomised(PerceiverModel(config))


def inputs(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, N, C, generator=torch.Generator().manual_seed(0)).to(dtype)


def padding() -> Tensor:
    """True = not padding."""
    return torch.arange(N) < torch.tensor([[7], [N]])


def own(**other) -> Perceiver:
    return randomised(Perceiver(D, C, L, 5, 2, 2, cross_heads=7, **other))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
def test_perceiver(shape, padded):
    module, x = reference(5 if "channels" in str(SHAPES[shape]) else 1, **SHAPES[shape]), inputs()
    ours = Perceiver.from_transformers(module)
    mask = padding() if padded else None
    given = padding().double() if padded else None

    def theirs(x: Tensor) -> Tensor:
        return module(x, attention_mask=given).last_hidden_state

    assert_parity(lambda x: ours(x, mask), theirs, x)
    theirs_of = dict(module.named_parameters())
    for name, other in (
        ("latents", "embeddings.latents"),
        ("layers.1.attention.q.weight", "encoder.self_attends.1.attention.self.query.weight"),
    ):
        mine, their = ours.get_parameter(name).grad, theirs_of[other].grad
        assert mine is not None
        assert their is not None
        assert_same(mine, their)  # of every repeat together
    said = module(x, attention_mask=given, output_attentions=True)
    assert_same(ours.weights(x, mask), said.cross_attentions[0])
    for layer, found in enumerate(said.attentions, start=1):
        assert_same(ours.weights(x, mask, layer=layer), found)
    assert_differs(lambda x: ours(x, None if padded else padding()), theirs, x)


@pytest.mark.parametrize(
    "change", ["repeats", "order", "eps", "keys and values", "residual", "latents", "inputs' norm"]
)
def test_the_comparison_can_fail(change):
    module, x = reference(), inputs() * 0.1
    ours = Perceiver.from_transformers(module)
    assert_parity(ours, lambda x: module(x).last_hidden_state, x)
    if change == "repeats":
        ours.repeats = 1
    elif change == "order":  # each layer twice, then the next
        ours.layers = torch.nn.ModuleList([ours.layers[0], ours.layers[0], ours.layers[1], ours.layers[1]])
        ours.repeats = 1
    elif change == "eps":  # what the configuration says, and no norm has
        assert module.config.layer_norm_eps == 1e-12
        for part in ours.modules():
            if isinstance(part, torch.nn.LayerNorm):
                part.eps = 1e-12
    elif change == "keys and values":
        weight = ours.read.attention.kv.weight
        weight.data = weight.roll(C, 0)
    elif change == "residual":
        ours.query_residual = False
    elif change == "latents":
        ours.latents.data = ours.latents.roll(1, 1)
    else:
        ours.norm_input = torch.nn.LayerNorm(C).double()
    assert_differs(ours, lambda x: module(x).last_hidden_state, x)


def test_what_cannot_be_lifted():
    with pytest.raises(ModelError, match="Linear has no embeddings and encoder"):
        Perceiver.from_transformers(torch.nn.Linear(2, 3))
    with pytest.raises(ModelError, match="no activation is named 'gelu_new'"):
        Perceiver.from_transformers(reference(hidden_act="gelu_new"))


@pytest.mark.parametrize("mask", [None, padding(), padding()[:, None].repeat(1, L, 1)], ids=["none", "keys", "both"])
def test_weights_times_values_are_the_output(mask):
    layer, x = own(), inputs()
    layer.layers = torch.nn.ModuleList()
    weights = layer.weights(x, mask)
    assert weights.shape == (B, 7, L, N)
    assert torch.allclose(weights.sum(-1), torch.ones(B, 7, L).double())
    read = layer.read.attention
    values = read.kv(layer.norm_input(x))[..., C:].unflatten(-1, (7, 2)).transpose(1, 2)
    z = layer.latents + read.out((weights @ values).transpose(1, 2).flatten(2))
    assert_same(layer(x, mask), z + layer.read.feed(z))


def test_latents_that_see_nothing_take_nothing():
    layer, x = own(), inputs().requires_grad_()
    mask = padding()[:, None].repeat(1, L, 1)
    mask[0] = False
    out, weights = layer(x, mask), layer.weights(x, mask)
    assert (weights[0] == 0).all()
    z = layer.latents + layer.read.feed(layer.latents)
    for block in [*layer.layers, *layer.layers]:
        z = block(z[None] if z.ndim == 2 else z)
    assert_same(out[:1], z)
    out.sum().backward()
    assert x.grad is not None
    assert (x.grad[0] == 0).all()
    assert (x.grad[1] != 0).any()
    assert all(p.grad.isfinite().all() for p in layer.parameters())  # pyright: ignore
    assert_same(layer(x[:, :0]), layer(x, torch.zeros(B, N, dtype=torch.bool)))


@pytest.mark.usefixtures("unchecked")
def test_bad_input():
    layer, x = own(), inputs()
    mask = padding()
    cases = [
        ((x[..., 1:],), r"x must be floats of shape \(B, N, 14\), got .*13"),
        ((x[0],), "x must be floats of shape"),
        ((x.long(),), "x must be floats .*int64"),
        ((x, mask.float()), "mask must be bool .*float32"),
        ((x, mask[:1]), r"mask must be bool .*\(2, 11\) or \(2, 3, 11\), got .*\(1, 11\)"),
        ((x, mask[:, 1:]), "mask must be bool"),
        ((x, mask[:, None]), "mask must be bool"),
    ]
    for given, message in cases:
        for call in (layer, layer.weights):
            with pytest.raises(ShapeError, match=message):
                call(*given)
    for wrong in (5, -6):
        with pytest.raises(ShapeError, match=r"layer must be in \[-5, 4\], got"):
            layer.weights(x, layer=wrong)
    for given, message in (
        ((D, C, L, 4, 2), "qk_dim must be divided by heads, got qk_dim=14 and heads=4"),
        ((D, C, L, 7, 2), "qk_dim must be divided by heads, got qk_dim=15 and heads=7"),
        ((D, C, 0, 1, 2), "latents must be at least 1, got 0"),
    ):
        with pytest.raises(ShapeError, match=message):
            Perceiver(*given)


def test_few_tokens_and_none():
    layer, x = own(), inputs()
    assert torch.equal(layer.weights(x, layer=-1), layer.weights(x, layer=4))
    assert layer(x[:0]).shape == (0, L, D)
    assert layer(x[:0], padding()[:0]).shape == (0, L, D)
    assert layer(x[:, :1]).shape == (B, L, D)
    assert layer.weights(x[:, :1]).shape == (B, 7, L, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    layer, x = own().float(), inputs(torch.float32)
    wanted = layer(x, padding())
    out = layer.to(dtype)(x.to(dtype), padding())
    assert out.dtype == dtype
    assert_same(out.float(), wanted, 0.2)


def test_save_and_load(tmp_path):
    x = inputs(torch.float32)
    for other in ({}, {"hidden": 17, "qk_dim": 35, "cross_v_dim": 21, "query_residual": False, "eps": 1e-3}):
        layer = own(**other).float()
        layer.save_pretrained(tmp_path)
        assert torch.equal(Perceiver.from_pretrained(tmp_path).eval()(x, padding()), layer(x, padding()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of the compiler itself
@pytest.mark.usefixtures("compiler")
def test_compiled():
    layer, x = own(), inputs()
    compiled = torch.compile(layer, fullgraph=True)
    assert_same(compiled(x), layer(x))
    assert_same(compiled(x, padding()), layer(x, padding()))
