"""docs/advise.md is what `regard advise` says, and the code that it gives runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from PIL import Image

import tiny_processors
from advise_files import change, copied, write_mechanisms
from regard.bench.advise import Asked, Results, advise
from regard.bench.advise.document import asked, generated
from regard.bench.advise.start import _MADE, start
from regard.errors import DataError
from test_train_vlm_docs import parts

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "advise.md"
MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"


def test_the_scenarios_are_what_it_says():
    text = DOCUMENT.read_text()
    assert len(re.findall(r"<!-- advise: ", text)) == 3
    assert generated(text, Results(ROOT / "results")) == text, "run python -m regard.bench.advise"


def test_a_changed_result_changes_the_scenarios(tmp_path):
    results = copied(tmp_path / "results")
    text = "<!-- advise: --resolution 672 --latency 3s -->\nstale\n<!-- end -->\n"
    one = generated(text, Results(results))
    assert "stale" not in one
    assert generated(one, Results(results)) == one

    def slower(data: Any) -> None:
        next(row for row in data["rows"] if row["name"] == "prefill of the whole prompt")["value"] *= 1.5

    change(results, "shorten", slower)
    assert generated(one, Results(results)) != one


def test_its_options_are_those_of_the_command():
    found = asked("--resolution 512 --questions global --latency 300ms --memory 8GB --train all")
    assert found == Asked(512, "global", latency=0.3, memory=8e9, train="all")
    with pytest.raises(DataError, match="expected --option value"):
        asked("--json")


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, "advice", "exec"), names)
    return names


@pytest.mark.parametrize("limit", [None, 3.0])
def test_the_code_for_a_model_as_it_is(tmp_path, monkeypatch, limit):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(skimage.data.chelsea()).resize((512, 384)).save("photo.jpg")
    tiny = tiny_processors.build("qwen2_5_vl", tmp_path)
    advice = advise(Asked(672, "detail", latency=limit), Results(copied(tmp_path / "results")))
    assert MODEL in advice.code
    names = run(advice.code.replace(MODEL, str(tiny)), {})
    assert ("short" in names) == (limit is not None)
    if limit is not None:
        assert names["short"].tokens_out < names["short"].tokens_in


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of peft
@pytest.mark.parametrize("name", ["all", "relevance", "qformer", "resampler", "recurrent", "cascade"])
def test_the_code_for_a_bridge(tmp_path, monkeypatch, name):
    results = copied(tmp_path / "results")
    write_mechanisms(results, {name: (99.0, 10.0)} if name != "all" else {"pool": (1.0, 10.0)})
    monkeypatch.chdir(tmp_path)
    parts(tmp_path)
    Image.fromarray(skimage.data.chelsea()).save("photo.jpg")
    advice = advise(Asked(672, "detail", train="bridge"), Results(results))
    assert advice.lead is not None
    assert advice.lead.name == ("all tokens" if name == "all" else name)
    names = run(advice.code, {})
    assert names["vlm"].mechanism == name
    assert any(Path("run/model").iterdir())


@pytest.mark.parametrize("name", _MADE)
def test_the_code_for_a_classifier(tmp_path, name):
    ranking = advise(Asked(90, "detail", latency=0.001, train="all"), Results(copied(tmp_path / "results"))).rankings[
        -1
    ]
    from dataclasses import replace

    one = replace(ranking.order[0], name=name, setting="")
    code = start(Asked(90, "detail"), one)
    names = run(code, {})
    assert names["seen"].logits.shape == (1, 10)
    command = re.findall(r"regard train (\w+) --help", code)
    from regard.cli import train

    assert command[0] in {entry.name or entry.callback.__name__ for entry in train.registered_commands}  # pyright: ignore
