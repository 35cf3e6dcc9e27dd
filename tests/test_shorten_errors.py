"""What a user can get wrong is one line that says what to do, and what wraps a model does not get in the way."""

import sys
import warnings
from copy import deepcopy

import pytest
import torch
import transformers

import tiny_vlms as tiny
from regard import BudgetError, DataError, ModelError, Question, RegardError, ShapeError
from regard.allocation import Allocation
from regard.cost.language import LanguageModel
from regard.vlm.shorten import shorten


def refused(kind, match, *args, **options):
    """The error's one line."""
    with pytest.raises(kind, match=match) as caught:
        shorten(*args, **options)
    assert isinstance(caught.value, RegardError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def llava(models):
    return models("llava"), tiny.inputs("llava", [1, 2])


def test_inputs_that_cannot_be_shortened(llava):
    model, inputs = llava
    text_only = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    refused(DataError, "no image", model, text_only, "random", budget=4)
    refused(DataError, "no image", model, {**inputs, "pixel_values": inputs["pixel_values"][:0]}, "random", budget=4)
    fewer = {**inputs, "pixel_values": inputs["pixel_values"][:2]}
    line = refused(DataError, "147 image tokens and the images 98 features", model, fewer, "random", budget=4)
    assert "one call of the processor" in line
    no_tokens = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["input_ids"] == tiny.IMAGE, 7)}
    refused(DataError, r"no image token \(id 99\)", model, no_tokens, "random", budget=4)
    refused(DataError, "input_ids of shape", model, {**inputs, "input_ids": None}, "random", budget=4)
    refused(DataError, "input_ids of shape", model, {**inputs, "input_ids": inputs["input_ids"][0]}, "random", budget=4)
    refused(
        DataError,
        "attention_mask",
        model,
        {**inputs, "attention_mask": inputs["attention_mask"][:, 1:]},
        "random",
        budget=4,
    )
    refused(DataError, "video", model, {**inputs, "pixel_values_videos": torch.zeros(1)}, "random", budget=4)
    wrong = {**inputs, "position_ids": torch.zeros(2, 5, dtype=torch.long)}
    refused(DataError, "position_ids", model, wrong, "random", budget=4)


def test_types_that_cannot_be_meant(llava, models):
    model, inputs = llava
    refused(DataError, "must be what the processor returns", model, inputs["input_ids"], "random", budget=4)
    refused(
        DataError,
        "attention_mask must be a tensor, got list",
        model,
        {**inputs, "attention_mask": [1]},
        "random",
        budget=4,
    )
    listed = {**inputs, "pixel_values": list(inputs["pixel_values"])}
    refused(DataError, "pixel_values must be a tensor, got list", model, listed, "random", budget=4)
    for allocator, got in ((None, "NoneType"), (5, "int"), (Words, "the class Words")):
        refused(ModelError, f"an object with allocate.*got {got}", model, inputs, allocator, budget=4)
    refused(DataError, "question must be words", model, inputs, "top", budget=4, question=5)
    refused(ModelError, "processor or tokenizer, got int", model, inputs, "top", budget=4, question="a", processor=5)
    layered = {**inputs, "vision_feature_layer": -1}
    refused(DataError, "set model.config.vision_feature_layer", model, layered, "random", budget=4)
    for name, missing in (("llava_next", "image_sizes"), ("qwen3_vl", "image_grid_thw")):
        lacking = {key: value for key, value in tiny.inputs(name, [1]).items() if key != missing}
        refused(DataError, f"no {missing}", models(name), lacking, "random", budget=4)
    tiles = tiny.inputs("smolvlm", [1, 2])
    for pixels in (tiles["pixel_values"][0], tiles["pixel_values"][:1]):
        wrong = {**tiles, "pixel_values": pixels}
        refused(DataError, "one row for each prompt", models("smolvlm"), wrong, "random", budget=4)
    with pytest.raises(DataError, match="0 pictures for 3 images"):
        shorten(model, inputs, "random", budget=4).records([])


@pytest.mark.parametrize("pad_left", [True, False])
def test_a_prompt_that_ends_with_an_image(models, pad_left):
    """Its answer would follow from the last image token, which may be gone."""
    inputs = tiny.inputs("llava", [1, 1], pad_left=pad_left)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    row = torch.cat((ids[0][mask[0].bool()][:3], torch.full((49,), tiny.IMAGE)))
    row = torch.nn.functional.pad(row, (ids.shape[1] - 52, 0) if pad_left else (0, ids.shape[1] - 52), value=tiny.PAD)
    ending = {**inputs, "input_ids": torch.stack((row, ids[1]))}
    ending["attention_mask"] = (ending["input_ids"] != tiny.PAD).long()
    refused(DataError, "a prompt ends with an image", models("llava"), ending, "grid", budget=4)
    assert shorten(models("llava"), ending, "grid", keep=1.0).tokens_out == 98


def test_a_prompt_without_text_needs_no_question(llava):
    model, inputs = llava
    ids = inputs["input_ids"]
    bare = {**inputs, "input_ids": torch.where((ids == tiny.IMAGE) | (ids == tiny.PAD), ids, 1)}
    seen = []

    class Asker:
        def allocate(self, tokens, question, budget):
            seen.append(question)
            return Allocation.select(torch.arange(budget).expand(3, -1), 49)

    shorten(model, bare, Asker(), budget=4)
    shorten(model, inputs, Asker(), budget=4)
    assert seen[0] is None
    assert seen[1] is not None
    record = shorten(model, bare, "divprune", budget=4).records()[0]
    assert record.questions == ("no question",)
    assert set(record.relevance[0]) == {0.0}


def test_tokens_of_one_image_in_two_prompts(models):
    inputs = tiny.inputs("llava", [1, 1])
    ids = inputs["input_ids"]
    ids[0, (ids[0] == tiny.IMAGE).nonzero()[0]] = 7
    ids[1, -1] = tiny.IMAGE
    refused(DataError, "in two prompts", models("llava"), inputs, "random", budget=4)


def test_what_is_shortened_already(llava):
    model, inputs = llava
    short = shorten(model, inputs, "random", budget=4)
    refused(DataError, "shortened already", model, short, "random", budget=2)


def test_budgets(llava):
    model, inputs = llava
    refused(BudgetError, "and not both", model, inputs, "random")
    refused(BudgetError, "and not both", model, inputs, "random", budget=4, keep=0.5)
    refused(BudgetError, "2 budgets for 3 images", model, inputs, "random", budget=[4, 4])
    refused(BudgetError, "at least 1", model, inputs, "random", budget=0)
    refused(BudgetError, "at least 1", model, inputs, "random", budget=[4, 4, -1])
    refused(BudgetError, "whole number", model, inputs, "random", budget=[4, 4, 0.5])
    for keep in (0, 1.5, "0.5", True, float("nan")):
        refused(BudgetError, "fraction to keep", model, inputs, "random", keep=keep)
    assert shorten(model, inputs, "random", budget=10**9).tokens_out == 147
    assert [a.n_out for a in shorten(model, inputs, "random", keep=0.25).allocations] == [12, 12, 12]
    assert [a.n_out for a in shorten(model, inputs, "random", keep=0.26).allocations] == [13, 13, 13]
    assert [a.n_out for a in shorten(model, inputs, "random", keep=1e-9).allocations] == [1, 1, 1]


def test_names_and_options(llava):
    model, inputs = llava
    refused(ModelError, "no allocator is named 'divprun': the names are", model, inputs, "divprun", budget=4)
    refused(DataError, "positions must be", model, inputs, "random", budget=4, positions="middle")
    refused(DataError, "sign 1 or -1", model, inputs, "random", budget=4, sign=0)


def test_models_that_cannot_be_shortened(llava):
    model, inputs = llava
    bert = transformers.AutoModel.from_config(
        transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    line = refused(ModelError, "models of type 'bert' are not known: known are", bert, inputs, "random", budget=4)
    assert "llava_next" in line
    assert "docs/add-a-family.md" in line
    refused(ModelError, "expected a Hugging Face", torch.nn.Linear(2, 2), inputs, "random", budget=4)
    trained = deepcopy(model)
    trained.model.language_model.gradient_checkpointing = True
    trained.train()
    refused(ModelError, r"gradient checkpointing: call model.eval\(\)", trained, inputs, "random", budget=4)
    assert shorten(trained.eval(), inputs, "random", budget=4)


@pytest.mark.parametrize("version", ["4.57.6", "5.17.0", "5.18.1"])
def test_an_old_transformers(llava, monkeypatch, version):
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)  # it may have loaded itself anew
    model, inputs = llava
    refused(ModelError, rf"transformers {version}.*pip install 'transformers>=5.19'", model, inputs, "random", budget=4)


@pytest.mark.parametrize("version", ["5.19.0", "5.23.0", "5.24.0.dev0", "6.0.1"])
def test_a_newer_transformers(llava, monkeypatch, version):
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)  # it may have loaded itself anew
    model, inputs = llava
    assert shorten(model, inputs, "random", budget=4)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_processor_without_token_types(models, name):
    inputs = tiny.inputs(name, [1])
    del inputs["mm_token_type_ids"]
    line = refused(DataError, "no mm_token_type_ids", models(name), inputs, "random", budget=4)
    assert "model.config.image_token_id" in line


def test_devices(llava):
    model, inputs = llava
    mixed = {**inputs, "pixel_values": inputs["pixel_values"].to("meta")}
    refused(DataError, r"different devices \(pixel_values on meta\)", model, mixed, "random", budget=4)
    elsewhere = {name: value.to("meta") for name, value in inputs.items()}
    line = refused(DataError, "input_ids on meta", model, elsewhere, "random", budget=4)
    assert "inputs.to(model.device)" in line


def test_questions(llava):
    model, inputs = llava
    refused(DataError, "question is empty", model, inputs, "top", budget=4, question=" ", processor=Words())
    refused(ModelError, "no tokenizer beside the model", model, inputs, "top", budget=4, question="the dog")
    one_each = ["the dog", "the ball"]
    short = shorten(model, inputs, "top", budget=4, question=one_each, processor=Words())
    assert short.records()[0].questions == ("the dog",)
    assert short.records()[2].questions == ("the ball",)
    refused(
        DataError,
        "3 questions for 2 prompts",
        model,
        inputs,
        "top",
        budget=4,
        question=["a", "b", "c"],
        processor=Words(),
    )
    wrong = Question(torch.randn(1, 2, 5))
    refused(ShapeError, "5 dimensions", model, inputs, "top", budget=4, question=wrong)
    ids = inputs["input_ids"]
    bare = {**inputs, "input_ids": torch.where(ids == tiny.IMAGE, ids, 1)}  # all else a special token
    refused(DataError, "no text to compare", model, bare, "top", budget=4)


class Words:
    """A tokenizer that knows words by their length."""

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [5 + len(word) for word in text.split()]}

    def batch_decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return [" ".join(map(str, row)) for row in ids.tolist()]


def test_the_prompts_own_text_is_the_question(llava):
    """Top by the prompt's words is top by a Question made of them by hand; -1 turns it round."""
    model, inputs = llava
    table = model.get_input_embeddings().weight.detach()
    ours = shorten(model, inputs, "top", budget=4)
    other = shorten(model, inputs, "top", budget=4, sign=-1)
    for allocation, opposite, tokens, row in zip(
        ours.allocations, other.allocations, ours.tokens, [0, 1, 1], strict=True
    ):
        words = [i for i in inputs["input_ids"][row].tolist() if i not in (tiny.IMAGE, tiny.PAD, 1, 2)]
        mean = torch.nn.functional.normalize(table[words], dim=1).mean(dim=0)
        cosine = torch.nn.functional.normalize(tokens.features[0].detach(), dim=1) @ mean
        assert allocation.anchor[0].tolist() == cosine.topk(4).indices.sort().values.tolist()
        assert opposite.anchor[0].tolist() == (-cosine).topk(4).indices.sort().values.tolist()


def test_an_allocation_that_does_not_fit(llava):
    class Wrong:
        needs = ()

        def __init__(self, made):
            self.made = made

        def allocate(self, tokens, question, budget):
            return self.made

    for made in (
        Allocation.identity(3, 49),
        None,
        Allocation.identity(3, 48),
        Allocation.identity(2, 49),
        Allocation.select(torch.tensor([[0, -1]] * 3), 49),
    ):
        refused(
            ShapeError, "an Allocation of 3 x 49 tokens, without padding, at most 2 out", *llava, Wrong(made), budget=2
        )


def test_a_sliding_window_is_said_in_one_line(tmp_path):
    config = transformers.AutoConfig.for_model(
        "llava", **{**tiny.parts("llava"), "text_config": tiny.text("mistral", sliding_window=16)}
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    inputs = tiny.inputs("llava", [1])
    with pytest.warns(UserWarning, match=r"windows of 16 tokens: .* near, but not equal") as said:
        short = shorten(model, inputs, "random", budget=4)
    assert len(said) == 1
    assert short.caution is not None
    assert "\n" not in short.caution
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shorten(model, inputs, "random", keep=1.0).caution is None
        config.text_config.sliding_window = inputs["input_ids"].shape[1]  # an answer will pass it
        assert shorten(model, inputs, "random", budget=4).caution is not None
        config.text_config.sliding_window = None
        assert shorten(model, inputs, "random", budget=4).caution is None


def test_decode_and_record(llava):
    model, inputs = llava
    short = shorten(model, inputs, "divprune", budget=5, processor=Words())
    output = model.generate(**short, max_new_tokens=3, do_sample=False)
    assert short.decode(output) == [" ".join(map(str, row)) for row in output[:, -3:].tolist()]
    assert repr(short) == "Shortened(147 -> 15 visual tokens, prompt (2, 23))"
    with pytest.raises(DataError, match="there are 3 images: take .records"):
        _ = short.record
    records = short.records()
    assert [record.looks[0].tokens_out for record in records] == [5, 5, 5]
    for record, tokens in zip(records, short.tokens, strict=True):
        assert type(record).from_json(record.to_json()) == record
        assert len(record.boxes) == tokens.features.shape[1]
        assert record.seconds.keys() == {"place", "encode", "attention", "decide", "shorten"}
    one = shorten(model, tiny.inputs("llava", [1]), "divprune", budget=5).record
    assert one.looks[0].macs_before > one.looks[0].macs_after
    assert one.prompt_tokens == 9
    assert [record.prompt_tokens for record in records] == [9, 62, 62]  # no padding; other images whole
    costs = [LanguageModel.of(model.config).prefill_macs(n) for n in (9 + 5, 13 + 10)]
    assert [record.looks[0].macs_after for record in records] == [costs[0], costs[1], costs[1]]
    by_question = shorten(model, inputs, "top", budget=5).records()
    assert [r.relevance for r in by_question] == [r.relevance for r in records]  # whatever the allocator was given
