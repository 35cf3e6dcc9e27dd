"""docs/doctor.md, run from top to bottom: every block does what it says."""

import json
import re
import shlex
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import tiny_processors
import tiny_vlms
from regard.doctor.examine import CHECKS
from regard.doctor.finding import SEVERITIES
from regard.vlm.processors import load_processor

DOCUMENT = Path(__file__).parent.parent / "docs" / "doctor.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_runs(regard, models, tmp_path, capsys):
    folder = tiny_processors.build("llava", tmp_path).rename(tmp_path / "my-model")
    rows = [{"image": f"{name}.png", "question": "what colour has it ?", "answer": name} for name in ("red", "blue")]
    for row in rows:
        Image.new("RGB", (40, 30), row["answer"]).save(tmp_path / row["image"])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = deepcopy(models("llava"))
    rates = torch.optim.AdamW(model.parameters(), lr=1e-4)
    names: dict[str, Any] = {"model": model, "inputs": tiny_vlms.inputs("llava", [1]), "optimizer": rates}
    names |= {"rows": rows, "processor": load_processor(folder)}
    capsys.readouterr()  # what building said
    said = ""
    for kind, block in BLOCK.findall(DOCUMENT.read_text()):
        if kind == "console":
            code, out, err = regard(*shlex.split(block.removeprefix("$ regard ")))
            assert (code, err) == (0, "")
            assert out
        else:
            assert kind == "python"
            exec(compile(block, str(DOCUMENT), "exec"), names)
            said += capsys.readouterr().out
    assert (tmp_path / "regard-doctor" / "report.html").exists()
    assert names["watch"].ratios
    assert (tmp_path / "regard-ablate" / "heads.png").exists()
    assert (names["found"].by, len(names["found"].effects)) == ("mean", 3)
    assert "there is no sink" in said
    assert len(re.findall(r"^head \d\.\d: [+-]\S+ bits \(", said, re.MULTILINE)) == 3


def test_the_page_names_all_checks_and_severities():
    text = DOCUMENT.read_text().partition("## What a part is worth")[0]
    rows = re.findall(r"^\| `?(\w+)`? \|", text, re.MULTILINE)
    assert {*CHECKS, *SEVERITIES} == set(rows) - {"severity", "check"}
