"""docs/index-of-mechanisms.md is what results and docstrings say, and everything that there is stands in it."""

import json
import re
import shutil
from pathlib import Path

import pytest

from regard import cost
from regard.allocate import catalogue
from regard.bench.index import allocators, bridges, layers, mechanisms
from regard.bench.index.entry import Entry, Figures, listed, number, short
from regard.bench.index.page import PLACE, page
from regard.cost.language import QWEN2_5_7B
from regard.vlm.bridges import ALL, KINDS
from regard.vlm.fusion import KINDS as FUSIONS
from regard.vlm.inside import METHODS

ROOT = Path(__file__).parent.parent
FIGURES, DOCS = Figures(ROOT / "results"), ROOT / "docs"


def every() -> list[Entry]:
    return [
        *allocators.entries(FIGURES),
        *bridges.bridges(FIGURES),
        *bridges.fusions(FIGURES),
        *bridges.pruners(),
        *layers.entries(FIGURES, DOCS),
        *mechanisms.entries(FIGURES, DOCS),
    ]


def test_the_page_is_what_it_should_be():
    assert (ROOT / PLACE).read_text() == page(ROOT), "run python -m regard.bench.readme"


def test_everything_that_there_is_stands_in_it():
    names = {entry.name for entry in every()}
    assert set(catalogue()) <= names
    assert {f"bridge: {name}" for name in {ALL, *KINDS} - {"projector"}} <= names
    assert {f"fusion: {name}" for name in FUSIONS} <= names
    assert {f"inside: {name}" for name in METHODS} <= names
    shown = {kind for kinds in layers.modules().values() for kind in kinds}
    assert shown == set(cost.names()["layers"])
    assert {f"layer: {name.replace('_', ' ')}" for name in layers.modules()} <= names
    trained = {name for name in cost.names()["mechanisms"] if name != "vit"}
    used = " ".join(entry.use for entry in every())
    assert all(f"regard train {name}`" in used for name in trained)


@pytest.mark.parametrize("entry", every(), ids=lambda entry: entry.name)
def test_an_entry_has_its_parts(entry):
    text = entry.markdown()
    assert entry.cost
    assert entry.measured
    assert entry.when
    if entry.name != "mechanism: relevance":  # its formulas are on its page
        assert re.search(r"^ {4}\S", text, re.MULTILINE), "the docstring of its module has a formula"
    if not entry.name.startswith(("bridge", "fusion", "inside")):
        pictured = entry.name not in ("layer: convnext", "layer: swin", "mechanism: relevance")
        assert bool(entry.pictures) == pictured
    assert all((DOCS / picture).exists() for picture in entry.pictures)


def test_every_paper_of_a_docstring_is_linked():
    (deltas,) = (entry for entry in every() if entry.name == "layer: delta")
    assert "[2102.11174](https://arxiv.org/abs/2102.11174), [2406.06484](https://arxiv.org/abs/2406.06484)" in (
        deltas.markdown()
    )


def changed(folder: Path, file: str, change) -> Figures:
    """The results with one file changed."""
    shutil.copytree(ROOT / "results", folder, dirs_exist_ok=True)
    data = json.loads((folder / file).read_text())
    change(data)
    (folder / file).write_text(json.dumps(data))
    return Figures(folder)


def when(entries: list[Entry], name: str) -> str:
    return next(entry.when for entry in entries if entry.name == name)


def test_another_measurement_another_verdict_for_allocators(tmp_path):
    def better(data):
        for kinds in data["notes"]["means"]["pool"].values():
            for one in kinds.values():
                one.update({measure: [9.0, 9.0, 9.0] for measure in ("target", "whole")})

    before = allocators.entries(FIGURES)
    after = allocators.entries(changed(tmp_path, "allocators.json", better))
    assert "baseline" in when(before, "pool")
    assert when(after, "pool").startswith("where what is asked about must be told")
    assert "every kind of scene" in when(after, "pool")
    assert "best of" not in when(after, "relevance").partition("tokens must stay")[0]


def test_a_simple_rule_that_is_better_is_said(tmp_path):
    def worse(data):
        for kinds in data["notes"]["means"]["saliency quadtree"].values():
            for one in kinds.values():
                one["whole"] = [-1.0]

    assert "saliency quadtree" in when(allocators.entries(FIGURES), "relevance")
    assert "saliency quadtree" not in when(allocators.entries(changed(tmp_path, "allocators.json", worse)), "relevance")


def test_another_measurement_another_verdict_for_layers(tmp_path):
    def slower(data):
        (row,) = (row for row in data["rows"] if row["name"] == "linear attention / dense at 4096 tokens")
        row["value"] = 3.0

    assert when(layers.entries(FIGURES, DOCS), "layer: linear").startswith("for sequences of thousands")
    after = layers.entries(changed(tmp_path, "layers.json", slower), DOCS)
    assert when(after, "layer: linear").startswith("not for its speed: 3 of")


def test_from_which_size_a_layer_is_quicker():
    dense = {"224 px, batch 1": "10 (9 to 11)", "448 px, batch 1": "40", "672 px, batch 1": "90"}
    own = {"224 px, batch 1": "20 (19 to 21)", "448 px, batch 1": "30", "672 px, batch 1": "-"}
    assert layers._crossed(own, dense) == "from 448 pixels on (0.75 of the time of self-attention at 448 pixels)"
    assert layers._crossed({**own, "672 px, batch 1": "99"}, dense).startswith("not for its speed: 1.1")
    assert layers._crossed({}, dense) == "no measurement of ours says"


def test_another_measurement_another_verdict_for_mechanisms(tmp_path):
    def right(data):
        table = data["tables"]["accuracy"]
        place = {name: at for at, name in enumerate(table["columns"])}
        for row in table["rows"]:
            if row[place["mechanism"]] == "EViT":
                row[place["accuracy, %"]], row[place["on the front"]] = "99.9", ""

    after = mechanisms.entries(changed(tmp_path, "matrix.json", right), DOCS)
    assert re.search(r"fashion: \+1\d\.\d points", when(after, "mechanism: evit"))
    assert "unbeaten" not in when(after, "mechanism: evit")


def answered(name: str, right: float) -> list[str]:
    kinds = [f"{right:.1f}"] * 8
    return [name, "64", f"{right} (1 to 2)", *kinds, "100", "7", "3.1", "1.0"]


def test_bridges_by_the_test_scenes_where_they_were_asked(tmp_path):
    columns = "mechanism tokens right,_%_(95_%) what where exists count colour next read missing".split()
    columns = [name.replace("_", " ") for name in columns] + ["bridge, k parameters", "M MACs", "ms alone", "ms of 64"]
    rows = [answered("qformer", 60.0), answered("resampler", 59.9), answered("relevance", 20.0), answered("all", 10.0)]
    table = {"mechanisms": {"columns": columns, "rows": rows}}
    data = {"rows": [{"name": "x", "value": 1.0}], "notes": {"questions": 3000}, "tables": table}
    shutil.copytree(ROOT / "results", tmp_path, dirs_exist_ok=True)
    (tmp_path / "mechanisms.json").write_text(json.dumps(data))
    found = bridges.bridges(Figures(tmp_path))
    assert when(found, "bridge: qformer").startswith("first of all over all questions; ahead in what")
    assert "beyond chance" in when(found, "bridge: resampler")
    assert when(found, "bridge: all").startswith("not for these questions: `qformer` answers 50.0 points more")
    assert when(found, "bridge: cascade") == "no measurement of ours says"
    (one,) = (entry for entry in found if entry.name == "bridge: qformer")
    assert "7 M multiply-accumulates and 3.1 ms" in one.cost


def test_nothing_measured_is_said(tmp_path):
    nothing = Figures(tmp_path)
    assert all("no measurement of ours says" in entry.when for entry in allocators.entries(nothing))
    assert all(entry.measured.startswith("not on scenes") for entry in allocators.entries(nothing))
    assert all("no measurement" in entry.when for entry in mechanisms.entries(nothing, DOCS))
    assert all("no measurement" in entry.when for entry in bridges.bridges(nothing))


def test_what_pruning_inside_saves():
    """FastV by hand: all 640 tokens in two layers, then 352."""
    (fastv, _) = bridges.pruners()
    model = QWEN2_5_7B
    part = model.prefill_macs_of_layers([640] * 2 + [352] * (model.layers - 2))
    assert fastv.cost.startswith(f"{part / model.prefill_macs(640):.0%} of the prefill")


def test_words_and_numbers():
    assert [listed(list(names)) for names in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
    assert [number(text) for text in ("1,684 to 2", "-0.5 (1)", "-", "", "1.3e+03")] == [1684, -0.5, None, None, 1300]
    assert [short(value) for value in (0, 0.00427, 3.14159, 45678.9, 1.2e-5)] == [
        "0",
        "0.00427",
        "3.14",
        "45,679",
        "1.2e-05",
    ]
