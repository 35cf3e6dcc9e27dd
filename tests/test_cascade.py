"""The cascade: what it splits, when it stops, what that costs, and how its thresholds are solved."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regard.attention.scaled import TransformerBlock
from regard.errors import DataError, ShapeError
from regard.mechanisms import exits
from regard.mechanisms._salient import Salient
from regard.mechanisms.cascade import Cascade, loss
from regard.mechanisms.stems import PixelStem
from regard.train.cascade import answers, sizes, solve, train
from regard.train.data import Held
from regard.train.guide import overlapping
from regard.train.loop import Recipe


def small(stages: int = 3, keep: list[int] | None = None, **others) -> Cascade:
    torch.manual_seed(11)
    keep = [2, 3][: stages - 1] if keep is None else keep
    made = {"classes": 5, "channels": 1, "side": 16, "patch": 2, "width": 16, "depth": 3, "heads": 2, "expand": 2}
    model = Cascade(stages=stages, keep=keep, **{**made, **others}).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.normal_(0, 0.4)
    return model


def pictures(count: int = 12, side: int = 16, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)


def spread(model: Cascade, images: Tensor) -> None:
    """Thresholds at which about a third of the images stops at each stage."""
    sure = exits.confidence(answers(model, images))
    count = model.stages
    model.set_thresholds(exits.for_shares(sure, [1 / count] * count))


# what it reads and splits


def by_hand(model: Cascade, image: Tensor) -> tuple[list[Tensor], list[set[tuple[int, int, int]]]]:
    """The logits of every stage, and the (stage, row, column) of the tokens each reads, one token after another."""
    logits, read, x = [], [], image[None].float() / 255
    state = {}
    for stage, grid in enumerate(model.grids):
        step = 2 ** (model.stages - 1 - stage)
        pixels, size = F.avg_pool2d(x, step)[0], model.patch
        positions = F.avg_pool2d(model.positions, step)[0]
        if stage == 0:
            state = {(0, r, c): torch.zeros(model.transformer.width) for r in range(grid) for c in range(grid)}
        for (level, row, column), known in list(state.items()):
            if level == stage:
                patch = pixels[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
                token = model.embed(patch.flatten() * 2 - 1) + positions[:, row, column] + model.scales[stage]
                state[level, row, column] = token + known
        read.append(set(state))
        seen = model.transformer(torch.stack(list(state.values()))[None])
        logits.append(seen.logits[0])
        if stage + 1 < model.stages:
            newest = [(float(s), place) for s, place in zip(seen.saliency[0], state, strict=True) if place[0] == stage]
            features = dict(zip(state, seen.features[0], strict=True))
            for _, (level, row, column) in sorted(newest, key=lambda one: -one[0])[: model.keep[stage]]:
                del state[level, row, column]
                known = torch.zeros(())
                if model.reuse is not None:
                    known = model.reuse(features[level, row, column])
                for down in (0, 1):
                    for right in (0, 1):
                        state[stage + 1, 2 * row + down, 2 * column + right] = known
    return logits, read


@torch.no_grad()
@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("reuse", [True, False])
def test_it_is_the_rule_token_after_token(stages, reuse):
    model, images = small(stages, reuse=reuse), pictures(4)
    logits, looked = model(images), model.look(images)
    for place, image in enumerate(images):
        expected, read = by_hand(model, image)
        for stage in range(stages):
            torch.testing.assert_close(logits[stage][place], expected[stage], rtol=1e-3, atol=1e-4)
        grids = torch.tensor(model.grids)[looked.stages[place]]
        corners = (looked.boxes[place, :, :2] * grids[:, None]).round().long()
        found = set(zip(looked.stages[place].tolist(), corners[:, 1].tolist(), corners[:, 0].tolist(), strict=True))
        assert found == set().union(*read)


@torch.no_grad()
def test_all_split_is_all_fine_patches():
    model, images = small(3), pictures(3)
    counts = []
    model.transformer.register_forward_hook(lambda module, given, made: counts.append(given[0].shape[1]))
    model(images, everything=True)
    assert counts == model.patches
    model(images)
    assert counts[3:] == model.lengths == [4, 10, 19]


@torch.no_grad()
def test_the_order_of_all_patches_does_not_matter():
    model, images = small(2, reuse=False), pictures(3)
    twin = small(1)
    twin.load_state_dict({**model.state_dict(), "scales": model.scales[1:], "thresholds": twin.thresholds})
    torch.testing.assert_close(model(images, everything=True)[-1], twin(images)[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_features_read_before_are_pixels_read_now(stages):
    model, images = small(stages, channels=3), pictures(9, channels=3)
    spread(model, images)
    features = model.read(images)
    assert features.shape == (9, sum(model.patches), model.stem.width)
    for one, other in zip(model(images), model(features), strict=True):
        torch.testing.assert_close(one, other)
    for everything in (False, True):
        torch.testing.assert_close(model(images, everything)[-1], model(features, everything)[-1])
    looked, again = model.look(images), model.look(features)
    for name in ("logits", "features", "boxes", "stages", "exits", "macs"):
        torch.testing.assert_close(getattr(looked, name), getattr(again, name))


@torch.no_grad()
def test_a_margin_is_what_lies_about_a_patch():
    """A stem that reads the mean of 3 x 3 patches reads a part as it reads the whole."""

    class Mean:
        patch, width, margin = 2, 1, 1

        def __call__(self, pixels: Tensor) -> Tensor:
            return F.avg_pool2d(F.pad(pixels, (2, 2, 2, 2), value=127 / 255), 6, 2).flatten(2).transpose(1, 2)

        def macs(self, height: int, width: int) -> int:
            return height * width

    model, images = small(3), pictures(4)
    before = model.costs
    model.stem = Mean()
    parts = model.read(images).split(model.patches, dim=1)
    for stage, grid in enumerate(model.grids):
        whole = model.stem(F.avg_pool2d(images / 255, 2 ** (2 - stage)))
        if stage:
            half = grid // 2
            whole = whole.unflatten(1, (half, 2, half, 2)).transpose(2, 3).flatten(1, 4)
        torch.testing.assert_close(parts[stage], whole)
    torch.testing.assert_close(model.read(images / 255), model.read(images))
    assert model.costs[1] - model.costs[0] == before[1] - before[0] + 2 * 8 * 8 + 4 * 2 * 16 * (1 - 4)


@torch.no_grad()
def test_the_scan_says_where_each_stage_looked():
    model, images = small(3).train(), pictures(3)
    looked = small(3).look(images)
    for stage, seen in enumerate(model.scan(images)):
        torch.testing.assert_close(seen.boxes, looked.boxes[:, looked.stages[0] == stage])
        assert seen.saliency.shape == seen.boxes.shape[:2]
        assert (seen.saliency > 0).all()
    assert not small(3).scan(images)[-1].saliency.any()


def test_the_stem_is_the_convolution():
    stem, images = PixelStem(3, 4), pictures(2, 16, 3) / 255
    weight = torch.randn(7, 3, 4, 4)
    expected = F.conv2d(images * 2 - 1, weight, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(stem(images) @ weight.flatten(1).T, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_saliency_is_the_moving_average_of_the_class_row():
    torch.manual_seed(2)
    model, tokens = Salient(4, 8, 4, 2, 2, first=1, smoothing=0.9), torch.randn(3, 6, 8)
    x, expected = torch.cat((model.class_token.expand(3, 1, -1), tokens), dim=1), torch.zeros(3, 6)
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, TransformerBlock)
        if layer >= 1:
            expected = 0.9 * expected + 0.1 * block.weights(x).mean(dim=1)[:, 0, 1:]
        x = block(x)
    seen = model(tokens)
    torch.testing.assert_close(seen.saliency, expected)
    torch.testing.assert_close(seen.features, model.norm(x)[:, 1:])
    assert not model(tokens, salient=False).saliency.any()


@torch.no_grad()
def test_reuse_and_each_part_counts():
    images = pictures(6)
    model = small(3)
    base = model(images)[-1]
    for change in ("reuse", "scales", "positions", "saliency", "kept"):
        other = small(3)
        if change == "reuse":
            other.reuse = None
        elif change == "scales":
            other.scales.zero_()
        elif change == "positions":
            other.positions.copy_(other.positions.flip(3))
        elif change == "saliency":
            other._ranked = lambda tokens, seen, count: Cascade._ranked(  # pyright: ignore
                model, tokens, seen._replace(saliency=-seen.saliency), count
            )
        else:
            other.keep = (3, 3)
        assert (other(images)[-1] - base).abs().max() > 1e-3, change


# exits


@torch.no_grad()
@pytest.mark.parametrize("stages", [2, 3])
def test_regrouped_is_each_image_by_itself(stages):
    model, images = small(stages), pictures(24)
    spread(model, images)
    looked = model.look(images)
    assert set(looked.exits.tolist()) == set(range(stages))
    whole = answers(model, images)
    expected = exits.exits(exits.confidence(whole), model.thresholds)
    assert torch.equal(looked.exits, expected)
    torch.testing.assert_close(looked.logits, whole[torch.arange(24), expected], rtol=1e-4, atol=1e-5)
    for place, image in enumerate(images.split(1)):
        alone = model.look(image)
        torch.testing.assert_close(alone.features[0], looked.features[place], rtol=1e-4, atol=1e-5)
        assert torch.equal(alone.stages[0], looked.stages[place])
        assert (alone.stages[0] >= 0).sum() == model.read_by[int(expected[place])]
        assert alone.tokens == sum(model.lengths[: int(expected[place]) + 1])


@torch.no_grad()
def test_images_that_stopped_are_not_read_again():
    model, images = small(3), pictures(24)
    spread(model, images)
    batches = []
    model.transformer.register_forward_hook(lambda module, given, made: batches.append(len(given[0])))
    looked = model.look(images)
    assert batches == [int((looked.exits >= stage).sum()) for stage in range(3)]
    batches.clear()
    model.set_thresholds([0, 0])
    assert model.look(images).exits.sum() == 0
    assert batches == [24]


@torch.no_grad()
def test_without_thresholds_none_stops_even_of_those_that_are_certain():
    model, images = small(3), pictures(6)
    model.transformer.classify.weight.mul_(1e4)
    assert bool((exits.confidence(answers(model, images)[:, 0]) == 1).any())
    assert model.look(images).exits.tolist() == [2] * 6
    model.set_thresholds([1, 0.5])
    assert bool((model.look(images).exits > 0).all())
    model.set_thresholds([0.999, 1])
    assert 0 in model.look(images).exits.tolist()


# training


def task(count: int = 96) -> Held:
    """How bright is it, of four grades?"""
    generator = torch.Generator().manual_seed(9)

    def made(number: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, 4, (number,), generator=generator)
        noise = torch.randint(0, 60, (number, 1, 16, 16), generator=generator)
        return (noise + 60 * labels[:, None, None, None]).to(torch.uint8), labels

    (images, labels), test, held = made(count), made(40), made(60)
    return Held("grades", count, lambda index, generator: (images[index], labels[index]), *test, tuple("abcd"), *held)


RECIPE = Recipe(8, batch=16, rate=5e-3)
ARGUMENTS = {"classes": 4, "side": 16, "patch": 2, "stages": 2, "keep": [6], "width": 16, "depth": 2, "heads": 2}


def test_training_lowers_the_loss_and_saves_the_thresholds(tmp_path):
    from regard.train.checkpoint import Checkpoint, looker

    data = task()
    model = train(ARGUMENTS, data, RECIPE, tmp_path, share=0.5, warm=0.3)
    state = Checkpoint.load(tmp_path / "last.safetensors")
    assert state.history[-1]["loss"] < 0.7 * state.history[0]["loss"]
    assert torch.equal(state.tensors["model.thresholds"], model.thresholds)
    sure = exits.confidence(answers(model, data.held))
    target = 0.5 * model.full_macs(16, 16)
    assert abs(exits.mean_cost(sure, model.thresholds, model.costs) - target) <= 0.05 * target
    again = train(ARGUMENTS, data, RECIPE, tmp_path, share=0.5, warm=0.3)
    assert torch.equal(again.thresholds, model.thresholds)
    looked = model.look(data.test)
    assert torch.equal(again.look(data.test).logits, looked.logits)
    with pytest.raises(DataError, match=r"share 0.5 \(asked for 0.6\)"):
        train(ARGUMENTS, data, RECIPE, tmp_path, share=0.6, warm=0.3)
    with pytest.raises(DataError, match=r"tolerance 0.002 \(asked for 0.1\)"):
        train(ARGUMENTS, data, RECIPE, tmp_path, share=0.5, warm=0.3, tolerance=0.1)
    old = replace(state, settings={k: v for k, v in state.settings.items() if k not in ("share", "tolerance")})
    old.save(tmp_path / "old.safetensors")
    loaded, _ = looker(tmp_path / "old.safetensors")
    assert torch.equal(loaded.look(data.test).logits, looked.logits)


def test_a_box_draws_the_attention_to_it(tmp_path):
    """The label is drawn at random: only the box can teach where to look."""
    images, generator = pictures(64), torch.Generator().manual_seed(0)
    labels = torch.randint(5, (64,), generator=generator)
    boxes = torch.tensor([0.5, 0.5, 0.75, 0.75]).expand(64, 4)

    def shares(given: Tensor | None) -> list[float]:
        data = Held(
            "toy",
            64,
            lambda index, _: (images[index], labels[index]),
            images,
            labels,
            tuple("abcde"),
            images,
            labels,
            boxes=None if given is None else lambda index: boxes[index],
        )
        arguments = {"classes": 5, "channels": 1, "side": 16, "patch": 2, "stages": 2, "keep": [4], "width": 16}
        model = train(
            {**arguments, "depth": 2, "heads": 2, "expand": 2},
            data,
            Recipe(40, batch=16, rate=0.01),
            tmp_path / str(given is None),
        )
        with torch.no_grad():
            seen = model.scan(images)[0]
            inside = overlapping(seen.boxes, boxes)
            return ((seen.saliency * inside).sum(dim=1) / seen.saliency.sum(dim=1)).tolist()

    assert min(shares(boxes)) > 2 * max(shares(None))


def test_solved_for_a_tolerance():
    model, data = small(2, classes=4), task()
    solve(model, data.held, data.held_labels, tolerance=1.0)
    assert model.look(data.held).exits.sum() == 0
    one = small(1)
    solve(one, data.held, data.held_labels)
    assert one.thresholds.numel() == 0


def test_the_early_stages_learn_from_the_last_and_do_not_teach_it():
    logits = [torch.randn(4, 5, requires_grad=True) for _ in range(3)]
    labels = torch.tensor([0, 1, 2, 3])
    value = loss(logits, labels)
    p = logits[-1].detach().softmax(dim=1)
    expected = F.cross_entropy(logits[-1], labels)
    for early in logits[:-1]:
        expected = expected + (p * (p.log() - early.log_softmax(dim=1))).sum(dim=1).mean()
    torch.testing.assert_close(value, expected)
    value.backward()
    alone = torch.autograd.grad(F.cross_entropy(logits[-1], labels), logits[-1])[0]
    torch.testing.assert_close(logits[-1].grad, alone)


def test_every_parameter_learns():
    model = small(3)
    loss(model(pictures(8)), torch.arange(8) % 5).backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in model.parameters())


# what is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"side": 18}, "side must be divided by"),
        ({"stages": 0}, "side must be divided by"),
        ({"keep": [5, 3]}, "can split 1 to 4"),
        ({"keep": [2, 9]}, "can split 1 to 8"),
        ({"keep": [0, 1]}, "can split 1 to 4"),
        ({"keep": [1]}, "keep must have"),
        ({"first": 3}, "first must be"),
        ({"smoothing": 1.0}, "smoothing in"),
        ({"stem": "embedded"}, "embedded stem reads"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ShapeError, match=message) as error:
        Cascade(**{"side": 16, "patch": 2, "stages": 3, "keep": [2, 3], "width": 16, "depth": 3, "heads": 2, **wrong})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [[0.5], [0.5, 1.5], [-0.1, 0.5], [0.5, float("nan")], [[0.5, 0.5]]])
def test_wrong_thresholds_are_named(wrong):
    with pytest.raises(ShapeError, match="thresholds in"):
        small(3).set_thresholds(wrong)


def test_wrong_tasks_and_numbers_are_named():
    assert sizes("fashion", 2, "5")["keep"] == [5]
    with pytest.raises(DataError, match="unknown task"):
        sizes("mnist")
    with pytest.raises(DataError, match="by commas"):
        sizes("fashion", 2, "5;6")
    with pytest.raises(ShapeError, match="pixels must"):
        small(2).look(pictures(2, 18))
