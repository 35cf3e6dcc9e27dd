"""The README says what the results say."""

import json
from pathlib import Path

import pytest

from regard import DataError
from regard.bench.readme import generated

ROOT = Path(__file__).parent.parent


def test_the_readme_shows_the_results():
    text = (ROOT / "README.md").read_text()
    assert "<!-- figures: " in text
    assert generated(text, ROOT / "results") == text, "run python -m regard.bench.readme"


def test_a_changed_result_changes_the_text(tmp_path: Path):
    data = json.loads((ROOT / "results" / "speed.json").read_text())
    text = "a\n<!-- figures: speed -->\nold\n<!-- end -->\nb\n"
    (tmp_path / "speed.json").write_text(json.dumps(data))
    one = generated(text, tmp_path)
    assert "old" not in one
    data["rows"][0]["value"] += 1
    (tmp_path / "speed.json").write_text(json.dumps(data))
    assert generated(one, tmp_path) != one
    with pytest.raises(DataError, match="run `make bench`"):
        generated("<!-- figures: none -->\n<!-- end -->", tmp_path)


def test_the_tree_in_the_readme_names_real_files():
    text = (ROOT / "README.md").read_text()
    tree = text[text.index("src/regard/\n") :].split("```")[0].splitlines()[1:]
    names = [name for line in tree for name in line[:24].split() if name.endswith((".py", "/"))]
    assert len(names) > 10
    for name in names:
        assert (ROOT / "src" / "regard" / name).exists(), name
