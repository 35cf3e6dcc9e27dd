"""The resampler: against open_flamingo's rule in plain loops, and those of Idefics and Idefics2."""

import pytest
import torch
from torch import Tensor
from transformers import IdeficsConfig
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

from attention_parity import SINGLE, assert_differs, assert_parity, assert_same, randomised
from regard.attention.resampler import PerceiverResampler
from regard.errors import ModelError, ShapeError

B, N, L, D = 2, 11, 3, 13  # batch, media, latents, width


def media(dtype: torch.dtype = torch.float64, width: int = D) -> Tensor:
    return torch.randn(B, N, width, generator=torch.Generator().manual_seed(0)).to(dtype)


def padding() -> Tensor:
    """True = not padding."""
    return torch.arange(N) < torch.tensor([[7], [N]])


def own(**other) -> PerceiverResampler:
    return randomised(PerceiverResampler(D, 5, L, 2, 17, qk_dim=5 * 7, **other))


def flamingo(p: dict[str, Tensor], x: Tensor, heads: int, depth: int, eps: float = 1e-5) -> Tensor:
    """The rule of open_flamingo's resampler, a latent, a head and a key at a time."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean()
        return centred / (centred.square().mean() + eps).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    rows = []
    for row in x:
        latents = list(p["latents"])
        for i in range(depth):
            name = f"blocks.{i}"
            wq, (wk, wv) = p[f"{name}.attention.q.weight"], p[f"{name}.attention.kv.weight"].chunk(2)
            width = len(wq) // heads
            queries = [norm(z, f"{name}.norm_latents") for z in latents]
            keys = [norm(y, f"{name}.norm_media") for y in row] + queries
            for place, query in enumerate(queries):
                parts = []
                for h in range(heads):
                    mine = slice(h * width, (h + 1) * width)
                    scores = [(wq[mine] @ query) @ (wk[mine] @ key) * width**-0.5 for key in keys]
                    total = sum(score.exp() for score in scores)
                    parts.append(sum(s.exp() / total * (wv[mine] @ key) for s, key in zip(scores, keys, strict=True)))
                latents[place] = latents[place] + p[f"{name}.attention.out.weight"] @ torch.cat(parts)
            for place, z in enumerate(latents):
                wide = p[f"{name}.feed.widen.weight"] @ norm(z, f"{name}.feed.norm")
                wide = wide * 0.5 * (1 + torch.erf(wide / 2**0.5))
                latents[place] = z + p[f"{name}.feed.narrow.weight"] @ wide
        rows.append(torch.stack([norm(z, "norm") for z in latents]))
    return torch.stack(rows)


def test_open_flamingo():
    layer, x = own(), media()
    names = layer.state_dict()

    def theirs(x: Tensor) -> Tensor:
        return flamingo(names, x, 5, 2)

    assert_parity(layer, theirs, x)
    assert_same(layer(x, padding())[:1], theirs(x[:1, :7]))  # padding is as if it were not there
    assert_differs(lambda x: layer(x, padding()), theirs, x)
    assert_differs(layer, lambda x: flamingo(names, x, 5, 1), x)
    assert_differs(layer, lambda x: flamingo(names, x, 5, 2, eps=1e-2), x)
    for name in ("blocks.0.attention.kv.weight", "blocks.1.attention.kv.weight"):  # keys and values swapped
        assert_differs(layer, lambda x, n=name: flamingo({**names, n: names[n].roll(5 * 7, 0)}, x, 5, 2), x)
    assert_differs(own(activation="relu"), theirs, x)


def idefics(qk_norm: bool = False) -> IdeficsPerceiverResampler:
    config = IdeficsConfig(
        vision_config={"embed_dim": D}, perceiver_config={"qk_layer_norms_perceiver": qk_norm, "use_resampler": True}
    )
    return randomised(IdeficsPerceiverResampler(config, D, 2, 5, 7, L))


@pytest.mark.parametrize("qk_norm", [False, True], ids=["", "qk_norm"])
def test_idefics(qk_norm):
    module, x = idefics(qk_norm), media()
    ours = PerceiverResampler.from_transformers(module)
    assert_parity(ours, module, x)
    grads = [p.grad if p.grad is not None else torch.zeros(()) for p in (ours.latents, module.latents)]
    assert_same(grads[0], grads[1])
    assert_differs(lambda x: ours(x, padding()), module, x)
    for change in ("activation", "latents", "final norm", "eps", "swapped norms", "keys and values"):
        other = PerceiverResampler.from_transformers(module)
        block = other.blocks[0]
        if change == "activation":
            block.feed.activation = "gelu"  # pyright: ignore
        elif change == "latents":
            other.latents.data = other.latents.flip(0)
        elif change == "final norm":
            other.norm = torch.nn.Identity()
        elif change == "eps":
            other.norm.eps = 1e-2  # pyright: ignore
        elif change == "swapped norms":
            block.norm_media, block.norm_latents = block.norm_latents, block.norm_media
        else:
            block.attention.kv.weight.data = block.attention.kv.weight.roll(5 * 7, 0)  # pyright: ignore
        assert_differs(other, module, x)


def idefics2() -> Idefics2PerceiverResampler:
    config = Idefics2PerceiverConfig(
        hidden_size=D,
        rms_norm_eps=1e-3,
        resampler_n_latents=L,
        resampler_depth=2,
        resampler_n_heads=6,
        resampler_head_dim=5,
        num_key_value_heads=2,
    )
    config._attn_implementation = "eager"
    return randomised(Idefics2PerceiverResampler(config), dtype=torch.float32)


def test_idefics2():
    module, x = idefics2(), media(torch.float32)
    ours = PerceiverResampler.from_transformers(module)
    whole, some = torch.ones(B, N), padding()
    assert_parity(ours, lambda x: module(x, whole), x, SINGLE)
    assert_parity(lambda x: ours(x, some), lambda x: module(x, some.float()), x, SINGLE)
    grads = [p.grad if p.grad is not None else torch.zeros(()) for p in (ours.latents, module.latents)]
    assert_same(grads[0], grads[1], SINGLE)
    assert_differs(ours, lambda x: module(x, some.float()), x)
    for change in ("groups", "eps", "swiglu halves", "layer norm"):
        other = PerceiverResampler.from_transformers(module)
        if change == "groups":  # heads of one group as if they took turns
            for block in other.blocks:
                block.attention.q.weight.data = block.attention.q.weight.roll(5, 0)  # pyright: ignore
        elif change == "eps":
            other.norm.eps = 1e-1  # pyright: ignore
        elif change == "swiglu halves":
            widen = other.blocks[0].feed.widen  # pyright: ignore
            widen.weight.data = widen.weight.roll(4 * D, 0)  # pyright: ignore
        else:
            other.norm = torch.nn.LayerNorm(D)
        assert_differs(lambda x, other=other: other(x, some), lambda x: module(x, some.float()), x)


def test_what_cannot_be_lifted():
    with pytest.raises(ModelError, match="Linear has none of blocks, layers"):
        PerceiverResampler.from_transformers(torch.nn.Linear(2, 3))
    empty = idefics()
    empty.blocks = torch.nn.ModuleList()
    with pytest.raises(ModelError, match="no block"):
        PerceiverResampler.from_transformers(empty)


@pytest.mark.parametrize("mask", [None, padding(), padding()[:, None].repeat(1, L, 1)], ids=["none", "keys", "both"])
def test_weights_times_values_are_the_output(mask):
    layer, x = own(), media()
    layer.blocks = layer.blocks[:1]
    weights = layer.weights(x, mask)
    assert weights.shape == (B, 5, L, N + L)
    assert torch.allclose(weights.sum(-1), torch.ones(B, 5, L).double())
    block = layer.blocks[0]
    z, keys = block.read(layer.latents.expand(B, -1, -1), x)  # pyright: ignore
    values = block.attention.kv(keys)[..., 5 * 7 :].unflatten(-1, (5, 7)).transpose(1, 2)  # pyright: ignore
    z = layer.latents + block.attention.out((weights @ values).transpose(1, 2).flatten(2))  # pyright: ignore
    assert_same(layer(x, mask), layer.norm(z + block.feed(z)))  # pyright: ignore
    if mask is not None:
        assert (weights[0, :, :, 7:N] == 0).all()
        assert (weights[0, :, :, N:] > 0).all()


def test_weights_of_each_block():
    layer, x = own(), media()
    assert torch.equal(layer.weights(x), layer.weights(x, layer=1))
    first, last = layer.weights(x, layer=0), layer.weights(x)
    assert not torch.allclose(first, last)
    for wrong in (2, -3):
        with pytest.raises(ShapeError, match=r"layer must be in \[-2, 2\), got"):
            layer.weights(x, layer=wrong)


def test_where_no_media_is_seen_latents_read_each_other():
    layer, x = own(), media().requires_grad_()
    nothing = torch.zeros(B, N, dtype=torch.bool)
    out = layer(x, nothing)
    assert_same(out, layer(x[:, :0]))
    assert_same(out, flamingo(layer.state_dict(), x[:, :0], 5, 2))
    assert (layer.weights(x, nothing)[..., :N] == 0).all()
    out.sum().backward()
    assert x.grad is not None
    assert (x.grad == 0).all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())  # pyright: ignore


def test_a_mask_of_each_latent():
    layer, x = own(), media()
    mask = torch.rand(B, L, N, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[0, 1] = False
    out, weights = layer(x, mask), layer.weights(x, mask)
    assert out.isfinite().all()
    assert ((weights[..., :N] > 0) == mask[:, None]).all()
    assert not torch.allclose(out, layer(x))


@pytest.mark.usefixtures("unchecked")
def test_bad_input():
    layer, x = own(), media()
    mask = padding()
    cases = [
        ((x[..., 1:],), r"x must be floats of shape \(B, N, 13\), got .*12"),
        ((x[0],), "x must be floats of shape"),
        ((x.long(),), "x must be floats .*int64"),
        ((x, mask.float()), "mask must be bool .*float32"),
        ((x, mask[:1]), r"mask must be bool .*\(2, 11\) or \(2, 3, 11\), got .*\(1, 11\)"),
        ((x, mask[:, 1:]), "mask must be bool"),
        ((x, mask[:, None]), "mask must be bool"),
        ((x, torch.ones(B, N + L, dtype=torch.bool)), "mask must be bool"),
    ]
    for given, message in cases:
        for call in (layer, layer.weights):
            with pytest.raises(ShapeError, match=message):
                call(*given)
    for given, message in (
        ((D, 5, L, 2, 17), "qk_dim must be divided by heads, got qk_dim=13 and heads=5"),
        ((D, 13, 0, 2, 17), "latents must be at least 1, got 0"),
    ):
        with pytest.raises(ShapeError, match=message):
            PerceiverResampler(*given)
    with pytest.raises(ModelError, match="no activation is named 'silu'"):
        PerceiverResampler(D, 13, L, 2, 17, activation="silu")


def test_few_tokens_and_none():
    layer, x = own(kv_heads=1), media()
    assert layer(x[:0]).shape == (0, L, D)
    assert layer(x[:0], padding()[:0]).shape == (0, L, D)
    assert layer(x[:, :1]).shape == (B, L, D)
    assert layer.weights(x[:, :1]).shape == (B, 5, L, 1 + L)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_half_precision(dtype, norm):
    layer, x = own(norm=norm, activation="swiglu").float(), media(torch.float32)
    wanted = layer(x, padding())
    out = layer.to(dtype)(x.to(dtype), padding())
    assert out.dtype == dtype
    assert_same(out.float(), wanted, 0.2)


def test_save_and_load(tmp_path):
    x = media(torch.float32)
    for other in ({}, {"kv_heads": 1, "norm": "rms", "activation": "swiglu", "qk_norm": True, "eps": 1e-3}):
        layer = own(**other).float()
        layer.save_pretrained(tmp_path)
        assert torch.equal(PerceiverResampler.from_pretrained(tmp_path).eval()(x, padding()), layer(x, padding()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of the compiler itself
@pytest.mark.usefixtures("compiler")
def test_compiled():
    layer, x = own(), media()
    compiled = torch.compile(layer, fullgraph=True)
    assert_same(compiled(x), layer(x))
    assert_same(compiled(x, padding()), layer(x, padding()))
