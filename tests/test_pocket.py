"""The pocket model: its parts, its recipe, and what `regard ask` says of it. With weights drawn at random."""

import csv
import json
import re
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_model

from regard.bench import mechanisms as bench
from regard.bench import pocket as made_pocket
from regard.bench import trade_offs
from regard.bench.tasks.asked.wording import KINDS
from regard.bench.tasks.seen import Sight, Sights
from regard.errors import BudgetError, DataError, ModelError
from regard.eyes.pocket import PocketEye
from regard.relevance.realizer import Realizer
from regard.train.checkpoint import LAST, Checkpoint
from regard.train.guide import GUIDE
from regard.train.loop import HISTORY, Recipe
from regard.train.pocket import NAMING, grounded, grounding, taught, train, watched
from regard.train.words import Things, named, repeated
from regard.vlm import pocket as module
from regard.vlm.interleaved import IMAGE, interleaved
from regard.vlm.pocket import MAKING, MECHANISMS, SELECTING, Pocket, unknown_words
from regard.vlm.pocket_ask import TRAINED_ON, ask_pocket

WORDS = ("where", "is", "the", "fox", "a", "yes", "no", "top", "left", "?", "right")


@pytest.fixture(scope="module")
def model() -> Pocket:
    torch.manual_seed(0)
    return Pocket(WORDS).requires_grad_(False).eval()


def sights(count: int = 6, side: int = 12) -> Sights:
    """Scenes of noise; where the thing is, a feature says the answer."""
    generator = torch.Generator().manual_seed(1)
    scenes = []
    for place in range(count):
        features = torch.randn(side**2, 512, generator=generator)
        answers = [("yes", "no", "top left")[(place + turn) % 3] for turn in range(2)]
        scenes.append(
            Sight(
                side,
                features.half(),
                torch.randn(side**2, 12, generator=generator).half(),
                torch.randn(2, 12, generator=generator),
                torch.zeros(2, side**2).half(),
                torch.zeros(2, side**2).half(),
                [KINDS[place % 8], KINDS[1]],
                ["where is the fox?", "is the fox left?"],
                answers,
            )
        )
    return Sights(tuple(scenes), torch.randn(5, 12, generator=generator))


def test_all_share_a_projector_and_what_makes_tokens_has_a_bridge_of_its_own_behind_it(model):
    making: list[Any] = [model.bridge(name) for name in MAKING]
    shared = {id(model.bridge(name).read) for name in SELECTING} | {id(bridge.projector.read) for bridge in making}
    assert len(shared) == 1
    assert len({id(bridge.then) for bridge in making}) == len(MAKING) == len(MECHANISMS) - len(SELECTING)
    with pytest.raises(ModelError, match="no mechanism 'magic': it has all, relevance"):
        model.bridge("magic")
    count = sum(value.numel() for value in model.parameters())
    assert sum(value.numel() for value in model.decoder.parameters()) < 3.2e6
    assert count * 2 < 25e6 - 2e6, "half a number each, and the eye's weights"


@pytest.mark.parametrize("name", MAKING)
def test_what_makes_tokens_reads_what_the_projector_makes_of_all(model, name):
    batch = sights().batch([(0, 0), (1, 1)])
    made = model.bridge(name)(batch.tokens, batch.question, 9)
    projected = model.bridge("all")(batch.tokens, batch.question).features
    read = model.bridges[name](replace(batch.tokens, features=projected), batch.question, 9)
    assert torch.equal(made.features, read.features)
    assert torch.equal(made.reading.matrix(), read.reading.matrix())
    assert made.features.shape == (2, 9, model.bridges[name].dim)
    asked = replace(batch.question, features=batch.question.features.flip(0))
    assert not torch.allclose(made.features, model.bridge(name)(batch.tokens, asked, 9).features), "all hear"


@pytest.mark.parametrize("name", MAKING)
def test_padding_does_not_reach_what_is_behind_the_projector(model, name):
    batch = sights().batch([(0, 0), (1, 1)])
    mask = torch.ones(2, 144, dtype=torch.bool)
    mask[1, 5:] = False
    other = batch.tokens.features.clone()
    other[1, 5:] = 50
    one, two = (
        model.bridge(name)(replace(batch.tokens, features=features, mask=mask), batch.question, 9)
        for features in (batch.tokens.features, other)
    )
    assert torch.equal(one.features, two.features)
    assert one.mask.sum(dim=1).tolist() == [9, 5]
    assert not one.reading.matrix()[1, :, 5:].any()


def test_words_digits_and_marks_are_tokens(model):
    ids = model.tokenizer("Where is the FOX?42")["input_ids"]
    assert model.tokenizer.convert_ids_to_tokens(ids) == ["where", "is", "the", "fox", "?", "<unk>", "<unk>"]
    assert unknown_words("Where is the x-ray, fox?", WORDS) == ["x-ray"]


def test_an_answer_is_right_where_greedy_generation_says_it(model):
    """Of a decoder that learned three answers; then another is wanted, and one that goes on."""
    batch = sights().batch([(0, 0), (1, 1), (2, 0)])
    learned = deepcopy(model)
    vlm = learned.vlm("relevance")
    optimizer = torch.optim.AdamW(learned.decoder.requires_grad_(True).parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        taught(vlm, batch, 16)[0].backward()
        optimizer.step()
    learned.requires_grad_(False)
    prompts = interleaved(vlm.tokenizer, [IMAGE + ask for ask in batch.asks], [1] * 3)
    ids = vlm.generate(prompts, batch.tokens, batch.question, 16, max_new_tokens=4, do_sample=False)
    said = [text.split(" </s>")[0] for text in vlm.tokenizer.batch_decode(ids, skip_special_tokens=False)]
    assert said == batch.answers
    assert taught(vlm, batch, 16)[1].all()
    batch.answers[1:] = ["fox", f"{said[2]} right"]
    assert taught(vlm, batch, 16)[1].tolist() == [True, False, False]


def test_a_run_goes_on_as_it_would_have(tmp_path):
    def stop(epoch: int, *_: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    data, recipe = sights(), Recipe(3, seed=5, batch=4)
    whole = train(WORDS, data, recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(WORDS, data, recipe, tmp_path / "cut", stop)
    again = train(WORDS, data, recipe, tmp_path / "cut")
    for (name, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_what_is_held_out_is_told_after_each_epoch_and_changes_nothing(tmp_path):
    data, others, recipe = sights(), sights(8), Recipe(2, seed=5, batch=4)
    plain = train(WORDS, data, recipe, tmp_path / "plain")
    told = train(WORDS, data, recipe, tmp_path / "told", others=others)
    for (name, one), other in zip(plain.state_dict().items(), told.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    with (tmp_path / "told" / HISTORY).open() as file:
        first, last = csv.DictReader(file)
    assert [name for name in last if name.startswith("validation")] == [f"validation {name}" for name in MECHANISMS]
    (places,) = others.sides()
    with torch.no_grad():
        loss = float(taught(told.vlm("pool"), others.batch(places), 32)[0])
    assert float(last["validation pool"]) == pytest.approx(loss, rel=1e-5) != float(first["validation pool"])


def test_a_run_is_of_its_scenes_alone(tmp_path):
    data = sights()
    train(WORDS, data, Recipe(1, batch=4), tmp_path)
    told = data.scenes[0]._replace(answers=["no", "no"])
    parts = ("features", "aligned", "questions", "covered", "answered")
    seen = [data.scenes[0]._replace(**{part: getattr(data.scenes[0], part) + 1}) for part in parts]
    others = [Sights((scene, *data.scenes[1:]), data.reference) for scene in (told, *seen)]
    for other in (*others, Sights(data.scenes, data.reference + 1)):
        with pytest.raises(DataError, match="holds a run with scenes"):
            train(WORDS, other, Recipe(1, batch=4), tmp_path)


def test_a_run_is_of_what_relevance_learned_for_the_eye(tmp_path, monkeypatch):
    data = sights()
    train(WORDS, data, Recipe(1, batch=4), tmp_path)
    monkeypatch.setattr(PocketEye, "realizer", Realizer())
    with pytest.raises(DataError, match="holds a run with realizer"):
        train(WORDS, data, Recipe(1, batch=4), tmp_path)


def seen_of(model: Pocket, kinds: list[str], covered: torch.Tensor):
    """What a pass over two scenes of noise shows, and their visual tokens' places in it."""
    batch = sights().batch([(0, 0), (1, 1)])
    vlm = model.vlm("pool")
    model.decoder.set_attn_implementation("eager")  # pyright: ignore
    prompts = interleaved(vlm.tokenizer, [IMAGE + ask for ask in batch.asks], [1] * 2, batch.answers)
    with watched(vlm) as seen:
        vlm(prompts, batch.tokens, batch.question, 9)
    return vlm, seen, grounding(vlm, seen, covered, kinds)


def test_attention_is_drawn_to_the_things_from_the_word_before_the_answer(model):
    covered = torch.zeros(2, 9)
    covered[0, 4], covered[1, 2] = 1.0, 0.5
    _, seen, (guided, named) = seen_of(model, ["count", "exists"], covered.flatten())
    prompt, attention = seen.prompt[0], seen.attention[0]
    wanted = []
    for row, place in enumerate((4, 2)):
        before = int((prompt.labels[row] >= 0).int().argmax()) - 1
        column = int(prompt.image[row].nonzero()[place])
        wanted.append(-np.log(float(attention[row, :, before, column].mean()) + 1e-4))
    assert float(guided) == pytest.approx(GUIDE * np.mean(wanted), rel=1e-5)
    assert float(named) == 0, "how many there are cannot be seen at one"


def test_tokens_learn_the_words_that_are_said_of_them():
    torch.manual_seed(0)
    model, generator = Pocket(WORDS), torch.Generator().manual_seed(0)
    said = ["fox", "top left"] * 30
    features = torch.randn(2, 512, generator=generator).repeat(30, 1)
    things = Things(features, torch.rand(60, 4, generator=generator), said)
    before = named(model, things, 0, passes=1)
    after = named(model, things, 0, passes=30)
    assert after < before / 2
    assert after == pytest.approx(np.log(2) / 2, abs=0.2), "of two words each has a half"
    assert named(model, Things(features[:0], features[:0, :4], []), 0) == 0
    untouched = Pocket(WORDS).bridges["qformer"].state_dict().keys()
    assert untouched == model.bridges["qformer"].state_dict().keys()


def test_the_decoder_learns_of_words_alone_to_say_what_it_read():
    torch.manual_seed(0)
    names = [f"{one}{two}" for one in "bcdf" for two in "aeiou"]
    model, draw = Pocket((*names, "which", ":", "or", "?")), np.random.default_rng(0)
    texts = [(f"which: {one} or {two}?", one) for one, two in (draw.permutation(names)[:2] for _ in range(400))]
    before = {name: value.clone() for name, value in model.bridges.state_dict().items()}
    assert repeated(model, texts[:300], 0, steps=80) < 0.3
    asks, answers = zip(*texts[300:], strict=True)
    prompts = interleaved(model.tokenizer, list(asks), [0] * 100, list(answers))
    with torch.no_grad():
        made = model.decoder(input_ids=prompts.ids, attention_mask=prompts.mask.long()).logits  # pyright: ignore
    learned = prompts.labels[:, 1:] >= 0
    right = (made[:, :-1].argmax(dim=2) == prompts.labels[:, 1:])[learned]
    assert right.double().mean() > 0.9, "of questions that it has not read before"
    assert all(torch.equal(value, before[name]) for name, value in model.bridges.state_dict().items())
    assert repeated(model, [], 0) == 0


def test_what_is_there_is_named_at_its_tokens(model):
    covered = torch.zeros(2, 9)
    covered[0, 4], covered[1, 2] = 0.6, 0.4
    vlm, seen, (_, named) = seen_of(model, ["colour", "colour"], covered.flatten())
    prompt = seen.prompt[0]
    column = int(prompt.image[0].nonzero()[4])
    logits = vlm.language_model.lm_head(seen.hidden[0][0, column])  # pyright: ignore
    word = prompt.labels[0][prompt.labels[0] >= 0][0]
    assert float(named) == pytest.approx(NAMING * -float(logits.log_softmax(0)[word]), rel=1e-5)


def test_nothing_there_draws_nothing(model):
    _, _, (guided, named) = seen_of(model, ["what", "what"], torch.zeros(18))
    assert (float(guided), float(named)) == (0, 0)


def test_nobody_watches_after_a_pass(model):
    vlm = model.vlm("qformer")
    batch = sights().batch([(0, 0)])
    model.decoder.set_attn_implementation("eager")  # pyright: ignore
    torch.testing.assert_close(grounded(vlm, batch, 9)[0], taught(vlm, batch, 9)[0])
    with pytest.raises(BudgetError):
        grounded(vlm, batch, 0)
    assert not any(part._forward_hooks for part in vlm.modules())


def test_ask_says_what_it_took_and_where_it_looked(model):
    image = Image.effect_noise((224, 160), 60).convert("RGB")
    asked = ask_pocket(image, "where is the fox?", budget=8, mechanisms=("relevance", "qformer"), model=model)
    assert [answer.allocator for answer in asked.answers] == [None, "relevance", "qformer"]
    assert [answer.visual_tokens for answer in asked.answers] == [35, 8, 8]
    assert all(answer.prompt_tokens == answer.visual_tokens + 5 for answer in asked.answers)
    (look,) = asked.records[0].looks
    assert look.allocator == "relevance"
    assert look.realization is not None
    assert asked.notes == (TRAINED_ON,)
    assert ask_pocket(image, "see the yak?", budget=8, model=model).notes[0].endswith("does not know see, yak")
    for wrong, kind, line in (
        ({"question": " "}, DataError, "the question is empty"),
        ({"budget": 0}, BudgetError, "budget"),
        ({"mechanisms": ("magic",)}, ModelError, "no mechanism 'magic'"),
        ({"max_new_tokens": 0}, BudgetError, "at least 1 token"),
    ):
        with pytest.raises(kind, match=line):
            ask_pocket(image, **{"question": "where is it?", **wrong}, model=model)


@pytest.fixture
def shipped(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    module.pocket.cache_clear()
    save_model(deepcopy(model).half(), str(tmp_path / "model.safetensors"))
    (tmp_path / "about.json").write_text(json.dumps({"words": list(WORDS)}))
    yield tmp_path
    module.pocket.cache_clear()


def test_regard_ask_needs_no_model(shipped, regard, tmp_path):
    Image.effect_noise((256, 256), 60).convert("RGB").save(tmp_path / "a.png")
    image, out = str(tmp_path / "a.png"), str(tmp_path / "out")
    code, said, _ = regard("ask", image, "where is the fox?", "--budget", "9", "--json", "--out", out)
    assert code == 0
    answer = json.loads(said)
    assert answer["tokens_in"] == 64
    assert answer["tokens_out"] == 9
    assert set(answer["seconds"]) == {"vision", "decide", "prefill", "decode"}
    assert isinstance(answer["answer"], str)
    assert answer["notes"] == [TRAINED_ON]
    assert TRAINED_ON[:40] in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "report.html").exists()
    code, said, _ = regard("ask", image, "is it?", "--max-new-tokens", "1", "--seed", "7", "--json", "--out", out)
    assert all(given["new_tokens"] == 1 for given in json.loads(said)["answers"])
    assert json.loads(said)["made"]["seed"] == "7"
    code, said, error = regard("ask", image, "where is the fox?", "--out", out)
    assert code == 0
    assert "trained on composed scenes" in (said + error).replace("\n", " ")
    for more, line in (
        (("--tiles", "100"), "--tiles is for a model of Hugging Face"),
        (("--allocator", "visionzip"), "no mechanism 'visionzip'"),
        (("--sign", "-1"), "--sign is for a model"),
        (("--device", "cuda"), "--device is for a model"),
    ):
        code, _, error = regard("ask", image, "where is the fox?", *more)
        assert code == 2
        assert line in error


def test_mechanisms_are_told_apart_by_scene_tail_and_unseen_names(model):
    whole = sights(8)
    large = sights(4, side=14)
    filled = [scene._replace(covered=torch.ones_like(scene.covered)) for scene in large.scenes]
    both = Sights((*whole.scenes, *filled), whole.reference)
    found = bench.asking(model, both, mechanisms=("all", "pool"), budgets=(16, 64))
    found.right["pool", 64] = np.isin(found.scenes, range(8))
    table = trade_offs.by_scene(found, both)
    assert table["columns"] == ["mechanism", "tokens", "of 144 tokens", "of 196 tokens", "full", "not full"]
    assert [row[:2] for row in table["rows"]] == [["all", "all"], ["pool", "64"]]
    assert table["rows"][1][2:] == ["100.0", "0.0", "0.0", "100.0"]

    rows = trade_offs.slowest(model, both, count=3)["rows"]
    assert [row[0] for row in rows] == list(MECHANISMS)
    assert all(float(late) >= float(middle) > 0 for _, _, middle, late, _ in rows)
    table = trade_offs.unseen(model, whole, lambda line: None)
    assert table["columns"][2:] == [kind for kind in KINDS if any(kind in scene.kinds for scene in whole.scenes)]
    assert [row[1] for row in table["rows"]] == [
        "all",
        *("32" if name == "recurrent" else "64" for name in MECHANISMS[1:]),
    ]
    assert all(re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)", cell) for cell in table["rows"][0][2:])


def test_a_bridge_is_asked_for_no_more_than_it_can_give(model):
    most = model.vlm("recurrent").bridge.most
    found = bench.asking(model, sights(2), ("recurrent", "all", "pool"), (most // 2, 2 * most, 4 * most))
    ways = [("recurrent", most // 2), ("recurrent", most), ("all", None)]
    assert list(found.right) == [*ways, *(("pool", n * most // 2) for n in (1, 4, 8))]
    words = bench.first_words(model, sights(2), (2 * most,), 1)
    assert f"recurrent {most}" in words
    assert f"pool {2 * most}" in words


def test_missing_weights_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FOLDER", tmp_path / "none")
    module.pocket.cache_clear()
    with pytest.raises(ModelError, match="model.safetensors' are missing"):
        module.pocket()


def test_a_run_becomes_the_packages_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, package = tmp_path / "run", tmp_path / "package"
    trained = train(WORDS, sights(), Recipe(1, batch=8), run).requires_grad_(False).eval()
    with pytest.raises(DataError, match="was not trained to its end"):
        made_pocket.export(run, package)
    made_pocket.validated(trained, sights(8), run)
    made_pocket.export(run, package)
    monkeypatch.setattr(module, "FOLDER", package)
    module.pocket.cache_clear()
    again = module.pocket()
    for (name, one), other in zip(trained.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(one.half().float(), other, msg=name)
    about = json.loads((package / "about.json").read_text())
    assert about["settings"]["scenes"] == sights().digest()
    shown = json.loads((tmp_path / "results" / "pocket.json").read_text())
    assert {row["name"] for row in shown["rows"]} == {f"{name}: right" for name in MECHANISMS}
    module.pocket.cache_clear()


def test_kinds_that_are_not_asked_have_no_rows(model):
    data = sights(2)
    two = Sights(tuple(one._replace(kinds=["where", "exists"]) for one in data.scenes), data.reference)
    rows = bench.compared(bench.asking(model, two, ("all", "relevance", *bench.BLIND), (16,)), 16)
    assert [row.name.split(":")[0] for row in rows] == [
        f"16 tokens, {of}" for of in ("where", "exists", "all questions")
    ]
    assert all(np.isfinite(row.value) for row in rows)


def test_a_run_of_another_kind_is_one_line(tmp_path):
    Checkpoint("grounding", {}, {}, []).save(tmp_path / LAST)
    with pytest.raises(DataError, match="is a run of grounding: give one of regard train pocket"):
        made_pocket.restored(tmp_path)


def test_the_benchs_rows_are_of_the_questions_that_were_right(model):
    data = sights(8)
    found = bench.asking(model, data, ("all", "relevance", "pool", "grid", "random", "divprune"), (16,))
    assert found.kinds.tolist().count(KINDS[1]) == 9
    right = torch.rand(16, generator=torch.Generator().manual_seed(0)).numpy() < 0.5
    found.right["relevance", 16] = right
    assert found.rate("relevance", 16) == pytest.approx(100 * right.mean())
    where = found.kinds == KINDS[1]
    assert found.rate("relevance", 16, (KINDS[1],)) == pytest.approx(100 * right[where].mean())
    low, high = found.interval(right)
    assert low < 100 * right.mean() < high
    drawn = np.random.default_rng(3)
    plain = [np.concatenate([right[found.scenes == s] for s in drawn.integers(0, 8, 8)]).mean() for _ in range(4000)]
    assert np.quantile(plain, (0.025, 0.975)) * 100 == pytest.approx((low, high), abs=3)
    low, high = found.interval(right, (KINDS[1],))
    assert low <= 100 * right[where].mean() <= high
    rows = bench.compared(found, 16)
    assert rows[-1].value == pytest.approx(found.rate("all", None) - found.rate("relevance", 16))
