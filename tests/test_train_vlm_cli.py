"""`regard train bridge`, `two-stage` and `full` as a person types them, on tiny models in folders."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import tiny_towers
from test_train_vlm import language_model, pictures, tokenizer

TABLES = {
    "eye": {"name": "eye"},
    "bridge": {"name": "qformer", "queries": 4, "heads": 2, "depth": 1},
    "recipe": {"epochs": 2, "batch": 4, "every": 3, "log": 1, "rates": {"bridge": 1e-2}},
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A folder with an eye, a language model, and rows."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_towers.build("siglip", folder).rename(folder / "eye")
    language_model().save_pretrained(folder / "language")
    tokenizer().save_pretrained(folder / "language")
    pictures(folder / "data", 10)
    pictures(folder / "held", 4)
    return folder


def config(parts: Path, **changes: Any) -> Path:
    data = {"train": str(parts / "data" / "rows.jsonl"), "held": [str(parts / "held" / "rows.jsonl")]}
    values = {"language_model": str(parts / "language"), "data": {**data, "cache": str(parts / "cache")}, **TABLES}
    values |= {"out": "run", "eye": {"name": str(parts / "eye")}, **changes}
    Path("run.json").write_text(json.dumps(values))
    return Path("run.json")


def test_a_bridge_is_trained_from_a_file(regard, parts):
    line = ["train", "bridge", "--config", config(parts), "--set", "bridge.queries=3", "--set", "out=other"]
    code, out, err = regard(*line)
    assert code == 0
    assert re.fullmatch(r"(regard: step \d of 6: loss [\d.]+, \d+ tokens/s, [\d.]+ images/s\n){6}", err)
    said = out.splitlines()
    assert said[0].startswith("eye: ")
    assert said[0].endswith("parameters, frozen")
    assert "parameters are trained" in said[1]
    assert said[2].endswith("parameters, frozen")
    assert said[3].startswith("loss ")
    assert said[3].endswith("after 6 steps: other")
    metrics = json.loads(Path("other/metrics.json").read_text())
    assert metrics["paradigm"] == "bridge"
    assert metrics["held_loss"] > 0
    assert "commit" in metrics
    saved = json.loads(Path("other/model/config.json").read_text())
    assert saved["mechanism"]["arguments"]["queries"] == 3
    assert saved["language_model"]["name_or_path"] == str(parts / "language")
    names = {path.name for path in Path("other").iterdir()}
    assert names == {"best.safetensors", "last.safetensors", "history.csv", "metrics.json", "model", "lock"}
    assert regard(*line)[:2] == (0, out)
    code, _, err = regard(*line, "--set", "recipe.rates.bridge=0.5")
    assert code == 1
    assert err == (
        "regard: 'other' holds a run with recipe.rates.bridge 0.01 (asked for 0.5): choose another folder, "
        "or remove it\n"
    )
    started: dict[str, Any] = {"start": "other/model", "out": "on", "bridge": {"name": "qformer", "queries": 3}}
    assert regard(*line[:3], config(parts, **started), "-q") == (0, "", "")
    for other, name in (
        ({"name": "resampler"}, "bridge.name 'resampler'"),
        ({"name": "qformer", "queries": 4}, "bridge.queries 4"),
    ):
        code, _, err = regard(*line[:3], config(parts, **{**started, "bridge": other}))
        assert (code, err) == (
            2,
            f"regard: 'other/model' was trained with another bridge than {name}: leave bridge out, or start\n",
        )
    for change, line in (
        ({"bridge": {"name": "qformer", "querys": 3}}, "querys"),
        ({"eye": {"name": str(parts / "eye"), "layer": -2}}, "with another eye than eye.layer -2"),
        ({"eye": {"name": "embedded"}}, "with another eye than eye.name 'embedded'"),
        ({"language_model": "another"}, "has the language model"),
    ):
        code, _, err = regard("train", "bridge", "--config", config(parts, **{**started, **change}))
        assert code in (1, 2)
        assert line in err
        assert err.count("\n") == 1


def test_two_stages_are_trained(regard, parts):
    code, out, _ = regard("train", "two-stage", "--config", config(parts), "--set", "first.epochs=1")
    assert code == 0
    assert out.splitlines()[-2].endswith("after 1 steps: run/stage1")
    assert out.splitlines()[-1].endswith("after 6 steps: run/stage2")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of peft
def test_all_is_trained_by_lora(regard, parts):
    given = config(parts, fusion={"name": "late"}, out="all", train_eye=True)
    code, out, _ = regard("train", "full", "--config", given, "--set", "lora.rank=2")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()[:4]] == ["eye", "bridge", "fusion", "language_model"]
    assert out.count("parameters are trained") == 4
    assert Path("all/model/language_model_adapter").is_dir()
    assert json.loads(Path("all/metrics.json").read_text())["learned"].keys() >= {"eye", "language_model"}


def test_a_dry_run_trains_nothing(regard, parts):
    code, out, _ = regard("train", "full", "--config", config(parts), "--dry-run")
    assert code == 0
    assert out.splitlines()[-1].startswith("language_model: ")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("verb", "changes", "code", "said"),
    [
        ("bridge", ["bridg.queries=3"], 2, "there is no setting bridg: did you mean bridge? (run.json)"),
        ("bridge", ["recipe.epoch=3"], 1, "there is no setting recipe.epoch: did you mean epochs?"),
        ("bridge", ["recipe.epochs=x"], 1, "recipe.epochs must be a whole number, got 'x'"),
        ("bridge", ["out"], 2, "--set takes NAME=VALUE, such as bridge.queries=32, got 'out'"),
        ("bridge", ["out.x=1"], 2, "--set out.x: out is no table of settings in 'run.json'"),
        ("bridge", ["bridge.name=3"], 2, "the setting bridge.name is missing"),
        ("bridge", ["bridge.name=nothing"], 1, "no mechanism is named 'nothing'"),
        ("bridge", ["bridge.queries=many"], 2, "bridge.queries must be a whole number, got 'many'"),
        ("bridge", ["bridge.latents=3"], 1, "latents"),
        ("bridge", ["bridge.queries=-1"], 1, "mechanism qformer: queries must be 1 or more, got -1"),
        ("two-stage", ["bridge.depth=0"], 1, "mechanism qformer: depth must be 1 or more, got 0"),
        ("bridge", ['eye={"name": "embedded", "longest": "x"}'], 2, "eye.longest must be a whole number, got 'x'"),
        ("bridge", ["eye.sign=5"], 2, "eye.sign must be 1 or -1, got 5"),
        ("bridge", ["language_model=null"], 2, "give language_model, by its folder or name, or start"),
        ("bridge", ["language_model=./gone/x"], 1, "the language model './gone/x' cannot be loaded"),
        ("bridge", ["data.train=gone.jsonl"], 1, "there is no file 'gone.jsonl' with rows"),
        ("bridge", ["data.train=[]"], 1, "there are no files with rows"),
        ("bridge", ["lora.rank=2"], 2, "the setting lora is not for regard train bridge: leave it out"),
        ("full", ["lora.alpha=8"], 2, "the setting lora.rank is missing"),
        ("bridge", ["start=gone", "dtype=float32"], 2, "the setting dtype is for language_model"),
        ("full", ["first.epochs=2"], 2, "the setting first is not for regard train full: leave it out"),
        ("two-stage", ["bridge={\"name\": \"all\"}"], 1, "two stages train a Q-Former, got the mechanism 'all'"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_line(regard, parts, verb, changes, code, said):
    given = [part for change in changes for part in ("--set", change)]
    got, _, err = regard("train", verb, "--config", config(parts), *given)
    lines = [line for line in err.splitlines() if line.strip()]
    assert said in err
    assert got == code
    assert len(lines) == 1, err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.toml", "out = ", "'x.toml' cannot be read: "),
        ("x.yaml", "out: [", "'x.yaml' cannot be read: "),
        ("x.json", "[1]", "'x.json' must be a table, got list"),
        ("x.txt", "", "settings come from .toml, .yaml and .json files"),
        ("x.toml", "out = 'x'", "the setting data is missing"),
    ],
)
def test_a_file_of_settings_that_is_none(regard, name, text, said):
    Path(name).write_text(text)
    code, _, err = regard("train", "bridge", "--config", name)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1
    assert regard("train", "bridge", "--config", "gone.toml")[2] == (
        "regard: the settings 'gone.toml' cannot be read: No such file or directory\n"
    )


def test_files_of_all_kinds_say_the_same(tmp_path, monkeypatch):
    from regard.cli._train_vlm import _settings

    monkeypatch.chdir(tmp_path)

    Path("a.toml").write_text('out = "x"\nstart = "m"\n[data]\ntrain = ["r.jsonl"]\n[recipe]\nepochs = 3\n')
    Path("a.yaml").write_text("out: x\nstart: m\ndata: {train: [r.jsonl]}\nrecipe: {epochs: 3}\n")
    Path("a.json").write_text('{"out": "x", "start": "m", "data": {"train": "r.jsonl"}, "recipe": {"epochs": 3}}')
    made = [_settings(Path(name), []) for name in ("a.toml", "a.yaml", "a.json")]
    assert made[0] == made[1] == made[2]
    assert _settings(Path("a.toml"), ["recipe.rates.bridge=1e-3"]).recipe["rates"] == {"bridge": 1e-3}
