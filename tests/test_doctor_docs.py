"""docs/doctor.md, run from top to bottom: every block does what it says."""

import re
import shlex
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

import tiny_processors
import tiny_vlms
from regard.doctor.examine import CHECKS
from regard.doctor.finding import SEVERITIES

DOCUMENT = Path(__file__).parent.parent / "docs" / "doctor.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_runs(regard, models, tmp_path, capsys):
    tiny_processors.build("llava", tmp_path).rename(tmp_path / "my-model")
    model = deepcopy(models("llava"))
    rates = torch.optim.AdamW(model.parameters(), lr=1e-4)
    names: dict[str, Any] = {"model": model, "inputs": tiny_vlms.inputs("llava", [1]), "optimizer": rates}
    capsys.readouterr()  # what building said
    for kind, block in BLOCK.findall(DOCUMENT.read_text()):
        if kind == "console":
            code, out, err = regard(*shlex.split(block.removeprefix("$ regard ")))
            assert (code, err) == (0, "")
            assert out
        else:
            assert kind == "python"
            exec(compile(block, str(DOCUMENT), "exec"), names)
    assert (tmp_path / "regard-doctor" / "report.html").exists()
    assert names["watch"].ratios
    assert "there is no sink" in capsys.readouterr().out


def test_the_page_names_all_checks_and_severities():
    rows = re.findall(r"^\| `?(\w+)`? \|", DOCUMENT.read_text(), re.MULTILINE)
    assert {*CHECKS, *SEVERITIES} == set(rows) - {"severity", "check"}
