from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from attention_parity import SINGLE, assert_differs, assert_parity, assert_same, randomised
from regard.attention.expert import Routes, VisualExpertAttention, VisualExpertBlock, image_positions, routed
from regard.errors import ModelError, ShapeError

B, N, D, H, HIDDEN = 2, 11, 24, 3, 37
IMAGE = torch.tensor([[0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1]]).bool()
SEEN = torch.tensor([[1] * 11, [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1]]).bool()


def drawn(*shape: int, seed: int = 0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


X = drawn(B, N, D)


def row(text: str):
    return torch.tensor([[letter == "v" for letter in text]], dtype=torch.bool)


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(D)), 1e-5

    def forward(self, x):
        return x / ((x * x).mean(-1, keepdim=True) + self.variance_epsilon).sqrt() * self.weight


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(D, HIDDEN, bias=False), nn.Linear(D, HIDDEN, bias=False)
        self.down_proj = nn.Linear(HIDDEN, D, bias=False)

    def forward(self, x):
        gate = self.gate_proj(x)
        return self.down_proj(gate * torch.sigmoid(gate) * self.up_proj(x))


class Written(nn.Module):
    """The published rule written out, token by token, under the released names."""

    def __init__(self, base: float = 10_000.0) -> None:
        super().__init__()
        self.self_attn: Any = nn.Module()
        self.mlp = nn.Module()
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()
        self.self_attn.config = SimpleNamespace(num_attention_heads=H)
        self.self_attn.rotary_emb = SimpleNamespace(base=base)
        for side in ("vision", "language"):
            setattr(self.self_attn, f"{side}_expert_query_key_value", nn.Linear(D, 3 * D, bias=False))
            setattr(self.self_attn, f"{side}_expert_dense", nn.Linear(D, D, bias=False))
            setattr(self.mlp, f"{side}_mlp", Gated())

    def expert(self, part: Any, form: str, x, image):
        """Of each token by its own expert; the last of a run is no longer of the image."""
        rows = []
        for b in range(len(image)):
            for n in range(image.shape[1]):
                visual = bool(image[b, n]) and n + 1 < image.shape[1] and bool(image[b, n + 1])
                rows.append(getattr(part, form.format("vision" if visual else "language"))(x[b, n]))
        return torch.stack(rows).unflatten(0, image.shape)

    def attend(self, x, image, positions, seen):
        joint = self.expert(self.self_attn, "{}_expert_query_key_value", x, image)
        q, k, v = (part.unflatten(-1, (H, D // H)) for part in joint.split(D, -1))
        half = D // H // 2
        speed = torch.tensor([self.self_attn.rotary_emb.base ** (-i / half) for i in range(half)], dtype=torch.float64)
        turn = torch.polar(torch.ones(1).double(), positions[..., None, None] * speed)
        q, k = (torch.complex(part[..., :half], part[..., half:]) * turn for part in (q, k))
        out = torch.zeros_like(v)
        for b in range(len(x)):
            for n in range(x.shape[1]):
                before = [m for m in range(n + 1) if seen[b, m]]
                if before:
                    score = (q[b, n] * k[b, before].conj()).real.sum(-1) / (D // H) ** 0.5
                    weights = score.exp() / score.exp().sum(0)
                    out[b, n] = (weights[..., None] * v[b, before]).sum(0)
        return self.expert(self.self_attn, "{}_expert_dense", out.flatten(2), image)

    def forward(self, x, image, positions, seen):
        x = x + self.attend(self.input_layernorm(x), image, positions, seen)
        return x + self.expert(self.mlp, "{}_mlp", self.post_attention_layernorm(x), image)


ALL = torch.ones_like(SEEN)
# by hand: image_positions of IMAGE with every token, and with those of SEEN
PLACES = torch.tensor([[0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
PADDED = torch.tensor([[0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9], [0, 0, 0, 1, 2, 3, 4, 5, 6, 6, 7]])


@pytest.fixture(scope="module")
def written():
    return randomised(Written(base=100.0))


def test_routing_by_hand():
    for given, wanted in {
        "tvvvvttv": "tvvvtttt",
        "vvv": "vvt",
        "v": "t",
        "tttt": "tttt",
        "vtvvt": "ttvtt",
        "": "",
    }.items():
        assert torch.equal(routed(row(given)), row(wanted)), given


def test_positions_by_hand():
    for given, wanted in {
        "tvvvvvttt": [0, 1, 2, 2, 2, 3, 4, 5, 6],
        "tvvvtvvvvt": [0, 1, 2, 3, 4, 5, 6, 6, 7, 8],
        "vvvv": [0, 1, 1, 2],
        "tvt": [0, 1, 2],
        "tvvt": [0, 1, 2, 3],
        "ttt": [0, 1, 2],
    }.items():
        assert image_positions(row(given)).tolist() == [wanted], given
    assert torch.equal(image_positions(IMAGE), PLACES)
    assert torch.equal(image_positions(IMAGE, SEEN), PADDED)


def test_the_layers_are_the_rule_written_out(written):
    attention = VisualExpertAttention.from_transformers(written.self_attn)
    assert attention.base == 100
    assert_parity(lambda x: attention(x, IMAGE), lambda x: written.attend(x, IMAGE, PLACES, ALL), X)
    assert_parity(lambda x: attention(x, IMAGE, SEEN), lambda x: written.attend(x, IMAGE, PADDED, SEEN), X)
    block = VisualExpertBlock.from_transformers(written)
    assert_parity(lambda x: block(x, IMAGE), lambda x: written(x, IMAGE, PLACES, ALL), X)
    assert_parity(lambda x: block(x, Routes.of(IMAGE, SEEN), SEEN), lambda x: written(x, IMAGE, PADDED, SEEN), X)


def test_parameters_have_the_gradients_of_the_rule(written):
    written.zero_grad()
    block, factor = VisualExpertBlock.from_transformers(written), drawn(B, N, D, seed=3)
    (block(X, IMAGE) * factor).sum().backward()
    (written(X, IMAGE, PLACES, ALL) * factor).sum().backward()
    for side in ("vision", "language"):
        mine, theirs = (
            getattr(block.attention, f"{side}_qkv"),
            getattr(written.self_attn, f"{side}_expert_query_key_value"),
        )
        assert_same(mine.weight.grad, theirs.weight.grad)
        mine, theirs = getattr(block, f"{side}_mlp"), getattr(written.mlp, f"{side}_mlp")
        assert_same(mine.widen.weight.grad, torch.cat((theirs.gate_proj.weight.grad, theirs.up_proj.weight.grad)))
        assert_same(mine.narrow.weight.grad, theirs.down_proj.weight.grad)


def swapped(block):
    q, k, _ = block.attention.vision_qkv.weight.data.chunk(3)
    kept = q.clone()
    q.copy_(k)
    k.copy_(kept)


def experts_swapped(block):
    block.vision_mlp, block.language_mlp = block.language_mlp, block.vision_mlp


def another_base(block):
    block.attention.base = 110.0


def another_epsilon(block):
    block.norm2.eps = 1e-2


@pytest.mark.parametrize("mutation", [swapped, experts_swapped, another_base, another_epsilon])
def test_mutations_fail(written, mutation):
    block = VisualExpertBlock.from_transformers(written)
    mutation(block)
    assert_differs(lambda x: block(x, IMAGE), lambda x: written(x, IMAGE, PLACES, ALL), X)


def test_other_rules_fail(written):
    block, routes = VisualExpertBlock.from_transformers(written), Routes.of(IMAGE)
    every = IMAGE.flatten()
    for other in (
        routes._replace(vision=every.nonzero()[:, 0], language=(~every).nonzero()[:, 0]),  # the last one not sent away
        routes._replace(positions=torch.arange(N).expand(B, N)),
    ):
        assert_differs(lambda x, other=other: block(x, other), lambda x: written(x, IMAGE, PLACES, ALL), X)
    assert_differs(lambda x: block(x, routes), lambda x: written(x, IMAGE, PLACES, SEEN), X)


def llama() -> Any:
    more: dict[str, Any] = {"rope_theta": 100.0, "attn_implementation": "sdpa"}
    config = LlamaConfig(hidden_size=D, num_attention_heads=H, intermediate_size=HIDDEN, **more)
    layer, turn = randomised(LlamaDecoderLayer(config, 0)), LlamaRotaryEmbedding(config)
    return layer, lambda x, places: layer(x, position_embeddings=turn(x, places), attention_mask=None)


def test_with_equal_experts_it_is_llama():
    layer, theirs = llama()
    block = VisualExpertBlock.from_transformers(layer)
    assert block.attention.base == 100
    assert_parity(lambda x: block(x, IMAGE), lambda x: theirs(x, PLACES), X, SINGLE)
    block.language_mlp.widen.weight.data[3] += 0.4
    assert_differs(lambda x: block(x, IMAGE), lambda x: theirs(x, PLACES), X)


def test_text_alone_meets_the_language_expert_alone():
    layer, theirs = llama()
    block, text = VisualExpertBlock.from_transformers(layer), torch.zeros_like(IMAGE)
    for part in (block.attention.vision_qkv, block.attention.vision_out, block.vision_mlp):
        for parameter in part.parameters():
            parameter.data.fill_(torch.nan)
    assert_parity(lambda x: block(x, text), lambda x: theirs(x, torch.arange(N)[None]), X, SINGLE)
    block(X, text).sum().backward()
    assert block.attention.vision_qkv.weight.grad is None


def test_an_image_alone_meets_the_visual_expert_but_for_its_last():
    block = small()
    picture = torch.ones_like(IMAGE)
    before = block(X, picture)
    block.language_mlp.widen.weight.data.fill_(torch.nan)
    after = block(X, picture)
    assert_close(after[:, :-1], before[:, :-1], rtol=0, atol=0)
    assert after[:, -1].isnan().all()
    routes = Routes.of(picture)
    every = routes._replace(vision=torch.arange(B * N), language=torch.arange(0))
    block.attention.language_qkv.weight.data.fill_(torch.nan)
    assert block(X, every).isfinite().all()


def test_experts_do_not_mix():
    """A change in the visual weights changes image tokens and what comes after them, and no text before."""
    block, image = small(), row("ttvvvtt").expand(B, -1)
    x = X[:, :7]
    before = block(x, image)
    block.vision_mlp.narrow.weight.data += 0.3
    after = block(x, image)
    changed = (before - after).abs().amax((0, 2)) > 1e-9
    assert changed.tolist() == [False, False, True, True, False, False, False]
    block.attention.vision_qkv.weight.data += 0.3
    changed = (after - block(x, image)).abs().amax((0, 2)) > 1e-9
    assert changed.tolist() == [False, False, True, True, True, True, True]


def small() -> VisualExpertBlock:
    return randomised(VisualExpertBlock(D, H, HIDDEN))


def test_nothing_later_is_seen():
    block = small()
    later = X.clone()
    later[:, 6:] = drawn(B, N - 6, D, seed=7)
    one, two = block(X, IMAGE), block(later, IMAGE)
    assert_close(one[:, :6], two[:, :6], rtol=0, atol=0)
    assert (one[:, 6:] - two[:, 6:]).abs().amax(-1).min() > 1e-3


def test_weights_give_the_output(written):
    layer = VisualExpertAttention.from_transformers(written.self_attn)
    weights = layer.weights(X, IMAGE, SEEN)
    assert weights.shape == (B, H, N, N)
    assert not weights.triu(1).any()
    assert_close(weights.sum(-1), SEEN.cumsum(1).bool()[:, None].expand(B, H, N).double())
    joint = written.expert(written.self_attn, "{}_expert_query_key_value", X, IMAGE)
    out = weights @ joint[..., 2 * D :].unflatten(-1, (H, -1)).transpose(1, 2)
    out = written.expert(written.self_attn, "{}_expert_dense", out.transpose(1, 2).flatten(2), IMAGE)
    assert_same(layer(X, IMAGE, SEEN), out)
    assert_same(layer.weights(X, IMAGE), layer.weights(X, IMAGE, ALL))
    block = VisualExpertBlock.from_transformers(written)
    assert_same(block.weights(X, IMAGE, SEEN), layer.weights(block.norm1(X), IMAGE, SEEN))


def test_a_mask_of_pairs():
    block = small()
    pairs = SEEN[:, None].expand(B, N, N)
    assert_same(block(X, Routes.of(IMAGE, SEEN), pairs), block(X, IMAGE, SEEN))


def test_rows_that_see_nothing_are_zeros():
    layer = small().attention
    nothing, x = SEEN.clone(), X.clone().requires_grad_()
    nothing[1] = False
    out = layer(x, IMAGE, nothing)
    assert not out[1].any()
    assert not layer.weights(X, IMAGE, nothing)[1].any()
    (out**2).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not x.grad[1].any()
    assert small()(X, IMAGE, nothing).isfinite().all()


def test_sizes_at_the_edge_and_half_precision():
    block = small()
    assert block(X[:0], IMAGE[:0]).shape == (0, N, D)
    assert block(X[:, :1], IMAGE[:, :1]).shape == (B, 1, D)
    for dtype in (torch.float16, torch.bfloat16):
        out = small().to(dtype)(X.to(dtype), IMAGE, SEEN)
        assert out.dtype == dtype
        assert_close(out.double(), block(X, IMAGE, SEEN), rtol=0.2, atol=0.5)


def test_saved_and_loaded(tmp_path):
    block = randomised(VisualExpertBlock(D, H, HIDDEN, base=50.0, eps=1e-3))
    block.save_pretrained(tmp_path)
    again = VisualExpertBlock.from_pretrained(tmp_path).double()
    assert_close(again(X, IMAGE), block.float().double()(X, IMAGE), rtol=0, atol=0)


BAD = {
    "x must be floats": (X[..., 1:], IMAGE),
    "image must be of shape": (X, IMAGE[:1]),
    "image must be bool": (X, IMAGE.long()),
    "image must be bool .* got list": (X, IMAGE.tolist()),
    "image must be routes of 2 x 11 tokens, got 20 and positions of": (X, Routes.of(IMAGE[:, 1:])),
    "image must be routes of 2 x 11 tokens, got 14": (X, Routes.of(IMAGE)._replace(language=torch.arange(6))),
    "mask must be bool": (X, IMAGE, SEEN.long()),
    "mask must be bool .* of shape": (X, IMAGE, SEEN[:, 1:]),
}


@pytest.mark.parametrize("message", BAD)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(message):
    block = small()
    for call in (block, block.weights, block.attention, block.attention.weights):
        with pytest.raises(ShapeError, match=message):
            call(*BAD[message])


@pytest.mark.usefixtures("unchecked")
def test_other_errors():
    with pytest.raises(ShapeError, match="dim must be divided by heads, got dim=24 and heads=5"):
        VisualExpertAttention(D, 5)
    with pytest.raises(ShapeError, match="even width"):
        VisualExpertAttention(15, 3)
    with pytest.raises(ShapeError, match="image must be bool"):
        routed(IMAGE[0])
    with pytest.raises(ShapeError, match="mask must be bool of shape"):
        image_positions(IMAGE, SEEN[:1])
    with pytest.raises(ModelError, match="Linear is no layer of CogVLM or Llama"):
        VisualExpertBlock.from_transformers(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="Linear is no attention"):
        VisualExpertAttention.from_transformers(nn.Linear(2, 2))
    layer, _ = llama()
    layer.self_attn.config.rope_parameters["rope_type"] = "linear"
    with pytest.raises(ModelError, match="type 'linear'"):
        VisualExpertBlock.from_transformers(layer)
    grouped = LlamaConfig(hidden_size=D, num_attention_heads=4, num_key_value_heads=2, intermediate_size=HIDDEN)
    with pytest.raises(ModelError, match="grouped keys"):
        VisualExpertBlock.from_transformers(LlamaDecoderLayer(grouped, 0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside the compiler
@pytest.mark.usefixtures("compiler")
def test_compiles_whole():
    block, routes = small(), Routes.of(IMAGE, SEEN)
    compiled = torch.compile(block, fullgraph=True)
    assert_same(compiled(X, routes, SEEN), block(X, routes, SEEN), 1e-9)
    assert_same(compiled(X, routes), block(X, routes), 1e-9)
