"""docs/train.md, run from top to bottom with tiny parts: every block does what it says."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerate.tracking
import accelerate.utils
import pytest

import tiny_towers
from test_train_vlm import language_model, pictures, tokenizer

DOCUMENT = Path(__file__).parent.parent / "docs" / "train.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall(DOCUMENT.read_text())


def parts(folder: Path) -> None:
    tiny_towers.build("siglip", folder).rename(folder / "my-encoder")
    language_model().save_pretrained(folder / "my-language-model")
    tokenizer().save_pretrained(folder / "my-language-model")
    pictures(folder / "pictures", 18)
    lines = (folder / "pictures" / "rows.jsonl").read_text().replace('"image": "', '"image": "pictures/').splitlines()
    (folder / "pairs.jsonl").write_text("\n".join(lines[:12]) + "\n")
    (folder / "held-out.jsonl").write_text("\n".join(lines[12:]) + "\n")


class Kept(accelerate.tracking.GeneralTracker):
    """In place of trackio, which tests do without."""

    name = "trackio"
    requires_logging_directory = False
    rows: list[tuple[int | None, dict]] = []  # noqa: RUF012
    tracker = None

    def __init__(self, run_name: str, **more: Any) -> None:
        super().__init__()

    def store_init_configuration(self, values: dict) -> None:
        assert json.loads(values["settings"])["paradigm"] == "bridge"

    def log(self, values: dict, step: int | None, **more: Any) -> None:
        self.rows.append((step, values))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of peft
def test_the_page_runs(regard, tmp_path, monkeypatch):
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "trackio", Kept)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [accelerate.utils.LoggerType.TRACKIO])
    parts(tmp_path)
    names: dict[str, Any] = {}
    kinds = []
    for kind, text in blocks():
        kinds.append(kind)
        if kind == "python":
            exec(compile(text, str(DOCUMENT), "exec"), names)
        elif kind == "toml":
            Path(text.splitlines()[0].removeprefix("# ")).write_text(text)
        elif kind == "bash":
            for line in text.splitlines():
                if line.startswith("regard "):
                    code, _, err = regard(*shlex.split(line)[1:])
                    assert code == 0, (line, err)
        elif text.startswith("{"):
            assert all("answer" in json.loads(line) for line in text.splitlines())
        else:
            assert text.startswith("pip install ")
    assert kinds.count("python") == 6
    assert kinds.count("bash") == 5
    for run in ("run", "my-eye", "run-2", "tuned", "tuned-2", "whole", "curriculum", "two/stage2", "two-2/stage2"):
        assert (tmp_path / run / "model" / "config.json").is_file(), run
    for name in ("last.safetensors", "best.safetensors", "history.csv", "metrics.json"):
        assert (tmp_path / "run" / name).is_file()
        assert f"`{name}`" in DOCUMENT.read_text()
    assert {row.get("loss") is None for _, row in Kept.rows} == {True, False}


@pytest.mark.slow
def test_the_processes_of_the_page_run(tmp_path):
    parts(tmp_path)
    (settings,) = (text for kind, text in blocks() if kind == "toml")
    (tmp_path / "run.toml").write_text(settings)
    (line,) = (one for kind, text in blocks() if kind == "bash" for one in text.splitlines() if "torchrun" in one)
    whole = [sys.executable, "-m", "torch.distributed.run", *shlex.split(line)[1:]]
    place = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(whole, cwd=tmp_path, env=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run-3" / "metrics.json").read_text())["processes"] == 2
    assert json.loads((tmp_path / "run-3" / "model" / "config.json").read_text())["language_model"]["name_or_path"]
