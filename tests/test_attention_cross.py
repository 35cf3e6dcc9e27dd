"""Cross-attention and the gated block: against open_flamingo's rule in plain loops, and Idefics' layer."""

import pytest
import torch
from torch import Tensor
from transformers import IdeficsConfig
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer

from attention_parity import SINGLE, assert_differs, assert_parity, assert_same, randomised
from regard.attention._base import attend
from regard.attention.cross import CrossAttention, GatedCrossAttentionBlock, preceding_images
from regard.errors import ModelError, ShapeError

B, T, M, N, D, E = 2, 11, 3, 5, 21, 13  # batch, text, images, tokens of each, widths


def text(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Text, image tokens, and where images stand: none before the third token, and in one row one more than came."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(B, T, dtype=torch.bool)
    images[0, [2, 5, 6]] = True
    images[1, [3, 4, 7, 9]] = True
    x, context = (torch.randn(B, *shape, generator=generator) for shape in ((T, D), (M * N, E)))
    return x.to(dtype), context.to(dtype), images


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + eps).sqrt() * weight + bias


def flamingo(
    p: dict[str, Tensor], x: Tensor, media: Tensor, images: Tensor, heads: int, every: bool = False, eps: float = 1e-5
) -> Tensor:
    """The rule of open_flamingo's block, a token, a head and a key at a time. media: (B, M, N, E)."""
    width = p["to_q"].shape[0] // heads
    rows = []
    for b in range(len(x)):
        count = 0
        for t in range(x.shape[1]):
            count += int(images[b, t])
            normed = layer_norm(x[b, t], p["attn_norm_weight"], p["attn_norm_bias"], eps)
            seen = range(media.shape[1]) if every else [count - 1]
            keys = [
                media[b, m, n] for m in seen if 0 <= m < count and m < media.shape[1] for n in range(media.shape[2])
            ]
            parts = []
            for h in range(heads):
                mine = slice(h * width, (h + 1) * width)
                wk, wv = p["to_kv"].chunk(2)
                scores = [(p["to_q"][mine] @ normed) @ (wk[mine] @ key) * width**-0.5 for key in keys]
                total = sum(score.exp() for score in scores)
                value = torch.zeros(width, dtype=x.dtype)
                for score, key in zip(scores, keys, strict=True):
                    value = value + score.exp() / total * (wv[mine] @ key)
                parts.append(value)
            y = x[b, t] + p["attn_gate"].tanh() * (p["to_out"] @ torch.cat(parts))
            wide = p["ff_1"] @ layer_norm(y, p["ff_0_weight"], p["ff_0_bias"], eps)
            wide = wide * 0.5 * (1 + torch.erf(wide / 2**0.5))
            rows.append(y + p["ff_gate"].tanh() * (p["ff_3"] @ wide))
    return torch.stack(rows).reshape(x.shape)


def flamingo_names(block: GatedCrossAttentionBlock) -> dict[str, Tensor]:
    return {
        "attn_norm_weight": block.norm.weight,
        "attn_norm_bias": block.norm.bias,
        "to_q": block.attention.q.weight,
        "to_kv": block.attention.kv.weight,
        "to_out": block.attention.out.weight,
        "attn_gate": block.attention_gate,
        "ff_gate": block.feed_gate,
        "ff_0_weight": block.feed.norm.weight,
        "ff_0_bias": block.feed.norm.bias,
        "ff_1": block.feed.widen.weight,
        "ff_3": block.feed.narrow.weight,
    }  # pyright: ignore


@pytest.fixture
def block() -> GatedCrossAttentionBlock:
    return randomised(GatedCrossAttentionBlock(D, 3, 17, E, qk_dim=3 * 7))


@pytest.mark.parametrize("every", [False, True], ids=["last image", "every image so far"])
def test_open_flamingo(block, every):
    x, context, images = text()
    mask = preceding_images(images, M, N, every)
    names = flamingo_names(block)

    def theirs(x: Tensor, context: Tensor = context, every: bool = every, eps: float = 1e-5) -> Tensor:
        return flamingo(names, x, context.unflatten(1, (M, N)), images, 3, every, eps)

    assert_parity(lambda x: block(x, context, mask), theirs, x)
    assert_parity(lambda context: block(x, context, mask), lambda context: theirs(x, context), context)
    assert_differs(lambda x: block(x, context), theirs, x)  # no mask
    assert_differs(lambda x: block(x, context, preceding_images(images, M, N, not every)), theirs, x)
    late = preceding_images(images.roll(1, 1), M, N, every)  # a token late
    assert_differs(lambda x: block(x, context, late), theirs, x)
    assert_differs(lambda x: block(x, context, mask), lambda x: theirs(x, eps=1e-1), x)
    for name in ("attention_gate", "feed_gate"):
        other = randomised(GatedCrossAttentionBlock(D, 3, 17, E, qk_dim=3 * 7))
        getattr(other, name).data.zero_()
        assert_differs(lambda x, other=other: other(x, context, mask), theirs, x)
    swapped = {**names, "to_kv": names["to_kv"].roll(3 * 7, 0)}
    assert_differs(
        lambda x: block(x, context, mask),
        lambda x: flamingo(swapped, x, context.unflatten(1, (M, N)), images, 3, every),
        x,
    )


def idefics(vector: bool = False, qk_norm: bool = True, **other) -> IdeficsGatedCrossAttentionLayer:
    config = IdeficsConfig(
        hidden_size=D,
        num_attention_heads=3,
        intermediate_size=17,
        vision_config={"embed_dim": E},
        qk_layer_norms=qk_norm,
        alpha_type="vector" if vector else "float",
        rms_norm_eps=1e-3,
        **other,
    )
    config._attn_implementation = "eager"
    return randomised(IdeficsGatedCrossAttentionLayer(config, layer_idx=0), dtype=torch.float32)


def run_idefics(module, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[:, None]
    return module(x, image_hidden_states=context, image_attention_mask=added, cross_attention_gate=mask.any(dim=-1))


@pytest.mark.parametrize("vector", [False, True], ids=["one gate", "gates of channels"])
@pytest.mark.parametrize("qk_norm", [False, True], ids=["", "qk_norm"])
def test_idefics(vector, qk_norm):
    module = idefics(vector, qk_norm)
    ours = GatedCrossAttentionBlock.from_transformers(module)
    x, context, images = text(dtype=torch.float32)
    mask = preceding_images(images, M, N, every=True)

    assert_parity(lambda x: ours(x, context, mask), lambda x: run_idefics(module, x, context, mask), x, SINGLE)
    assert_parity(
        lambda context: ours(x, context, mask), lambda context: run_idefics(module, x, context, mask), context, SINGLE
    )
    key, value, kv, gate, alpha = (
        p.grad if p.grad is not None else torch.zeros(())
        for p in (
            module.cross_attn.k_proj.weight,
            module.cross_attn.v_proj.weight,
            ours.attention.kv.weight,
            ours.attention_gate,
            module.alpha_cross_attn,
        )
    )
    assert_same(kv, torch.cat((key, value)), SINGLE)
    assert_same(gate, alpha.flatten(), SINGLE)
    assert_differs(lambda x: ours(x, context), lambda x: run_idefics(module, x, context, mask), x)
    last = preceding_images(images, M, N)
    assert_differs(lambda x: ours(x, context, last), lambda x: run_idefics(module, x, context, mask), x)
    if qk_norm:
        ours.attention.k_norm = torch.nn.Identity()
        assert_differs(lambda x: ours(x, context, mask), lambda x: run_idefics(module, x, context, mask), x)


@pytest.mark.parametrize("change", ["gate", "eps", "activation", "swiglu halves", "q and k"])
def test_idefics_comparison_can_fail(change):
    module = idefics(qk_norm=False)
    ours = GatedCrossAttentionBlock.from_transformers(module)
    x, context, images = text(dtype=torch.float32)
    x = x * 0.1  # so that the eps shows
    mask = preceding_images(images, M, N)
    assert_parity(lambda x: ours(x, context, mask), lambda x: run_idefics(module, x, context, mask), x, SINGLE)
    if change == "gate":
        ours.attention_gate.data.neg_()
    elif change == "eps":
        ours.norm.eps = 1e-5  # pyright: ignore
    elif change == "activation":
        module.mlp.act_fn = torch.nn.GELU()
    elif change == "swiglu halves":
        ours.feed.widen.weight.data = ours.feed.widen.weight.roll(17, 0)
    else:
        ours.attention.kv.weight.data = ours.attention.kv.weight.roll(D, 0)
    assert_differs(lambda x: ours(x, context, mask), lambda x: run_idefics(module, x, context, mask), x)


def test_cross_attention_of_idefics_alone():
    module = idefics(qk_norm=False).cross_attn
    ours = CrossAttention.from_transformers(module)
    x, context, _ = text(dtype=torch.float32)
    mask = torch.ones(B, 1, T, M * N) * 0.0
    assert_parity(
        lambda x: ours(x, context),
        lambda x: module(x, key_value_states=context, attention_mask=mask)[0],
        x,
        SINGLE,
    )
    with pytest.raises(ModelError, match="query_proj|q_proj"):
        CrossAttention.from_transformers(torch.nn.Linear(2, 3))
    with pytest.raises(ModelError, match="alpha_cross_attn"):
        GatedCrossAttentionBlock.from_transformers(module)
    with pytest.raises(ModelError, match="silu"):
        GatedCrossAttentionBlock.from_transformers(idefics(hidden_act="gelu"))


def test_a_new_block_is_the_identity():
    x, context, images = text()
    new = GatedCrossAttentionBlock(D, 3, 17, E).double()
    assert torch.equal(new(x, context, preceding_images(images, M, N)), x)


def shared_heads() -> CrossAttention:
    return randomised(CrossAttention(D, 6, E, qk_dim=6 * 5, v_dim=6 * 7, kv_heads=2, qk_norm="layer"))


@pytest.mark.parametrize("form", ["none", "keys", "queries and keys"])
@pytest.mark.parametrize("make", [shared_heads, lambda: randomised(CrossAttention(D, 3, E))], ids=["groups", "plain"])
def test_weights_times_values_are_the_output(make, form):
    layer = make()
    x, context, images = text()
    masks = {
        "none": None,
        "keys": torch.arange(M * N).expand(B, -1) < torch.tensor([[4], [9]]),
        "queries and keys": preceding_images(images, M, N),
    }
    mask = masks[form]
    weights = layer.weights(x, context, mask)
    assert weights.shape == (B, layer.heads, T, M * N)
    rows = torch.ones(B, T, dtype=torch.bool) if mask is None else mask.any(-1) if mask.ndim == 3 else None
    rows = torch.ones(B, T, dtype=torch.bool) if rows is None else rows
    assert torch.allclose(weights.sum(-1), rows[:, None].double().expand(-1, layer.heads, -1))
    values = layer.kv(context)[..., layer.kv_heads * layer.head :].unflatten(-1, (layer.kv_heads, -1)).transpose(1, 2)
    values = values.repeat_interleave(layer.heads // layer.kv_heads, dim=1)
    out = layer.out((weights @ values).transpose(1, 2).flatten(2)) * rows[..., None]
    assert_same(layer(x, context, mask), out)
    wrong = layer.out((weights.roll(1, 1) @ values).transpose(1, 2).flatten(2)) * rows[..., None]
    with pytest.raises(AssertionError):
        assert_same(layer(x, context, mask), wrong, 1e-4)


def test_groups_are_repeated_heads():
    layer = shared_heads()
    x, context, images = text()
    mask = preceding_images(images, M, N)

    def repeated(x: Tensor) -> Tensor:
        q = layer.q_norm(layer.q(x).unflatten(-1, (6, 5)).transpose(1, 2))
        k, v = layer.kv(context).split((2 * 5, 2 * 7), -1)
        k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2).repeat_interleave(3, dim=1) for y in (k, v))
        y = attend(q, layer.k_norm(k), v, mask[:, None]).transpose(1, 2).flatten(2)
        return layer.out(y) * mask.any(-1, keepdim=True)

    assert_parity(lambda x: layer(x, context, mask), repeated, x)


@pytest.mark.parametrize("bias", [False, True])
def test_a_row_that_sees_nothing_gives_zeros(bias):
    layer = randomised(CrossAttention(D, 3, E, bias=bias))
    x, context, images = text()
    mask = preceding_images(images, M, N)
    blind = ~mask.any(-1)
    assert blind.sum() == 2 + 3 + 2  # before the first image of each row, and after one image too many
    x.requires_grad_()
    context.requires_grad_()
    out = layer(x, context, mask)
    assert (out[blind] == 0).all()
    assert (layer.weights(x, context, mask).transpose(1, 2)[blind] == 0).all()
    out.sum().backward()
    grad = x.grad
    assert grad is not None
    assert (grad[blind] == 0).all()
    assert (grad[~blind] != 0).any()
    for parameter in (context, *layer.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert (layer(x, context, torch.zeros(B, M * N, dtype=torch.bool)) == 0).all()


def test_the_mask_to_preceding_images():
    images = torch.tensor([[False, True, False, True, False, True]])
    last = preceding_images(images, 2, 1)
    assert last[0].tolist() == [[0, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 0]]
    every = preceding_images(images, 2, 1, every=True)
    assert every[0].tolist() == [[0, 0], [1, 0], [1, 0], [1, 1], [1, 1], [1, 1]]
    assert preceding_images(images, 2, 3)[0, 1].tolist() == [1, 1, 1, 0, 0, 0]
    assert preceding_images(images, 0, 3).shape == (1, 6, 0)


@pytest.mark.usefixtures("unchecked")
def test_bad_places_of_images():
    images = torch.tensor([[False, True, False]])
    for wrong in (images.int(), images[0], None):
        with pytest.raises(ShapeError, match="image_tokens must be bool of shape"):
            preceding_images(wrong, 2, 1)  # pyright: ignore
    with pytest.raises(ShapeError, match="tokens at least 1, got 2 and 0"):
        preceding_images(images, 2, 0)


@pytest.mark.parametrize("make", [lambda: CrossAttention(D, 3, E), lambda: GatedCrossAttentionBlock(D, 3, 17, E)])
@pytest.mark.usefixtures("unchecked")
def test_bad_input(make):
    layer = make().double()
    x, context, images = text()
    mask = preceding_images(images, M, N)
    cases = [
        ((x[..., 1:], context), r"x must be floats of shape \(B, N, 21\), got .*20"),
        ((x[0], context), "x must be floats of shape"),
        ((x.int(), context), "x must be floats .*int32"),
        ((x, context[..., 1:]), r"context must be floats of shape \(2, N, 13\), got .*12"),
        ((x, None), "context must be floats .*NoneType"),
        ((x, context[:1]), "context must be of the same batch as x"),
        ((x, context, mask.int()), "mask must be bool .* got torch.int32"),
        ((x, context, mask[:, :1]), r"mask must be bool .*\(2, 11, 15\), got .*\(2, 1, 15\)"),
        ((x, context, mask[:1]), "mask must be bool"),
        ((x, context, mask[:, :, 1:]), "mask must be bool"),
        ((x, context, mask[:, None]), "mask must be bool"),
    ]
    for given, message in cases:
        for call in (layer, layer.weights):
            with pytest.raises(ShapeError, match=message):
                call(*given)


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments():
    for given, message in (
        ({"heads": 2}, "qk_dim must be divided by heads, got qk_dim=21 and heads=2"),
        ({"heads": 3, "v_dim": 7}, "v_dim must be divided by heads"),
        ({"heads": 3, "kv_heads": 2}, "heads must be divided by kv_heads, got heads=3 and kv_heads=2"),
        ({"heads": 3, "kv_heads": 0}, "heads must be divided by kv_heads"),
    ):
        with pytest.raises(ShapeError, match=message):
            CrossAttention(D, **given)  # pyright: ignore
    with pytest.raises(ModelError, match="no norm is named 'batch': there are layer, rms"):
        GatedCrossAttentionBlock(D, 3, 17, norm="batch")  # pyright: ignore
    with pytest.raises(ModelError, match="no activation is named 'tanh'.*swiglu"):
        GatedCrossAttentionBlock(D, 3, 17, activation="tanh")


def test_few_tokens_and_none(block):
    x, context, _ = text()
    for layer in (block, block.attention, shared_heads()):
        assert layer(x[:0], context[:0], torch.ones(0, M * N, dtype=torch.bool)).shape == (0, T, D)
        assert layer(x[:, :1], context[:, :1]).shape == (B, 1, D)
        assert layer(x[:, :0], context).shape == (B, 0, D)
        assert layer.weights(x[:0], context[:0]).shape == (0, layer.weights(x, context).shape[1], T, M * N)
        assert layer(x, context[:, :0]).isfinite().all()
    biased = randomised(CrossAttention(D, 3, E))
    assert (biased(x, context[:, :0]) == 0).all()  # a text without images
    assert (biased(x, context[:, :0], torch.ones(B, 0, dtype=torch.bool)) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_half_precision(dtype, norm):
    x, context, images = text(dtype=torch.float32)
    mask = preceding_images(images, M, N)
    layer = randomised(GatedCrossAttentionBlock(D, 3, 17, E, norm=norm, activation="swiglu"), dtype=torch.float32)
    wanted = layer(x, context, mask)
    out = layer.to(dtype)(x.to(dtype), context.to(dtype), mask)
    assert out.dtype == dtype
    assert_same(out.float(), wanted, 0.1)


def test_save_and_load(tmp_path):
    x, context, images = text(dtype=torch.float32)
    mask = preceding_images(images, M, N)
    attention = CrossAttention(D, 6, E, qk_dim=30, v_dim=42, kv_heads=2, qk_norm="rms", eps=1e-3)
    gated = GatedCrossAttentionBlock(D, 3, 17, E, norm="rms", activation="swiglu", qk_norm=True, vector_gates=True)
    for layer in (attention, gated):
        randomised(layer, dtype=torch.float32)
        path = tmp_path / type(layer).__name__
        layer.save_pretrained(path)
        again = type(layer).from_pretrained(path).eval()
        assert torch.equal(again(x, context, mask), layer(x, context, mask))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of the compiler itself
@pytest.mark.usefixtures("compiler")
def test_compiled(block):
    x, context, images = text()
    mask = preceding_images(images, M, N)
    for layer in (block, shared_heads()):
        compiled = torch.compile(layer, fullgraph=True)
        assert_same(compiled(x, context, mask), layer(x, context, mask))
        assert_same(compiled(x, context), layer(x, context))
