"""The survey's claims: rows that can be, verdicts that follow from figures, the page, the command line."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest

from regard.bench.claims import VERDICTS, Claim, claims, ruled, select
from regard.bench.claims import __main__ as page
from regard.bench.claims.document import document, generated
from regard.bench.claims.experiments import EXPERIMENTS
from regard.bench.claims.figures import COMMANDS, figure
from regard.errors import DataError

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
BASE = {"id": "it", "section": "1.1", "says": "it is so", "source": "arXiv 1706.03762", "why": "Because."}
RULED = [claim for claim in claims() if not claim.verdict]


def test_there_is_a_row_for_each_statement():
    rows = claims()
    assert len(rows) >= 60
    assert len({row.id for row in rows}) == len(rows)
    assert {row.section[:2] for row in rows} >= {"1.", "2.", "3.", "4.", "5.", "6.", "7."}
    for row in rows:
        assert all(len(text) > 10 for text in (row.says, row.source)), row.id
        assert row.why.endswith((".", "!")), row.id
        assert not re.search(r"/work|/home|/tmp", f"{row.says}{row.source}{row.why}"), row.id


def test_what_is_known_to_differ_is_not_called_true():
    """The differences between the survey and its sources that were found before."""
    wrong = """ram-error ram-core ram-hybrid foveater-authors foveater-quotation foveater-hierarchy pervit-two-streams
        foveated-reinforcement cogvlm-cross-attention blip2-three-stages blip2-second-stage blip2-outperforms
        blip2-most-efficient resampler-latents compression-ratio llava-compression llava-train-all flamingo-encoder
        flamingo-gate cross-attention-all-tokens convnext-attention self-attention-all-to-all global-receptive-field
        vit-196-tokens perceiver-first adavit-pruning sparse-fixed gaze-paper source-sink sink-degrades
        query-initialization eva-billions self-attention-memory paradigms-distinct""".split()
    verdicts = {row.claim.id: row.verdict for row in (ruled(one, RESULTS) for one in claims() if one.id in wrong)}
    assert sorted(verdicts) == sorted(wrong)
    assert not [name for name, verdict in verdicts.items() if verdict == "holds"]


def test_verdicts_that_were_wrong_once():
    """Of rules that tested something else, or against a twin that had hardly been trained."""
    known = {
        "cascade-real-time": "holds with limits",
        "cascade-hard-overhead": "holds with limits",
        "foveated-efficient": "holds with limits",
        "foveated-when": "holds with limits",
        "foveater-fixations": "refuted",
        "learned-queries-balanced": "cannot be tested here",
        "learned-queries-extreme": "refuted",
        "placement": "cannot be tested here",
        "self-attention-quadratic": "holds with limits",
        "sink-degrades": "refuted",
    }
    assert {claim.id: ruled(claim, RESULTS).verdict for claim in claims() if claim.id in known} == known


def test_every_figure_has_been_measured():
    for claim in claims():
        row = ruled(claim, RESULTS)
        assert not row.missing, f"{claim.id}: {row.measured}"
        assert row.verdict in VERDICTS


@pytest.mark.parametrize("claim", RULED, ids=lambda claim: claim.id)
def test_another_measurement_is_another_verdict(claim: Claim):
    """Values on both sides of every number that the rule names reach at least two verdicts."""
    numbers = {float(side) for one in (*claim.holds, *claim.limits) for side in one.split(" ") if _number(side)}
    tried = sorted({value + step for value in numbers or {1.0} for step in (-0.05, -0.01, 0.0, 0.01)} | {0.0})
    names = sorted(claim.needs)
    if len(tried) ** len(names) > 200_000:
        tried = sorted({value + step for value in numbers for step in (-0.05, 0.0, 0.01)})
    found = {
        claim.given(dict(zip(names, values, strict=True))) for values in itertools.product(tried, repeat=len(names))
    }
    assert len(found) >= 2, found


def _number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None


def test_the_rule_is_read_as_it_is_written():
    claim = Claim(**BASE, figures={"a": "now:x", "b": "now:y"}, holds=["a >= 2", "a > b"], limits=["b < 1"])
    assert claim.given({"a": 2, "b": 1}) == "holds"
    assert claim.given({"a": 2, "b": 2}) == "refuted"
    assert claim.given({"a": 1.9, "b": 0.9}) == "holds with limits"
    assert claim.given({"a": None, "b": 0.9}) == "cannot be tested here"
    assert claim.rule == "holds where a >= 2 and a > b; holds with limits where b < 1; refuted otherwise"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"holds": ["c >= 2"], "figures": {"a": "now:x"}}, "'c >= 2' must compare one of a"),
        ({"holds": ["a => 2"], "figures": {"a": "now:x"}}, "must compare one of a"),
        ({"holds": ["3 >= 2"], "figures": {"a": "now:x"}}, "must compare one of a"),
        ({}, "a verdict or a rule"),
        ({"verdict": "holds", "holds": ["a >= 2"], "figures": {"a": "now:x"}}, "and not both"),
        ({"verdict": "true"}, "has the verdict 'true': there are holds, "),
    ],
)
def test_a_row_that_cannot_be_is_refused(change, message):
    with pytest.raises(DataError, match=re.escape(message)):
        Claim(**BASE, **change)


def test_a_changed_result_changes_the_verdict_and_the_page(tmp_path: Path):
    shutil.copytree(RESULTS, tmp_path / "results")
    file = tmp_path / "results" / "ram.json"
    data = json.loads(file.read_text())
    (row,) = [row for row in data["rows"] if row["name"].startswith("mnist, 4 glimpses, mean of 10")]
    (claim,) = select("ram-error")
    before = ruled(claim, tmp_path / "results")
    assert before.verdict == "refuted"
    row["value"] = 7.1
    file.write_text(json.dumps(data))
    after = ruled(claim, tmp_path / "results")
    assert after.verdict == "holds with limits"
    assert "error = 7.1" in after.measured
    assert document([before]) != document([after])


def test_an_interval_can_decide(tmp_path: Path):
    data = json.loads((RESULTS / "claims.json").read_text())
    name = "noise without the baseline / with it"
    (claim,) = select("ram-baseline")
    for low, verdict in ((1.01, "holds"), (0.99, "holds with limits")):
        data["notes"][name]["interval"] = [low, 2.0]
        next(row for row in data["rows"] if row["name"] == name)["value"] = 1.5
        (tmp_path / "claims.json").write_text(json.dumps(data))
        assert ruled(claim, tmp_path).verdict == verdict


def test_without_results_a_row_says_what_to_run(tmp_path: Path):
    rows = [ruled(claim, tmp_path) for claim in claims()]
    commands = {command for row in rows for command in row.missing}
    assert commands >= {"regard claims --run", "regard bench ram", "regard bench cascade"}
    (ram,) = [row for row in rows if row.claim.id == "ram-error"]
    assert ram.measured == "not measured: run `regard bench ram`"
    assert ram.verdict == "cannot be tested here"
    (windows,) = [row for row in rows if row.claim.id == "swin-efficient"]
    assert windows.verdict == "holds"


def test_a_row_that_results_lack_says_what_to_run(tmp_path: Path):
    data = json.loads((RESULTS / "layers.json").read_text())
    data["rows"] = data["rows"][:3]
    (tmp_path / "layers.json").write_text(json.dumps(data))
    (claim,) = select("sparse-speed")
    assert ruled(claim, tmp_path).measured == "not measured: run `regard bench layers`"


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": []}'])
def test_a_file_that_is_no_results_is_named(tmp_path: Path, text: str):
    (tmp_path / "ram.json").write_text(text)
    with pytest.raises(DataError, match=r"ram.json' is not a file of results"):
        figure("ram:mnist", tmp_path)


def test_figures_are_found_by_their_names():
    assert figure("ram:mnist, 4 glimpses, mean of 10", RESULTS).unit == "% error"
    with pytest.raises(DataError, match="rows of results/ram.json begin with 'mnist'"):
        figure("ram:mnist", RESULTS)
    with pytest.raises(DataError, match="no results are named 'rma'"):
        figure("rma:mnist", RESULTS)
    with pytest.raises(DataError, match="nothing that is computed is named"):
        figure("now:nothing", RESULTS)
    cell = [
        figure(f"allocators/parts:top-k on the field:target 10%{end}", RESULTS).value for end in ("", "@low", "@high")
    ]
    assert cell[1] < cell[0] < cell[2]  # pyright: ignore
    assert figure("allocators/parts:no such row:target 10%", RESULTS).value is None
    assert {name for name in COMMANDS if not (RESULTS / f"{name}.json").exists()} == set()


def test_the_page_is_generated():
    assert (ROOT / "docs" / "claims.md").read_text() == generated(RESULTS), "run python -m regard.bench.claims"


def test_the_page_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr("sys.argv", ["claims", "--check"])
    with pytest.raises(SystemExit, match="claims.md differs from results/: run python -m regard.bench.claims"):
        page.main()
    monkeypatch.setattr("sys.argv", ["claims"])
    page.main()
    assert "not measured: run `regard bench ram`" in (tmp_path / "docs" / "claims.md").read_text()
    monkeypatch.setattr("sys.argv", ["claims", "--check"])
    page.main()


def test_the_command_line(regard, monkeypatch: pytest.MonkeyPatch):
    (shown,) = json.loads(regard("claims", "--only", "ram-error", "--json")[1])
    assert shown["verdict"] == "refuted", "by the package's own results"
    Path("results").mkdir()
    code, out, _ = regard("claims", "--only", "1.6")
    assert code == 0
    assert "Some figures are not measured: run regard bench ram" in out
    monkeypatch.chdir(ROOT)
    (shown,) = json.loads(regard("claims", "--only", "ram-error", "--json")[1])
    assert (shown["id"], shown["verdict"]) == ("ram-error", "refuted")
    assert shown["figures"]["error"]["command"].startswith("regard bench ram")
    refuted = json.loads(regard("claims", "--verdict", "refuted", "--json")[1])
    assert len(refuted) >= 5
    assert {row["verdict"] for row in refuted} == {"refuted"}
    assert "Rule: " in regard("claims", "--only", "ram-error")[1]
    table = regard("claims", "--only", "1.6")[1]
    assert "ram-error" in table
    assert " claims: " in table.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "ram-eror"), "the nearest ids are ram-error"),
        (("--only", " "), "regard claims lists them all"),
        (("--verdict", "hold"), "the nearest is 'holds'"),
        (("--verdict", "refuteed"), "the nearest is 'refuted'"),
    ],
)
def test_what_is_not_there_is_said_in_a_line(regard, arguments, message):
    code, out, error = regard("claims", *arguments)
    assert (code, out) == (2, "")
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_every_experiment_is_named():
    folder = Path(page.__file__).parent / "experiments"
    assert {file.stem for file in folder.glob("[a-z]*.py")} == set(EXPERIMENTS)
