"""The attention and the keys of an encoder's layer, against runs that give their weights."""

import pytest
import torch
from transformers import AutoConfig

import tiny_vlms as tiny
from regard.vlm.shorten import shorten
from test_families import Everything, given


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_attention_is_what_the_eager_kernel_gives(models, name):
    """Under SDPA, recomputed for one layer, against the weights of an eager run of the whole encoder."""
    inputs = tiny.inputs(name, [2, 1])
    ours = torch.cat([tokens.scores["attention"][0] for tokens in given(models(name), inputs)])
    want = eager_attention(models(name, "eager"), name, inputs)
    assert torch.allclose(ours, want, atol=1e-6)
    assert not torch.allclose(ours, want.flip(0), atol=1e-3)


def eager_attention(model, name, inputs):
    """Attention received, from `output_attentions`, carried to tokens by each family's own geometry, written out."""
    names = ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask")
    used = {key: inputs[key] for key in names if key in inputs}
    weights = []
    tower = next(m for n, m in model.model.named_children() if n in ("vision_tower", "vision_model", "visual"))
    from regard.eyes.encoder import attention_layers

    layers = attention_layers(tower)
    layer = 1  # of three: the one before the last, and the one of Qwen2.5's that sees all
    handles = []
    if name.startswith("qwen"):  # no weights come out: the softmax of this layer is watched
        original = torch.nn.functional.softmax

        def softmax(x, *args, **kwargs):
            y = original(x, *args, **kwargs)
            weights.append(y)
            return y

        flag = {"on": False}
        handles.append(layers[layer].register_forward_pre_hook(lambda *a: flag.update(on=True)))
        handles.append(layers[layer].register_forward_hook(lambda *a: flag.update(on=False)))
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            watched = lambda x, *a, **k: softmax(x, *a, **k) if flag["on"] else original(x, *a, **k)  # noqa: E731
            patch.setattr(torch.nn.functional, "softmax", watched)
            model.model.get_image_features(**used, return_dict=True)
    else:
        handles.append(layers[layer].register_forward_hook(lambda m, a, out: weights.append(out[1])))
        with torch.no_grad():
            model.model.get_image_features(**used, return_dict=True)
    for handle in handles:
        handle.remove()
    maps = [w.float().mean(dim=1) for w in weights]  # over heads: (T, S, S)
    if name.startswith("qwen"):
        received = [m.mean(dim=1)[0] for m in maps]  # one sequence an image
        parts = torch.cat(received).view(-1, 4).mean(dim=1)
        if name == "qwen2_5_vl":
            parts = parts[windows(inputs["image_grid_thw"], 2).argsort()]
        return parts
    whole = maps[0]
    from_class_token = name in ("llava", "llava_next", "internvl")
    received = whole[:, 0, 1:] if from_class_token else whole.mean(dim=1)
    if name in ("smolvlm", "idefics3", "internvl"):
        edge = 6
        received = received.view(-1, edge, edge).unfold(1, 2, 2).unfold(2, 2, 2).mean(dim=(-1, -2)).flatten(1)
    if name == "llava_next":
        return next_received(received, inputs["image_sizes"].tolist())
    return received.flatten()


def windows(grids, side):
    """The order in which Qwen2.5's encoder holds merged patches: window after window of side x side."""
    order, start = [], 0
    for _, h, w in (grids // torch.tensor([1, 2, 2])).tolist():
        places = torch.arange(h * w).view(h, w) + start
        for y in range(0, h, side):
            for x in range(0, w, side):
                order += places[y : y + side, x : x + side].flatten().tolist()
        start += h * w
    return torch.tensor(order)


def next_received(received, sizes):
    parts, start = [], 0
    for height, width in sizes:
        rows, columns = {(40, 90): (1, 2), (33, 31): (2, 2), (90, 30): (2, 1)}[height, width]
        tiles = received[start + 1 : start + 1 + rows * columns].view(rows, columns, 7, 7)
        canvas = torch.cat([torch.cat(list(row), dim=1) for row in tiles])
        h, w = tiny.unpadded(height, width, rows * columns)
        top, left = (canvas.shape[0] - h) // 2, (canvas.shape[1] - w) // 2
        cut = canvas[top : top + h, left : left + w]
        parts += [received[start], torch.cat((cut, torch.zeros(h, 1)), dim=1).flatten()]
        start += 1 + rows * columns
    return torch.cat(parts)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_keys_are_averaged_over_heads_and_patches(models, name):
    model, inputs = models(name), tiny.inputs(name, [1])
    tokens = given(model, inputs)[0]
    heads = 4 if "qwen" in name else 2
    width = 32 if "qwen" in name else 24
    assert tokens.keys is not None
    assert tokens.keys.shape == (1, tokens.features.shape[1], width // heads)
    if name not in ("paligemma", "llava_siglip"):
        return
    states = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[1]
    layer = model.model.vision_tower.encoder.layers[1]
    keys = layer.self_attn.k_proj(layer.layer_norm1(states))
    assert torch.allclose(tokens.keys, (keys[..., : width // 2] + keys[..., width // 2 :]) / 2, atol=1e-5)


def test_norms_of_queries_and_keys_are_taken(models):
    """InternVL's larger encoders have them."""
    from transformers import AutoModelForImageTextToText

    parts = tiny.parts("internvl")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "internvl", **{**parts, "vision_config": {**parts["vision_config"], "use_qk_norm": True}}
    )
    models_ = [AutoModelForImageTextToText.from_config(config, attn_implementation=k).eval() for k in ("sdpa", "eager")]
    for key, parameter in models_[0].named_parameters():
        if "_norm.weight" in key:
            torch.nn.init.normal_(parameter)
    models_[1].load_state_dict(models_[0].state_dict())
    inputs = tiny.inputs("internvl", [1])
    ours = given(models_[0], inputs)[0].scores["attention"][0]
    assert torch.allclose(ours, eager_attention(models_[1], "internvl", inputs), atol=1e-6)


@pytest.mark.parametrize("kind", ["bool", "added", "of keys", "blocks"])
def test_attention_under_every_kernels_mask(kind):
    """The last two of seven positions are padding: no attention goes there, whatever the mask's form."""
    from torch.nn.attention.flex_attention import create_block_mask

    from regard.eyes.encoder import _mean_rows

    q, k = torch.randn(3, 7, 2, 4), torch.randn(3, 7, 2, 4)
    real = torch.arange(7) < 5
    dense = real.expand(3, 1, 7, 7)
    mask = {
        "bool": dense,
        "added": torch.zeros(3, 1, 7, 7).masked_fill(~dense, torch.finfo(torch.float32).min),
        "of keys": real.expand(3, 7).long(),
        "blocks": create_block_mask(lambda b, h, i, j: real[j], 3, 1, 7, 7, device="cpu"),
    }[kind]
    want = torch.zeros(3, 7)
    for image in range(3):
        for head in range(2):
            weights = torch.softmax(q[image, :, head] @ k[image, :5, head].T / 2, dim=1)
            want[image, :5] += weights.mean(dim=0) / 2
    assert torch.allclose(_mean_rows(q, k, mask), want, atol=1e-6)


def test_rows_that_see_nothing_are_not_counted():
    from regard.eyes.encoder import _mean_rows

    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 7, 2, 4, generator=draw) for _ in range(2))
    real = torch.arange(7)[None] < 5
    padded = _mean_rows(q, k, real[:, None, :, None] & real[:, None, None])
    assert torch.allclose(padded[:, :5], _mean_rows(q[:, :5], k[:, :5], None), atol=1e-6)
    assert not padded[:, 5:].any()
    assert not torch.allclose(padded[:, :5], _mean_rows(q, k, real)[:, :5], atol=1e-3)


def test_only_what_is_needed_is_computed(models, monkeypatch):
    import regard.eyes.encoder as encoder

    calls = []
    for name in ("keys_of", "received"):
        original = getattr(encoder, name)
        monkeypatch.setattr(encoder, name, lambda *a, _n=name, _o=original: calls.append(_n) or _o(*a))
    model, inputs = models("llava"), tiny.inputs("llava", [1])
    short = shorten(model, inputs, "divprune", budget=4)
    assert calls == []
    assert short.tokens[0].keys is None
    assert short.tokens[0].aligned is None
    shorten(model, inputs, Everything(), budget=4)
    assert sorted(calls) == ["keys_of", "received"]


def test_pixtral_is_a_tower_of_llava(models, tmp_path):
    from transformers import AutoModelForImageTextToText

    seen = {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    seen |= {"num_attention_heads": 4, "image_size": 32, "patch_size": 4}
    more = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", "image_token_index": tiny.IMAGE}
    config = AutoConfig.for_model("llava", vision_config=seen, text_config=tiny.text("mistral"), **more)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    ids = [5, *[tiny.IMAGE] * 35, 6, *[tiny.IMAGE] * 24, 7, 8]
    pixels = torch.randn(2, 3, 28, 24)
    inputs = {
        "input_ids": torch.tensor([ids]),
        "pixel_values": pixels,
        "image_sizes": torch.tensor([[28, 20], [16, 24]]),
    }
    first, second = given(model, inputs)
    assert first.grid == (1, 7, 5)
    assert second.grid == (1, 4, 6)
    for tokens in (first, second):  # each image's attention is its own
        assert torch.allclose(tokens.scores["attention"].sum(), torch.tensor(1.0), atol=1e-5)
