"""Where each family's tokens stand in the image, and what its encoder's attention and keys are."""

import pytest
import torch
from transformers import AutoConfig

import tiny_vlms as tiny
from regard.allocation import Allocation
from regard.errors import DataError, ModelError
from regard.vlm import catalogue, family_of
from regard.vlm.families.internvl import arrangement
from regard.vlm.shorten import shorten


class Everything:
    """Keeps a notebook of what it was given; asks for all that there is."""

    needs = ("question", "keys", "scores:attention")

    def __init__(self):
        self.seen = []

    def allocate(self, tokens, question, budget):
        self.seen.append((tokens, question))
        return Allocation.select(torch.arange(budget).expand(len(tokens.features), -1), tokens.features.shape[1])


def given(model, inputs, **options):
    short = shorten(model, inputs, Everything(), budget=1, **options)
    return short.tokens


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_tokens_are_the_features_that_reach_the_language_model(models, name):
    model, inputs = models(name), tiny.inputs(name, [2, 1])
    embedding = model.get_input_embeddings()
    seen = []
    text = model.model.get_decoder() if hasattr(model.model, "get_decoder") else model.model.language_model
    handle = text.register_forward_pre_hook(lambda m, a, k: seen.append(k["inputs_embeds"]), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    at_images = seen[0][inputs["input_ids"] == tiny.IMAGE]
    ours = torch.cat([tokens.features[0] for tokens in given(model, inputs)])
    assert embedding is not None
    assert torch.allclose(ours, at_images, atol=1e-6)


LOCAL = [name for name in tiny.FAMILIES if "qwen" not in name]


@pytest.mark.parametrize("name", LOCAL)
def test_a_patch_of_the_image_changes_the_tokens_whose_boxes_hold_it(models, name):
    """With an encoder that looks nowhere else, the tokens that change are those of the patch's tile and place."""
    model, inputs = blind_to_context(models, name), tiny.inputs(name, [1])
    before = given(model, inputs)[0]
    pixels = inputs["pixel_values"]
    tiles = pixels.flatten(0, -4)
    edge, patch = tiles.shape[-1], 4
    for tile, y, x in ((0, 5, 9), (len(tiles) - 1, edge - 2, 1)):
        changed = tiles.clone()
        changed[tile, :, y, x] += 3
        after = given(model, {**inputs, "pixel_values": changed.view_as(pixels)})[0]
        moved = (after.features - before.features).abs().amax(dim=2)[0] > 1e-6
        inside = before.boxes[0][moved]
        assert 1 <= int(moved.sum()) <= 2, "one token of one tile (two where a tile's edge was cut)"
        place = within(before, tile, len(tiles))
        centre = torch.tensor([(x // patch + 0.5) * patch / edge, (y // patch + 0.5) * patch / edge])
        if place is None:  # LLaVA-NeXT's tiles are cut to the picture: another test has their boxes
            continue
        x0, y0, x1, y1 = place
        at = torch.tensor([x0, y0]) + centre * torch.tensor([x1 - x0, y1 - y0])
        assert (inside[:, :2] <= at + 1e-6).all()
        assert (at <= inside[:, 2:] + 1e-6).all()


def blind_to_context(models, name):
    """The model with an encoder whose attention adds nothing: each patch sees itself alone."""
    from copy import deepcopy

    model = deepcopy(models(name))
    tower = getattr(model.model, "vision_tower", None) or model.model.vision_model
    for key, parameter in tower.named_parameters():
        if any(part in key for part in ("out_proj", "projection_layer")):
            parameter.data.zero_()
    return model


def within(tokens, tile, count):
    """The part of the image that a tile of the encoder's is of: (x0, y0, x1, y1)."""
    if tokens.segment is None:
        return 0.0, 0.0, 1.0, 1.0
    whole = count - 1 if tokens.segment[0, -1] == 0 else 0  # the whole picture is the last tile, or the first
    if tile != whole and whole == 0:
        return None
    boxes = tokens.boxes[0][tokens.segment[0] == (0 if tile == whole else tile + 1)]
    return *boxes[:, :2].amin(dim=0).tolist(), *boxes[:, 2:].amax(dim=0).tolist()


@pytest.mark.parametrize("name", ["smolvlm", "idefics3", "internvl"])
def test_tiles_lie_in_rows_and_columns(models, name):
    model, inputs = models(name), tiny.inputs(name, [2, 1])
    first, second, third = given(model, inputs)
    rows, columns = (2, 3) if name != "internvl" else (3, 2)
    assert first.segment is not None
    for tile in range(rows * columns):
        boxes = first.boxes[0][first.segment[0] == tile + 1]
        corner = torch.tensor([tile % columns / columns, tile // columns / rows])
        assert torch.allclose(boxes[:, :2].amin(dim=0), corner, atol=1e-6)
        assert torch.allclose(boxes[:, 2:].amax(dim=0), corner + torch.tensor([1 / columns, 1 / rows]), atol=1e-6)
    whole = first.boxes[0][first.segment[0] == 0]
    assert len(whole) == 9
    assert torch.allclose(whole.amax(dim=0)[2:], torch.ones(2))
    assert (first.segment[0][-9:] == 0).all()
    assert second.grid == third.grid == (1, 3, 3)


def test_a_row_of_one_tile_is_told_from_a_column_of_one(models):
    def prompt(rows, columns):
        tile = [tiny.IMAGE] * 9
        ids = [7]
        for row in range(rows):
            for column in range(columns):
                ids += [tiny.FAKE, 50 + 4 * row + column, *tile]
            ids += [tiny.NEWLINE]
        ids += [tiny.NEWLINE, tiny.FAKE, tiny.GLOBAL, *tile, tiny.FAKE, 8]
        count = rows * columns + 1
        return {"input_ids": torch.tensor([ids]), "pixel_values": torch.randn(1, count, 3, 24, 24)}

    for rows, columns in ((1, 4), (4, 1), (2, 2), (1, 1)):
        (tokens,) = given(models("smolvlm"), prompt(rows, columns))
        assert torch.allclose(tokens.boxes[0, 0, 2:], torch.tensor([1 / columns / 3, 1 / rows / 3]))


@pytest.mark.parametrize(("rows", "columns"), [(1, 6), (6, 1), (2, 3), (3, 2), (3, 4), (4, 3), (5, 1)])
def test_the_thumbnail_tells_how_tiles_lie(rows, columns):
    photo = torch.randn(1, 3, 4 * rows, 4 * columns, generator=torch.Generator().manual_seed(rows))
    photo = torch.nn.functional.interpolate(photo, (40 * rows, 40 * columns), mode="bicubic")
    tiles = photo[0].unflatten(1, (rows, 40)).unflatten(3, (columns, 40)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    thumbnail = torch.nn.functional.interpolate(photo, (40, 40), mode="bilinear", antialias=True)
    assert arrangement(tiles, thumbnail[0]) == (rows, columns)


def test_newlines_are_empty_boxes_at_the_end_of_their_row(models):
    tokens = given(models("llava_next"), tiny.inputs("llava_next", [1]))[0]
    boxes = tokens.boxes[0][49:]
    h, w = tiny.unpadded(40, 90, 2)
    assert boxes.shape == (h * (w + 1), 4)
    ends = boxes.view(h, w + 1, 4)[:, -1]
    assert (ends[:, 0] == 1).all()
    assert (ends[:, 2] == 1).all()
    assert torch.allclose(ends[:, 3], torch.arange(1, h + 1) / h)
    assert torch.allclose(boxes.view(h, w + 1, 4)[0, 1], torch.tensor([1 / w, 0, 2 / w, 1 / h]))
    features = tokens.features[0][49:].view(h, w + 1, -1)
    assert torch.equal(features[:, -1], models("llava_next").model.image_newline.detach().expand(h, -1))
    scores = tokens.scores["attention"][0][49:].view(h, w + 1)
    assert (scores[:, -1] == 0).all()
    assert (scores[:, :-1] > 0).all()
    assert tokens.segment is not None
    assert (tokens.segment[0][:49] == 0).all()
    assert tokens.segment[0][49:].view(h, w + 1)[0].tolist() == [1] * 7 + [2] * 8


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_grids_of_any_size_are_rasters(models, name):
    for tokens, (h, w) in zip(given(models(name), tiny.inputs(name, [2, 1])), [(2, 3), (4, 2), (4, 2)], strict=True):
        assert tokens.grid == (1, h, w)
        assert torch.allclose(tokens.boxes[0, w, :], torch.tensor([0, 1 / h, 1 / w, 2 / h]))


def test_families_are_found_by_their_model_type():
    assert set(catalogue()) >= {"llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3"}
    for kind in catalogue():
        assert kind in family_of(AutoConfig.for_model(kind)).model_types
    with pytest.raises(ModelError, match=r"models of type 'bert' are not known: known are .*docs/add-a-family.md"):
        family_of(AutoConfig.for_model("bert"))


def test_a_prompt_whose_tiles_are_no_grid_is_an_error(models):
    inputs = tiny.inputs("smolvlm", [1])
    ids = inputs["input_ids"][0].tolist()
    last = len(ids) - 1 - ids[::-1].index(tiny.NEWLINE) - 1
    for at, what in ((ids.index(tiny.NEWLINE), "no grid of rows and columns"), (last, "every tile must have 9")):
        broken = ids.copy()
        where = at - 9 - 2 if "grid" in what else ids.index(tiny.IMAGE) + 4
        broken.insert(where, tiny.NEWLINE)
        wrong = {**inputs, "input_ids": torch.tensor([broken])}
        wrong["attention_mask"] = torch.ones_like(wrong["input_ids"])
        with pytest.raises(DataError, match=what):
            shorten(models("smolvlm"), wrong, "random", budget=3)


def test_the_family_that_the_documentation_adds(monkeypatch):
    """docs/add-a-family.md, run on a small Gemma 3: a subset is the masked model there too."""
    import re
    from pathlib import Path

    from transformers import AutoModelForImageTextToText

    import oracle
    import regard.vlm

    text = (Path(__file__).parent.parent / "docs" / "add-a-family.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    from types import SimpleNamespace

    made: dict = {"__name__": "somebody.gemma3"}
    exec(code, made)
    entry = SimpleNamespace(name="gemma3", load=lambda: made["Gemma3"])
    monkeypatch.setattr(regard.vlm, "entry_points", lambda group: [entry] if group == "regard.vlm" else [])
    assert "gemma3" in catalogue()
    seen = tiny.vision("siglip_vision_model", image_size=32, vision_use_head=False)
    words = tiny.text("gemma3_text", head_dim=8, sliding_window=256)
    config = AutoConfig.for_model(
        "gemma3", vision_config=seen, text_config=words, mm_tokens_per_image=16, image_token_index=tiny.IMAGE
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    ids = torch.tensor([[5, 6, *[tiny.IMAGE] * 16, 7, *[tiny.IMAGE] * 16, 8, 9]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 32, 32)}
    inputs["token_type_ids"] = (ids == tiny.IMAGE).long()
    short = shorten(model, inputs, Everything(), budget=5)
    assert short.tokens[0].grid == (1, 4, 4)
    keep = oracle.kept_columns(inputs, short.allocations, [0, 0])
    whole = oracle.logits(model, inputs, keep, oracle.positions_of(model, inputs))
    with torch.no_grad():
        assert torch.allclose(model(**short).logits[0], whole[keep], atol=1e-4)
