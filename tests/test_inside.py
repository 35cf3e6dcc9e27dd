"""Pruned inside, a model gives what the untouched one gives with the dropped tokens masked out of attention."""

from contextlib import contextmanager, nullcontext
from importlib import import_module
from itertools import pairwise

import pytest
import torch

import oracle
import regard
import tiny_vlms as tiny
from regard.cost.language import LanguageModel
from regard.errors import BudgetError, DataError, ModelError
from regard.record import Record
from regard.recorded import blank_picture
from regard.vlm.inside import Inside, inside
from regard.vlm.inside.fastv import FastV
from regard.vlm.inside.last_row import attention_of
from regard.vlm.inside.pyramiddrop import PyramidDrop
from regard.vlm.inside.records import composed
from regard.vlm.shorten import shorten

NEAR = 1e-4  # of logits with a scale of 10
FAMILIES = ["llava", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl", "paligemma", "paligemma2"]
BANNED = [tiny.IMAGE, 93, tiny.START, tiny.END]
GREEDY = {"max_new_tokens": 8, "do_sample": False}
LOWEST = {"qwen3_vl": 2, "paligemma2": 2}
FASTV = {"method": "fastv", "keep": 0.4, "layer": 2}


def pyramid(name, keep=0.6):
    return {"method": "pyramiddrop", "keep": keep, "layers_at": range(LOWEST.get(name, 1), 4)}


def settings(name):
    return [FASTV, pyramid(name)]


@contextmanager
def masked(model, stages):
    """From each stage's layer on, no token sees the columns that are not kept. stages: (layer, (B, L) bool)."""

    def hook_of(number):
        def hook(module, args, kwargs):
            here = [keep for layer, keep in stages if layer <= number]
            if not here:
                return None
            tokens, mask = args[0].shape[1], kwargs["attention_mask"]
            keep = here[-1].repeat_interleave(len(args[0]) // len(here[-1]), dim=0)  # beams
            cache = kwargs.get("past_key_values")
            columns = tokens + (cache.get_seq_length(number) if cache is not None else 0)
            seen = torch.ones(len(keep), columns, dtype=torch.bool)
            seen[:, : keep.shape[1]] = keep
            if mask is None:
                mask = torch.ones(tokens, columns, dtype=torch.bool).tril(columns - tokens)[None, None]
            lowest = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            return args, {
                **kwargs,
                "attention_mask": mask.expand(len(keep), -1, -1, -1).masked_fill(~seen[:, None, None], lowest),
            }

        return hook

    layers = model.model.get_decoder().layers
    handles = [layer.register_forward_pre_hook(hook_of(n), with_kwargs=True) for n, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def expected(eager, inputs, setting):
    """(layer, columns kept from it on) by the weights that the eager kernel itself gives, stage by stage."""
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    last = [int(row.nonzero().max()) for row in real]
    fastv = setting["method"] == "fastv"
    layers = [setting["layer"]] if fastv else list(setting["layers_at"])
    stages, keep = [], real
    for number, layer in enumerate(layers, start=1):
        with masked(eager, stages):
            weights = eager(**inputs, output_attentions=True, use_cache=False).attentions[layer - fastv]
        keep = keep.clone()
        for row in range(len(ids)):
            whole = int((ids[row] == tiny.IMAGE).sum())
            left = ((ids[row] == tiny.IMAGE) & keep[row]).nonzero().squeeze(1)
            scores = weights[row, :, last[row]].mean(dim=0)[left]
            count = max(1, round(whole * setting["keep"] ** number))
            best = sorted(range(len(left)), key=lambda i, s=scores: (-float(s[i]), i))[:count]
            keep[row, left] = False
            keep[row, left[best]] = True
        stages.append((layer, keep))
    return stages


def stages_of(run, inputs):
    """The same of a run, from its steps."""
    stages, alive = [], inputs["attention_mask"].bool()
    for stage in range(len(run.steps[0])):
        alive = alive.clone()
        for row, steps in enumerate(run.steps):
            left = ((inputs["input_ids"][row] == tiny.IMAGE) & alive[row]).nonzero().squeeze(1)
            alive[row, left] = False
            alive[row, left[steps[stage][1].anchor[0]]] = True
        stages.append((run.steps[0][stage][0], alive))
    return stages


@torch.no_grad()
def compare(model, inputs, setting, stages):
    """Largest difference of logits to the oracle's in the columns that are left."""
    with inside(model, **setting) as run:
        got = model(**inputs).logits
    with masked(model, stages):
        want = model(**inputs).logits
    return float((got[run.mask] - want[stages[-1][1]]).abs().max())


@pytest.mark.parametrize("pictures", [[1], [1, 2]], ids=str)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_the_masked_model_with_the_columns_that_eager_attention_ranks_first(models, name, kernel, pictures):
    model, inputs = models(name, kernel), tiny.inputs(name, pictures)
    for setting in settings(name):
        want = expected(models(name, "eager"), inputs, setting)
        with inside(model, **setting) as run, torch.no_grad():
            model(**inputs)
        got = stages_of(run, inputs)
        assert [layer for layer, _ in got] == [layer for layer, _ in want]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(got, want, strict=True))
        assert torch.equal(run.kept, want[-1][1])
        assert compare(model, inputs, setting, want) < NEAR


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_on_the_right_stays_on_the_right(models, name):
    model, inputs = models(name), tiny.inputs(name, [1, 2], pad_left=False)
    for setting in settings(name):
        want = expected(models(name, "eager"), inputs, setting)
        assert compare(model, inputs, setting, want) < NEAR


@pytest.mark.parametrize("name", FAMILIES)
def test_what_would_be_wrong_is_seen_to_be_wrong(models, name):
    model, inputs = models(name), tiny.inputs(name, [1, 2])
    for setting in settings(name):
        want = expected(models(name, "eager"), inputs, setting)
        layers = [layer for layer, _ in want]
        mutants = {
            "a layer later": [(layer + 1, keep) for layer, keep in want],
            "a layer earlier": [(layer - 1, keep) for layer, keep in want],
            "one token more": [(layer, one_more(keep, inputs)) for layer, keep in want],
            "nothing dropped": [(layer, inputs["attention_mask"].bool()) for layer in layers],
        }
        for what, stages in mutants.items():
            assert difference(model, inputs, setting, stages, want) > 100 * NEAR, what


def one_more(keep, inputs):
    """One dropped image token of each prompt is kept."""
    keep = keep.clone()
    for row, gone in enumerate(inputs["attention_mask"].bool() & ~keep):
        keep[row, gone.nonzero()[0]] = True
    return keep


@torch.no_grad()
def difference(model, inputs, setting, stages, want):
    with inside(model, **setting) as run:
        got = model(**inputs).logits
    with masked(model, stages):
        return float((got[run.mask] - model(**inputs).logits[want[-1][1]]).abs().max())


def before(layer, hidden, given, rows):
    return attention_of(layer, hidden, given, rows - 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_another_attention_ranks_other_columns(models, name, monkeypatch):
    model, inputs = models(name), tiny.inputs(name, [1, 2])
    for setting in settings(name):
        want = expected(models(name, "eager"), inputs, setting)
        others = {
            "the layer after": (FastV, "judge", lambda self, layer: layer),
            "the layer before": (PyramidDrop, "judge", lambda self, layer: layer - 1),
            "the token before": ("regard.vlm.inside.hooks.attention_of", before),
            "the least": ("regard.vlm.inside.hooks.attention_of", lambda *a: -attention_of(*a)),
            "the neighbours": ("regard.vlm.inside.hooks.attention_of", lambda *a: attention_of(*a).roll(1, dims=1)),
            "no rotation": ("regard.vlm.inside.last_row._rotation", lambda attention: lambda *a: a[:2]),
        }
        others.pop("the layer before" if setting is FASTV else "the layer after")
        for what, change in others.items():
            with monkeypatch.context() as patch, torch.no_grad():
                patch.setattr(*change)
                with inside(model, **setting) as run:
                    model(**inputs)
            assert not torch.equal(run.kept, want[-1][1]), what


def test_ties_go_to_the_earlier_token(models, monkeypatch):
    model, inputs = models("llava"), tiny.inputs("llava", [1, 2])
    monkeypatch.setattr("regard.vlm.inside.hooks.attention_of", lambda *a: torch.zeros(a[1].shape[:2]))
    with inside(model, **FASTV) as run, torch.no_grad():
        model(**inputs)
    assert [steps[0][1].anchor[0].tolist() for steps in run.steps] == [list(range(20)), list(range(39))]


def test_attention_that_is_not_finite_is_an_error(models, monkeypatch):
    model, inputs = models("llava"), tiny.inputs("llava", [1])
    monkeypatch.setattr("regard.vlm.inside.hooks.attention_of", lambda *a: torch.full(a[1].shape[:2], torch.nan))
    refused(model, inputs, "not finite")


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_keeping_all_is_bit_identical(models, name, kernel):
    model, inputs = models(name, kernel), tiny.inputs(name, [2, 1])
    for setting in ({**FASTV, "keep": 1.0}, pyramid(name, 1.0)):
        with inside(model, **setting) as run, torch.no_grad():
            got, generated = model(**inputs).logits, model.generate(**inputs, **GREEDY)
        with torch.no_grad():
            assert torch.equal(got, model(**inputs).logits)
        assert torch.equal(generated, model.generate(**inputs, **GREEDY))
        assert all(allocation.is_identity for steps in run.steps for _, allocation in steps)
        assert run.kept.sum() == inputs["attention_mask"].sum()


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_generating_is_a_greedy_loop_on_the_masked_model(models, name, kernel):
    model, inputs = models(name, kernel), tiny.inputs(name, [1, 2])
    for setting in settings(name):
        with inside(model, **setting) as run:
            out = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
        stages = stages_of(run, inputs)
        positions, real = oracle.positions_of(model, inputs), inputs["attention_mask"].bool()
        with masked(model, stages):
            want = oracle.greedy(model, inputs, real, positions, 8, BANNED)
            first = oracle.logits(model, inputs, real, positions)[:, -1]
            cached = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
        assert torch.equal(out.sequences[:, inputs["input_ids"].shape[1] :], want)
        assert float((out.logits[0] - first).abs().max()) < NEAR
        for got, whole in zip(out.logits, cached.logits, strict=True):
            assert float((got - whole).abs().max()) < NEAR
        sizes = [cache.keys.shape[2] for cache in out.past_key_values.layers]
        text = int((real & (inputs["input_ids"] != tiny.IMAGE)).sum(dim=1).max())
        assert sizes[0] == inputs["input_ids"].shape[1] + 7
        assert sizes[-1] <= max(tokens[-1] for tokens in run.tokens_per_layer) + text + 7


@pytest.mark.parametrize("name", FAMILIES)
def test_beams_are_those_of_the_masked_model(models, name):
    model, inputs = models(name), tiny.inputs(name, [2, 1])
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    for setting in settings(name):
        stages = expected(models(name, "eager"), inputs, setting)
        with inside(model, **setting) as run:
            got = model.generate(**inputs, **options)
        assert len(run.steps) == 6
        assert len(run.records(inputs)) == 3
        with masked(model, stages):
            want = model.generate(**inputs, **options)
        assert torch.equal(got.sequences, want.sequences)
        assert float((got.sequences_scores - want.sequences_scores).abs().max()) < NEAR
        whole = model.generate(**inputs, **options)
        assert float((got.sequences_scores - whole.sequences_scores).abs().max()) > 10 * NEAR


@pytest.mark.parametrize("name", FAMILIES)
def test_a_second_turn_goes_on_from_the_short_cache(models, name):
    model, inputs = models(name), tiny.inputs(name, [1, 2])
    stages = expected(models(name, "eager"), inputs, pyramid(name))
    answers = []
    for block in (inside(model, **pyramid(name)), masked(model, stages)):
        with block:
            turn = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
            ids = torch.cat((turn.sequences, torch.tensor([[11, 12, 13], [21, 22, 23]])), dim=1)
            more = torch.ones(2, ids.shape[1] - inputs["input_ids"].shape[1], dtype=torch.long)
            mask = torch.cat((inputs["attention_mask"], more), dim=1)
            options = {**GREEDY, "past_key_values": turn.past_key_values}
            answers.append(model.generate(input_ids=ids, attention_mask=mask, **options))
    assert torch.equal(*answers)


@pytest.mark.parametrize("name", FAMILIES)
def test_shortened_inputs_can_be_pruned_further(models, name):
    model, inputs = models(name), tiny.inputs(name, [1, 2])
    short = shorten(model, inputs, "random", keep=0.6)
    ids = {"input_ids": short["input_ids"], "attention_mask": short["attention_mask"]}
    for setting in settings(name):
        with inside(model, **setting) as run, torch.no_grad():
            got, generated = model(**short).logits, model.generate(**short, **GREEDY)
        stages = stages_of(run, ids)
        with masked(model, stages), torch.no_grad():
            want = model(**short).logits
            assert torch.equal(generated, model.generate(**short, **GREEDY))
        assert float((got[run.mask] - want[stages[-1][1]]).abs().max()) < NEAR
        for record, before in zip(run.records(short), short.records(), strict=True):
            look = record.looks[0]
            assert look.steps[0] == before.looks[0].steps[0]
            assert len(look.steps) == 1 + len(run.steps[0])
            assert look.macs_after < before.looks[0].macs_after < look.macs_before
            assert look.allocator == f"random, then {type(run.method).__name__}"
        shown = [blank_picture(f"photo {number}", (1, 2, 3)) for number in range(3)]
        for given in (short, inputs):
            with inside(model, **setting) as again, torch.no_grad():
                model(**given)
            assert [record.picture for record in again.records(given, shown)] == shown
            with pytest.raises(DataError, match="2 pictures for 3 images"):
                again.records(given, shown[:2])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_steps_compose_to_what_reaches_the_last_layer(models, name):
    model, inputs = models(name), tiny.inputs(name, [1, 2])
    with inside(model, **pyramid(name)) as run, torch.no_grad():
        model(**inputs)
    for row, steps in enumerate(run.steps):
        columns = (inputs["input_ids"][row] == tiny.IMAGE).nonzero().squeeze(1)
        reached = columns[run.kept[row, columns]]
        assert torch.equal(columns[composed(steps).anchor[0]], reached)
        assert [a.n_out for _, a in steps] == [b.n_in for _, b in steps[1:]] + [len(reached)]
    ends = {0: 0, 1: 0}
    for record, row in zip(run.records(inputs), [0, 1, 1], strict=True):
        record = Record.from_json(record.to_json())
        look, start = record.looks[0], ends[row]
        columns = (inputs["input_ids"][row] == tiny.IMAGE).nonzero().squeeze(1)[start : start + look.tokens_in]
        ends[row] += look.tokens_in
        assert look.allocation.anchor[0].tolist() == run.kept[row, columns].nonzero().squeeze(1).tolist()
        assert look.tokens_out == look.allocation.n_out
        assert len(record.relevance[0]) == look.tokens_in
    sizes = run.tokens_per_layer
    assert [run.average[0], run.peak[0]] == [sum(sizes[0]) / 4, max(sizes[0])]
    assert all(earlier >= later for earlier, later in pairwise(sizes[1]))


def test_the_record_counts_each_layer_by_itself(models):
    model, inputs = models("llava"), tiny.inputs("llava", [1])
    with inside(model, **FASTV) as run, torch.no_grad():
        model(**inputs)
    (record,) = run.records(inputs)
    cost = LanguageModel.of(model.config)
    text = record.prompt_tokens
    assert run.tokens_per_layer == [(49, 49, 20, 20)]
    assert record.looks[0].macs_before == cost.prefill_macs(49 + text)
    assert record.looks[0].macs_after == cost.prefill_macs_of_layers([49 + text, 49 + text, 20 + text, 20 + text])
    assert record.looks[0].budget == round(run.average[0])
    with pytest.raises(DataError, match=r"have \[98\] image tokens, and \[49\] were read"):
        run.records(tiny.inputs("llava", [2]))


def hooks(model):
    kinds = [name for name in vars(torch.nn.Module()) if "hooks" in name]
    return {name: [len(getattr(part, kind)) for kind in kinds] for name, part in model.named_modules()}


@pytest.mark.parametrize("name", FAMILIES)
def test_no_hook_is_left(models, name):
    model, inputs = models(name), tiny.inputs(name, [1])
    with torch.no_grad():
        want = model(**inputs).logits
    before = hooks(model)
    for error in (None, KeyError, KeyboardInterrupt):
        with pytest.raises(error) if error else nullcontext(), inside(model, **FASTV):
            assert hooks(model) != before
            model.generate(**inputs, **GREEDY)
            if error:
                raise error
        assert hooks(model) == before
    for wrong in ({"layer": 9}, {"keep": 0.0}, {"nonsense": 1}):
        with pytest.raises((ModelError, BudgetError)), inside(model, "fastv", **wrong):
            pass
        assert hooks(model) == before
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, want)


def test_an_error_in_the_model_leaves_no_hook(models):
    model, inputs = models("llava"), tiny.inputs("llava", [1])
    before = hooks(model)
    with pytest.raises(ValueError, match=r"features|tokens"), inside(model, **FASTV):
        model(**{**inputs, "input_ids": inputs["input_ids"][:, 5:], "attention_mask": inputs["attention_mask"][:, 5:]})
    assert hooks(model) == before


def test_a_prompt_without_an_image_is_left_alone(models):
    model = models("llava")
    text = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with inside(model, **FASTV) as run:
        got = model.generate(**text, **GREEDY)
        with pytest.raises(DataError, match="no prompt with an image"):
            _ = run.steps
    assert torch.equal(got, model.generate(**text, **GREEDY))


def test_a_prompt_without_an_image_beside_one_that_has(models):
    model, inputs = models("llava"), tiny.inputs("llava", [1, 0])
    for setting in settings("llava"):
        with inside(model, **setting) as run, torch.no_grad():
            got = model(**inputs).logits
        assert run.tokens_per_layer[1] == (0, 0, 0, 0)
        with masked(model, stages_of(run, inputs)), torch.no_grad():
            want = model(**inputs).logits
        assert float((got[run.mask] - want[run.kept]).abs().max()) < NEAR


def test_several_prompts_in_one_block(models):
    """Each cache goes on with its own columns."""
    model, first, second = models("llava"), tiny.inputs("llava", [1]), tiny.inputs("llava", [1, 2], seed=2)
    with inside(model, **FASTV), torch.no_grad():
        a, b = model(**first, use_cache=True), model(**second, use_cache=True)
        token, mask = torch.tensor([[7]]), torch.ones(1, first["input_ids"].shape[1] + 1, dtype=torch.long)
        got = model(input_ids=token, attention_mask=mask, past_key_values=a.past_key_values).logits
        more = torch.cat((second["attention_mask"], torch.ones(2, 1, dtype=torch.long)), dim=1)
        model(input_ids=token.expand(2, 1), attention_mask=more, past_key_values=b.past_key_values)
    stages = expected(models("llava", "eager"), first, FASTV)
    with masked(model, stages), torch.no_grad():
        whole = model(**first, use_cache=True)
        want = model(input_ids=token, attention_mask=mask, past_key_values=whole.past_key_values).logits
    assert float((got - want).abs().max()) < NEAR


def test_half_precision(models, vlm_folder):
    models("qwen2_5_vl")
    model = tiny.load(vlm_folder / "qwen2_5_vl", dtype=torch.bfloat16, attn_implementation="sdpa")
    inputs = tiny.inputs("qwen2_5_vl", [1, 2])
    with inside(model, **FASTV) as run, torch.no_grad():
        got = model(**inputs).logits
    with masked(model, stages_of(run, inputs)), torch.no_grad():
        want = model(**inputs).logits
    assert float((got[run.mask] - want[run.kept]).abs().max()) < 1.0  # bfloat16 has 8 bits


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"method": "slowv"}, "'slowv': the names are fastv, pyramiddrop"),
        ({"method": "fastv", "speed": 3}, "fastv: .*speed"),
        ({"method": "fastv", "layer": 4}, "layers must ascend within 1 to 3 of a language model of 4, got .4."),
        ({"method": "fastv", "layer": 0}, "within 1 to 3"),
        ({"method": "fastv", "layer": 1.5}, "whole number"),
        ({"method": "pyramiddrop", "layers_at": (2, 2)}, "must ascend"),
        ({"method": "pyramiddrop", "layers_at": (0.5, 2.5)}, "layers or shares"),
        ({"method": FastV(), "keep": 0.5}, "made already"),
    ],
)
def test_errors_in_what_is_asked_for(models, setting, line):
    with pytest.raises(ModelError, match=line) as error, inside(models("llava"), **setting):
        pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"keep": 0.0}, "over 0 and at most 1"),
        ({"keep": True}, "over 0 and at most 1"),
        ({"keep": 0.5, "budget": 3}, "not both"),
        ({"budget": 0}, "at least 1"),
        ({"budget": 2.5}, "whole number"),
    ],
)
@pytest.mark.parametrize("method", ["fastv", "pyramiddrop"])
def test_errors_in_the_budget(models, method, setting, line):
    with pytest.raises(BudgetError, match=line), inside(models("llava"), method, **setting):
        pass


def test_deepstack_and_kinds_of_layers_say_the_lowest_layer(models):
    for name in LOWEST:
        line = "can be pruned from layer 2 on, not from layer 1"
        with pytest.raises(ModelError, match=line), inside(models(name), "fastv", layer=1):
            pass
        with inside(models(name), "fastv", layer=2):
            pass


def refused(model, inputs, line, **options):
    with inside(model, **FASTV), torch.no_grad(), pytest.raises((ModelError, DataError), match=line) as error:
        model.generate(**inputs, **GREEDY, **options) if options else model(**inputs)
    assert "\n" not in str(error.value)


def test_what_cannot_be_done_is_refused(models, vlm_folder):
    model, inputs = models("llava"), tiny.inputs("llava", [1])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    refused(model, inputs, "one by one|one piece|ends with an image", prefill_chunk_size=30)
    refused(model, inputs, "one by one", prefill_chunk_size=55)
    refused(model, inputs, "a cache that grows", cache_implementation="static", disable_compile=True)
    refused(model, {**inputs, "labels": ids}, "labels")
    echo = torch.cat((ids[:, :-5], torch.tensor([[7, 8, 9, 7, 8]])), dim=1)
    refused(model, {**inputs, "input_ids": echo}, "no assistant", prompt_lookup_num_tokens=3)
    refused(model, {**inputs, "input_ids": ids[:, :-6], "attention_mask": mask[:, :-6]}, "ends with an image")
    refused(model, {"inputs_embeds": torch.zeros(1, 4, 32)}, "input_ids")
    refused(model, {**inputs, "attention_mask": torch.ones(1, 1, ids.shape[1], ids.shape[1])}, "attention_mask")
    with inside(model, **FASTV), pytest.raises(ModelError, match="already"), inside(model, "fastv"):
        pass
    other = tiny.load(vlm_folder / "llava").train()
    refused(other, inputs, "training mode")
    other.eval().config.get_text_config()._attn_implementation = "flex_attention"
    refused(other, inputs, "sdpa or eager, not 'flex_attention'")
    models("paligemma2")
    other = tiny.load(vlm_folder / "paligemma2", attn_implementation="eager")
    other.config.get_text_config().sliding_window = 16
    refused(other, tiny.inputs("paligemma2", [1]), "more than the window of 16")


def test_a_cache_of_another_block_is_refused(models):
    model, inputs = models("llava"), tiny.inputs("llava", [1])
    after = {"input_ids": torch.tensor([[7]]), "attention_mask": torch.ones(1, inputs["input_ids"].shape[1] + 1)}
    with torch.no_grad():
        whole = model(**inputs, use_cache=True).past_key_values
        with inside(model, **FASTV):
            short = model(**inputs, use_cache=True).past_key_values
        with inside(model, **FASTV):
            with pytest.raises(ModelError, match="another block"):
                model(**after, past_key_values=short)
            assert model(**after, past_key_values=whole).logits.shape[1] == 1


@pytest.mark.parametrize("tokens", [49, 576, 2])
@pytest.mark.parametrize("depth", [4, 28, 32])
def test_a_budget_is_the_average_over_layers(tokens, depth):
    for budget in range(1, tokens + 2):
        for kind in (FastV(budget=budget), PyramidDrop(budget=budget)):
            try:
                each = kind.per_layer(tokens, depth)
            except BudgetError as error:
                least = int(str(error).rsplit(" ", 1)[1])
                assert budget < least
                assert type(kind)(budget=least).per_layer(tokens, depth)
                continue
            assert sum(each) <= budget * depth or each == (tokens,) * depth
            assert min(each) >= 1
            if isinstance(kind, FastV) and budget < tokens:
                assert sum(each) + depth - 2 > budget * depth  # one token more would be too many


def test_the_published_counts():
    assert FastV(keep=0.5).per_layer(576, 32) == (576,) * 2 + (288,) * 30
    assert PyramidDrop().per_layer(576, 32) == (576,) * 8 + (288,) * 8 + (144,) * 8 + (72,) * 8
    assert PyramidDrop(keep=0.01).counts(7, 32) == (1, 1, 1)
    assert FastV().counts(0, 32) == (0,)


def test_the_public_name_is_the_function():
    home = import_module("regard.vlm.inside")
    assert regard.inside is inside
    assert home.inside is inside
    assert Inside.__doc__
