"""Every vision tower of Hugging Face as an eye: its tokens are the model's own states, alone and in a batch."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers

import tiny_towers
from regard.errors import DataError, ImageError, ModelError, ShapeError
from regard.eyes import SizedEye, _hf_towers
from regard.eyes.embedded import EmbeddedEye
from regard.eyes.huggingface import HuggingFaceEye
from tiny_towers import FAMILIES, LEADING, STAGES, photo

PHOTOS = [photo(53, 37, 1), photo(41, 71, 2)]
FLEXIBLE = ("siglip2", "siglip2_vision_model")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    return lambda family: tiny_towers.build(family, folder)


@pytest.fixture(scope="module")
def eye(path):
    return lambda family, **options: HuggingFaceEye.load(path(family), device="cpu", **options)


def own_states(path, family: str, layer: int | None) -> torch.Tensor:
    """The model's hidden state, without its leading tokens, by transformers alone."""
    if family == "blip-2":
        model: Any = transformers.Blip2ForConditionalGeneration.from_pretrained(path(family)).vision_model
    elif family == "blip_2_vision_model":
        model = transformers.Blip2VisionModel.from_pretrained(path(family))
    else:
        model = transformers.AutoModel.from_pretrained(path(family))
        model = getattr(model, "vision_model", model)
    inputs = tiny_towers.image_processor(family)(images=PHOTOS, return_tensors="pt")
    with torch.no_grad():
        out = model.eval()(**inputs, output_hidden_states=True)
    state = out.last_hidden_state if layer is None else out.hidden_states[layer]
    state = state.flatten(2).transpose(1, 2) if state.ndim == 4 else state
    return state[:, LEADING.get(family, 0) :]


@pytest.mark.parametrize("layer", [None, 0, 1, -1, -2])
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_models_own_states(eye, path, family, layer):
    looker = eye(family, layer=layer)
    tokens, wanted = looker.look(PHOTOS), own_states(path, family, layer)
    wanted = wanted[:, : tokens.features.shape[1]]
    assert tokens.features.shape[2] == looker.width
    assert (tokens.grid is None) == (family in FLEXIBLE)
    real = tokens.valid
    assert torch.allclose(tokens.features[real], wanted[real], atol=2e-5)
    assert not torch.allclose(tokens.features[real], wanted.roll(1, dims=1)[real], atol=1e-2)
    assert not tokens.features[~real].any()
    other = eye(family, layer=2 if layer != 2 else 1).look(PHOTOS).features
    if other.shape == tokens.features.shape and layer != -2:
        assert not torch.allclose(other[real], wanted[real], atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_its_images(eye, family):
    """Images of three sizes and numbers of tokens; the smallest first, which transformers' Swin would remember."""
    photos = [photo(49, 49, 3), photo(61, 97, 4), photo(97, 53, 5)]
    options = {} if family in FLEXIBLE else {"longest": 97}
    looker = eye(family, attention=family not in STAGES, **options)
    alone = [looker.look(image) for image in reversed(photos)][::-1]
    together = looker.look(photos)
    assert together.mask is not None
    assert len({len(tokens.boxes[0]) for tokens in alone}) > 1
    for number, tokens in enumerate(alone):
        real = together.valid[number]
        assert tokens.mask is None
        assert tokens.grid is not None
        assert int(real.sum()) == tokens.features.shape[1] == tokens.grid[1] * tokens.grid[2]
        assert torch.allclose(together.features[number, real], tokens.features[0], atol=1e-4)
        assert torch.equal(together.boxes[number, real], tokens.boxes[0])
        if tokens.aligned is not None and together.aligned is not None:
            assert torch.allclose(together.aligned[number, real], tokens.aligned[0], atol=1e-4)
        if family not in STAGES:
            assert torch.allclose(together.scores["attention"][number, real], tokens.scores["attention"][0], atol=1e-5)


def test_swin_forgets_a_small_picture_only_because_we_see_to_it(eye, monkeypatch):
    looker = eye("swin", longest=97)
    small, large = photo(49, 49, 3), photo(97, 97, 4)
    before = looker.look(large).features
    looker.look(small)
    assert torch.equal(looker.look(large).features, before)
    monkeypatch.setattr(_hf_towers, "windows_kept", lambda model: nullcontext())
    looker.look(small)
    assert not torch.allclose(looker.look(large).features, before, atol=1e-3)


def test_swins_windows_need_room_in_transformers_too(eye):
    """The bound is just where transformers fails."""
    looker, smallest = eye("swin", longest=97), 4 * 4 * 2 + 1
    for side in (smallest, smallest - 1):
        pixels = torch.zeros(1, 3, side, side)
        inputs = {"shapes": torch.tensor([[side, side]]), "parts": torch.tensor([[0.0, 0, 1, 1]])}
        inputs |= {"images": torch.tensor([0])}
        if side == smallest:
            looker(pixels, **inputs)
        else:
            with pytest.raises(ShapeError, match="needs 33 pixels a side, got 32 x 32"):
                looker(pixels, **inputs)
            with pytest.raises(RuntimeError), _hf_towers.windows_kept(looker.tower.model):
                looker.tower.model(pixels)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_pixels_and_every_layer(eye, family):
    looker = eye(family).train()
    inputs = looker.prepare(PHOTOS)
    inputs["pixel_values"].requires_grad_(True)
    tokens = looker(**inputs)
    (tokens.features * torch.linspace(-1, 1, tokens.features.shape[2])).square().sum().backward()
    pixels = inputs["pixel_values"].grad
    assert pixels is not None
    assert bool(pixels.abs().sum() > 0)
    skipped = ("pool", "head", "post_layernorm", "mask_token") + (("layernorm",) if "convnext" in family else ())
    for name, weight in looker.tower.named_parameters():
        known = weight.grad is not None and bool(weight.grad.any())
        assert known or any(part in name for part in skipped) or "k_proj.bias" in name, name


def test_look_takes_no_gradients_and_leaves_the_modes(eye):
    looker = eye("clip").train()
    looker.tower.model.encoder.layers[0].eval()
    tokens = looker.look(PHOTOS[0])
    assert not tokens.features.requires_grad
    assert looker.training
    assert not looker.tower.model.encoder.layers[0].training
    assert looker.tower.model.encoder.layers[1].training
    with pytest.raises(RuntimeError, match="size"):
        looker(**{**looker.prepare(PHOTOS[0]), "pixel_values": torch.zeros(1, 5, 28, 28)})


def test_no_hook_of_ours_is_left(eye):
    looker = eye("siglip", attention=True)
    layer = _hf_towers.before_last(looker.tower.model)
    looker.look(PHOTOS)
    assert not layer._forward_pre_hooks
    with pytest.raises(RuntimeError):
        looker(**{**looker.prepare(PHOTOS[0]), "pixel_values": torch.zeros(1, 5, 28, 28)})
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2", "dinov2", "swin", "convnext"])
def test_half_precision(eye, family):
    options = {} if family in FLEXIBLE else {"longest": 83}
    photos = [photo(53, 71, 1), photo(97, 53, 2)]
    near = eye(family, **options).look(photos)
    looker = eye(family, dtype=torch.bfloat16, attention=family not in STAGES, **options)
    tokens = looker.look(photos)
    assert tokens.features.dtype == torch.bfloat16
    assert tokens.boxes.dtype == torch.float32
    assert torch.equal(tokens.boxes, near.boxes)
    error = (tokens.features.float() - near.features).norm() / near.features.norm()
    assert 0 < error < 0.1
    if tokens.aligned is not None:
        assert tokens.aligned.dtype == torch.float32
        assert looker.ask("where is the cat").features.dtype == torch.float32


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in FLEXIBLE])
def test_everything_is_on_the_models_device(eye, family):
    """A device without data, which does not mix with the CPU; SigLIP 2 of transformers reads its mask's."""
    for options in ({}, {"tiles": 4}, {"longest": 97}):
        looker = eye(family, attention=family not in STAGES, **options).to("meta")
        tokens = looker.look([photo(97, 61), photo(71, 83)])
        found = [tokens.features, tokens.boxes, tokens.mask, tokens.aligned, tokens.keys, tokens.segment]
        assert {each.device.type for each in [*found, *tokens.scores.values()] if each is not None} == {"meta"}
        assert not looker.asked or looker.ask("where is the cat").features.device.type == "meta"


def test_any_mode_of_picture(eye):
    looker = eye("clip")
    grey, clear = PHOTOS[0].convert("L"), PHOTOS[0].convert("RGBA")
    assert torch.equal(looker.look(grey).features, looker.look(grey.convert("RGB")).features)
    assert torch.equal(looker.look(clear).features, looker.look(PHOTOS[0]).features)


def test_made_of_a_model_in_hand_and_of_one_with_a_head(path):
    whole = transformers.ViTForImageClassification.from_pretrained(path("vit"))
    looker = HuggingFaceEye(whole.eval(), tiny_towers.image_processor("vit"))
    assert torch.allclose(looker.look(PHOTOS).features, own_states(path, "vit", None), atol=1e-5)
    blip = transformers.Blip2ForConditionalGeneration.from_pretrained(path("blip-2")).eval()
    looker = HuggingFaceEye(blip, tiny_towers.image_processor("blip-2"))
    assert torch.allclose(looker.look(PHOTOS).features, own_states(path, "blip-2", None), atol=1e-5)
    assert not any("language" in name for name, _ in looker.named_parameters())


def test_what_it_offers(eye):
    seeing: SizedEye = eye("dinov2")
    assert seeing.name == "dinov2 dinov2"
    assert (seeing.width, EmbeddedEye().width) == (24, 1280)
    assert (eye("clip").asked, eye("siglip").asked, eye("vit").asked) == (17, 24, 0)


def test_models_that_cannot_be_eyes(path, tmp_path):
    with pytest.raises(ModelError, match="the configuration of .*nowhere.* cannot be loaded: OSError"):
        HuggingFaceEye.load(tmp_path / "nowhere")
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is of type bert: take one of CLIP, SigLIP, SigLIP 2, BLIP-2"):
        HuggingFaceEye.load(tmp_path)
    bare = tmp_path / "bare"
    transformers.AutoModel.from_pretrained(path("vit")).save_pretrained(bare)
    with pytest.raises(ModelError, match="the image processor of .* cannot be loaded"):
        HuggingFaceEye.load(bare)
    (bare / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="the model of .* cannot be loaded"):
        HuggingFaceEye.load(bare)
    small = transformers.ViTModel(transformers.ViTConfig(**tiny_towers.PLAIN, **tiny_towers.SQUARE))
    kept = {name: weight for name, weight in small.state_dict().items() if "layers.1" not in name}
    small.save_pretrained(bare, state_dict=kept)
    with pytest.raises(ModelError, match=r"lack 16 of the weights, such as layers\.1"):
        HuggingFaceEye.load(bare)
    with pytest.raises(ModelError, match="the device nothing, the model of .* cannot be loaded: RuntimeError"):
        HuggingFaceEye.load(path("vit"), device="nothing")


def test_parts_that_do_not_fit(path, eye):
    vit = transformers.ViTModel.from_pretrained(path("vit"))
    processor = tiny_towers.image_processor
    with pytest.raises(ModelError, match="Linear is no vision model that can be an eye"):
        HuggingFaceEye(torch.nn.Linear(2, 3), processor("vit"))
    with pytest.raises(ModelError, match="expected an image processor of CLIPImageProcessor, .*, got NoneType"):
        HuggingFaceEye(vit, None)
    with pytest.raises(ModelError, match="ViTModel cannot see what Siglip2ImageProcessor"):
        HuggingFaceEye(vit, processor("siglip2"))
    with pytest.raises(ModelError, match="layer must be from -4 to 3, got 4"):
        HuggingFaceEye(vit, processor("vit"), layer=4)
    with pytest.raises(ModelError, match="SwinModel has no attention over the whole picture"):
        eye("swin", attention=True)
    with pytest.raises(ModelError, match="RGB pictures, got one of 1 channels"):
        grey = transformers.ViTConfig(**tiny_towers.PLAIN, **tiny_towers.SQUARE, num_channels=1)
        HuggingFaceEye(transformers.ViTModel(grey), processor("vit"))


def test_pictures_that_cannot_be_seen(eye, unchecked):
    looker = eye("convnext", longest=90)
    with pytest.raises(DataError, match="expected a PIL image or some, got none"):
        looker.look([])
    with pytest.raises(DataError, match="expected a PIL image or some, got str"):
        looker.look(["cat.png"])
    with pytest.raises(ImageError, match="got 0 x 3"):
        looker.look(PHOTOS[0].crop((0, 0, 0, 3)))
    plain = HuggingFaceEye(looker.tower.model, tiny_towers.image_processor("convnext", do_resize=False))
    with pytest.raises(ShapeError, match="this encoder needs 16 pixels a side, got 9 x 53"):
        plain.look(photo(9, 53))
