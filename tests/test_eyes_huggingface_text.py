"""What is asked of a Hugging Face eye, and what allocators need of it: aligned patches, attention received, keys."""

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
import transformers

import regard
import tiny_towers
from regard.allocate import catalogue
from regard.errors import DataError, ModelError
from regard.eyes.huggingface import HuggingFaceEye
from tiny_towers import FAMILIES, LEADING, STAGES, TWO_TOWERS, photo

PHOTOS = [photo(53, 37, 1), photo(41, 71, 2)]
QUESTION = "where is the red cat"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    return lambda family: tiny_towers.build(family, folder)


@pytest.fixture(scope="module")
def eye(path):
    return lambda family, **options: HuggingFaceEye.load(path(family), device="cpu", **options)


def whole(path, family: str, **options) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model and its inputs by transformers alone, as its documentation has them."""
    model = transformers.AutoModel.from_pretrained(path(family), **options).eval()
    words = transformers.AutoTokenizer.from_pretrained(path(family))
    padding: dict[str, Any] = {} if family == "clip" else {"padding": "max_length", "max_length": 23}
    ids = {"input_ids": words(QUESTION, return_tensors="pt", **padding)["input_ids"]}
    return model, {**tiny_towers.image_processor(family)(images=PHOTOS, return_tensors="pt"), **ids}


def pooled_alone(model: Any, family: str, state: torch.Tensor) -> torch.Tensor:
    """Each position as the image's vector: CLIP's own of the class token, SigLIP's of a picture of one patch."""
    if family == "clip":
        return model.visual_projection(model.vision_model.post_layernorm(state))
    return torch.stack([model.vision_model.head(state[:, i : i + 1]) for i in range(state.shape[1])], dim=1)


@pytest.mark.parametrize("layer", [None, -2])
@pytest.mark.parametrize("family", TWO_TOWERS)
@torch.no_grad()
def test_relevance_is_the_cosine_of_patch_and_text(eye, path, family, layer):
    looker = eye(family, layer=layer)
    tokens, asked = looker.look(PHOTOS), looker.ask(QUESTION)
    model, inputs = whole(path, family)
    ids = inputs.pop("input_ids")
    last = model.vision_model(**inputs).last_hidden_state
    patches = pooled_alone(model, family, last)[:, LEADING.get(family, 0) :]
    text = model.get_text_features(input_ids=ids).pooler_output
    wanted = F.cosine_similarity(patches, text[:, None], dim=2)[:, : tokens.features.shape[1]]
    both = torch.cat((asked.features, asked.features))
    found = tokens.relevance(regard.Question(both))
    real = tokens.valid
    assert torch.allclose(found[real], wanted[real], atol=1e-5)
    assert float(wanted[real].std()) > 0.01
    assert not torch.allclose(found[real], wanted.roll(1, dims=1)[real], atol=1e-2)
    assert torch.allclose(tokens.aligned[real].norm(dim=1), torch.ones(int(real.sum())))
    assert asked.features.shape == (1, 1, looker.asked)
    plain = F.cosine_similarity(tokens.features[..., : text.shape[1]], text[:, None], dim=2)
    assert not torch.allclose(found[real], plain[real], atol=1e-2)


@torch.no_grad()
def test_clips_way_to_the_text_is_that_of_its_class_token(eye, path):
    looker = eye("clip")
    model, inputs = whole(path, "clip")
    last = model.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state
    image = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    assert torch.allclose(looker.space.patches(looker.tower.model, last)[:, 0], image, atol=1e-5)


@pytest.mark.parametrize("family", TWO_TOWERS)
def test_a_tower_trained_is_heard_anew(eye, family):
    looker = eye(family)
    first = looker.ask(QUESTION)
    assert first.reference is not None
    assert first.reference.shape == (64, looker.asked)
    assert torch.allclose(first.reference.norm(dim=1), torch.ones(64))
    assert first.text == QUESTION
    assert torch.allclose(looker.ask("a photo of a tench").features[0, 0], first.reference[0], atol=1e-5)
    assert looker.ask("the dog").reference is first.reference
    with torch.no_grad():
        looker.space.text_model.final_layer_norm.bias.add_(0.5)
    assert not torch.allclose(looker.ask(QUESTION).reference, first.reference, atol=1e-2)
    looker.double()
    assert looker.ask(QUESTION).reference.shape == (64, looker.asked)


def test_the_sign_turns_relevance_round(eye):
    sign: Literal[1, -1] = -1
    toward, away = eye("clip"), eye("clip", sign=sign)
    tokens = toward.look(PHOTOS[0])
    assert torch.equal(tokens.relevance(away.ask(QUESTION)), -tokens.relevance(toward.ask(QUESTION)))
    assert torch.equal(away.ask(QUESTION).reference, -toward.ask(QUESTION).reference)


def test_gradients_reach_the_text_space(eye):
    looker = eye("clip").train()
    tokens = looker(**looker.prepare(PHOTOS))
    tokens.relevance(regard.Question(torch.cat([looker.ask(QUESTION).features] * 2))).sum().backward()
    assert bool(looker.space.visual_projection.weight.grad.any())
    assert bool(looker.tower.model.post_layernorm.weight.grad.any())


def test_questions_that_cannot_be_heard(eye, path):
    for family in ("vit", "clip_vision_model", "siglip_vision_model", "blip-2"):
        looker = eye(family)
        assert looker.look(PHOTOS[0]).aligned is None
        with pytest.raises(ModelError, match="has no text tower, so it hears no question"):
            looker.ask(QUESTION)
    looker = eye("clip")
    with pytest.raises(DataError, match="the question is empty"):
        looker.ask(" ")
    with pytest.raises(DataError, match="the question has 24 tokens, clip clip hears 23: shorten it"):
        looker.ask("cat " * 22)
    assert looker.ask("cat " * 21).features.shape == (1, 1, 17)
    model = transformers.AutoModel.from_pretrained(path("siglip"))
    silent = HuggingFaceEye(model, tiny_towers.image_processor("siglip"))
    with pytest.raises(ModelError, match="has no tokenizer: give tokenizer="):
        silent.ask(QUESTION)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in STAGES])
@torch.no_grad()
def test_attention_and_keys_are_those_of_the_layer_before_the_last(eye, path, family):
    """As eager transformers gives them; ours never asks the kernel."""
    tokens = eye(family, attention=True).look(PHOTOS)
    kind: Any = {
        "blip-2": transformers.Blip2ForConditionalGeneration,
        "blip_2_vision_model": transformers.Blip2VisionModel,
    }.get(family, transformers.AutoModel)
    model = kind.from_pretrained(path(family), attn_implementation="eager").eval()
    model = getattr(model, "vision_model", model)
    inputs = dict(tiny_towers.image_processor(family)(images=PHOTOS, return_tensors="pt"))
    kept: list[torch.Tensor] = []
    modules = [m for name, m in model.named_modules() if name.endswith(("k_proj", "qkv"))]
    handle = modules[-2].register_forward_hook(lambda module, args, out: kept.append(out))
    maps = model(**inputs, output_attentions=True).attentions[-2].mean(dim=1)
    handle.remove()
    leading, n = LEADING.get(family, 0), tokens.features.shape[1]
    real = torch.ones(maps.shape[:2]) if "spatial_shapes" not in inputs else inputs["pixel_attention_mask"].float()
    rows = maps[:, 0] if leading else (maps * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
    found, valid = tokens.scores["attention"], tokens.valid
    assert torch.allclose(found[valid], rows[:, leading:][:, :n][valid], atol=1e-6)
    assert not torch.allclose(found[valid], rows[:, leading:][:, :n].roll(1, dims=1)[valid], atol=1e-4)
    if not leading:
        assert torch.allclose((found * valid).sum(dim=1), torch.ones(2), atol=1e-5)
    keys = kept[0].chunk(3, dim=-1)[1] if "blip" in family else kept[0]
    keys = keys.unflatten(-1, (2, 12)).mean(dim=2)[:, leading:][:, :n]
    assert tokens.keys is not None
    assert torch.allclose(tokens.keys[valid], keys[valid], atol=1e-5)


def test_maps_are_made_only_where_they_are_asked_for(eye):
    tokens = eye("dinov2").look(PHOTOS)
    assert tokens.keys is None
    assert not tokens.scores


def test_many_rows_at_a_time_are_as_one(eye, monkeypatch):
    looker = eye("siglip2", attention=True)
    once = looker.look(PHOTOS)
    monkeypatch.setattr("regard.eyes.encoder.CHUNK", 2 * 2 * 30 * 7)
    assert torch.allclose(looker.look(PHOTOS).scores["attention"], once.scores["attention"], atol=1e-6)


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
def test_look_feeds_every_allocator(eye, family):
    looker = eye(family, attention=True)
    record = regard.look(PHOTOS[0], [QUESTION, "a cup of coffee"], budget=5, eye=looker)
    assert {look.allocator for look in record.looks} == set(catalogue())
    assert {look.tokens_out for look in record.looks} == {5}
    assert record.eye == f"{family} {family}"


def test_look_with_tiles(eye):
    looker = eye("siglip", tiles=3, attention=True)
    record = regard.look(PHOTOS[0], "cat", budget=5, allocators=["divprune", "top"], eye=looker)
    assert {look.tokens_out for look in record.looks} == {5}
