"""docs/debug.md, its first half run from top to bottom on a tiny model."""

import re
from pathlib import Path
from typing import Any

import torch

import planted

DOCUMENT = Path(__file__).parent.parent / "docs" / "debug.md"


def test_the_blocks_on_capture_and_importance_run(tmp_path, monkeypatch, capsys):
    planted.saved(tmp_path / "model-folder")
    monkeypatch.chdir(tmp_path)
    text = DOCUMENT.read_text()
    start, end = text.index("## Capture attention"), text.index("The tests build a model")
    blocks = re.findall(r"^```python\n(.*?)^```$", text[start:end], re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, Any] = {"inputs": planted.inputs()}
    for block in blocks:
        exec(compile(block, str(DOCUMENT), "exec"), names)
    assert int(names["values"].argmax()) == 17
    assert names["heat"].shape == (480, 640)
    assert torch.isfinite(names["true"].columns).all()
    said = capsys.readouterr().out.splitlines()
    assert sorted(line.split(":")[0] for line in said) == ["ablation", "gradient", "mean"]
