"""`regard.doctor.ablate`: what decides is found, what does nothing changes nothing, and nothing is left behind."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import nn

import planted
import regard.doctor
import tiny_lms
import tiny_vlms
from regard.doctor.ablate import TOGETHER, measure, removals
from regard.doctor.answers import OfModel, OfParts, Row, Said, Task, answer_ids, longer, rows_of, scored
from regard.errors import DataError, ModelError
from regard.vlm.interleaved import UNLEARNED, interleaved
from test_doctor import Hidden
from test_doctor_checks import vlm as made_vlm
from tiny_vlms import FAMILIES

LOW = 8  # columns of a head in a row


def asked(model: Any, inputs: dict[str, Any], answer: list[int], image: str = "one", encode: bool = True) -> OfModel:
    labels = torch.tensor([answer])
    made = OfModel((image,), model, longer(model, inputs, labels), labels, "what is it", None)
    return made.encoded() if encode else made


def planted_task(model: Any) -> list[OfModel]:
    places = [(3, 40), (17, 40), (30, 8), (17, 5), (44, 20)]
    return [
        asked(model, planted.inputs(red=red, green=green), [planted.ANSWER], f"{red} {green}") for red, green in places
    ]


def state(model: nn.Module) -> list[Any]:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]
    return [hooks, [value._version for value in model.parameters()]]


def test_the_head_and_the_layer_that_decide_are_found_and_what_does_nothing_changes_nothing():
    model = planted.model()
    layers = model.model.language_model.layers
    with torch.no_grad():
        layers[2].self_attn.o_proj.weight[:, :LOW] = 0  # head 0 looks at green, and says nothing
        layers[1].self_attn.o_proj.weight.zero_()
    task = planted_task(model)
    before = state(model)
    found = removals(model, task, each="head")
    assert state(model) == before
    assert (found.rows, found.images, found.missed, found.by) == (5, 5, (), "zero")
    assert found.effects[0].part == "head 2.2"
    assert found.effects[0].place == (2, 2)
    assert found.effects[0].bits_low <= found.effects[0].bits <= found.effects[0].bits_high < -1
    assert len(found.effects) == 3 * 4
    sizes = [abs(effect.bits) for effect in found.effects]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size < 0.05 * sizes[0] for size in sizes[1:])
    nothing = {effect.part: effect for effect in found.effects}
    for part in ("head 2.0", "head 1.0", "head 1.3"):
        effect = nothing[part]
        assert (effect.bits, effect.bits_low, effect.bits_high) == (0, 0, 0)
        assert (effect.right, effect.right_low, effect.right_high) == (0, 0, 0)
    whole = removals(model, task)
    assert [effect.place for effect in whole.effects] == [(2,), (0,), (1,)]
    assert whole.effects[0].bits_high < -1
    assert (whole.effects[2].bits, whole.effects[2].bits_low, whole.effects[2].bits_high) == (0, 0, 0)


def test_a_word_that_is_read_first_is_a_head_of_another_layer():
    model = planted.model(hops=True)
    found = removals(model, planted_task(model), each="head")
    assert {effect.part for effect in found.effects[:2]} == {"head 0.2", "head 2.2"}


@pytest.mark.parametrize("by", ["zero", "mean"])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_what_is_left_is_the_model_with_other_weights(models, name, by):
    """A head that is taken out is columns of the output map at 0; its mean is a bias."""
    model = models(name)
    task = [asked(model, tiny_vlms.inputs(name, [1], seed=seed), [5 + seed, 7, 9], str(seed)) for seed in (1, 2, 4)]
    found = removals(model, task, heads=[(1, 3), (-1, 0)], layers=[0], by=by)
    heads = {"layer 0": [(0, None)], "head 1.3": [(1, 3)], "head 3.0": [(3, 0)]}
    heads[TOGETHER] = [place for places in heads.values() for place in places]
    assert {effect.part for effect in found.effects} == set(heads)
    means = {number: mean_of(model, task, number) for number in (0, 1, 3)}
    plain = torch.cat([one.said().bits for one in task])
    for effect in found.effects:
        other = deepcopy(model)
        for layer, head in heads[effect.part]:
            out = other.model.language_model.layers[layer].self_attn.o_proj
            columns = slice(None) if head is None else slice(LOW * head, LOW * head + LOW)
            bias = out.weight[:, columns] @ means[layer][columns] * (by == "mean")
            with torch.no_grad():
                out.weight[:, columns] = 0
                out.bias = nn.Parameter(bias + (0 if out.bias is None else out.bias))
        bits = torch.cat([replace(one, model=other).said().bits for one in task])
        assert effect.bits == pytest.approx(float((bits - plain).mean()), rel=1e-3, abs=1e-4)
        assert abs(effect.bits) > 1e-3


def mean_of(model: Any, task: list[OfModel], layer: int) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    module = model.model.language_model.layers[layer].self_attn.o_proj
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    for one in task:
        one.said()
    handle.remove()
    return torch.cat(seen).mean(dim=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_as_likely_as_when_they_are_generated(models, name):
    model, inputs = models(name), tiny_vlms.inputs(name, [1])
    made = model.generate(
        **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0
    )
    answer = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    logits = torch.stack(made.logits, dim=1)
    greedy = asked(model, inputs, answer).said()
    bits = logits.double().log_softmax(dim=-1)[0, range(4), answer].sum() / np.log(2)
    assert float(greedy.bits) == pytest.approx(float(bits), abs=2e-3)
    assert bool(greedy.right) == (logits.argmax(dim=-1)[0].tolist() == answer)  # some ids are suppressed
    other = [*answer[:3], (answer[3] + 1) % 90 + 1]
    assert not bool(asked(model, inputs, other).said().right)
    whole = asked(model, inputs, other, encode=False)
    assert float(whole.said().bits) == pytest.approx(float(asked(model, inputs, other).said().bits), rel=1e-5)


def test_scores_are_those_of_cross_entropy_and_a_right_answer_is_right_to_its_end():
    logits = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0))
    labels = logits.argmax(dim=-1)
    labels[1, 4] = (labels[1, 4] + 1) % 11
    labels[2, :3] = UNLEARNED
    bits, right = scored(logits, labels)
    assert right.tolist() == [True, False, True]
    for row in range(3):
        loss = F.cross_entropy(logits[row], labels[row], ignore_index=UNLEARNED, reduction="sum")
        assert float(bits[row]) == pytest.approx(-float(loss) / np.log(2), rel=1e-5)


def test_intervals_are_over_images_and_effects_are_of_pairs():
    class Fixed:
        def __init__(self, number: int) -> None:
            self.images, self.number = (f"{number % 7}",) * 2, number

    def way(scale: float):
        def ask(one: Any) -> Said:
            value = scale * ((one.number % 7) ** 1.5 - 5.0)
            return Said(torch.tensor([value, value - 1]), torch.tensor([value > 0, False]))

        return ask

    few, many = ([Fixed(number) for number in range(7 * times)] for times in (1, 5))
    once, often = (measure(task, way(1), {"b": way(2), "a": way(1)}) for task in (few, many))  # pyright: ignore
    assert [effect.part for effect in once.effects] == ["b", "a"]
    mean = np.mean([number**1.5 - 5 for number in range(7)])
    assert once.effects[0].bits == pytest.approx(mean)
    assert once.effects[1].bits_low == once.effects[1].bits_high == 0
    assert (once.images, once.rows, often.images, often.rows) == (7, 14, 7, 70)
    assert (once.bits, once.right) == pytest.approx((mean - 0.5, 100 * 4 / 14))
    for name in ("bits_low", "bits_high", "right_low"):
        assert getattr(often.effects[0], name) == pytest.approx(getattr(once.effects[0], name))
    other = measure(few, way(1), {"b": way(2)}, seed=3).effects[0]  # pyright: ignore
    assert other.bits_low != once.effects[0].bits_low


def test_nothing_is_left_after_an_error(models, monkeypatch):
    model = deepcopy(models("llava")).train()
    model(**tiny_vlms.inputs("llava", [1]))  # transformers may hook its own
    before = state(model)
    task = [asked(model, tiny_vlms.inputs("llava", [1]), [5])]
    calls: list[int] = []

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return 1 / 0 if len(calls) == 3 else plain(*args, **kwargs)

    layer = model.model.language_model.layers[2]
    plain = layer.forward
    monkeypatch.setattr(layer, "forward", fails)
    with pytest.raises(ModelError, match="the model cannot be run so: ZeroDivisionError"):
        removals(model, task, by="mean")
    assert len(calls) == 3
    assert state(model) == before
    calls[:] = [1, 1]
    with pytest.raises(ModelError):
        removals(model, task)
    assert state(model) == before


@pytest.mark.parametrize("fusion", ["early", "late", "deep"])
def test_models_of_parts(fusion):
    model, (_, _, question) = made_vlm("pool", fusion)
    prompts = interleaved(model.tokenizer, ["a red <image> what is this"] * 2, [1, 1], [" cat", " dog dog"])
    seen = tiny_lms.tokens(2)
    task = [OfParts(("one", "two"), model, prompts, seen, question, 5)]
    found = removals(model, task, each="head")
    assert len(found.effects) == 3 * 6
    assert (found.rows, found.images) == (2, 2)
    loss = float(model(prompts, seen, question, 5).loss.detach())
    learned = int((prompts.labels != UNLEARNED).sum())
    assert found.bits * 2 == pytest.approx(-loss * learned / np.log(2), rel=1e-4)
    afresh = removals(model, [replace(task[0], afresh=True)], each="head")
    assert [one.part for one in afresh.effects] == [one.part for one in found.effects]
    assert afresh.effects[0].bits == pytest.approx(found.effects[0].bits, rel=1e-4)
    if fusion == "late":
        cross = removals(model, task, part="cross")
        assert cross.effects[0].bits != 0


def test_padding_is_no_part_of_a_mean():
    model, (_, _, question) = made_vlm("all")
    long = interleaved(model.tokenizer, ["a red <image> what is this what is this near the left"], [1], [" cat"])
    texts = ["<image> what is this near the left what is this near the left", "<image> this"]
    both = interleaved(model.tokenizer, texts, [1, 1], [" cat", " cat"])
    seen = tiny_lms.tokens(2)
    apart = []
    for row in range(2):
        alone = interleaved(model.tokenizer, texts[row : row + 1], [1], [" cat"])
        apart.append(OfParts((str(row),), model, alone, seen.images(torch.tensor([row])), question))
    together = [OfParts(("0", "1"), model, both, seen, question)]
    assert not bool(both.mask.all())
    assert long.mask.all()
    one, other = (removals(model, task, layers=[1], by="mean").effects[0] for task in (apart, together))
    assert one.bits == pytest.approx(other.bits, rel=1e-4)
    zero = removals(model, together, layers=[1]).effects[0]
    assert abs(zero.bits - other.bits) > 0.01


def test_a_bridge_that_attends_is_run_anew():
    model, (_, _, question) = made_vlm("resampler", latents=3, heads=2)
    prompts = interleaved(model.tokenizer, ["a red <image> what is this"], [1], [" cat"])
    task = [OfParts(("one",), model, prompts, tiny_lms.tokens(1), question, None, afresh=True)]
    found = removals(model, task, part="bridge")
    assert found.effects
    assert all(effect.bits != 0 for effect in found.effects)


def test_what_is_not_there_is_said(models):
    model = models("llava")
    task = [asked(model, tiny_vlms.inputs("llava", [1]), [5])]
    for taken, words in [
        ({"layers": [9]}, "there is no layer 9: the part 'language' has layers 0 to 3"),
        ({"heads": [(1, 4)]}, r"there is no head 4: model.language_model.layers.1.self_attn has heads 0 to 3"),
        ({"heads": [(1, -1)]}, "there is no head -1"),
        ({"by": "magic"}, "by must be 'zero' or 'mean'"),
        ({"part": "cross"}, "has no attention of the part 'cross'"),
    ]:
        with pytest.raises(ModelError, match=words):
            removals(model, task, **taken)
    with pytest.raises(DataError, match="none of the rows can be asked: there are none"):
        removals(model, [])
    with pytest.raises(DataError, match="there are no rows to measure on"):
        regard.doctor.ablate(model, [], processor=object())
    for row, words in [
        ({"image": "a.png", "answer": "yes"}, "row 1 must have image, question and answer: it has image, answer"),
        ({"image": "a.png", "question": "is it?", "answer": " "}, "question and answer of row 1 must be words"),
        ("a cat", "it has str"),
        ({"image": None, "question": "is it?", "answer": "yes"}, "the image of row 1 must be a path.*got nothing"),
        ({"image": [b"x", 3], "question": "is it?", "answer": "yes"}, "a path, bytes or a picture, got int"),
        ({"image": {"bytes": None}, "question": "is it?", "answer": "yes"}, "a picture, got nothing"),
    ]:
        with pytest.raises(DataError, match=words):
            rows_of([row])  # pyright: ignore
    with pytest.raises(ModelError, match="Linear is no model of Hugging Face and no regard.VLM"):
        regard.doctor.ablate(nn.Linear(3, 3), [Row("a.png", "is it?", "yes")])


def test_rows_of_datasets_and_copies_of_a_picture():
    picture = Image.effect_noise((9, 7), 50)
    both = [picture, picture.copy(), picture.rotate(180)]
    same, copy, other = (row.key for row in rows_of([{"image": i, "question": "?", "answer": "a"} for i in both]))
    assert same == copy != other
    (row,) = rows_of([{"image": [{"bytes": b"x"}, {"path": "a.png"}], "question": "?", "answer": "a"}])
    assert row.images == [b"x", "a.png"]


def test_attention_that_cannot_be_reached(models):
    model = deepcopy(models("llava"))
    layers = model.model.language_model.layers
    layers[1].self_attn = Hidden(layers[1].self_attn)
    layers[3].self_attn = Renamed(layers[3].self_attn)
    task = [asked(model, tiny_vlms.inputs("llava", [1]), [5])]
    found = removals(model, task)
    assert {effect.part for effect in found.effects} == {"layer 0", "layer 1", "layer 2"}
    assert found.missed == ("model.language_model.layers.3.self_attn",)
    with pytest.raises(ModelError, match=r"layers.3.self_attn \(Renamed\) cannot be reached"):
        removals(model, task, layers=[3])
    with pytest.raises(ModelError, match=r"heads of model.language_model.layers.1.self_attn cannot be told apart"):
        removals(model, task, heads=[(1, 0)])
    assert {effect.place[0] for effect in removals(model, task, each="head").effects} == {0, 2}


class Renamed(nn.Module):
    """An attention whose output map has a name of its own."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.hands_over = attention.q_proj, attention.k_proj, attention.o_proj

    def forward(self, hidden_states: torch.Tensor, **more: Any) -> tuple[torch.Tensor, None]:
        return self.hands_over(hidden_states), None


class Words:
    """A tokenizer that glues as SentencePiece does: a word with the space before it."""

    eos_token_id = 2

    def __init__(self, last: str) -> None:
        self.last = last

    def decode(self, ids: Any) -> str:
        return self.last

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        pieces = text.replace(" ", "|_").replace("\n", "\n|").replace("|_", "| ").split("|")
        return {"input_ids": [100 + len(piece) + 10 * piece.startswith(" ") for piece in pieces if piece]}


@pytest.mark.parametrize(
    ("last", "ends", "ids"),
    [(":", 2, [114, 2]), ("\n", [7, 2], [103, 2]), (":", [7, 9], [114, 7]), (":", None, [114, 2])],
)
def test_an_answer_goes_on_as_the_prompt_ends(last, ends, ids):
    class Said:
        generation_config = transformers.GenerationConfig(eos_token_id=ends)

    assert answer_ids(Words(last), Said, torch.tensor([5]), "cat") == ids


def test_images_are_encoded_once_and_rows_without_one_are_counted(tmp_path, monkeypatch):
    import tiny_processors
    from regard.vlm.processors import load_model, load_processor

    folder = tiny_processors.build("llava", tmp_path)
    model: Any = load_model(folder, device="cpu")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    rows = [
        {"image": str(tmp_path / "red.png"), "question": "what colour has it ?", "answer": "red"},
        {"image": str(tmp_path / "none.png"), "question": "what colour has it ?", "answer": "red"},
        {"image": Image.new("RGB", (30, 30), "blue"), "question": "what colour has it ?", "answer": "blue and red"},
    ]
    calls: list[int] = []
    plain = model.model.get_image_features
    monkeypatch.setattr(model.model, "get_image_features", lambda *a, **k: (calls.append(1), plain(*a, **k))[1])
    found = regard.doctor.ablate(model, rows, each="head")
    assert len(calls) == 1 + 2  # the first row's, to see how many heads there are
    assert (found.rows, found.images, len(found.effects)) == (2, 2, 16)
    assert list(found.skipped.values()) == [1]
    assert "none.png" in next(iter(found.skipped))
    task = Task(model, rows, load_processor(folder))
    assert [one.labels.tolist() for one in task if isinstance(one, OfModel)] == [
        task_ids(folder, "red"),
        task_ids(folder, "blue and red"),
    ]
    vision = regard.doctor.ablate(model, rows[:1], layers=[0], part="vision")
    assert vision.effects[0].bits != 0
    with pytest.raises(DataError, match=r"none of the rows can be asked: 1 because .*none.png"):
        regard.doctor.ablate(model, rows[1:2])


def task_ids(folder: Any, text: str) -> list[list[int]]:
    """One word a token, and the end."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [[*(tokenizer.convert_tokens_to_ids(word) for word in text.split()), 2]]
