"""What fusion does to a language model while it runs: early, late and deep, on four families of models."""

from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regard.attention.expert import VisualExpertBlock, image_positions, routed
from regard.errors import ModelError
from regard.vlm.compose import VLM
from regard.vlm.fusion import complete, load
from regard.vlm.fusion.deep import Deep
from regard.vlm.fusion.fusion import base_of, decoder_layers, takes_positions
from regard.vlm.fusion.late import Late
from regard.vlm.interleaved import IMAGE, Interleaved, Spliced, interleaved, spliced
from tiny_lms import NAMES, VOCAB, ToyEye, config, language_model, tokenizer, tokens

TEXTS = [f"what {IMAGE} is this {IMAGE} a red cat", "a dog ?", f"{IMAGE} two"]
COUNTS = [2, 0, 1]


@pytest.fixture(scope="module", params=NAMES)
def lm(request) -> Any:
    return language_model(request.param)


def prompts() -> Interleaved:
    return interleaved(tokenizer(), TEXTS, COUNTS, ["yes", "no", "the cat"])


def built(lm: Any, fusion: str, mechanism: str = "all", **arguments: Any) -> VLM:
    torch.manual_seed(4)
    vlm = VLM(ToyEye(), mechanism, lm, tokenizer(), fusion, fusion_arguments=arguments).eval()
    with torch.no_grad():
        for value in vlm.bridge.parameters():
            value.normal_(0, 0.3)
    return vlm


@torch.no_grad()
def opened(vlm: VLM) -> VLM:
    """With gates open, or experts that are others than the language model's own."""
    torch.manual_seed(5)
    for name, value in vlm.fusion.named_parameters():
        value.fill_(0.8) if name.endswith("gate") else value.add_(torch.randn_like(value) * 0.3)
    return vlm


def plain(lm: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, keep: int) -> Tensor:
    given = {"attention_mask": mask.long(), "position_ids": positions, "use_cache": False}
    return lm(inputs_embeds=embeddings, **given).logits[:, -keep:]


def words(lm: Any, made: Interleaved) -> Tensor:
    return lm.get_input_embeddings()(made.ids)


def by_hand(vlm: VLM, made: Interleaved, seen: Any) -> Spliced:
    """What early fusion reads, of tokens that are all real."""
    features = vlm.bridge(seen, None).features
    return spliced(made, words(vlm.language_model, made), features, torch.ones_like(features[..., 0]).bool())


def assert_real(got: Tensor, want: Tensor, mask: Tensor, **close: Any) -> None:
    """Equal where a token is real; padding sees nothing and says whatever it likes."""
    keep = mask[:, -got.shape[1] :]
    torch.testing.assert_close(got[keep], want[keep], **{"rtol": 0.0, "atol": 0.0, **close})


@torch.no_grad()
def test_early_is_the_model_given_embeddings(lm):
    vlm, made, seen = built(lm, "early"), prompts(), tokens(3)
    out = vlm(made, seen)
    embeddings, n = words(lm, made), seen.features.shape[1]
    features = vlm.bridge(seen, None).features
    rows = [
        torch.cat([embeddings[0, :2], features[0], embeddings[0, 3:5], features[1], embeddings[0, 6:]]),
        embeddings[1][made.mask[1]],
    ]
    third = embeddings[2][made.mask[2]]
    rows.append(torch.cat([third[:1], features[2], third[2:]]))
    longest = max(map(len, rows))
    assert longest == made.ids.shape[1] - 2 + 2 * n
    whole = torch.stack([nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    keep = out.logits.shape[1]
    assert keep == 4, "the answers have 3 tokens at most"
    assert_real(out.logits, plain(lm, whole, mask, positions, keep), mask)
    assert not torch.allclose(out.logits[0], vlm(made, tokens(3, seed=8)).logits[0])


def test_the_loss_is_the_mean_over_answers_and_ends(lm):
    vlm, made, seen = built(lm, "early"), prompts(), tokens(3)
    out = vlm(made, seen)
    spell = by_hand(vlm, made, seen)
    logits = plain(lm, spell.embeddings, spell.mask, spell.positions, spell.mask.shape[1])
    costs = []
    for row, answer in enumerate(([21, 2], [22, 2], [18, 11, 2])):
        ids = tokenizer()(["yes", "no", "the cat"][row], add_special_tokens=False)["input_ids"] + [2]
        assert len(ids) == len(answer)
        said = logits[row, -len(ids) - 1 : -1].log_softmax(dim=1)
        costs += [-said[place, label] for place, label in enumerate(ids)]
    assert len(costs) == 7
    assert out.loss is not None
    torch.testing.assert_close(out.loss, torch.stack(costs).mean())
    unlearned = interleaved(tokenizer(), TEXTS, COUNTS)
    nothing = vlm(unlearned, seen)
    assert nothing.loss is None
    assert nothing.logits.shape[1] == 1


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["early", "late", "deep"])
def test_text_alone_is_the_language_models_own(lm, fusion):
    made = interleaved(tokenizer(), ["a dog ?", "what is this two"], [0, 0], ["no", "a cat"])
    vlm = opened(built(lm, fusion))
    out = vlm(made)
    positions = (made.mask.cumsum(dim=1) - 1).clamp(min=0)
    want = plain(lm, words(lm, made), made.mask, positions, out.logits.shape[1])
    assert_real(out.logits, want, made.mask)
    assert out.bridged is None


@torch.no_grad()
def test_late_begins_as_the_language_model(lm):
    made, seen, vlm = prompts(), tokens(3), built(lm, "late")
    text = spliced(made, words(lm, made))
    out = vlm(made, seen)
    want = plain(lm, text.embeddings, text.mask, text.positions, out.logits.shape[1])
    assert_real(out.logits, want, text.mask)
    after = opened(vlm)(made, seen).logits
    assert not torch.allclose(after[0], want[0], atol=1e-2)
    assert not torch.allclose(after[2], want[2], atol=1e-2)
    torch.testing.assert_close(after[1, -3:], want[1, -3:], rtol=1e-4, atol=1e-5)


def everywhere(vlm: VLM, made: Interleaved, seen: Any) -> Tensor:
    """Logits of all tokens."""
    _, prompt, memory, shown = vlm._read(made, seen, None, None)
    with vlm.fusion.within(vlm.language_model, prompt, memory, shown):
        return plain(vlm.language_model, prompt.embeddings, prompt.mask, vlm.fusion.positions(prompt), 99)


@torch.no_grad()
@pytest.mark.parametrize("every", [False, True])
def test_a_word_sees_the_last_image_before_it(lm, every):
    """One layer, so that nothing comes by way of other words."""
    one = language_model(lm.config.model_type, layers=1)
    vlm = opened(built(one, "late", every_image=every))
    made = interleaved(tokenizer(), [f"what {IMAGE} is this {IMAGE} a red {IMAGE} cat"], [3])
    base, before = everywhere(vlm, made, tokens(3)), made.image.cumsum(dim=1)
    text = before[0][~made.image[0]]
    assert text.tolist() == [0, 0, 1, 1, 2, 2, 3]
    for image in range(3):
        seen = tokens(3)
        seen.features[image] += 3 * torch.randn(12, 11, generator=torch.Generator().manual_seed(0))
        changed = (everywhere(vlm, made, seen) != base).any(dim=2)[0]
        # causal: what an earlier word becomes, later ones read in the layer after it is fused
        first = int((text == image + 1).nonzero()[0])
        assert not changed[:first].any()
        direct = changed[text == image + 1]
        assert bool(direct.all())
    # the fusing alone, before the layer mixes words
    spell = spliced(made, words(one, made))
    got = {}

    def keep(module: nn.Module, given: tuple, named: dict) -> None:
        got["x"] = given[0] if given else named["hidden_states"]

    fused = []
    for image in (None, 0, 1, 2):
        seen = tokens(3)
        if image is not None:
            seen.features[image] += 3
            seen.features[image, :, ::2] -= 5
        _, prompt, memory, shown = vlm._read(made, seen, None, None)
        with vlm.fusion.within(one, prompt, memory, shown):
            handle = decoder_layers(one)[0].register_forward_pre_hook(keep, with_kwargs=True)
            plain(one, prompt.embeddings, prompt.mask, prompt.positions, 1)
            handle.remove()
        fused.append(got["x"][0])
    for image in range(3):
        changed = (fused[image + 1] != fused[0]).any(dim=1)
        want = text >= image + 1 if every else text == image + 1
        assert changed.tolist() == want.tolist()
    assert spell.mask.shape[1] == 7


@torch.no_grad()
def test_images_of_other_prompts_are_not_seen(lm):
    vlm, made = opened(built(lm, "late")), prompts()
    base = vlm(made, tokens(3)).logits
    seen = tokens(3)
    seen.features[2] += torch.randn(12, 11)
    other = vlm(made, seen).logits
    assert torch.equal(base[:2], other[:2])
    assert not torch.allclose(base[2], other[2], atol=1e-3)
    alone = vlm(interleaved(tokenizer(), [TEXTS[2]], [1], ["the cat"]), seen.images(torch.tensor([2]))).logits
    torch.testing.assert_close(alone[0], other[2, -alone.shape[1] :], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("where", "places"),
    [
        ("every 1", [0, 1, 2, 3, 4]),
        ("every 2", [0, 2, 4]),
        ("every 5", [0]),
        ("early", [0, 1, 2]),
        ("late", [3, 4]),
        ([4, 1, 1], [1, 4]),
    ],
)
def test_where_cross_attention_goes(where, places):
    lm = language_model("llama", layers=5)
    fusion = load("late", lm, where=where)
    assert isinstance(fusion, Late)
    assert fusion.places == places
    assert len(fusion.blocks) == len(places)
    with fusion.within(lm, spliced(prompts(), words(lm, prompts())), torch.zeros(3, 1, 2, 24), torch.ones(3, 1, 2) > 0):
        hooked = [bool(layer._forward_pre_hooks) for layer in decoder_layers(lm)]
    assert [place for place, there in enumerate(hooked) if there] == places


@pytest.mark.parametrize("where", ["every 0", "every 6", "every", "middle", [], [5], [-1], [0.5]])
def test_where_it_cannot_go(where):
    with pytest.raises(ModelError, match="layers") as raised:
        load("late", language_model("llama", layers=5), where=where)
    assert "\n" not in str(raised.value)


@torch.no_grad()
def test_deep_begins_as_the_language_model(lm):
    made, seen, vlm = prompts(), tokens(3), built(lm, "deep", shared=False)
    spell = by_hand(vlm, made, seen)
    out = vlm(made, seen)
    want = plain(lm, spell.embeddings, spell.mask, spell.positions, out.logits.shape[1])
    assert_real(out.logits, want, spell.mask, rtol=1e-4, atol=1e-4)
    after = opened(vlm)(made, seen).logits
    assert not torch.allclose(after[0], want[0], atol=1e-2)
    assert not torch.allclose(after[2], want[2], atol=1e-2)
    torch.testing.assert_close(after[1, -3:], want[1, -3:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_every_linear_map_has_an_expert(lm):
    vlm = built(lm, "deep")
    made, seen = prompts(), tokens(3)
    assert isinstance(vlm.fusion, Deep)
    base = vlm(made, seen).logits
    kinds = (nn.Linear, transformers.pytorch_utils.Conv1D)
    maps = [name for name, module in decoder_layers(lm)[1].named_modules() if isinstance(module, kinds)]
    assert len(maps) == {"gpt2": 4, "opt": 6}.get(lm.config.model_type, 7)
    experts = vlm.fusion.experts[1]
    assert isinstance(experts, nn.ModuleDict)
    assert {name.replace("/", ".") for name in experts} == set(maps)
    for expert in experts.values():
        assert isinstance(expert.weight, Tensor)
        held = expert.weight.clone()
        expert.weight += torch.randn_like(held)
        assert not torch.allclose(vlm(made, seen).logits, base, atol=1e-4)
        expert.weight.copy_(held)
    assert torch.equal(vlm(made, seen).logits, base)


@torch.no_grad()
def test_the_last_token_of_an_image_is_of_the_language_expert(lm):
    """In one layer whose outputs are read before words mix: which tokens an expert's change reaches."""
    one = language_model(lm.config.model_type, layers=1)
    vlm = built(one, "deep")
    made, seen = prompts(), tokens(3)
    spell = by_hand(vlm, made, seen)
    assert isinstance(vlm.fusion, Deep)
    experts: Any = vlm.fusion.experts[0]
    name, expert = next(iter(experts.items()))
    module = decoder_layers(one)[0].get_submodule(name.replace("/", "."))
    outputs = []
    for _ in range(2):
        with vlm.fusion.within(one, spell, None, None):
            handle = module.register_forward_hook(lambda module, given, out: outputs.append(out))
            plain(one, spell.embeddings, spell.mask, vlm.fusion.positions(spell), 1)
            handle.remove()
        expert.weight.add_(torch.randn_like(expert.weight))
    changed = (outputs[0] != outputs[1]).any(dim=-1).view_as(spell.image)
    want = spell.image.clone()
    for row, places in enumerate(spell.image):
        for end in (places & ~nn.functional.pad(places[1:], (0, 1))).nonzero()[:, 0]:
            want[row, end] = False
    assert int(want.sum()) == 3 * 11
    assert torch.equal(changed, want)
    assert torch.equal(changed, routed(spell.image))


@torch.no_grad()
def test_a_layer_is_cogvlms():
    """One layer equal to the independent `VisualExpertBlock`, in float64, with experts unlike the language model's."""
    given = config("llama")
    given.num_key_value_heads, given.pad_token_id = 6, None
    torch.manual_seed(0)
    lm = transformers.LlamaForCausalLM(given).eval().double()
    vlm = opened(built(lm, "deep"))
    made = prompts()
    _, prompt, *_ = vlm._read(made, tokens(3), None, None)
    positions = vlm.fusion.positions(prompt)
    assert torch.equal(positions, image_positions(prompt.image, prompt.mask))
    with vlm.fusion.within(lm, prompt, None, None):
        given = {"attention_mask": prompt.mask.long(), "position_ids": positions, "use_cache": False}
        states = lm(inputs_embeds=prompt.embeddings, output_hidden_states=True, **given).hidden_states
    assert isinstance(vlm.fusion, Deep)
    for place in (0, 1):
        block = VisualExpertBlock.from_transformers(decoder_layers(lm)[place])
        experts = {name.split("/")[-1]: e.weight for name, e in vlm.fusion.experts[place].items()}  # pyright: ignore
        block.attention.vision_qkv.weight.copy_(torch.cat([experts[f"{n}_proj"] for n in "qkv"]))
        block.attention.vision_out.weight.copy_(experts["o_proj"])
        block.vision_mlp.widen.weight.copy_(torch.cat([experts["gate_proj"], experts["up_proj"]]))  # pyright: ignore
        block.vision_mlp.narrow.weight.copy_(experts["down_proj"])  # pyright: ignore
        real = prompt.mask
        close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}  # Llama's norms and rotary angles are made in float32
        torch.testing.assert_close(block(states[place], prompt.image, real)[real], states[place + 1][real], **close)
        block.attention.vision_out.weight.mul_(1.01)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(block(states[place], prompt.image, real)[real], states[place + 1][real], **close)


@torch.no_grad()
def test_shared_positions_are_cogvlms(lm):
    vlm, made, seen = built(lm, "deep"), prompts(), tokens(3)
    spell = by_hand(vlm, made, seen)
    positions = vlm.fusion.positions(spell)
    n = seen.features.shape[1]
    assert positions[2][spell.mask[2]].tolist() == [0, 1, *[2] * (n - 2), 3, *range(4, 8)]
    out = vlm(made, seen)
    want = plain(lm, spell.embeddings, spell.mask, positions, out.logits.shape[1])
    assert_real(out.logits, want, spell.mask, rtol=1e-4, atol=1e-4)


def test_gradients_reach_what_learns(lm):
    for name in ("early", "late", "deep"):
        vlm = built(lm, name)
        if name == "late":
            opened(vlm)
        out = vlm.train()(prompts(), tokens(3))
        assert out.loss is not None
        out.loss.backward()
        for part, value in [*vlm.bridge.named_parameters(), *vlm.fusion.named_parameters()]:
            assert value.grad is not None, part
            # a softmax does not see the keys' bias, and what images become in the last layer, nobody reads
            if not part.endswith("k_proj.bias") and not part.startswith("experts.2"):
                assert bool(value.grad.any()), f"{name} {part}"
        assert all(value.grad is None for value in lm.parameters())
        vlm.eval()


def test_closed_gates_learn_to_open(lm):
    vlm = built(lm, "late")
    out = vlm(prompts(), tokens(3))
    assert out.loss is not None
    out.loss.backward()
    gates = [value.grad for name, value in vlm.fusion.named_parameters() if name.endswith("gate")]
    assert len(gates) == 6
    assert all(grad is not None and bool(grad.any()) for grad in gates)


def test_models_that_cannot_be_fused_are_one_line():
    sizes: dict[str, Any] = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2, "vocab_size": 29}
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**sizes, vocab_size=29))
    for model, message in (
        (t5, "T5ForConditionalGeneration has an encoder and a decoder: take a causal"),
        (bert, "BertForMaskedLM does not write: take a causal"),
        (language_model("llama").model, "LlamaModel does not write"),
        (nn.Linear(2, 2), "Linear does not write"),
    ):
        for name in ("early", "late", "deep"):
            with pytest.raises(ModelError, match=message) as raised:
                VLM(ToyEye(), "all", model, tokenizer(), name)
            assert "\n" not in str(raised.value)


def test_layers_are_found(lm):
    layers = decoder_layers(lm)
    assert len(layers) == 3
    assert "Layer" in type(layers[0]).__name__ or "Block" in type(layers[0]).__name__
    assert base_of(lm) is lm
    assert takes_positions(lm)


@torch.no_grad()
def test_models_that_count_positions_themselves():
    bloom, made, seen = language_model("bloom"), prompts(), tokens(3)
    assert not takes_positions(bloom)
    with pytest.raises(ModelError, match="counts positions itself: take shared=False"):
        built(bloom, "deep")
    for name in ("early", "late"):
        whole = opened(built(bloom, name))(made, seen).logits
        alone = opened(built(bloom, name))(
            interleaved(tokenizer(), TEXTS[2:], [1], ["the cat"]), tokens(3).images(torch.tensor([2]))
        ).logits
        torch.testing.assert_close(alone[0], whole[2, -alone.shape[1] :], rtol=1e-3, atol=1e-4)


def test_gradient_checkpointing_is_refused_where_hooks_would_be_gone():
    lm = language_model("llama")
    layers: Any = decoder_layers(lm)
    for layer in layers:  # as gradient_checkpointing_enable does, which has another name in newer versions
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    made, seen = prompts(), tokens(3)
    for name in ("late", "deep"):
        vlm = built(lm, name).train()
        with pytest.raises(ModelError, match="disable it in the language model"):
            vlm(made, seen)
        vlm.eval()
        vlm(made, seen)
    vlm = built(lm, "early").train()
    out = vlm(made, seen)
    assert out.loss is not None
    out.loss.backward()
    with_ = [value.grad.clone() for value in vlm.bridge.parameters() if value.grad is not None]
    for layer in layers:
        layer.gradient_checkpointing = False
    vlm.zero_grad()
    vlm(made, seen).loss.backward()
    for one, value in zip(with_, vlm.bridge.parameters(), strict=True):
        torch.testing.assert_close(one, value.grad)


def test_names_and_arguments():
    lm = language_model("llama")
    with pytest.raises(ModelError, match="no fusion is named 'soft': the names are deep, early, late"):
        VLM(ToyEye(), "all", lm, tokenizer(), "soft")
    with pytest.raises(ModelError, match="fusion late: .*wings"):
        VLM(ToyEye(), "all", lm, tokenizer(), "late", fusion_arguments={"wings": 1})
    with pytest.raises(ModelError, match="hybrid fusion needs learned queries"):
        VLM(ToyEye(), "all", lm, tokenizer(), "hybrid")
    with pytest.raises(ModelError, match="fusion late: heads must be 1 or more, got -2"):
        VLM(ToyEye(), "all", lm, tokenizer(), "late", fusion_arguments={"heads": -2})
    assert complete("late")["where"] == "every 1"
    assert complete("deep") == {"shared": True}
    assert complete("early") == {}


def test_models_of_other_layers_are_refused():
    """Layers whose experts are one tensor, of which no copy would learn; and those that have no heads."""
    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "vocab_size": VOCAB}
    mixed = transformers.MixtralConfig(
        **sizes, intermediate_size=16, num_attention_heads=6, num_key_value_heads=2, num_local_experts=2
    )
    with pytest.raises(
        ModelError, match="MixtralDecoderLayer has mlp.*, which is no linear map and would get no expert"
    ):
        VLM(ToyEye(), "all", transformers.MixtralForCausalLM(mixed), tokenizer(), "deep")
    mamba = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, state_size=4))
    with pytest.raises(ModelError, match="a model of type mamba has no heads of its own: give heads"):
        VLM(ToyEye(), "all", mamba, tokenizer(), "late")
    VLM(ToyEye(), "all", mamba, tokenizer(), "late", fusion_arguments={"heads": 6})
