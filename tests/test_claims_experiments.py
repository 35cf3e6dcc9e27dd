"""Each experiment of the claims, small: the effect that it measures is there, and what it measures is what it says."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from regard.bench.claims import experiments
from regard.bench.claims.experiments import _shared, batching, fusion, linear, memory, queries, reinforce, sinks, tails
from regard.bench.claims.experiments._shared import Series, fit, less
from regard.errors import DataError

ROOT = Path(__file__).parent.parent


def by_name(series: list[Series]) -> dict[str, Series]:
    assert len({one.name for one in series}) == len(series)
    return {one.name: one for one in series}


def test_an_interval_is_students():
    one = Series("a", "", (1.0, 2.0, 4.0))
    assert one.interval is not None
    low, high = one.interval
    assert (low + high) / 2 == pytest.approx(7 / 3)
    assert high - one.mean == pytest.approx(4.3027 * statistics.stdev(one.values) / math.sqrt(3), rel=1e-3)
    assert Series("a", "", (1.0,)).interval is None
    assert less("d", "", (3.0, 5.0), (1.0, 1.0)).values == (2.0, 4.0)


def test_a_short_training_learns():
    weight = torch.nn.Parameter(torch.zeros(3))
    goal = torch.tensor([1.0, -2.0, 0.5])
    losses = fit([weight], lambda: (weight - goal).square().sum(), 300, 0.1)
    assert losses[0] == pytest.approx(5.25)
    assert losses[-1] < 0.01


def test_linear_attention_finds_less_sharply(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(linear, "PAIRS", 12)
    found = by_name(linear.run(seeds=(0,), steps=220))
    assert found["sharp retrieval: accuracy of softmax attention"].mean > 60
    assert found["sharp retrieval: accuracy that linear attention loses"].mean > 10
    assert found["diffuse counting: accuracy of linear attention"].mean > 80
    assert abs(found["diffuse counting: accuracy that linear attention loses"].mean) < 10


def test_the_tasks_of_retrieval_can_be_answered():
    generator = torch.Generator().manual_seed(0)
    keys, values, answer = linear.sharp(50, generator)
    place = (keys[:, :-1] == keys[:, -1:]).long()
    assert bool((place.sum(dim=1) == 1).all())
    assert torch.equal((place * values[:, :-1]).sum(dim=1), answer)
    keys, values, answer = linear.diffuse(50, generator)
    counts = torch.stack([(values[:, :-1] == kind).sum(dim=1) for kind in range(linear.KINDS)], dim=1)
    assert bool((counts.gather(1, answer[:, None])[:, 0] == counts.amax(dim=1)).all())


def test_few_queries_lose_what_is_in_a_cell(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queries, "CELLS", 6)
    monkeypatch.setattr(queries, "SYMBOLS", 4)
    one, six = (queries.accuracy(count, "N(0, 1)", 0, 300) for count in (1, 6))
    assert six > 80
    assert one < six - 15


def test_queries_begin_as_they_are_asked_to():
    started = {}
    for start in queries.STARTS:
        model = {}
        original = queries.fit
        queries.fit = lambda parameters, *rest, model=model: model.update(found=list(parameters)) or []
        try:
            queries.accuracy(4, start, 0, 1)
        finally:
            queries.fit = original
        started[start] = next(p for p in model["found"] if p.shape == (4, queries.DIM)).detach()
    assert started["N(0, 0.02)"].std() == pytest.approx(0.02, rel=0.3)
    assert started["N(0, 1)"].std() == pytest.approx(1, rel=0.3)
    torch.manual_seed(0)
    place: Any = queries.Answerer(4).place
    cosine = torch.nn.functional.cosine_similarity(started["vision features"], place[::4], dim=1)
    assert float(cosine.min()) > 0.5


@pytest.fixture(scope="module")
def world():
    pytest.importorskip("transformers")
    return fusion.World(0, 60)


def test_gates_begin_without_harm_and_open_ones_do_not(world):
    gated = fusion.trained(world, (0, 2), True, 2)
    free = fusion.trained(world, (0, 2), False, 2)
    assert gated["harm before"] == 0
    assert free["harm before"] > 0.05


def test_the_answer_is_what_follows_the_symbol_in_the_named_cell(world, monkeypatch: pytest.MonkeyPatch):
    given = {}
    monkeypatch.setattr(
        world, "logits", lambda ids, fusion, memory: given.update(ids=ids, memory=memory) or ids[..., None]
    )
    _, answers = world.asked(None, 40)
    row, column = given["ids"][:, 1] - 1 - fusion.SYMBOLS, given["ids"][:, 2] - 1 - fusion.SYMBOLS - fusion.SIDE
    cell = world.named[row * fusion.SIDE + column]
    seen = given["memory"][torch.arange(40), 0, cell] - world.place[cell]
    symbol = torch.cdist(seen, world.symbol).argmin(dim=1)
    assert torch.equal(answers, world.follows[symbol] + 1)


def test_cross_attention_learns_wherever_it_stands(world):
    before = fusion.trained(world, (0, 1, 2, 3), True, 2)["accuracy"]
    after = fusion.trained(world, (0, 1, 2, 3), True, 120)["accuracy"]
    assert after > before + 20


def test_a_sink_appears_and_removing_it_adds_little():
    found = sinks.measured(0, 250)
    assert found["sink"] > 2 * found["fair"]
    assert found["sink"] > 2 * found["other"]
    assert found["blank"] == 1
    assert found["without"] - found["loss"] < 0.2
    assert found["without"] != found["loss"]


def test_a_hidden_token_is_seen_by_none():
    torch.manual_seed(0)
    model, (noise, words) = sinks.Reader(), sinks.Text(0).batch(3)
    with torch.no_grad():
        _, weights, _ = model(noise, words[:, :-1], 1)
    assert float(weights[..., 2:, 1].abs().max()) == 0
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))


def test_a_batch_gives_the_recurrent_one_something():
    found = by_name(batching.run((1, 16), rounds=5))
    for name in ("RAM", "transformer"):
        gain = found[f"{name}: what a batch of 16 gives over one image"].mean
        rates = [found[f"{name}: images a second, batch {size}"].mean for size in (1, 16)]
        assert gain == pytest.approx(rates[1] / rates[0])
    assert found["RAM: what a batch of 16 gives over one image"].mean > 2


def test_percentiles_of_a_cascade():
    found = by_name(tails.run(80, ROOT / "results"))
    assert found["images that stop at the first stage"].mean == pytest.approx(84, abs=3)
    for name in ("cascade", "all at the finest"):
        assert found[f"{name}: p50 of one image"].mean <= found[f"{name}: p99 of one image"].mean
    early, late = (found[f"median image that {what} / all at the finest"].mean for what in ("stops early", "goes on"))
    assert late > 1.2 * early


def test_without_a_cascade_it_says_what_to_run(tmp_path: Path):
    with pytest.raises(DataError, match="run regard bench cascade"):
        tails.run(20, tmp_path)


def test_memory_grows_as_the_kernel_lets_it():
    found = by_name(memory.run((1024, 2048), (8, 16, 32)))
    assert found["peak memory, self-attention, scores written out"].mean == pytest.approx(2, abs=0.1)
    assert found["peak memory, self-attention, fused kernel"].mean < 1.2
    assert found["peak memory, 64 learned queries in image tokens, scores written out"].mean == pytest.approx(
        1, abs=0.1
    )
    assert found["peak memory, RAM in glimpses, for training"].mean == pytest.approx(1, abs=0.1)


def test_a_baseline_takes_noise_from_the_gradient():
    with_it, without, classifier, accuracy = reinforce.noises(0, 300, 100)
    assert without > with_it > classifier
    assert accuracy > 30


def test_the_policy_is_the_models_own_loss():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = reinforce.RecurrentAttention(4, glimpses=3, glimpse=4, hidden=8, std=0.2)
    pixels, labels = reinforce.images(16, generator)
    seen = model(pixels, reinforce.noise(16, 3, generator))
    (ours,) = torch.autograd.grad(reinforce.policy(seen, labels, True), model.locate.weight, retain_graph=True)
    (theirs,) = torch.autograd.grad(reinforce.loss(seen, labels), model.locate.weight)
    torch.testing.assert_close(ours, theirs)


def test_a_run_writes_figures_with_their_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    told = []
    monkeypatch.setattr(experiments, "EXPERIMENTS", ("memory", "reinforce"))
    experiments.main(
        told.append, memory={"sizes": (64, 128), "glimpses": (4, 8)}, reinforce={"seeds": (0, 1), "steps": 5}
    )
    data = json.loads((tmp_path / "results" / "claims.json").read_text())
    assert told == ["experiment memory", "experiment reinforce"]
    assert data["command"] == "regard claims --run"
    name = "noise without the baseline / with it"
    row = next(row for row in data["rows"] if row["name"] == name)
    assert row["value"] == pytest.approx(sum(data["notes"][name]["seeds"]) / 2)
    low, high = data["notes"][name]["interval"]
    assert low < row["value"] < high
    assert "interval" not in data["notes"]["peak memory, RAM in glimpses"]
    assert {"experiment memory", "experiment reinforce"} < set(data["notes"])


def test_seeds_are_three_or_more():
    assert len(set(_shared.SEEDS)) >= 3
