"""Self-attention, the pre-norm block and the Vision Transformer against transformers, part by part and whole."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from attention_parity import SINGLE, assert_differs, assert_parity, assert_same, randomised
from regard import ModelError, ShapeError
from regard.attention.scaled import ACTIVATIONS, MultiHeadAttention, TransformerBlock
from regard.attention.vision import VisionTransformer

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "image_size": 20,
    "patch_size": 4,
}
DINO: dict[str, Any] = {name: value for name, value in SIZES.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
TOWERS = {
    "vit": lambda: ViTModel(ViTConfig(**SIZES), add_pooling_layer=False),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES)),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES, vision_use_head=False)),
    "eva": lambda: Blip2VisionModel(Blip2VisionConfig(**SIZES)),
    "dinov2": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO, num_register_tokens=3)),
    "dinov2 gated": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**DINO, num_register_tokens=3, use_swiglu_ffn=True)
    ),
}


def drawn(*shape: int, seed: int = 5, dtype: torch.dtype = torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def whole(tower):
    """The reference's last hidden states, at any size."""
    resized = {} if "Dinov2" in type(tower).__name__ else {"interpolate_pos_encoding": True}
    return lambda pixels: tower(pixels, **resized).last_hidden_state


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("size", [(20, 20), (28, 12)])
def test_a_tower_equals_its_reference(name: str, size: tuple[int, int]):
    tower = randomised(TOWERS[name]())
    ours = VisionTransformer.from_transformers(tower)
    assert_parity(ours, whole(tower), drawn(2, 3, *size))


def test_a_tower_is_lifted_out_of_a_model_with_a_projection():
    tower = randomised(CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZES)))
    assert_parity(VisionTransformer.from_transformers(tower), whole(tower), drawn(1, 3, 20, 20))


def test_the_parameters_get_the_gradients_of_the_reference():
    tower: Any = randomised(TOWERS["eva"]())
    ours = VisionTransformer.from_transformers(tower)
    pixels, factor = drawn(2, 3, 20, 20), drawn(2, 26, 24, seed=6)
    for run in (ours, whole(tower)):
        (run(pixels) * factor).sum().backward()
    assert ours.class_token is not None
    assert ours.class_token.grad is not None
    assert_same(ours.class_token.grad, tower.embeddings.class_embedding.grad.flatten())
    block = ours.blocks[1]
    assert isinstance(block, TransformerBlock)
    grad = block.attention.qkv.weight.grad
    assert grad is not None
    assert_same(grad, tower.encoder.layers[1].self_attn.qkv.weight.grad)


def swapped(ours: Any) -> None:
    qkv = ours.blocks[0].attention.qkv
    q, k, v = qkv.weight.data.chunk(3)
    qkv.weight.data = torch.cat((k, q, v))


def other_epsilon(ours: VisionTransformer) -> None:
    ours.blocks[1].norm2.eps = 1e-2  # pyright: ignore


def other_activation(ours: VisionTransformer) -> None:
    ours.blocks[0].activation = "gelu"  # pyright: ignore


def no_class_position(ours: VisionTransformer) -> None:
    assert ours.positions is not None
    ours.positions.data[0] = 0


def no_pre_norm(ours: VisionTransformer) -> None:
    ours.pre_norm = torch.nn.Identity()


@pytest.mark.parametrize("mutate", [swapped, other_epsilon, other_activation, no_class_position, no_pre_norm])
def test_a_mutated_tower_differs(mutate):
    tower = randomised(TOWERS["clip"]())
    ours = VisionTransformer.from_transformers(tower)
    assert_parity(ours, whole(tower), drawn(2, 3, 20, 20))
    mutate(ours)
    assert_differs(ours, whole(tower), drawn(2, 3, 20, 20), 1e-5)


def test_registers_and_layer_scale_count():
    tower = randomised(TOWERS["dinov2"]())
    for name in ("registers", "scale"):
        ours = VisionTransformer.from_transformers(tower)
        assert ours.registers is not None
        (ours.registers if name == "registers" else ours.blocks[1].scale2).data.mul_(1.01)  # pyright: ignore
        assert_differs(ours, whole(tower), drawn(2, 3, 20, 20), 1e-5)


def test_a_block_with_a_mask_equals_pytorch_and_a_row_that_sees_nothing_is_zero():
    layer = randomised(MultiHeadAttention(24, 3))
    x = drawn(2, 7, 24)
    mask = torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[0, 3] = False
    reference = torch.nn.MultiheadAttention(24, 3, batch_first=True).double()
    reference.load_state_dict(
        {
            "in_proj_weight": layer.qkv.weight,
            "in_proj_bias": layer.qkv.bias,
            "out_proj.weight": layer.out.weight,
            "out_proj.bias": layer.out.bias,
        }
    )
    theirs = reference(x, x, x, attn_mask=~mask.repeat_interleave(3, dim=0))[0]
    ours = layer(x, mask)
    seen = mask.any(dim=2)
    assert_same(ours[seen], theirs[seen])
    assert bool((ours[0, 3] == 0).all())
    assert_differs(
        lambda y: layer(y)[seen], lambda y: reference(y, y, y, attn_mask=~mask.repeat_interleave(3, 0))[0][seen], x
    )


def test_no_gradient_is_nan_where_nothing_is_seen():
    layer, x = randomised(MultiHeadAttention(24, 3)), drawn(1, 5, 24).requires_grad_()
    layer(x, torch.zeros(1, 5, dtype=torch.bool)).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert bool((layer.weights(x, torch.zeros(1, 5, dtype=torch.bool)) == 0).all())


@pytest.mark.parametrize("masked", [False, True])
def test_the_weights_are_those_of_the_fast_path(masked: bool):
    layer, x = randomised(MultiHeadAttention(24, 3)), drawn(2, 7, 24)
    mask = torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(2)) < 0.6 if masked else None
    weights = layer.weights(x, mask)
    v = layer.qkv(x)[..., 48:].unflatten(-1, (3, 8)).transpose(1, 2)
    assert_same(layer(x, mask), layer.out((weights @ v).transpose(1, 2).flatten(2)))
    rows = weights.sum(dim=3)
    assert torch.allclose(
        rows, torch.ones_like(rows) if mask is None else mask.any(dim=2)[:, None].to(rows).expand_as(rows)
    )


def test_a_tower_shows_the_weights_of_a_block():
    tower = randomised(TOWERS["vit"]())
    tower.set_attn_implementation("eager")
    pixels = drawn(1, 3, 20, 20)
    reference = tower(pixels, output_attentions=True).attentions
    ours = VisionTransformer.from_transformers(tower)
    assert_same(ours.weights(pixels, 0), reference[0], SINGLE)  # its softmax is in float32
    assert_same(ours.weights(pixels), reference[1], SINGLE)
    with pytest.raises(ShapeError, match=r"layer must be in \[-2, 2\), got 2"):
        ours.weights(pixels, 2)


def test_rotary_positions_turn_by_row_and_column():
    """As complex numbers, written out; scores depend on the difference of rows and of columns alone."""
    tower = randomised(VisionTransformer(12, 4, 24, 1, 3, 40, positions="rotary"))
    x = torch.zeros(1, 1 + 2 * 3, 24, dtype=torch.float64)
    cos, sin = tower._rotary(2, 3, x)
    for row in range(2):
        for column in range(3):
            for i in range(4):
                place = row if i < 2 else column
                angle = place * 10_000.0 ** (-(i % 2) / 2)
                token = 1 + row * 3 + column
                assert math.isclose(float(cos[token, i]), math.cos(angle), abs_tol=1e-6)
                assert math.isclose(float(sin[token, i + 4]), math.sin(angle), abs_tol=1e-6)
    assert bool((cos[0] == 1).all())
    assert bool((sin[0] == 0).all())
    pixels = drawn(1, 3, 8, 20)
    moved = torch.cat((pixels[..., 4:], pixels[..., :4]), dim=3)
    assert not torch.allclose(tower(pixels)[:, 0], tower(moved)[:, 0])


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "quick_gelu", "relu"])
def test_activations(name: str):
    x = drawn(101)
    phi = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    tanh = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    want = {"gelu": x * phi, "gelu_tanh": tanh, "quick_gelu": x / (1 + torch.exp(-1.702 * x)), "relu": F.relu(x)}[name]
    assert_same(ACTIVATIONS[name](x), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_odd_sizes(dtype: torch.dtype):
    tower = VisionTransformer.from_transformers(TOWERS["clip"]()).to(dtype)
    assert tower(drawn(2, 3, 20, 20).to(dtype)).dtype == dtype
    assert tower(torch.zeros(0, 3, 20, 20, dtype=dtype)).shape == (0, 26, 24)
    assert MultiHeadAttention(24, 3).to(dtype)(drawn(1, 1, 24).to(dtype)).shape == (1, 1, 24)


def test_saved_and_loaded(tmp_path):
    tower = randomised(VisionTransformer(12, 4, 24, 2, 3, 40, registers=2, layer_scale=True, gated=True))
    tower.save_pretrained(tmp_path)
    again = VisionTransformer.from_pretrained(tmp_path).double()
    pixels = drawn(1, 3, 12, 16)
    assert torch.equal(tower(pixels), again(pixels))
    assert {file.name for file in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MultiHeadAttention(24, 5), r"divided by heads, got dim=24 and heads=5"),
        (lambda: MultiHeadAttention(24, 3)(torch.zeros(2, 7, 23)), r"x must be floats of shape \(B, N, 24\)"),
        (lambda: MultiHeadAttention(24, 3)(torch.zeros(7, 24)), r"x must be floats of shape"),
        (
            lambda: MultiHeadAttention(24, 3)(torch.zeros(2, 7, 24), torch.ones(1, 7, dtype=torch.bool)),
            r"mask must be bool .* of shape \(2, 7\) or \(2, 7, 7\), got torch.bool \(1, 7\)",
        ),
        (lambda: MultiHeadAttention(24, 3)(torch.zeros(2, 7, 24), torch.ones(2, 7)), r"got torch.float32 \(2, 7\)"),
        (lambda: VisionTransformer(12, 4, 24, 1, 3, 40)(torch.zeros(1, 3, 12, 10)), r"sides divided by 4"),
        (lambda: VisionTransformer(12, 4, 24, 1, 3, 40)(torch.zeros(1, 1, 12, 12)), r"pixels must have shape \(B, 3"),
        (lambda: VisionTransformer(12, 4, 18, 1, 3, 40, positions="rotary"), r"heads of a multiple of 4, got 6"),
        (lambda: VisionTransformer(12, 4, 24, 1, 3, 40, class_token=False, registers=1), r"registers stand after"),
    ],
)
def test_what_does_not_fit_is_one_line(call, message: str, unchecked):
    with pytest.raises(ShapeError, match=message):
        call()


def test_unknown_activations_and_modules_are_named():
    with pytest.raises(ModelError, match="no activation is named 'swish'"):
        TransformerBlock(24, 3, 40, activation="swish")
    with pytest.raises(ModelError, match="Linear has none of q_proj, q"):
        MultiHeadAttention.from_transformers(torch.nn.Linear(3, 3))


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiles_whole():
    tower = VisionTransformer(12, 4, 24, 2, 3, 40).eval()
    pixels = drawn(2, 3, 12, 12, dtype=torch.float32)
    assert_same(torch.compile(tower, fullgraph=True)(pixels), tower(pixels), 1e-5)
    layer, x = MultiHeadAttention(24, 3).eval(), drawn(2, 7, 24, dtype=torch.float32)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1] = False
    assert_same(torch.compile(layer, fullgraph=True)(x, mask), layer(x, mask), 1e-5)
