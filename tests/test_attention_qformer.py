from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import Blip2QFormerConfig, InstructBlipQFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel
from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel

from attention_parity import SINGLE, assert_differs, assert_parity, assert_same, randomised
from regard.attention.qformer import QFormer, qformer_mask
from regard.errors import ModelError, ShapeError

B, Q, T, E, D, C, WORDS = 2, 5, 7, 11, 24, 13, 31
SIZES: dict[str, Any] = {
    "hidden_size": D,
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "intermediate_size": 37,
    "encoder_hidden_size": C,
}


def drawn(*shape: int, seed: int = 0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def padding(length: int, *kept: int):
    return torch.arange(length) < torch.tensor(kept)[:, None]


@pytest.fixture(scope="module")
def blip2():
    return randomised(Blip2QFormerModel(Blip2QFormerConfig(use_qformer_text_input=True, **SIZES)))


@pytest.fixture(scope="module")
def instruct():
    config = InstructBlipQFormerConfig(vocab_size=WORDS, max_position_embeddings=17, pad_token_id=0, **SIZES)
    return randomised(InstructBlipQFormerModel(config))


STATES, TEXT, QUERIES = drawn(B, E, C, seed=2), drawn(B, T, D, seed=3), drawn(B, Q, D, seed=4)
IMAGE_SEEN, TEXT_SEEN = padding(E, 11, 6), padding(T, 4, 7)
TOKENS = torch.randint(1, WORDS, (B, T), generator=torch.Generator().manual_seed(5))


def theirs(module, states=STATES, seen: Tensor | None = IMAGE_SEEN):
    return lambda x: module(query_embeds=x, encoder_hidden_states=states, encoder_attention_mask=seen).last_hidden_state


def of_instruct(module, mask, seen=IMAGE_SEEN):
    return lambda x: (
        module(
            input_ids=TOKENS,
            query_embeds=x,
            attention_mask=mask,
            encoder_hidden_states=STATES,
            encoder_attention_mask=seen,
        ).last_hidden_state
    )


def test_queries_alone_are_blip2s(blip2):
    layer = QFormer.from_transformers(blip2)
    assert_parity(lambda x: layer(x, STATES, encoder_mask=IMAGE_SEEN), theirs(blip2), QUERIES)
    assert_parity(lambda x: layer(QUERIES, x), lambda x: theirs(blip2, x, None)(QUERIES), STATES)


def every_mask():
    keys = torch.nn.functional.pad(TEXT_SEEN, (Q, 0), value=True)
    return {"padding": keys} | {kind: qformer_mask(kind, Q, TEXT_SEEN) for kind in ("causal", "unimodal")}


@pytest.mark.parametrize("kind", ["padding", "causal", "unimodal"])
def test_queries_and_text_are_blip2s(blip2, kind):
    layer, mask = QFormer.from_transformers(blip2), every_mask()[kind]
    rows = mask.any(-1) if mask.ndim == 3 else None
    assert rows is None or rows.all()

    def reference(x):
        form = mask[:, None] if mask.ndim == 3 else mask
        out = blip2(torch.cat((QUERIES, x), 1), Q, attention_mask=form, encoder_hidden_states=STATES)
        return out.last_hidden_state

    assert_parity(lambda x: layer(QUERIES, STATES, x, mask), reference, TEXT)
    assert_differs(lambda x: layer(QUERIES, STATES, x), reference, TEXT)


def test_text_alone_is_blip2s(blip2):
    layer = QFormer.from_transformers(blip2)
    none = QUERIES[:, :0]

    def reference(x):
        return blip2(x, query_length=0, attention_mask=TEXT_SEEN).last_hidden_state

    assert_parity(lambda x: layer(none, None, x, TEXT_SEEN), reference, TEXT)
    mask = qformer_mask("unimodal", Q, TEXT_SEEN)
    assert_same(layer(QUERIES, STATES, TEXT, mask)[:, Q:], layer(none, None, TEXT, TEXT_SEEN))
    assert_same(layer(QUERIES, STATES, TEXT, mask)[:, :Q], layer(QUERIES, STATES))


@pytest.mark.parametrize("kind", ["padding", "causal", "unimodal"])
def test_an_instruction_is_instructblips(instruct, kind):
    layer, mask = QFormer.from_transformers(instruct), every_mask()[kind]
    form = mask[:, None] if mask.ndim == 3 else mask

    def ours(x):
        return layer(x, STATES, layer.embed(TOKENS), mask, IMAGE_SEEN)

    assert_parity(ours, of_instruct(instruct, form), QUERIES)
    assert_differs(lambda x: layer(x, STATES, layer.embed(TOKENS), mask), of_instruct(instruct, form), QUERIES)


def test_parameters_have_the_gradients_of_the_reference(instruct):
    instruct.zero_grad()
    layer = QFormer.from_transformers(instruct)
    factor, keys = drawn(B, Q + T, D, seed=8), every_mask()["padding"]
    (of_instruct(instruct, keys)(QUERIES) * factor).sum().backward()
    (layer(QUERIES, STATES, layer.embed(TOKENS), keys, IMAGE_SEEN) * factor).sum().backward()
    one: Any = layer.blocks[2]
    other = instruct.encoder.layer[2]
    assert layer.words is not None
    assert layer.words.weight.grad is not None
    attention = other.attention.attention
    assert_same(
        one.attention.qkv.weight.grad,
        torch.cat([p.weight.grad for p in (attention.query, attention.key, attention.value)]),
    )
    cross = other.crossattention.attention
    assert_same(one.cross.kv.weight.grad, torch.cat([cross.key.weight.grad, cross.value.weight.grad]))
    assert_same(one.text_mlp.widen.weight.grad, other.intermediate.dense.weight.grad)
    assert_same(one.query_mlp.narrow.weight.grad, other.output_query.dense.weight.grad)
    assert_same(layer.words.weight.grad, instruct.embeddings.word_embeddings.weight.grad)


def swapped(layer) -> None:
    one, two, _ = layer.blocks[1].attention.qkv.weight.data.chunk(3)
    kept = one.clone()
    one.copy_(two)
    two.copy_(kept)


def one_mlp(layer) -> None:
    layer.blocks[2].query_mlp.load_state_dict(layer.blocks[2].text_mlp.state_dict())


def odd_layers_read(layer) -> None:
    for name in ("cross", "cross_norm"):
        setattr(layer.blocks[1], name, getattr(layer.blocks[0], name))
        setattr(layer.blocks[0], name, None)


def another_epsilon(layer) -> None:
    for module in layer.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-3


def no_first_norm(layer) -> None:
    layer.norm = torch.nn.Identity()


@pytest.mark.parametrize("mutation", [swapped, one_mlp, odd_layers_read, another_epsilon, no_first_norm])
def test_mutations_fail(blip2, mutation):
    layer = QFormer.from_transformers(blip2)
    mutation(layer)
    assert_differs(lambda x: layer(x, STATES, encoder_mask=IMAGE_SEEN), theirs(blip2), QUERIES)


def test_single_precision(blip2):
    blip2.float()
    layer = QFormer.from_transformers(blip2)
    assert_parity(
        lambda x: layer(x, STATES.float(), encoder_mask=IMAGE_SEEN),
        theirs(blip2, STATES.float()),
        QUERIES.float(),
        SINGLE,
    )
    blip2.double()


def test_a_model_that_holds_one_gives_its_queries_and_words(blip2, instruct):
    holder = torch.nn.Module()
    holder.qformer, holder.embeddings = blip2, instruct.embeddings
    holder.query_tokens = torch.nn.Parameter(drawn(1, Q, D, seed=6))
    layer = QFormer.from_transformers(holder)
    assert_same(layer(None, STATES), theirs(blip2, seen=None)(holder.query_tokens.expand(B, -1, -1)))
    assert layer.words is not None
    assert_close(layer.words.weight, instruct.embeddings.word_embeddings.weight)
    layer(None, STATES).sum().backward()
    assert layer.queries.grad is not None
    assert layer.queries.grad.shape == (Q, D)


def test_masks_by_hand():
    text = torch.tensor([[True, True, False]])
    rows = {
        "bidirectional": ["11110"] * 5,
        "causal": ["11000", "11000", "11100", "11110", "11110"],
        "unimodal": ["11000", "11000", "00110", "00110", "00110"],
    }
    for kind, wanted in rows.items():
        mask = qformer_mask(kind, 2, text)  # pyright: ignore
        assert mask.dtype == torch.bool
        assert ["".join(str(int(cell)) for cell in row) for row in mask[0]] == wanted, kind


@pytest.mark.usefixtures("unchecked")
def test_bad_masks():
    text = torch.tensor([[True, True, False]])
    with pytest.raises(ModelError, match="no mask is named 'other'"):
        qformer_mask("other", 2, text)  # pyright: ignore
    with pytest.raises(ShapeError, match="text must be bool"):
        qformer_mask("causal", 2, text.long())


def test_causal_text_does_not_see_ahead():
    layer = small(text=True)
    mask = qformer_mask("causal", Q, torch.ones(B, T, dtype=torch.bool))
    later = TEXT.clone()
    later[:, 4:] += drawn(B, T - 4, D, seed=9)
    one, two = layer(QUERIES, STATES, TEXT, mask), layer(QUERIES, STATES, later, mask)
    assert_close(one[:, : Q + 4], two[:, : Q + 4], rtol=0, atol=0)
    assert (one[:, Q + 4 :] - two[:, Q + 4 :]).abs().amax(-1).min() > 1e-3


def small(**more) -> QFormer:
    return randomised(QFormer(D, 3, 3, 37, encoder_dim=C, queries=Q, **more))


def test_weights_give_the_output():
    layer, mask = small(text=True), every_mask()["causal"]
    block: Any = layer.blocks[0]
    weights = layer.weights(QUERIES, STATES, TEXT, mask, IMAGE_SEEN)
    assert weights.shape == (B, 3, Q, E)
    assert_close(weights.sum(-1), torch.ones(B, 3, Q).double())
    assert float(weights.detach()[1, ..., 6:].abs().max()) == 0
    x = layer.norm(torch.cat((QUERIES, TEXT), 1))
    seen = layer.weights(QUERIES, STATES, TEXT, mask, IMAGE_SEEN, cross=False)
    value = block.attention.qkv(x).chunk(3, -1)[2].unflatten(-1, (3, -1)).transpose(1, 2)
    x = block.norm(x + block.attention.out((seen @ value).transpose(1, 2).flatten(2)))
    value = block.cross.kv(STATES).chunk(2, -1)[1].unflatten(-1, (3, -1)).transpose(1, 2)
    q = block.cross_norm(x[:, :Q] + block.cross.out((weights @ value).transpose(1, 2).flatten(2)))
    one = QFormer(D, 3, 1, 37, encoder_dim=C, queries=Q, text=True).double()
    one.load_state_dict(
        {name: value for name, value in layer.state_dict().items() if ".1." not in name and ".2." not in name}
    )
    assert_same(
        one(QUERIES, STATES, TEXT, mask, IMAGE_SEEN), torch.cat((block.query_mlp(q), block.text_mlp(x[:, Q:])), 1)
    )
    assert layer.weights(QUERIES, STATES, layer=-1).shape == (B, 3, Q, E)
    assert layer.weights(QUERIES, STATES, layer=1, cross=False).shape == (B, 3, Q, Q)


def test_rows_that_see_nothing_are_zeros():
    layer = small()
    nothing, none = torch.zeros(B, E, dtype=torch.bool), torch.zeros(B, Q, Q, dtype=torch.bool)
    states, queries = STATES.clone().requires_grad_(), QUERIES.clone().requires_grad_()
    out = layer(queries, states, mask=none, encoder_mask=nothing)
    assert out.isfinite().all()
    (out**2).sum().backward()
    assert states.grad is not None
    assert float(states.grad.abs().max()) == 0
    assert queries.grad is not None
    assert queries.grad.isfinite().all()
    assert not layer.weights(QUERIES, STATES, encoder_mask=nothing).any()
    assert not layer.weights(QUERIES, STATES, mask=none, cross=False).any()
    assert_close(out, layer(QUERIES, STATES[:, :0], mask=none))


def test_sizes_at_the_edge_and_half_precision():
    layer = small(text=True)
    assert layer(QUERIES[:0], STATES[:0]).shape == (0, Q, D)
    assert layer(QUERIES[:, :1], STATES[:, :1]).shape == (B, 1, D)
    for dtype in (torch.float16, torch.bfloat16):
        half = small(text=True).to(dtype)
        out = half(QUERIES.to(dtype), STATES.to(dtype), TEXT.to(dtype), encoder_mask=IMAGE_SEEN)
        assert out.dtype == dtype
        assert_close(out.double(), layer(QUERIES, STATES, TEXT, encoder_mask=IMAGE_SEEN), rtol=0.2, atol=0.5)


def test_saved_and_loaded(tmp_path):
    layer = small(vocabulary=WORDS, positions=17, text=True, every=3)
    layer.save_pretrained(tmp_path)
    again = QFormer.from_pretrained(tmp_path).double()
    text = layer.float().double().embed(TOKENS)
    assert_close(again(None, STATES, again.embed(TOKENS)), layer(None, STATES, text), rtol=0, atol=0)


BAD = {
    "queries": {"queries": QUERIES[..., 1:]},
    "encoder_states": {"encoder_states": STATES[..., 1:]},
    "queries must be of the same batch": {"queries": QUERIES[:1]},
    "text": {"text": TEXT[:1]},
    "text must be floats": {"text": TOKENS},
    "mask": {"mask": torch.ones(B, Q + 1, dtype=torch.bool)},
    "mask must be bool": {"mask": torch.ones(B, Q)},
    "encoder_mask": {"encoder_mask": torch.ones(1, E, dtype=torch.bool)},
    "encoder_mask must be bool": {"encoder_mask": torch.ones(B, E)},
    "encoder_states must be given where there": {"encoder_states": None},
    "encoder_states must be given where queries": {"queries": None, "encoder_states": None},
}


@pytest.mark.parametrize("message", BAD)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(message):
    layer = small(text=True)
    for call in (layer, layer.weights):
        if call == layer or BAD[message].get("encoder_states", 1) is not None:
            with pytest.raises(ShapeError, match=message):
                call(**({"queries": QUERIES, "encoder_states": STATES} | BAD[message]))


def test_other_errors(blip2):
    with pytest.raises(ShapeError, match="dim must be divided by heads, got dim=24 and heads=5"):
        QFormer(D, 5)
    with pytest.raises(ModelError, match="text=True"):
        small()(QUERIES, STATES, TEXT)
    with pytest.raises(ModelError, match="no vocabulary"):
        small().embed(TOKENS)
    with pytest.raises(ShapeError, match="T at most 3"):
        small(vocabulary=WORDS, positions=3).embed(TOKENS)
    with pytest.raises(ShapeError, match="layer must be one that reads an encoder, got 1"):
        small().weights(QUERIES, STATES, layer=1)
    with pytest.raises(ShapeError, match="layer must be in"):
        small().weights(QUERIES, STATES, layer=3)
    with pytest.raises(ModelError, match="Linear is no Q-Former"):
        QFormer.from_transformers(torch.nn.Linear(2, 2))
    blip2.config.hidden_act = "relu"
    with pytest.raises(ModelError, match="got 'relu'"):
        QFormer.from_transformers(blip2)
    blip2.config.hidden_act = "gelu"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside the compiler
@pytest.mark.usefixtures("compiler")
def test_compiles_whole():
    layer, mask = small(text=True), every_mask()["causal"]
    compiled = torch.compile(layer, fullgraph=True)
    assert_close(compiled(QUERIES, STATES, TEXT, mask, IMAGE_SEEN), layer(QUERIES, STATES, TEXT, mask, IMAGE_SEEN))
