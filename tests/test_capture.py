"""Rows of attention taken while a model runs: equal to the eager matrices, and nothing changed by taking them."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import regard
import tiny_vlms
from regard.errors import DataError, ModelError
from rows_oracle import furthest
from tiny_vlms import FAMILIES, IMAGE

NEAR = 1e-5
PARTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128},
    "opt": {"ffn_dim": 40, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 4, "n_head": 4},
    "gpt_oss": {
        "head_dim": 8,
        "sliding_window": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
ONLY_EAGER = ("gemma2", "bloom", "gpt_oss")  # transformers has no other kernel for them
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def language_model(kind: str, kernel: str) -> Any:
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **PARTS[kind]})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=kernel).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.normal_(std=0.3)
    return model


@pytest.fixture(scope="module", params=PARTS)
def pair(request) -> tuple[Any, Any]:
    """A model as it is used, and the same one under the eager kernel."""
    kind = request.param
    eager = language_model(kind, "eager")
    return (eager if kind in ONLY_EAGER else language_model(kind, "sdpa")), eager


def prompt(rows: int = 2, length: int = 23, pad: int = 5) -> dict[str, Tensor]:
    """Padded on the left in the first row."""
    ids = torch.randint(3, 100, (rows, length), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :pad] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
@pytest.mark.parametrize("pad_left", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_rows_of_its_eager_kernel(models, name, pad_left):
    inputs = tiny_vlms.inputs(name, [1, 2], pad_left)
    plain = models(name)(**inputs).logits
    with regard.capture(models(name), queries="all") as seen:
        assert torch.equal(models(name)(**inputs).logits, plain)
    whole = models(name, "eager")(**inputs, output_attentions=True).attentions
    assert seen.layers == tuple(range(len(whole)))
    assert seen.calls == 1
    assert furthest(seen, whole) < NEAR
    assert bool((seen.columns() >= 0).sum(dim=1).eq(inputs["attention_mask"].sum(dim=1)).all())
    sums = seen.weights(0).sum(dim=-1)[(seen.columns() >= 0)[:, None].expand(-1, seen.weights(0).shape[1], -1)]
    assert torch.allclose(sums, torch.ones_like(sums), atol=NEAR)


@torch.no_grad()
def test_language_models_give_the_rows_of_their_eager_kernel(pair):
    model, eager = pair
    inputs = prompt()
    plain = model(**inputs).logits
    with regard.capture(model, queries="all") as seen:
        assert torch.equal(model(**inputs).logits, plain)
    assert furthest(seen, eager(**inputs, output_attentions=True).attentions) < NEAR


@torch.no_grad()
def test_a_kernel_that_is_causal_without_a_mask(pair):
    model, eager = pair
    ids = prompt()["input_ids"]
    with regard.capture(model, queries="all") as seen:
        model(input_ids=ids)
    assert furthest(seen, eager(input_ids=ids, output_attentions=True).attentions) < NEAR
    assert bool((seen.weights(0)[..., 0, 1:] == 0).all())


@torch.no_grad()
@pytest.mark.parametrize("cache", [None, "static"])
def test_answers_are_the_same_and_each_token_of_them_has_its_row(pair, cache):
    model, eager = pair
    inputs, new = prompt(), 12
    given: dict[str, Any] = {"max_new_tokens": new, "do_sample": False, "disable_compile": True}
    given |= {"cache_implementation": cache} if cache else {}
    plain = model.generate(**inputs, **given)
    with regard.capture(model) as seen:
        said = model.generate(**inputs, **given)
    assert torch.equal(said, plain)
    mask = torch.cat((inputs["attention_mask"], torch.ones(2, new, dtype=torch.long)), dim=1)
    counts = model.config.model_type in ("bloom", "opt")
    places = {} if counts else {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
    whole = eager(input_ids=said, attention_mask=mask, output_attentions=True, **places).attentions
    assert seen.calls == new
    for call in range(new):
        assert seen.columns(call).tolist() == [[22 + call]] * 2
        assert seen.weights(0, call).shape[-1] == 23 + call
        assert furthest(seen, whole, call) < NEAR


@torch.no_grad()
def test_a_prompt_read_in_chunks_has_all_its_rows():
    model = language_model("mistral", "sdpa")
    inputs = prompt()
    given = {"max_new_tokens": 3, "do_sample": False, "use_cache": True}
    with regard.capture(model, queries=[2, 9, 20, 24]) as seen:
        said = model.generate(**inputs, **given, prefill_chunk_size=7)
    assert torch.equal(said, model.generate(**inputs, **given))
    found = torch.cat([seen.columns(call) for call in range(seen.calls)], dim=1)
    assert sorted(found[found >= 0].unique().tolist()) == [2, 9, 20, 24]
    mask = torch.cat((inputs["attention_mask"], torch.ones(2, 3, dtype=torch.long)), dim=1)
    eager = language_model("mistral", "eager")
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    whole = eager(input_ids=said, attention_mask=mask, position_ids=places, output_attentions=True).attentions
    assert max(furthest(seen, whole, call) for call in range(seen.calls)) < NEAR


@torch.no_grad()
def test_layers_heads_and_rows_are_those_asked_for(models):
    model, inputs = models("llava"), tiny_vlms.inputs("llava", [1, 2])
    whole = models("llava", "eager")(**inputs, output_attentions=True).attentions
    with regard.capture(model, layers=[-1, 1], heads=[2, -3], queries=[70, -2]) as seen:
        model(**inputs)
    length = inputs["input_ids"].shape[1]
    assert seen.layers == (1, 3)
    assert seen.columns().tolist() == [[70, length - 2]] * 2
    assert torch.allclose(seen.weights(-1), whole[3][:, [2, 1]][:, :, [70, -2]], atol=NEAR)
    with regard.capture(model, layers=2, heads="mean", queries=torch.tensor([[60], [30]])) as seen:
        model(**inputs)
    wanted = torch.stack((whole[2][0, :, 60], whole[2][1, :, 30])).mean(dim=1)[:, None, None]
    assert torch.allclose(seen.weights(2), wanted, atol=NEAR)
    assert seen.columns().tolist() == [[60], [30]]


@torch.no_grad()
def test_the_question_is_the_words_after_the_last_image(models):
    model, inputs = models("llava"), tiny_vlms.inputs("llava", [1, 2], pad_left=False)
    with regard.capture(model, queries="question") as seen:
        model.generate(**inputs, max_new_tokens=3)
    assert seen.calls == 1
    for ids, columns in zip(inputs["input_ids"].tolist(), seen.columns().tolist(), strict=True):
        last = max(place for place, token in enumerate(ids) if token == IMAGE)
        assert [column for column in columns if column >= 0] == [c for c in range(last + 1, len(ids)) if ids[c]]


@torch.no_grad()
def test_the_answer_is_said_from_the_tokens_before_its_labels():
    model, inputs = language_model("llama", "sdpa"), prompt()
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, 20:22], labels[1, 22] = 7, 9
    with regard.capture(model, queries="answer") as seen:
        model(**inputs, labels=labels)
    assert seen.columns().tolist() == [[19, 20], [21, -1]]
    with regard.capture(model, queries="answer") as seen:
        model.generate(**inputs, max_new_tokens=3)
    assert [seen.columns(call)[0, 0].item() for call in range(3)] == [22, 23, 24]


@torch.no_grad()
def test_the_mean_over_all_rows_leaves_padding_out():
    model, inputs = language_model("llama", "sdpa"), prompt()
    whole = language_model("llama", "eager")(**inputs, output_attentions=True).attentions
    with regard.capture(model, queries="mean") as seen:
        model(**inputs)
    for layer in seen.layers:
        assert torch.allclose(seen.weights(layer)[0, :, 0], whole[layer][0, :, 5:].mean(dim=1), atol=NEAR)
        assert torch.allclose(seen.weights(layer)[1, :, 0], whole[layer][1].mean(dim=1), atol=NEAR)


@torch.no_grad()
def test_half_precision_and_shared_kernels_of_one_query():
    """bfloat16 weights are still float32 rows; a single query is given to SDPA with its heads one after another."""
    model = language_model("qwen3", "sdpa").bfloat16()
    inputs = prompt()
    given = {"max_new_tokens": 4, "do_sample": False}
    with regard.capture(model) as seen:
        said = model.generate(**inputs, **given)
    assert torch.equal(said, model.generate(**inputs, **given))
    assert seen.weights(0, -1).dtype == torch.float32
    assert seen.weights(0, -1).shape == (2, 4, 1, 26)
    assert torch.allclose(seen.weights(0, -1).sum(dim=-1), torch.ones(2, 4, 1), atol=NEAR)


@torch.no_grad()
def test_rows_are_kept_in_half_precision_where_that_is_asked_for():
    model, inputs = language_model("qwen3", "sdpa"), prompt()
    with regard.capture(model) as seen, regard.capture(model, dtype=torch.float16) as half:
        model(**inputs)
    for layer in seen.layers:
        assert torch.equal(half.weights(layer), seen.weights(layer).half())
    with (
        pytest.raises(ModelError, match="kept in floating point: .* not torch.int64"),
        regard.capture(model, dtype=torch.int64),
    ):
        pass


class Largest(TorchDispatchMode):
    """The most elements of a tensor whose two last sides are at least this long."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side, self.found = side, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple) else [out]:
            if isinstance(x, Tensor) and x.ndim > 1 and min(x.shape[-2:]) >= self.side:
                self.found = max(self.found, x.numel())
        return out


@torch.no_grad()
@pytest.mark.parametrize(("kernel", "square"), [("sdpa", False), ("eager", True)])
def test_no_square_matrix_is_made(kernel, square):
    model = language_model("llama", kernel)
    inputs = {"input_ids": torch.randint(3, 100, (1, 111))}
    with regard.capture(model, queries=[3, 50, 110]), Largest(111) as largest:
        model(**inputs)
    assert bool(largest.found) == square


@torch.no_grad()
@pytest.mark.parametrize("heads", [None, "mean"])
def test_what_stays_of_a_call_lies_in_one_piece(heads):
    """Small pieces between what a model frees after each layer keep that from being used again: they are its peak."""
    model = language_model("llama", "sdpa")
    first, second = prompt(), prompt() | {"input_ids": prompt()["input_ids"].flip(1)}
    with regard.capture(model, heads=heads, queries=[20, 21]) as alone:
        model(**second)
    with regard.capture(model, heads=heads, queries=[20, 21]) as seen:
        model(**first)
        kept = [seen.weights(layer).clone() for layer in seen.layers]
        model(**second)
    for call in range(2):
        assert len({seen.weights(layer, call).untyped_storage().data_ptr() for layer in seen.layers}) == 1
        assert len({seen.of(layer, call).columns.data_ptr() for layer in seen.layers}) == 1
    for layer in seen.layers:
        assert torch.equal(seen.weights(layer, 0), kept[layer])
        assert torch.equal(seen.weights(layer, 1), alone.weights(layer))


def test_queries_that_ask_for_nothing_are_refused():
    model = language_model("llama", "sdpa")
    for wrong, said in [("first", "'first'"), ([], "whole numbers"), ([0.5], "whole numbers"), ([True], "whole")]:
        with pytest.raises(DataError, match=said), regard.capture(model, queries=wrong):
            pass
    with pytest.raises(DataError, match="no column -24: the prompt has 23"), regard.capture(model, queries=[-24]):
        model(**prompt())
    with pytest.raises(DataError, match="column 23 was asked for"), regard.capture(model, queries=[3, 23]):
        model(**prompt())
    with (
        pytest.raises(DataError, match="3 prompts are asked for, and 2"),
        regard.capture(model, queries=torch.ones(3, 1).long()),
    ):
        model(**prompt())
    with pytest.raises(DataError, match="input_ids"), regard.capture(model, queries="question"):
        model(inputs_embeds=torch.randn(1, 3, 32))
