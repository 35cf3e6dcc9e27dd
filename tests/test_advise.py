"""Advice follows from measurements: with others it is another, and every figure says where it is from."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from advise_files import change, copied, write_matrix, write_mechanisms
from regard.bench.advise import Asked, Results, advise, folder
from regard.bench.advise.changes import changes
from regard.bench.advise.host import A100, TEXT, Host
from regard.bench.advise.models import MODELS
from regard.bench.advise.ranking import beyond, leading, rankings
from regard.cost.language import LanguageModel
from regard.errors import DataError

DETAIL = Asked(1344, "detail", latency=10.0)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(copied(tmp_path / "results"))


def again(results: Results) -> Results:
    """Read anew."""
    return Results(results.path)


def order(asked: Asked, results: Results, test: int = 0) -> list[str]:
    return [one.name for one in advise(asked, again(results)).rankings[test].order]


def test_what_was_measured_best_leads_and_with_other_measurements_another_does(results):
    before = advise(DETAIL, results)
    assert before.lead is not None
    own = before.lead.name
    other = next(one.name for one in before.rankings[0].order if one.name not in (own, "all tokens"))

    def swap(data: Any) -> None:
        means = data["notes"]["means"]
        means[own], means[other] = means[other], means[own]

    change(results.path, "allocators", swap)
    after = advise(DETAIL, again(results))
    assert after.lead is not None
    assert after.lead.name == other
    assert after.lead.quality == before.lead.quality
    assert f'"{other}"' in after.code
    assert f'"{other}"' not in before.code


@pytest.mark.parametrize("name", ["pool", "cdpruner", "holov", "random", "top"])
def test_nobody_is_favoured(results, name):
    """Whoever is measured best leads."""

    def best(data: Any) -> None:
        for kinds in data["notes"]["means"][name].values():
            for measures in kinds.values():
                measures["target"] = [0.999] * 3

    change(results.path, "allocators", best)
    lead = advise(DETAIL, again(results)).lead
    assert lead is not None
    assert lead.name == name


def test_the_kind_of_question_chooses_what_counts(results):
    def apart(data: Any) -> None:
        means = data["notes"]["means"]
        for name, measure in (("grid", "target"), ("random", "whole")):
            for kinds in means[name].values():
                for measures in kinds.values():
                    measures[measure] = [0.999] * 3

    change(results.path, "allocators", apart)
    for questions, name in (("detail", "grid"), ("global", "random")):
        assert order(replace(DETAIL, questions=questions), results)[0] == name


def test_a_slower_decision_is_beyond_the_limit(results):
    before = order(DETAIL, results)[0]

    def slow(data: Any) -> None:
        row = next(row for row in data["rows"] if row["name"].startswith("decision, N=1024"))
        row["value"] *= 100

    assert before == "relevance"  # as it is measured in relevance.json
    change(results.path, "relevance", slow)
    after = advise(DETAIL, again(results))
    assert after.lead is not None
    assert after.lead.name != before
    assert "relevance" in [one.name for one in after.rankings[0].order[after.rankings[0].within :]]


def test_without_limits_all_tokens_are_read(results):
    found = advise(Asked(1344, "mixed"), results)
    assert found.lead is not None
    assert found.lead.title == "all tokens"
    assert "shorten" not in found.code
    assert found.lead.figures[0].kind == "definition"


def test_times_add_up_and_say_where_they_are_from(results):
    lead = advise(DETAIL, results).lead
    assert lead is not None
    data = json.loads((results.path / "shorten.json").read_text())
    rows = {row["name"]: row["value"] for row in data["rows"]}
    whole = rows["prefill of the whole prompt"] / 1e3
    encode = 16 * whole * rows["encoding the image / prefill of the whole prompt"]
    language = LanguageModel("", 30, 576, 9, 3, 1536, 49152)
    read = whole * language.prefill_macs(round(0.1 * 9216) + 32) / language.prefill_macs(576 + 32)
    by = {figure.of: figure for figure in lead.figures}
    assert by["encode"].value == pytest.approx(encode)
    assert by["read the prompt"].value == pytest.approx(read)
    assert lead.latency == pytest.approx(encode + read + by["decide, relevance"].value)
    assert {by[of].kind for of in ("encode", "read the prompt", "decide, relevance")} == {"extrapolated"}
    assert by["memory"].kind == "cost model"
    assert all(figure.source.startswith(("results/", "regard.cost")) for figure in lead.figures)


def test_what_is_as_it_was_measured_is_not_called_extrapolated(results):
    found = advise(Asked(336, "detail"), results)
    assert found.lead is not None
    assert [figure.kind for figure in found.lead.figures] == ["definition", "measured", "measured", "cost model"]
    assert not found.lead.extrapolated
    for change_of in ({"resolution": 337}, {"batch": 2}, {"model": "llava_1.5_7b"}, {"device": "gpu"}):
        other = advise(replace(Asked(336, "detail"), **change_of), results).lead
        assert other is not None
        assert other.extrapolated, change_of


def test_a_decision_grows_by_the_power_that_was_fitted(results):
    host = Host(Asked(1344), results)
    rows = {row["name"]: row["value"] for row in json.loads((results.path / "selectors.json").read_text())["rows"]}
    power = math.log(rows["holov, N=2880, K=288, D=1024"] / rows["holov, N=576, K=144, D=576"]) / math.log(5)
    share = results.must("shorten.json", "deciding / prefill, holov")
    (kept,) = [one for one in rankings(Asked(1344), results)[0][0].order if one.name == "holov"]
    (figure,) = [figure for figure in kept.figures if figure.of == "decide, holov"]
    assert figure.value == pytest.approx(share * host.whole * (9216 / 576) ** power)
    assert f"^{power:.2f} fitted to N=576 and 2880" in figure.source


def test_nothing_within_the_limits_is_said_with_the_nearest(results):
    asked = Asked(1344, "detail", latency=0.05, memory=1e8)
    found = advise(asked, results)
    assert found.lead is None
    assert found.nearest is not None
    assert found.why.startswith("Nothing is within the limits. The nearest is ")
    assert found.nearest.name in found.why
    every = [one for ranking in found.rankings for one in ranking.test.candidates]
    assert beyond(found.nearest, asked) == pytest.approx(min(beyond(one, asked) for one in every), rel=0.05)
    loosened = found.changes[0]
    assert loosened.startswith("--latency ")
    assert "--memory" in loosened


def test_memory_alone_is_a_limit(results):
    asked = Asked(1344, "detail", memory=1.25e9)
    found = advise(asked, results)
    assert found.lead is not None
    assert found.lead.title != "all tokens"
    assert found.lead.memory <= 1.25e9
    assert any(line.startswith("--memory of ") for line in found.changes)
    assert any(line.startswith("--memory below ") for line in found.changes)
    tight = advise(replace(asked, memory=1e6), results)
    assert tight.lead is None
    assert "for at most 1 MB" in tight.why


def test_the_limits_that_are_named_are_those_at_which_another_leads(results):
    """Each is tried: a little beyond it the one that was named leads."""
    found = rankings(DETAIL, results)[0]
    led = leading(DETAIL, results)
    assert led is not None
    better = [one for one in led[0].test.candidates if one.quality > led[1].quality]
    first = min(better, key=lambda one: one.latency)
    lines = changes(DETAIL, results, found, led)
    assert any(line.startswith("--latency of ") and first.title in line for line in lines)
    wider = leading(replace(DETAIL, latency=first.latency), results)
    assert wider is not None
    assert wider[1].title == first.title
    tighter = leading(replace(DETAIL, latency=led[1].latency * 0.9999), results)
    assert tighter is not None
    (below,) = [line for line in lines if line.startswith("--latency below ")]
    assert tighter[1].title in below


@pytest.mark.parametrize("name", ["resolution", "batch"])
def test_the_size_at_which_another_leads_is_the_nearest(results, name):
    lines = advise(DETAIL, results).changes
    led = leading(DETAIL, results)
    found = [int(line.split()[1].rstrip(":")) for line in lines if line.startswith(f"--{name} ")]
    assert found
    for value in found:
        near = value - 1 if value > getattr(DETAIL, name) else value + 1
        titles = [
            None if one is None else one[1].title
            for one in (leading(replace(DETAIL, **{name: size}), results) for size in (value, near))
        ]
        assert led is not None
        assert titles[1] == led[1].title
        assert titles[0] != titles[1]


def test_the_one_behind_is_told_what_it_needs(results):
    found = advise(DETAIL, results)
    ranking = found.rankings[0]
    second = ranking.order[1]
    (line,) = [line for line in found.changes if "would lead were its" in line]
    assert line.startswith(
        f"{second.title} would lead were its {second.quality:.3f} above {ranking.order[0].quality:.3f}"
    )
    assert "overlap" not in line

    def near(data: Any) -> None:
        for share, kinds in data["notes"]["means"][second.name].items():
            for kind, measures in kinds.items():
                own = data["notes"]["means"][ranking.order[0].name][share][kind]["target"]
                measures["target"] = [value - 0.001 for value in own]

    change(results.path, "allocators", near)
    (line,) = [line for line in advise(DETAIL, again(results)).changes if "would lead were its" in line]
    assert "their ranges overlap" in line


def test_bridges_are_ranked_by_answers_where_these_were_measured(results):
    asked = Asked(672, "detail", latency=3.0, train="bridge")
    before = advise(asked, results)
    assert [ranking.test.name for ranking in before.rankings] == ["detail rebuilt"]
    assert before.missing == (
        "questions answered: not ranked without results/mechanisms.json (regard bench mechanisms)",
    )
    write_mechanisms(results.path)
    after = advise(asked, again(results))
    assert [ranking.test.name for ranking in after.rankings] == ["questions answered", "detail rebuilt"]
    assert not after.missing
    assert after.lead is not None
    assert (after.lead.name, after.lead.tokens, after.lead.quality) == ("relevance", 64, 70.0)
    assert "mechanisms.json: table mechanisms, relevance, 64 tokens, colour/read" in after.lead.figures[0].source
    assert 'VLM("my-encoder", "relevance", "my-language-model")' in after.code
    write_mechanisms(results.path, {"relevance": (40.0, 12.0), "pool": (41.0, 10.0), "qformer": (55.0, 11.0)})
    other = advise(asked, again(results))
    assert other.lead is not None
    assert other.lead.name == "qformer"
    assert '"qformer", "my-language-model", bridge_arguments={"queries": 64}' in other.code
    assert advise(replace(asked, train="none"), again(results)).test == "detail rebuilt"


def test_a_bridge_takes_longer_with_more_tokens_as_its_mechanism_in_the_matrix(results):
    """qformer at 64 tokens: 4 ms beyond pool; cells grow with the square of the tokens."""
    write_mechanisms(results.path)
    results = again(results)
    (one,) = [
        one
        for one in rankings(Asked(672, train="bridge"), results)[0][0].test.candidates
        if (one.name, one.tokens) == ("qformer", 64)
    ]
    (figure,) = [figure for figure in one.figures if figure.of == "bridge, qformer"]
    wider = 768 * 576 / (512 * 192)
    assert figure.value == pytest.approx(4e-3 * (4 * 576 / 400) ** 2 * wider)
    assert "fitted to results/matrix.jsonl" in figure.source
    assert figure.kind == "extrapolated"


def test_global_questions_and_all_of_them(results):
    write_mechanisms(results.path)
    for questions, right in (("global", 65.0), ("mixed", 70.0)):
        asked = replace(Asked(672, latency=3.0, train="bridge"), questions=questions)
        found = advise(asked, again(results))
        assert found.lead is not None
        assert found.lead.quality == pytest.approx(right)
        assert (found.lead.between is not None) == (questions == "mixed")


def test_classifiers_are_for_those_who_train_all(results):
    asked = Asked(448, "detail", latency=0.7, train="all")
    found = advise(asked, results)
    assert found.test == "images classified, search"
    names = [one.name for one in found.rankings[-1].order]
    assert set(names) == {"gaze tokens", "FoveaTer", "FoveaTer, reading all", "self-attention"}
    assert found.lead is not None
    assert found.lead.title == "FoveaTer, reading all, foveater-all"
    assert found.lead.quality == 0
    assert found.lead.extrapolated
    assert advise(replace(asked, train="bridge"), again(results)).lead is None


def test_a_network_that_was_trained_has_its_own_time_and_memory(results):
    """Not those of another one of its name."""
    order = advise(Asked(512, "detail", train="all"), results).rankings[-1].order
    data = json.loads((results.path / "foveated.json").read_text())
    rows = {row["name"]: row["value"] for row in data["rows"]}
    for name, row in (("FoveaTer", "foveater"), ("FoveaTer, reading all", "foveater-all"), ("gaze tokens", "gaze")):
        (one,) = [one for one in order if one.name == name]
        assert one.latency == pytest.approx(rows[f"search, {row}: one image"] / 1e3)
        assert one.memory == pytest.approx(rows[f"search, {row}: memory of one image"] * 2**20)
        assert not one.extrapolated
    change(results.path, "foveated", lambda data: data["rows"].remove(_row(data, "search, gaze: one image")))
    ranking = advise(Asked(512, "detail", train="all"), again(results)).rankings[-1]
    assert "gaze tokens" not in [one.name for one in ranking.order]
    assert any("gaze tokens: no results have a time" in line for line in ranking.test.left_out)


def _row(data, name):
    (found,) = [row for row in data["rows"] if row["name"] == name]
    return found


def test_a_time_between_those_measured_is_by_the_fitted_power(results):
    asked = Asked(300, "global", latency=0.3, train="all", batch=2)
    ranking = advise(asked, results).rankings[-1]
    (one,) = [one for one in ranking.order if one.name == "recurrent (RAM)"]
    (time,) = [figure for figure in one.figures if figure.of == "time"]
    seconds = 6 * 1e-6 * 196**2 * 2 * (300 / 224) ** 4
    assert time.value == pytest.approx(seconds)
    assert time.kind == "extrapolated"
    assert (
        "recurrent (RAM)/224/1, x 2 for the batch, x (n / n there)^2.00, fitted; between the measured sizes"
        in time.source
    )
    assert one.tokens == round(196 * (300 / 224) ** 2)
    beyond_all = advise(Asked(1000, "global", latency=99.0, train="all"), again(results)).rankings[-1].order[0]
    assert "beyond the measured sizes" in beyond_all.figures[1].source
    eight = advise(Asked(448, "global", train="all", batch=8), again(results)).rankings[-1].order
    assert all(one.figures[1].kind == "measured" for one in eight)


def test_a_gpu_is_a_roofline_until_one_is_measured(results):
    asked = Asked(336, "detail", device="gpu")
    found = advise(asked, results)
    by = {figure.of: figure for figure in found.lead.figures} if found.lead else {}
    model = MODELS["smollm2_135m"]
    share = 0.5  # of the matrix that was made up
    macs = model.language.prefill_macs(576 + TEXT)
    products, weights = macs / (A100["matmul"] * share), 2 * model.params / A100["copy"]
    assert by["read the prompt"].value == pytest.approx(max(products, weights))
    assert "NVIDIA A100 80GB SXM data sheet" in by["read the prompt"].source
    assert any("no model was measured on a GPU" in line for line in found.assumed)
    write_matrix(results.path, "cuda", faster=100.0)
    own = advise(asked, again(results))
    assert own.lead is not None
    assert own.lead.figures[2].value == pytest.approx(max(macs / (4e12 * share), 2 * model.params / 1e12))
    (results.path / "shorten-cuda.json").write_text((results.path / "shorten.json").read_text())
    measured = advise(asked, again(results))
    assert measured.lead is not None
    assert [figure.kind for figure in measured.lead.figures[1:3]] == ["measured", "measured"]
    assert "results/shorten-cuda.json" in measured.lead.figures[1].source


def test_a_short_prompt_of_a_large_model_waits_for_its_weights(results):
    host = Host(Asked(336, device="gpu", model="llava_1.5_7b"), results)
    model = MODELS["llava_1.5_7b"]
    short, long = host.prefill(29), host.prefill(576)
    assert short.value == pytest.approx(2 * model.params / A100["copy"])
    assert "reading the weights once" in short.source
    assert long.value == pytest.approx(model.language.prefill_macs(576 + TEXT) / (A100["matmul"] * 0.5))
    assert "50% of its products" in long.source


def test_a_gpu_needs_the_matrix(results):
    (results.path / "matrix.jsonl").unlink()
    with pytest.raises(
        DataError, match=r"detail rebuilt: not ranked without results/matrix.jsonl \(regard bench matrix\)"
    ):
        advise(Asked(336, device="gpu"), again(results))
    assert advise(Asked(336), again(results)).lead is not None


def test_memory_is_that_of_the_cost_model(results):
    """Of LLaVA-1.5 7B in half precision, within 2 % of 7.06 * 10^9 parameters and the cache of 608 tokens."""
    one = advise(Asked(336, device="gpu", model="llava_1.5_7b"), results).lead
    assert one is not None
    cache = 2 * 32 * 4096 * 608 * 2
    assert one.memory == pytest.approx(2 * 7.06e9 + cache, rel=0.02)


def test_the_package_finds_its_results():
    assert (folder() / "allocators.json").exists()
