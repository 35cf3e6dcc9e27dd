"""The README says what the results say."""

import importlib
import inspect
import json
import re
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

import tiny_processors
from regard import DataError
from regard.bench.readme import DOCUMENTS, generated

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_documents_show_the_results(name):
    text = (ROOT / name).read_text()
    assert "<!-- figures: " in text
    assert "-->\n<!-- end -->" not in text, "a block is not filled"
    assert generated(text, ROOT / "results") == text, "run python -m regard.bench.readme"


def test_a_changed_result_changes_the_text(tmp_path: Path):
    data = json.loads((ROOT / "results" / "speed.json").read_text())
    text = "a\n<!-- figures: speed -->\nstale\n<!-- end -->\nb\n"
    (tmp_path / "speed.json").write_text(json.dumps(data))
    one = generated(text, tmp_path)
    assert "stale" not in one
    data["rows"][0]["value"] += 1
    (tmp_path / "speed.json").write_text(json.dumps(data))
    assert generated(one, tmp_path) != one
    with pytest.raises(DataError, match="run `make bench`"):
        generated("<!-- figures: none -->\n<!-- end -->", tmp_path)


def test_a_table_may_have_a_name_of_several_words(tmp_path: Path):
    (tmp_path / "some.json").write_text(
        json.dumps({"tables": {"slow ones": {"columns": ["a", "b"], "rows": [["c", "1"]]}}})
    )
    text = generated("<!-- table: some/slow ones -->\nstale\n<!-- end -->\n", tmp_path)
    assert text == "<!-- table: some/slow ones -->\n| a | b |\n| --- | ---: |\n| c | 1 |\n<!-- end -->\n"


def test_the_tree_in_the_readme_names_real_files():
    text = (ROOT / "README.md").read_text()
    tree = text[text.index("src/regard/\n") :].split("\ntests/")[0].splitlines()[1:]
    names = [name for line in tree for name in line[:24].split() if name.endswith((".py", "/"))]
    assert len(names) > 10
    for name in names:
        assert (ROOT / "src" / "regard" / name).exists(), name


def python_blocks(file: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(skimage.data.chelsea()).resize((512, 384)).save("photo.jpg")
    look, model = python_blocks("README.md")
    names: dict = {}
    exec(look, names)
    assert names["kept"].features.shape == (1, 128, 1280)
    tiny = tiny_processors.build("smolvlm", tmp_path)
    exec(model.replace("HuggingFaceTB/SmolVLM-256M-Instruct", str(tiny)), names)
    assert [answer.allocator for answer in names["asked"].answers] == [None, "divprune"]
    assert names["short"].tokens_out < names["short"].tokens_in


def test_the_allocator_of_the_docs_keeps_the_contract(tmp_path: Path, monkeypatch):
    brightest, contract = python_blocks("docs/allocators.md")
    (tmp_path / "brightest.py").write_text(brightest + "\n\n" + contract)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("brightest").test_contract()


def test_the_page_of_the_layers_is_their_docstrings(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.chdir(ROOT)
    page = importlib.import_module("attention_pictures").page()
    assert (ROOT / "docs" / "attention.md").read_text() == page, "run examples/attention_pictures.py"


def test_the_page_of_the_mechanisms_has_their_docstrings(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    pictures = importlib.import_module("mechanism_pictures")
    text = (ROOT / "docs" / "mechanisms.md").read_text()
    assert text.startswith(pictures.HEAD)
    for name, *_ in pictures.PARTS:
        said = inspect.cleandoc(importlib.import_module(f"regard.mechanisms.{name}").__doc__ or "")
        assert said in text, f"docs/mechanisms.md does not say what regard.mechanisms.{name} does"
