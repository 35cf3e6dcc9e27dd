"""What cannot work is one line; what can is read: the command line of `regard advise`."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hatchling.builders.wheel import WheelBuilder

from advise_files import RESULTS, change, copied, write_mechanisms
from regard.bench.advise import Asked, Results, advise, folder, seconds, size
from regard.bench.advise.candidates import GRID, KINDS
from regard.bench.advise.models import MODELS
from regard.bench.advise.sources import FILES
from regard.errors import DataError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return copied(tmp_path / "results")


@pytest.mark.parametrize(
    ("text", "value"), [("300ms", 0.3), ("0.3s", 0.3), (" 1.5 S", 1.5), (".5s", 0.5), ("2min", 120.0)]
)
def test_times(text, value):
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"), [("8GB", 8e9), ("8 GB", 8e9), ("512MB", 512e6), ("1.5gib", 1.5 * 2**30), ("512 MiB", 2**29)]
)
def test_sizes(text, value):
    assert size(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--latency", "300"],
            "--latency must be a number with its unit, ms, s or min, such as 300ms or 0.3s, got '300'",
        ),
        (["--latency", "0ms"], "--latency must be a number"),
        (["--latency=-3s"], "--latency must be a number"),
        (["--latency", "fast"], "got 'fast'"),
        (["--latency", "8GB"], "got '8GB'"),
        (
            ["--memory", "8"],
            "--memory must be a number with its unit, MB, GB, MiB or GiB, such as 8GB or 512MB, got '8'",
        ),
        (["--memory", "8G"], "got '8G'"),
        (["--memory", "1e400GB"], "got '1e400GB'"),
        (["--memory", "9" * 400 + "GB"], "--memory must be more than 0"),
        (["--resolution", "0"], "--resolution must be a whole number from 1 to 16384, got 0"),
        (["--resolution=-5"], "--resolution must be a whole number from 1 to 16384, got -5"),
        (["--resolution", "100000"], "got 100000"),
        (["--batch", "0"], "--batch must be a whole number from 1 to 16384, got 0"),
        (["--model", "gpt"], "--model must be one of smollm2_135m, llava_1.5_7b, llava_1.5_13b, got 'gpt'"),
    ],
)
def test_a_usage_that_cannot_work_is_one_line(regard, results, options, message):
    code, out, err = regard("advise", "--results", results, *options)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert message in err


@pytest.mark.parametrize(
    "options",
    [
        ["--questions", "small"],
        ["--device", "tpu"],
        ["--train", "some"],
        ["--resolution", "large"],
        ["--speed", "3"],
        ["--memory", "8", "GB"],
    ],
)
def test_unknown_options_and_values(regard, results, options):
    code, out, err = regard("advise", "--results", results, *options)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert options[-1] in err or options[0] in err


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("allocators.json", "", "is not whole JSON: measure it again by regard bench allocators"),
        ("allocators.json", '{"name": "allocators", "rows": [', "is not whole JSON"),
        ("allocators.json", "[]", "is no file of results"),
        ("allocators.json", '{"name": "allocators"}', "is no file of results"),
        (
            "shorten.json",
            '{"schema": 2, "name": "", "command": "", "rows": [], "notes": {}}',
            "is of schema 2, this ver",
        ),
        (
            "shorten.json",
            '{"name": "", "command": "", "rows": [], "notes": {}}',
            "has no row 'encoding the image / pre",
        ),
        ("selectors.json", "{", "is not whole JSON"),
    ],
)
def test_files_that_are_no_results_are_one_line(regard, results, file, text, message):
    (results / file).write_text(text)
    code, out, err = regard("advise", "--results", results)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert message in err
    assert file in err


def _text(data: Any) -> None:
    data["rows"][0]["value"] = "fast"
    for row in data["rows"]:
        row["value"] = "fast"


def _lacking(data: Any) -> None:
    del data["notes"]["means"]["relevance"]["10%"]["mosaic"]["target"]


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("shorten", _text, "expected a number, got 'fast'"),
        ("allocators", _lacking, "relevance, 10%, mosaic/cutout/text, target is not as this version writes it"),
    ],
)
def test_rows_that_are_not_what_they_should_be(results, name, how, message):
    change(results, name, how)
    with pytest.raises(DataError, match=re.escape(message)):
        advise(Asked(questions="detail"), Results(results))


def test_a_matrix_of_another_schema_and_one_that_was_cut_off(results):
    matrix = results / "matrix.jsonl"
    text = matrix.read_text()
    matrix.write_text(text[:-40])
    found = advise(Asked(224, "global", train="all"), Results(results))
    assert "results/matrix.jsonl: the last line was cut off and is left out" in found.missing
    matrix.write_text(text.replace('"schema": 1', '"schema": 2'))
    with pytest.raises(DataError, match="is of schema 2, this version reads schema 1"):
        advise(Asked(224, "global", train="all"), Results(results))
    matrix.write_text(text.replace('"seconds": ', '"seconds": "x", "was": '))
    with pytest.raises(DataError, match="line 1, seconds: expected a number, got 'x'"):
        advise(Asked(224, "global", train="all"), Results(results))


def test_mechanisms_without_their_table_or_a_column(results):
    asked = Asked(672, "detail", train="bridge")
    write_mechanisms(results)
    change(results, "mechanisms", lambda data: data["tables"]["mechanisms"]["columns"].__setitem__(7, "hue"))
    with pytest.raises(DataError, match=r"has no column 'colour': run regard bench mechanisms"):
        advise(asked, Results(results))
    change(results, "mechanisms", lambda data: data.pop("tables"))
    with pytest.raises(DataError, match=r"has no table 'mechanisms': measure it again by regard bench mechanisms"):
        advise(asked, Results(results))


def test_missing_results_say_what_measures_them(regard, results, tmp_path):
    (results / "allocators.json").unlink()
    code, out, err = regard("advise", "--results", results)
    assert (code, out) == (1, "")
    assert "not ranked without results/allocators.json (regard bench allocators)" in err
    assert len(err.splitlines()) == 1
    code, out, err = regard("advise", "--results", tmp_path / "nowhere")
    assert (code, out) == (1, "")
    assert "is no folder of results: give one by --results" in err


def test_it_prints_figures_their_files_and_code(regard, results):
    code, out, err = regard("advise", "--resolution", 1344, "--latency", "10s", "--results", results)
    assert (code, err) == (0, "")
    for part in ("results/shorten.json", "What would change it:", "Assumed:", "regard.shorten(", "~ extrapolated"):
        assert part in out


def test_json_is_all_of_it(regard, results):
    write_mechanisms(results)
    line = ("advise", "--json", "--train", "bridge", "--latency", "9s", "--memory", "8 GB", "--results", results)
    code, out, _ = regard(*line)
    found = json.loads(out)
    assert code == 0
    assert found["schema"] == 1
    assert found["asked"] | {"latency": 9.0, "memory": 8e9, "train": "bridge"} == found["asked"]
    assert found["lead"]["title"] == found["rankings"][0]["order"][0]["title"]
    assert {figure["kind"] for figure in found["lead"]["figures"]} >= {"measured", "extrapolated"}
    assert found["nearest"] is None
    assert found["code"].endswith("\n")


def test_what_the_measurements_are_of_is_what_is_assumed():
    """Constants that stand for what other modules measure."""
    from regard.bench.mechanisms import DETAIL
    from regard.bench.shorten import CLIP, TEXT
    from regard.bench.tasks.asked import SIDES
    from regard.bench.tasks.asked.wording import KINDS as ASKED

    assert KINDS["detail"] == DETAIL
    assert {*KINDS["global"]} <= {*ASKED}
    middle = sorted(SIDES)[len(SIDES) // 2]
    assert (middle // 32) ** 2 == GRID
    model = MODELS["smollm2_135m"]
    assert model.vision.side == CLIP["image_size"]
    assert model.window == (CLIP["image_size"] // CLIP["patch_size"]) ** 2
    assert TEXT == 32


def test_the_measured_model_is_the_one_that_the_cost_model_knows():
    from regard.bench.shorten import CLIP, build

    with torch.device("meta"):
        built, _ = build(CLIP, "meta")
    count = sum(value.numel() for value in built.parameters())
    assert MODELS["smollm2_135m"].params == pytest.approx(count, rel=0.005)


def test_a_wheel_has_the_results_and_finds_them_from_any_folder(tmp_path):
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    for file in FILES:
        if (RESULTS / file).exists():
            assert (installed / "regard" / "results" / file).exists()
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); sys.argv = ['regard', 'advise', '--json']\n"
        "import regard; assert 'installed' in regard.__file__\nfrom regard.cli import main; main()"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["lead"]["title"] == advise(Asked(), Results(folder())).lead.title  # pyright: ignore
