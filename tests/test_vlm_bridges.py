"""One contract for everything that stands between an eye and a language model. A new bridge is found by its name."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.allocate import catalogue as allocators
from regard.errors import BudgetError, DataError, ModelError, ShapeError
from regard.tokens import Question, VisualTokens
from regard.vlm.bridges import Bridge, Bridged, bridged_together, catalogue, complete, load
from regard.vlm.bridges.bridge import heard
from regard.vlm.bridges.queried import Queried
from tiny_lms import question, tokens

WIDTH, DIM, N = 11, 13, 12
SMALL = {
    "qformer": {"queries": 9, "heads": 2, "inner": 14},
    "resampler": {"latents": 9, "heads": 2, "inner": 14},
    "recurrent": {"glimpses": 9, "hidden": 17},
    "cascade": {"hidden": 17},
}
MOST = {"qformer": 9, "resampler": 9, "recurrent": 9}
NEED = ("cdpruner", "top")


def made(name: str, seed: int = 3, **arguments) -> Bridge:
    torch.manual_seed(seed)
    return load(name, WIDTH, DIM, **{**SMALL.get(name, {}), **arguments}).eval()


def ragged(images: int = 3) -> VisualTokens:
    """Images with all, 7 and 2 real tokens; what is no token holds what must not be seen."""
    whole = tokens(images)
    mask = torch.ones(images, N, dtype=torch.bool)
    mask[1, [0, 3, 4, 8, 11]] = False
    mask[2, 2:] = False
    return replace(whole, mask=mask)


@pytest.fixture(params=catalogue())
def name(request) -> str:
    return request.param


def test_the_catalogue_has_every_bridge_and_allocator(name):
    assert set(catalogue()) == {"all", "cascade", "qformer", "recurrent", "resampler", *allocators()}
    assert isinstance(made(name), Bridge)


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 2, 5, 8, 12, 40, None])
def test_the_count_is_exact(name, budget):
    bridge, amount = made(name), N if budget is None or name == "all" else min(budget, N)
    amount = min(amount, MOST.get(name, N))
    plain = bridge(tokens(3), question(3), budget)
    assert plain.features.shape == (3, amount, DIM)
    assert bool(plain.mask.all())
    seen = bridge(ragged(), question(3), budget)
    assert seen.mask.sum(dim=1).tolist() == [min(amount, real) for real in (12, 7, 2)]
    assert seen.features.shape[:2] == seen.mask.shape
    assert bool(seen.features[seen.mask].isfinite().all())


def real(out: Bridged, image: int) -> Tensor:
    return out.features[image, out.mask[image]]


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 3, 8, None])
def test_neighbours_do_not_matter(name, budget):
    bridge, seen, asked = made(name), ragged(), question(3)
    whole = bridge(seen, asked, budget)
    for order in (torch.tensor([2, 0, 1]), torch.tensor([0]), torch.tensor([1]), torch.tensor([2])):
        part = bridge(seen.images(order), asked.images(order), budget)
        for place, image in enumerate(order.tolist()):
            torch.testing.assert_close(real(part, place), real(whole, image), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 3, 8, None])
def test_padding_does_not_leak(name, budget):
    bridge, seen, asked = made(name), ragged(), question(3)
    want = bridge(seen, asked, budget)
    assert seen.mask is not None
    for poison in (5.0, torch.nan, torch.inf):
        features = seen.features.masked_fill(~seen.mask[..., None], poison)
        boxes = seen.boxes.masked_fill(~seen.mask[..., None], 0.5)
        got = bridge(replace(seen, features=features, boxes=boxes), asked, budget)
        for image in range(3):
            torch.testing.assert_close(real(got, image), real(want, image), rtol=0, atol=0)
    moved = bridge(replace(seen, features=seen.features.roll(1, dims=2)), asked, budget)
    assert not torch.allclose(real(moved, 0), real(want, 0)), "what is real is seen"


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 3, 8, None])
def test_readings_are_rows_of_real_tokens(name, budget):
    bridge, seen = made(name), ragged()
    out = bridge(seen, question(3), budget)
    assert out.reading is not None
    matrix = out.reading.matrix()
    assert matrix.shape == (*out.mask.shape, N)
    assert bool((matrix >= 0).all())
    assert torch.allclose(matrix.sum(dim=2), out.mask.to(matrix.dtype), atol=1e-5)
    assert bool((matrix.transpose(1, 2)[~seen.valid] == 0).all())


def test_what_does_not_fit_is_one_line(name):
    bridge = made(name)
    for budget in (0, -1, 2.5, True):
        with pytest.raises(BudgetError, match="budget must be"):
            bridge(tokens(2), question(2), budget)
    with pytest.raises(ShapeError, match="width 11, got 7"):
        bridge(tokens(2, width=7), question(2), 3)


def test_a_question_is_needed_or_not(name):
    bridge = made(name)
    if name in NEED:
        with pytest.raises(DataError, match="question"):
            bridge(tokens(2), None, 3)
        assert bridge.hears
    else:
        assert bridge(tokens(2), None, 3).features.shape == (2, N if name == "all" else 3, DIM)
    one, other = (bridge(tokens(2), question(2, seed=seed), 3).features for seed in (1, 2))
    if not bridge.hears:
        assert torch.equal(one, other), "it says that it does not hear"


def test_what_is_asked_changes_what_is_read():
    for name in ("recurrent", "cascade"):
        bridge = made(name)
        bridge.hear.data.fill_(2.0)  # pyright: ignore
        first, *others = (bridge(tokens(2), question(2, seed=seed), 8).features for seed in range(8))
        assert not all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("name", ["all", "pool"])
def test_a_projector_that_hears_is_told_how_near_each_kept_token_is(name):
    bridge, deaf = made(name, hearing=True), made(name)
    assert bridge.hears
    assert not deaf.hears
    seen, asked = ragged(), question(3)
    got = bridge(seen, asked, 5)
    kept = bridge.allocation(seen, asked, 5).apply(seen)  # pyright: ignore
    near = torch.stack((heard(kept, asked), kept.relevance(asked) / 10), dim=2)
    plain = bridge.read(kept.features, kept.boxes)  # pyright: ignore
    likely = (near[..., 0] + kept.relevance(asked)).exp() * kept.valid
    found = torch.einsum("bk,bkd->bd", likely / likely.sum(dim=1, keepdim=True), plain)
    read = plain + bridge.hearing.near(near) + (found @ bridge.hearing.found.weight.T)[:, None]  # pyright: ignore
    wanted = bridge.out(torch.nn.functional.gelu(read))  # pyright: ignore
    torch.testing.assert_close(got.features[got.mask], wanted[got.mask])
    assert not torch.equal(got.features, bridge(seen, question(3, seed=9), 5).features)
    assert torch.equal(deaf(seen, asked, 5).features, deaf(seen, question(3, seed=9), 5).features)


def test_heard_is_relevance_of_mean_0_and_deviation_1():
    seen, asked = ragged(), question(3)
    near = heard(seen, asked)
    for image in range(3):
        real = seen.valid[image]
        plain = seen.relevance(asked)[image, real]
        torch.testing.assert_close(near[image, real], (plain - plain.mean()) / plain.std(correction=0))
        assert not near[image, ~real].any()
    assert not heard(seen, None).any()
    same = replace(tokens(1), aligned=torch.ones(1, N, 5))
    assert heard(same, question(1)).abs().max() < 0.2, "where all is as near, nothing is nearer, but for rounding"


@pytest.mark.parametrize("seen", [tokens(3), ragged()], ids=["whole", "ragged"])
def test_every_parameter_learns(name, seen):
    bridge = made(name).train()
    out = bridge(seen, question(3), None if name == "all" else 9)
    if not isinstance(out.reading, type(None)) and name in SMALL:
        raise AssertionError("a reading costs time in training")
    (out.features[out.mask] * torch.randn(int(out.mask.sum()), DIM)).sum().backward()
    for part, value in bridge.named_parameters():
        assert value.grad is not None, part
        assert bool(value.grad.isfinite().all()), part
        assert bool(value.grad.any()), part


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(name, dtype):
    want = made(name)(ragged(), question(3), 5)
    got = made(name).to(dtype)(ragged(), question(3), 5)
    assert got.features.dtype == dtype
    assert torch.equal(got.mask, want.mask)
    if dtype == torch.float64 or name not in ("cascade", "recurrent"):
        close: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float64 else {"rtol": 0.1, "atol": 0.15}
        torch.testing.assert_close(got.features[got.mask].float(), want.features[want.mask], **close)


@torch.no_grad()
def test_the_same_call_gives_the_same(name):
    one, two = (made(name)(ragged(), question(3), 5) for _ in range(2))
    assert torch.equal(one.features, two.features)
    assert torch.equal(one.mask, two.mask)


@torch.no_grad()
def test_an_image_without_a_token_gets_none(name):
    seen = ragged()
    assert seen.mask is not None
    seen = replace(seen, mask=seen.mask & torch.tensor([True, False, True])[:, None])
    out = made(name)(seen, question(3), 5)
    assert out.mask.sum(dim=1).tolist() == [12 if name == "all" else 5, 0, 2]
    assert bool(out.features[out.mask].isfinite().all())


@torch.no_grad()
@pytest.mark.parametrize("name", ["qformer", "resampler"])
def test_a_budget_gives_what_the_first_queries_alone_give(name):
    whole = made(name)
    for budget in (1, 4, 9):
        key = "queries" if name == "qformer" else "latents"
        alone = made(name, **{key: budget})
        state = dict(whole.state_dict())
        learned = "former.queries" if name == "qformer" else "resampler.latents"
        state[learned] = state[learned][:budget]
        alone.load_state_dict(state)
        got, want = whole(tokens(3), None, budget), alone(tokens(3), None)
        assert torch.equal(got.features, want.features)
        assert got.reading is not None
        assert want.reading is not None
        assert torch.equal(got.reading.matrix(), want.reading.matrix())
    state[learned] = whole.state_dict()[learned].flip(0)
    alone.load_state_dict(state)
    assert not torch.allclose(alone(tokens(3), None).features, whole(tokens(3), None).features, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("name", "spread"), [("qformer", 0.02), ("resampler", 1.0)])
def test_queries_begin_with_what_is_seen(name, spread):
    bridge = made(name, start="vision")
    assert isinstance(bridge, Queried)
    before = bridge.learned.clone()
    assert before.std() == pytest.approx(spread, rel=0.4)
    bridge.begin(ragged())
    after = bridge.learned
    assert not torch.allclose(before, after)
    assert after.std() == pytest.approx(spread, rel=0.2)
    read = bridge.read(ragged().features, ragged().boxes)[ragged().valid]
    drawn = (read - read.mean(dim=0)) / read.std()
    assert (torch.nn.functional.cosine_similarity(after[:, None], drawn[None], dim=2).max(dim=1).values > 0.9).all()
    with pytest.raises(ShapeError, match="9 queries cannot begin with 2 tokens"):
        bridge.begin(ragged().images(torch.tensor([2])))


@torch.no_grad()
def test_the_cascade_reads_the_best_again():
    bridge, seen, asked, budget = made("cascade"), tokens(3), question(3), 9
    out = bridge(seen, asked, budget)
    coarse = bridge.pool.allocate(seen, None, 5)  # pyright: ignore
    kept = coarse.apply(seen)
    looked = bridge.look(bridge.read(kept.features, kept.boxes)).tanh()  # pyright: ignore
    near = (coarse.matrix() @ heard(seen, asked)[..., None])[..., 0]
    scores = bridge.score(looked)[..., 0] + bridge.hear * near  # pyright: ignore
    assert out.reading is not None
    matrix = out.reading.matrix()
    assert torch.equal(matrix[:, :5], coarse.matrix())
    fine = matrix[:, 5:].argmax(dim=2)
    assert torch.equal(matrix[:, 5:].max(dim=2).values, torch.ones(3, 4))
    for image in range(3):
        left, members = 4, []
        for group in scores[image].argsort(descending=True):
            inside = (coarse.matrix()[image, group] > 0).nonzero()[:, 0].tolist()
            if len(inside) > 1:
                members += inside[:left]
                left -= len(inside[:left])
        assert fine[image].tolist() == members
        assert len(set(members)) == 4
    f = bridge.out(torch.nn.functional.gelu(bridge.read(seen.features, seen.boxes)))  # pyright: ignore
    want = f.take_along_dim(fine[..., None], dim=1)
    torch.testing.assert_close(out.features[:, 5:], want, rtol=1e-5, atol=1e-6)
    silent = bridge.score.weight.clone()  # pyright: ignore
    bridge.score.weight.neg_()  # pyright: ignore
    bridge.hear.neg_()  # pyright: ignore
    turned = bridge(seen, asked, budget)
    assert not torch.equal(turned.reading.matrix(), matrix), "the scores decide"
    bridge.score.weight.copy_(silent)  # pyright: ignore
    bridge.hear.neg_()  # pyright: ignore
    bridge.score.bias.fill_(1.7)  # pyright: ignore
    assert torch.equal(bridge(seen, asked, budget).features, out.features), "the gate is 1, exactly"


def test_the_cascades_gate_teaches_the_score():
    bridge = made("cascade").train()
    bridge(tokens(3), question(3), 9).features.square().sum().backward()
    for part in (bridge.score.weight, bridge.look.weight, bridge.hear):  # pyright: ignore
        assert float(part.grad.abs().sum()) > 1e-4  # pyright: ignore


@torch.no_grad()
def test_the_cascade_reads_no_token_twice():
    """A coarse token of one token alone is fine enough, however much it is asked for."""
    bridge = made("cascade")
    for seed in range(6):
        out = bridge(tokens(3, 3, 3, seed=seed), question(3, seed=seed), 9)
        assert out.reading is not None
        coarse, fine = out.reading.matrix().split((5, 4), dim=1)
        lone = (coarse == 1).any(dim=1)
        assert lone.sum(dim=1).tolist() == [1, 1, 1]
        assert not (lone & (fine.sum(dim=1) > 0)).any()
        assert fine.sum(dim=1).max() == 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["all", "qformer", "resampler", "recurrent", "divprune", "tome", "top"])
def test_padding_is_as_if_it_were_not_there(name):
    bridge, seen, asked = made(name), ragged(), question(3)
    assert seen.aligned is not None
    assert seen.keys is not None
    whole = bridge(seen, asked, 4)
    for image in range(3):
        kept = seen.valid[image]
        parts = (value[image : image + 1, kept] for value in (seen.features, seen.boxes, seen.aligned, seen.keys))
        features, boxes, aligned, keys = parts
        bare = VisualTokens(features, boxes, aligned=aligned, keys=keys)
        alone = bridge(bare, asked.images(torch.tensor([image])), 4)
        torch.testing.assert_close(real(alone, 0), real(whole, image), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_cascade_needs_a_grid():
    with pytest.raises(DataError, match="needs grid"):
        made("cascade")(replace(tokens(2), grid=None), question(2), 5)


def plain_glimpses(bridge, seen: VisualTokens, asked: Question, image: int, budget: int) -> Tensor:
    """The recurrent bridge, one image and one token after another."""
    real = seen.valid[image].nonzero()[:, 0].tolist()
    x = [bridge.read(seen.features[image, i][None, None], seen.boxes[image, i][None, None])[0, 0] for i in real]
    centre = [(seen.boxes[image, i, :2] + seen.boxes[image, i, 2:]) / 2 for i in real]
    near = heard(seen, asked)[image, real]
    drawn = sum(share * value for share, value in zip(near.softmax(dim=0), x, strict=True))
    h = bridge.begin(torch.cat((torch.stack(x).mean(dim=0), drawn)))  # pyright: ignore
    out = []
    for _ in range(budget):
        said = bridge.place(h)
        where, width = said[:2].sigmoid(), torch.nn.functional.softplus(said[2] - 2)
        wish = bridge.seek(h)
        logits = []
        for value, at, close in zip(x, centre, near.tolist(), strict=True):
            far = sum(float(at[axis] - where[axis]) ** 2 for axis in (0, 1))
            wanted = float(value @ wish) / len(wish) ** 0.5 + float(bridge.hear) * close
            logits.append(wanted - far / (2 * float(width) ** 2 + 1e-4))
        weights = torch.tensor(logits, dtype=h.dtype).softmax(dim=0)
        glimpse = torch.stack([w * value for w, value in zip(weights, x, strict=True)]).sum(dim=0)
        h = bridge.core(glimpse[None], h[None])[0]
        out.append(bridge.out(torch.cat((glimpse, h))))
    return torch.stack(out)


@torch.no_grad()
def test_the_recurrent_bridge_is_a_plain_loop():
    bridge = made("recurrent").double()
    bridge.hear.fill_(0.7)  # pyright: ignore
    seen, asked = ragged(), question(3)
    seen = replace(seen, features=seen.features.double(), boxes=seen.boxes.double())
    asked = Question(asked.features.double())
    assert seen.aligned is not None
    seen = replace(seen, aligned=seen.aligned.double())
    out = bridge(seen, asked, 6)
    for image, amount in enumerate((6, 6, 2)):
        want = plain_glimpses(bridge, seen, asked, image, amount)
        torch.testing.assert_close(real(out, image), want, rtol=1e-9, atol=1e-9)
    bridge.place.bias.add_(0.5)  # pyright: ignore
    assert not torch.allclose(real(bridge(seen, asked, 6), 0), real(out, 0), atol=1e-4), "where it looks matters"


def test_unknown_names_and_arguments_are_one_line():
    with pytest.raises(ModelError, match="no mechanism is named 'magic': the names are all, cascade"):
        load("magic", WIDTH, DIM)
    for name in ("qformer", "all", "tome", "cascade"):
        with pytest.raises(ModelError, match=f"mechanism {name}: .*wings"):
            load(name, WIDTH, DIM, wings=2)


def test_arguments_are_complete():
    assert complete("qformer", queries=5)["heads"] == 4
    assert complete("tome") == {"allocator": "tome", "hidden": None, "hearing": False}
    assert complete("all") == {"allocator": None, "hidden": None, "hearing": False}
    assert complete("recurrent")["glimpses"] == 64


def test_several_are_padded_together():
    bridge = made("all")
    one, other = bridge(tokens(2, 2, 3), None), bridge(tokens(1), None)
    both = bridged_together([one, other])
    assert both.features.shape == (3, 12, DIM)
    assert both.mask.sum(dim=1).tolist() == [6, 6, 12]
    assert both.reading is None
    assert torch.equal(both.features[:2, :6], one.features)
    assert bridged_together([one]) is one
