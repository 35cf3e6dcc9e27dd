"""A vision-language model of parts: answers equal to a loop without a cache, and nothing left behind."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import regard
from regard.errors import BudgetError, DataError, ModelError, ShapeError
from regard.eyes.embedded import EmbeddedEye
from regard.tokens import VisualTokens
from regard.vlm.bridges import load
from regard.vlm.compose import VLM
from regard.vlm.interleaved import IMAGE, UNLEARNED, Interleaved, interleaved
from tiny_lms import NAMES, ToyEye, ToyTower, language_model, question, tokenizer, tokens

FUSIONS = {
    "early": ("all", {}),
    "late": ("all", {}),
    "late, all images": ("resampler", {"every_image": True, "where": "every 2"}),
    "deep": ("all", {}),
    "deep, own positions": ("tome", {"shared": False}),
    "hybrid": ("qformer", {}),
}
TEXTS = [
    f"{IMAGE} a red cat . {IMAGE} two . {IMAGE} what is",
    "is this a dog ?",
    f"what {IMAGE} ?",
    f"{IMAGE}{IMAGE} no",
]
COUNTS = [3, 0, 1, 2]
SMALL = {"qformer": {"queries": 5, "heads": 2}, "resampler": {"latents": 5, "heads": 2}}


@torch.no_grad()
@pytest.mark.parametrize(("name", "learned"), [("gpt2", True), ("opt", True), ("llama", False)])
def test_more_tokens_than_there_are_positions(name, learned):
    vlm = VLM(ToyEye(), "grid", language_model(name), tokenizer())
    prompts = interleaved(vlm.tokenizer, [IMAGE + "what is this ?"], [1])
    for call in (vlm, partial(vlm.generate, max_new_tokens=1)):
        if learned:
            with pytest.raises(DataError, match="has 128 positions and would read 133 tokens: lower the budget"):
                call(prompts, tokens(1, 32))
        else:
            call(prompts, tokens(1, 32))
        call(prompts, tokens(1, 32), None, 100)
    long = interleaved(vlm.tokenizer, ["what is this ? " * 20], [0])
    if learned:
        with pytest.raises(DataError, match="would read 140 tokens: shorten the text or max_new_tokens"):
            vlm.generate(long, max_new_tokens=60)
    vlm.generate(long, max_new_tokens=48, min_new_tokens=48)


@pytest.fixture(scope="module", params=NAMES)
def lm(request) -> Any:
    return language_model(request.param)


@torch.no_grad()
def built(lm: nn.Module, fusion: str, words: Any = None, **other: Any) -> VLM:
    """With gates that are open, and experts unlike the language model's."""
    torch.manual_seed(4)
    mechanism, arguments = FUSIONS[fusion]
    given = {"bridge_arguments": SMALL.get(mechanism), "fusion_arguments": arguments, **other}
    vlm = VLM(ToyEye(), mechanism, lm, words or tokenizer(), fusion.partition(",")[0], **given).eval()
    for name, value in [*vlm.fusion.named_parameters(), *vlm.bridge.named_parameters()]:
        value.fill_(0.8) if name.endswith("gate") else value.add_(torch.randn_like(value) * 0.3)
    return vlm


def prompts(rows: list[int] | None = None) -> Interleaved:
    rows = list(range(4)) if rows is None else rows
    return interleaved(tokenizer(), [TEXTS[row] for row in rows], [COUNTS[row] for row in rows])


def ragged(rows: list[int] | None = None) -> VisualTokens:
    """Of the images of these prompts, with 6, 4, 6, 3, 6 and 5 real tokens."""
    seen, real = tokens(6, 2, 3), torch.tensor([6, 4, 6, 3, 6, 5])
    seen = replace(seen, mask=torch.arange(6) < real[:, None])
    owner = torch.tensor([0, 0, 0, 2, 3, 3])
    return seen if rows is None else seen.images(torch.cat([(owner == row).nonzero()[:, 0] for row in rows]))


@torch.no_grad()
def loop(
    vlm: VLM, made: Interleaved, seen: VisualTokens | tuple, new: int, budget: int | None = None
) -> list[list[int]]:
    """Greedy answers by `forward` on prompts that grow, one token at a time, without a cache."""
    out: list[list[int]] = [[] for _ in made.ids]
    for _ in range(new):
        said = vlm(made, seen, None, budget).logits[:, -1].argmax(dim=1)
        for row, token in zip(out, said.tolist(), strict=True):
            row.append(token)

        def more(values: Tensor, last: Tensor) -> Tensor:
            return torch.cat((values, last[:, None].to(values.dtype)), dim=1)

        yes, no = torch.ones_like(said).bool(), torch.zeros_like(said).bool()
        made = Interleaved(
            more(made.ids, said), more(made.mask, yes), more(made.image, no), more(made.labels, yes * UNLEARNED)
        )
    return [ended(row) for row in out]


def ended(row: list[int], end: int = 2) -> list[int]:
    return row[: row.index(end) + 1] if end in row else row


def answered(vlm: VLM, *given: Any, **generation: Any) -> list[list[int]]:
    made = vlm.generate(*given, **{"max_new_tokens": 6, "do_sample": False, **generation})
    return [ended(row) for row in made.tolist()]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_answers_are_those_of_a_loop_without_a_cache(lm, fusion):
    vlm, made, seen = built(lm, fusion), prompts(), ragged()
    got = answered(vlm, made, seen)
    assert got == loop(vlm, made, seen, 6)
    assert len({tuple(row) for row in got}) > 1
    other = replace(seen, features=seen.features.roll(1, dims=2))
    assert not torch.allclose(vlm(made, seen).logits[0], vlm(made, other).logits[0], atol=1e-3), "it looks"


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_prompt_does_not_depend_on_its_neighbours(lm, fusion):
    vlm = built(lm, fusion)
    whole, logits = answered(vlm, prompts(), ragged(), None, 4), vlm(prompts(), ragged(), None, 4).logits[:, -1]
    for rows in ([0], [1], [2], [3], [3, 1]):
        seen = ragged(rows) if any(COUNTS[row] for row in rows) else ()
        alone = vlm(prompts(rows), seen, None, 4).logits[:, -1]
        torch.testing.assert_close(alone, logits[rows], rtol=1e-3, atol=1e-3)
        assert answered(vlm, prompts(rows), seen, None, 4) == [whole[row] for row in rows]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_beams(lm, fusion):
    vlm, made, seen = built(lm, fusion), prompts(), ragged()
    assert answered(vlm, made, seen, num_beams=1) == answered(vlm, made, seen)
    beams = answered(vlm, made, seen, num_beams=3)
    for rows in ([0], [3]):
        assert answered(vlm, prompts(rows), ragged(rows), num_beams=3) == [beams[row] for row in rows]
    several = vlm.generate(made, seen, num_beams=4, num_return_sequences=2, max_new_tokens=3, do_sample=False)
    assert len(several) == 8


@pytest.mark.parametrize("fusion", FUSIONS)
def test_budgets_are_spent(lm, fusion):
    vlm, made, seen = built(lm, fusion), prompts(), tokens(6, 2, 3)
    counts = {}
    for budget in (1, 3, 6, 99):
        bridged = vlm(made, seen, None, budget).bridged
        assert bridged is not None
        counts[budget] = bridged.features.shape[1]
        assert answered(vlm, made, seen, None, budget) == loop(vlm, made, seen, 6, budget)
    most = {"all": (6, 6, 6, 6), "tome": (1, 3, 6, 6)}.get(vlm.mechanism, (1, 3, 5, 5))
    assert tuple(counts.values()) == most
    with pytest.raises(BudgetError):
        vlm(made, seen, None, 0)


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_no_hook_is_left_and_no_weight_is_changed(lm, fusion):
    vlm, made, seen = built(lm, fusion), prompts(), ragged()
    weights, before = {name: value.clone() for name, value in lm.state_dict().items()}, hooks(lm)
    learn = interleaved(tokenizer(), TEXTS, COUNTS, ["yes"] * 4)
    optimizer = torch.optim.AdamW([value for value in vlm.parameters() if value.requires_grad], lr=0.01)
    out = vlm.train()(learn, seen)
    assert out.loss is not None
    out.loss.backward()
    optimizer.step()
    vlm.eval().generate(made, seen, max_new_tokens=3)
    assert hooks(lm) == before

    def fail(module: nn.Module, given: tuple) -> None:
        assert hooks(lm) > before + (fusion not in ("early", "hybrid"))
        raise RuntimeError("on purpose")

    handle = lm.get_output_embeddings().register_forward_pre_hook(fail)
    for call in (lambda: vlm(made, seen), lambda: vlm.generate(made, seen, max_new_tokens=3)):
        with pytest.raises(RuntimeError, match="on purpose"):
            call()
    handle.remove()
    with pytest.raises(ValueError, match="nonsense"):
        vlm.generate(made, seen, nonsense=3)
    assert hooks(lm) == before
    for name, value in lm.state_dict().items():
        assert torch.equal(value, weights[name]), name
        assert not value.requires_grad


def test_training_lowers_the_loss(lm):
    learn, seen = interleaved(tokenizer(), TEXTS, COUNTS, ["yes", "no", "red cat", "two"]), ragged()
    for fusion in FUSIONS:
        vlm = built(lm, fusion).train()
        vlm.language_model.eval()  # GPT-2 and OPT drop out
        optimizer = torch.optim.AdamW([value for value in vlm.parameters() if value.requires_grad], lr=0.003)
        losses = []
        for _ in range(12):
            loss = vlm(learn, seen).loss
            assert loss is not None
            losses.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[-1] < losses[0] - 0.05, fusion


@torch.no_grad()
def test_two_models_over_one_language_model(lm):
    made, seen = prompts(), ragged()
    one, other = built(lm, "late"), built(lm, "deep")
    alone = [vlm(made, seen).logits for vlm in (one, other)]
    again = [vlm(made, seen).logits for vlm in (one, other)]
    assert torch.equal(alone[0], again[0])
    assert torch.equal(alone[1], again[1])
    _, prompt, memory, shown = one._read(made, seen, None, None)
    given = {"attention_mask": prompt.mask.long(), "position_ids": prompt.positions, "use_cache": False}
    twice = built(lm, "late")
    for block in twice.fusion.blocks:  # pyright: ignore
        block.feed_gate.zero_()
        block.attention_gate.zero_()
    before = hooks(lm)
    with one.fusion.within(lm, prompt, memory, shown):
        inside = hooks(lm)
        with twice.fusion.within(lm, prompt, memory, shown):
            both = lm(inputs_embeds=prompt.embeddings, **given).logits
            assert hooks(lm) == 2 * inside - before
        assert hooks(lm) == inside
        outer = lm(inputs_embeds=prompt.embeddings, **given).logits
    assert hooks(lm) == before
    assert torch.equal(both, outer), "closed gates add nothing"
    torch.testing.assert_close(outer[:, -1:], alone[0])


@torch.no_grad()
def test_parts_of_two_grids_are_one_batch():
    vlm = built(language_model("llama"), "early")
    one, other = tokens(2, 2, 3), tokens(1, 3, 4, seed=6)
    made = interleaved(tokenizer(), [f"what {IMAGE} is {IMAGE}", f"{IMAGE} a"], [2, 1])
    out = vlm(made, [one, other])
    assert out.bridged is not None
    assert out.bridged.mask.sum(dim=1).tolist() == [6, 6, 12]
    alone = vlm(interleaved(tokenizer(), [f"{IMAGE} a"], [1]), other)
    torch.testing.assert_close(out.logits[1], alone.logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fusion", ["early", "late", "deep", "hybrid"])
def test_a_tokenizer_without_ends_and_gaps(fusion):
    lm = language_model("gpt2")
    bare = tokenizer(bos=False, eos=False, pad=False)
    vlm = built(lm, fusion, bare)
    photo = Image.new("RGB", (24, 16), (200, 30, 30))
    assert len(vlm.answer([[photo], []], ["what is", "a red"], max_new_tokens=3)) == 2
    vlm = built(lm, fusion, tokenizer(bos=False, pad=False))
    assert len(vlm.answer([photo, photo], ["what is", "a red cat"], max_new_tokens=3)) == 2


def test_an_answer_ends_with_the_tokenizers_end():
    lm = language_model("llama")
    lm.generation_config.eos_token_id = 7
    vlm = built(lm, "early")
    said: dict[str, Any] = {}
    vlm.language_model.generate = lambda **given: said.update(given) or torch.zeros(4, 1, dtype=torch.long)  # pyright: ignore
    vlm.generate(prompts(), ragged())
    assert said["eos_token_id"] == [2, 7]
    assert said["pad_token_id"] == 0
    vlm.generate(prompts(), ragged(), eos_token_id=5, pad_token_id=4)
    assert (said["eos_token_id"], said["pad_token_id"]) == (5, 4)


def test_answers_from_images_of_two_sizes():
    vlm = built(language_model("qwen2"), "early")
    small, wide = Image.new("RGB", (24, 16), (250, 10, 10)), Image.new("RGB", (48, 16), (10, 10, 250))
    texts = ["what is this ?", f"{IMAGE} red . {IMAGE} two", "yes"]
    images = [small, [wide, small], []]
    said = vlm.answer(images, texts, max_new_tokens=5, do_sample=False)
    assert said == [
        vlm.answer([some], [text], max_new_tokens=5, do_sample=False)[0]
        for some, text in zip(images, texts, strict=True)
    ]
    made, parts, asked = vlm.prepared([[small], [wide, small], []], texts)
    assert [part.grid for part in parts] == [(1, 2, 3), (1, 2, 6), (1, 2, 3)]
    assert asked is None, "what no bridge hears is not asked"
    assert made.image.sum(dim=1).tolist() == [1, 2, 0]


def test_each_image_is_asked_its_prompts_question():
    torch.manual_seed(0)
    vlm = VLM(ToyEye(), "top", language_model("llama"), tokenizer()).eval()
    photo = Image.new("RGB", (24, 16), (250, 10, 10))
    _, _, asked = vlm.prepared([[photo, photo], [], [photo]], [f"is {IMAGE} a {IMAGE} cat", "no", "what"])
    assert asked is not None
    want = torch.cat([ToyEye().ask("is a cat").features] * 2 + [ToyEye().ask("what").features])
    assert torch.equal(asked.features, want)
    assert len(vlm.answer([[photo], []], ["what is", "no"], budget=2, max_new_tokens=2)) == 2


def test_an_image_may_stand_alone():
    """A bridge that hears nothing needs no question."""
    vlm = built(language_model("llama"), "early")
    assert len(vlm.answer([Image.new("RGB", (24, 16))], [""], max_new_tokens=2)) == 1


@pytest.mark.parametrize("mechanism", ["cascade", "recurrent", "relevance"])
def test_the_embedded_eye_end_to_end(mechanism):
    torch.manual_seed(0)
    vlm = regard.VLM("embedded", mechanism, language_model("llama"), tokenizer(), "early").eval()
    assert isinstance(vlm.eye, EmbeddedEye)
    red, wide = Image.new("RGB", (64, 96), (250, 10, 10)), Image.effect_noise((128, 64), 80).convert("RGB")
    texts = ["what is this ?", "a dog ?"]
    said = vlm.answer([red, wide], texts, budget=4, max_new_tokens=4, do_sample=False)
    assert said == [
        vlm.answer([image], [text], 4, max_new_tokens=4)[0] for image, text in zip((red, wide), texts, strict=True)
    ]
    made, parts, asked = vlm.prepared([[red], [wide]], texts)
    assert [part.grid for part in parts] == [(1, 3, 2), (1, 2, 4)]
    bridged = vlm(made, parts, asked, 4).bridged
    assert bridged is not None
    assert bridged.mask.sum(dim=1).tolist() == [4, 4]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda v: v(prompts(), tokens(5, 2, 3)), DataError, "have 6 images and there are tokens of 5"),
        (lambda v: v(prompts()), DataError, "have 6 images and there are tokens of 0"),
        (lambda v: v(prompts([1]), tokens(1)), DataError, "have 0 images and there are tokens of 1"),
        (lambda v: v(prompts(), tokens(6, width=7)), ShapeError, "width 11, got 7"),
        (lambda v: v.answer([[]], ["a", "b"]), DataError, "2 prompts need as many lists of images, got 1"),
        (lambda v: v.answer([], []), DataError, "no prompts"),
        (lambda v: v.answer([Image.new("RGB", (16, 16))], [f"{IMAGE} {IMAGE}"]), DataError, "prompt 0 has 2 <image>"),
        (lambda v: v.generate(prompts(), ragged(), use_cache=False), ModelError, "leave use_cache out"),
    ],
)
def test_what_does_not_fit_is_one_line(wrong, error, message):
    vlm = built(language_model("llama"), "early")
    with pytest.raises(error, match=message) as raised:
        wrong(vlm)
    assert "\n" not in str(raised.value)


def test_late_fusion_needs_a_word_after_an_image():
    bare = tokenizer(bos=False)
    vlm = built(language_model("llama"), "late", bare)
    for words, answers in (("what", None), ("", None), ("what", ["red"])):
        with pytest.raises(DataError, match="prompt 1 ends with an image, which no word sees"):
            vlm(interleaved(bare, ["what", f"{words} {IMAGE}"], [0, 1], answers and ["no", *answers]), tokens(1))
    assert vlm(interleaved(bare, [f"{IMAGE} what"], [1], ["red"]), tokens(1)).loss is not None
    empty = replace(tokens(1), mask=torch.zeros(1, 12).bool())
    with pytest.raises(DataError, match="prompt 0 has no word"):
        built(language_model("llama"), "early", bare)(interleaved(bare, [IMAGE], [1]), empty)


@pytest.mark.parametrize("fusion", ["early", "deep", "hybrid"])
def test_a_prompt_may_end_with_an_image_in_it(lm, fusion):
    vlm, made, seen = built(lm, fusion), interleaved(tokenizer(), [f"what {IMAGE}", "a"], [1, 0]), tokens(1)
    assert answered(vlm, made, seen) == loop(vlm, made, seen, 6)


def test_parts_that_do_not_fit_are_one_line():
    lm = language_model("llama")
    for bridge in (load("all", 7, 24), load("all", 11, 23)):
        with pytest.raises(ModelError, match="the bridge must go from 11 to 24 wide, got"):
            VLM(ToyEye(), bridge, lm, tokenizer())
    with pytest.raises(ModelError, match="the eye is on meta and the language model on cpu: move both"):
        VLM(ToyTower().to("meta"), "all", lm, tokenizer())  # pyright: ignore
    with pytest.raises(ModelError, match="no name to find its tokenizer by: give tokenizer"):
        VLM(ToyEye(), "all", lm)
    with pytest.raises(ModelError, match="the language model '/nowhere/at/all' cannot be loaded") as raised:
        VLM(ToyEye(), "all", "/nowhere/at/all")
    assert "\n" not in str(raised.value)
    with pytest.raises(ModelError, match="the eye '/nowhere/eye' cannot be loaded|of '/nowhere/eye'") as raised:
        VLM("/nowhere/eye", "all", lm, tokenizer())
    assert "\n" not in str(raised.value)
    assert VLM(ToyEye(), load("all", 11, 24), lm, tokenizer()).mechanism == "projector"


def test_parts_by_name_are_frozen(tmp_path):
    language_model("qwen2").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    vlm = VLM("embedded", "all", str(tmp_path))
    assert not any(value.requires_grad for value in vlm.language_model.parameters())
    assert not vlm.language_model.training
    assert vlm.tokenizer.eos_token_id == 2
    assert len(vlm.answer([[]], ["what is"], max_new_tokens=2)) == 1
    same = VLM(ToyEye(), "all", vlm.language_model)
    assert same.tokenizer.bos_token_id == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parts_have_the_language_models_dtype(dtype):
    lm = language_model("llama", dtype=dtype)
    for fusion in FUSIONS:
        vlm = built(lm, fusion)
        out = vlm(prompts(), ragged())
        assert out.logits.dtype == dtype
        assert bool(out.logits.isfinite().all())
        vlm.generate(prompts(), ragged(), max_new_tokens=2)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_adapter_of_peft(fusion):
    import peft

    lm = language_model("llama")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    plain = built(lm, fusion)
    before = plain(prompts(), ragged()).logits
    wrapped: Any = peft.get_peft_model(lm, lora).eval()
    for vlm in (built(wrapped, fusion), plain):
        vlm.language_model = wrapped
        torch.testing.assert_close(vlm(prompts(), ragged()).logits, before, rtol=1e-4, atol=1e-4)
        assert answered(vlm, prompts(), ragged()) == loop(vlm, prompts(), ragged(), 6)
        loss = vlm(interleaved(tokenizer(), TEXTS, COUNTS, ["yes"] * 4), ragged()).loss
        assert loss is not None
        loss.backward()
        learn = [value.grad for name, value in wrapped.named_parameters() if ".lora_B" in name]
        assert len(learn) == 6
        assert all(grad is not None and bool(grad.any()) for grad in learn)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if ".lora_B" in name:
                value.normal_()
    assert not torch.allclose(plain(prompts(), ragged()).logits, before, atol=1e-2)
    assert hooks(wrapped) == 0


def test_a_question_of_each_image_reaches_the_bridge():
    vlm = VLM(ToyEye(), "recurrent", language_model("llama"), tokenizer()).eval()
    made, seen = prompts(), tokens(6, 2, 3)
    whole = vlm(made, [seen.images(torch.arange(2)), seen.images(torch.arange(2, 6))], question(6), 3)
    torch.testing.assert_close(whole.logits, vlm(made, seen, question(6), 3).logits, rtol=1e-4, atol=1e-4)
    other = vlm(made, seen, question(6, seed=9), 3)
    assert not torch.allclose(whole.logits[0], other.logits[0])
    with pytest.raises(DataError, match="needs a question"):
        VLM(ToyEye(), "top", language_model("llama"), tokenizer())(made, seen, None, 3)
