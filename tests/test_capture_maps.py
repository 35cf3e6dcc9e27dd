"""Attention on the pixels of an image: all of it, and where it belongs, for every family and after shortening."""

from typing import Any

import pytest
import torch
from torch import Tensor

import planted
import regard
import tiny_vlms
from regard.doctor import pixel_map
from regard.errors import DataError, ModelError, ShapeError
from regard.vlm.opened import opened
from regard.vlm.prompt import Prompt
from tiny_vlms import FAMILIES, IMAGE

SIZE = (53, 71)


def drawn(values: Tensor, boxes: Tensor, size: tuple[int, int], fine: int = 8) -> Tensor:
    """The same in plain loops, on pixels cut into fine x fine."""
    h, w = size
    whole = torch.zeros(h * fine, w * fine, dtype=torch.float64)
    ys = (torch.arange(h * fine) + 0.5) / (h * fine)
    xs = (torch.arange(w * fine) + 0.5) / (w * fine)
    for value, (x0, y0, x1, y1) in zip(values.tolist(), boxes.tolist(), strict=True):
        inside = ((ys >= y0) & (ys < y1))[:, None] & ((xs >= x0) & (xs < x1))
        if bool(inside.any()):
            whole[inside] += value / int(inside.sum())
    return whole.view(h, fine, w, fine).sum(dim=(1, 3)).float()


def test_boxes_become_pixels_as_they_are_drawn():
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 17, (23, 2, 2), generator=generator) / 16
    boxes = torch.cat((corners.amin(dim=1), corners.amax(dim=1)), dim=1)
    values = torch.rand(23, generator=generator)
    found = pixel_map(values, boxes, (6, 10))
    assert torch.allclose(found, drawn(values, boxes, (6, 10)), atol=1e-6)
    flat = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    assert float(found.sum()) == pytest.approx(float(values[flat].sum()), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_token_that_gets_all_lights_its_box_alone(models, name):
    """A row with all its weight on one column of an image, for tiles, padding and merged patches."""
    model, inputs = models(name), tiny_vlms.inputs(name, [1, 2])
    with regard.capture(model, layers=0, heads=0) as seen:
        model(**inputs)
    vlm = opened(model)
    prompt = Prompt.of(vlm, inputs)
    layouts = vlm.family.layouts(vlm.base, inputs, prompt.runs())
    sizes = [SIZE] * 3
    starts = [0, len(layouts[0].boxes), len(layouts[0].boxes) + len(layouts[1].boxes)]
    rows = seen.of(0).weights
    for image, start in enumerate(starts):
        for token in (0, 3, len(layouts[image].boxes) - 1):
            row, column = prompt.places[start + token].tolist()
            rows.zero_()
            rows[row, :, :, column] = 1
            maps = seen.maps(sizes, inputs)
            box = layouts[image].boxes[token]
            assert torch.allclose(maps[image], pixel_map(torch.ones(1), box[None], SIZE), atol=1e-6)
            others = [n for n in range(3) if n != image]
            assert all(float(maps[other].sum()) == 0 for other in others)
            (h, w), (x0, y0, x1, y1) = SIZE, box.tolist()
            if x1 > x0:
                inside = maps[image][int(y0 * h) : -int(-y1 * h // 1), int(x0 * w) : -int(-x1 * w // 1)]
                assert float(inside.sum()) == pytest.approx(1, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("allocator", ["random", "tome"])
def test_shortened_inputs_give_the_share_of_each_patch(models, name, allocator):
    """What a token of several patches gets is spread over them; what is dropped gets nothing."""
    model, inputs = models(name), tiny_vlms.inputs(name, [1, 2])
    short = regard.shorten(model, inputs, allocator, budget=5)
    with regard.capture(model, queries="question") as seen:
        model(**short)
    received = seen.received()
    found = seen.tokens(short)
    for row in range(2):
        mine = [number for number, one in enumerate(short._decisions) if one.row == row]
        columns = (short["input_ids"][row] == IMAGE).nonzero()[:, 0].split([5] * len(mine))
        for number, where in zip(mine, columns, strict=True):
            reads = short.allocations[number].matrix()[0].float()
            assert torch.allclose(found[number], received[row, where] @ reads, atol=1e-6)
            assert float(found[number].sum()) == pytest.approx(float(received[row, where].sum()), rel=1e-4)
    with regard.capture(model) as answer:
        model.generate(**short, max_new_tokens=3)
    assert answer.calls == 3
    assert [len(values) for values in answer.tokens(short)] == [a.n_in for a in short.allocations]


@torch.no_grad()
@pytest.mark.parametrize(("allocator", "budget"), [(None, 49), ("divprune", 12), ("tome", 20)])
@pytest.mark.parametrize("red", [0, 17, 48])
def test_a_planted_look_lies_in_its_box(allocator, budget, red):
    """Head 2 of the last layer looks at the red patch only, whole and after shortening."""
    model, inputs = planted.model(), planted.inputs(red=red)
    given: Any = inputs if allocator is None else regard.shorten(model, inputs, allocator, budget=budget)
    with regard.capture(model, layers=-1, heads=2) as seen:
        model(**given)
    (pixels,) = seen.maps([(70, 140)], given)
    share = 1.0 if allocator is None else float(given.allocations[0].matrix()[0, :, red].max())
    assert in_box(pixels, red) == pytest.approx(share, abs=0.02)
    assert float(pixels.sum()) == pytest.approx(1, abs=0.02)
    with regard.capture(model, layers=-1, heads=0) as sink:
        model.generate(**given, max_new_tokens=1)
    (pixels,) = sink.maps([(70, 140)], given)
    share = 1.0 if allocator is None else float(given.allocations[0].matrix()[0, :, 40].max())
    assert in_box(pixels, 40) == pytest.approx(share, abs=0.02)


def in_box(pixels: Tensor, patch: int) -> float:
    """What of a map of 70 x 140 pixels lies on a patch."""
    y, x = patch // 7, patch % 7
    return float(pixels[10 * y : 10 * y + 10, 20 * x : 20 * x + 20].sum())


@torch.no_grad()
def test_beams_are_read_by_their_first(models):
    model, inputs = models("llava"), tiny_vlms.inputs("llava", [1, 2])
    with regard.capture(model) as plain:
        model.generate(**inputs, max_new_tokens=1)
    with regard.capture(model) as beams:
        model.generate(**inputs, max_new_tokens=2, num_beams=3)
    assert beams.weights(0).shape[0] in (2, 6)
    for one, two in zip(plain.tokens(inputs, calls=0), beams.tokens(inputs, calls=0), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_what_cannot_be_placed_is_refused(models):
    model, inputs = models("llava"), tiny_vlms.inputs("llava", [1, 2])
    with regard.capture(model) as seen:
        model(**inputs)
    with pytest.raises(DataError, match="inputs="):
        seen.maps([SIZE])
    with pytest.raises(DataError, match="3 images and 1 sizes"):
        seen.maps([SIZE], inputs)
    with pytest.raises(ShapeError, match="height, width"):
        seen.maps([(0, 3)] * 3, inputs)
    with pytest.raises(DataError, match="give what was read"):
        seen.tokens(tiny_vlms.inputs("llava", [3, 2]))
    with pytest.raises(ShapeError, match="boxes must be"):
        seen.tokens(boxes=[torch.zeros(3, 3)])
    with pytest.raises(ShapeError, match="values must be"):
        pixel_map(torch.zeros(3), torch.zeros(2, 4), SIZE)
    from test_capture import language_model, prompt

    text = language_model("llama", "sdpa")
    with regard.capture(text) as words:
        text(**prompt())
    with pytest.raises(ModelError, match="llama"):
        words.tokens(inputs)
