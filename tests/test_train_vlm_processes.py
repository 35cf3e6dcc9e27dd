"""Several processes under torchrun: the same losses after one of them is killed; the images of a cache encoded once."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

HERE = Path(__file__)


def worker(folder: Path, name: str, kill: int) -> None:
    """One process: trains, and where it is the second, kills itself at a step of the first attempt."""
    import torch

    from regard.train.bridge import train
    from regard.train.settings import Curriculum
    from test_train_vlm import SMALL, Source, ToyEye, toy_vlm

    torch.set_num_threads(1)
    seen: list[int] = []
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"

    def tell(stage: str, done: int, total: int) -> None:
        if total and done == kill and first and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    recipe = replace(SMALL, epochs=3, batch=2, accumulate=2, curriculum=Curriculum(budgets=(2, 6)))
    rows, held = (Source((str(folder / part / "rows.jsonl"),)) for part in ("data", "held"))
    vlm = toy_vlm("resampler", "late", eye=ToyEye(told=lambda: seen.append(1)), bridge_arguments={"heads": 2})
    train(vlm, rows, folder / name, recipe, held=held, cache=folder / "cache", tell=tell)
    (folder / f"{name}-looks-{os.environ['RANK']}").write_text(str(len(seen)))


def other(folder: Path, name: str) -> None:
    """One process of another paradigm."""
    import torch

    from regard.train import full, two_stage
    from test_train_vlm import SMALL, Source, toy_vlm
    from test_train_vlm_stages import QUERIES, RATES, LearningEye

    torch.set_num_threads(1)
    rows, held = (Source((str(folder / part / "rows.jsonl"),)) for part in ("data", "held"))
    given = {"held": held, "cache": folder / "cache"}
    recipe = replace(SMALL, epochs=2, batch=2, accumulate=2)
    if name == "two":
        vlm = toy_vlm("qformer", bridge_arguments=QUERIES)
        two_stage.train(vlm, rows, folder / name, recipe, first=recipe, **given)
    else:
        recipe = replace(recipe, rates=RATES)
        full.train(toy_vlm(eye=LearningEye()), rows, folder / name, recipe, lora=full.Lora(rank=2), eye=True, **given)


def torchrun(folder: Path, name: str, kill: int = 0, restarts: int = 0) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line += ["--max-restarts", str(restarts), str(HERE), str(folder), name, str(kill)]
    place = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    said = folder / f"{name}.log"
    with said.open("w") as file:
        process = subprocess.Popen(line, env=place, stdout=file, stderr=file)
        try:
            process.wait(timeout=400)
        except subprocess.TimeoutExpired:
            process.terminate()  # which ends its processes too
            process.wait()
            pytest.fail(f"{name} hung:\n{said.read_text()[-6000:]}")
    return subprocess.CompletedProcess(line, process.returncode, "", said.read_text())


@pytest.mark.slow
def test_a_killed_process_changes_no_loss(tmp_path):
    from regard.train.saving import LAST
    from test_train_vlm import pictures, rows_of

    pictures(tmp_path / "data", 22)
    pictures(tmp_path / "held", 5)
    whole = torchrun(tmp_path, "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    cut = torchrun(tmp_path, "cut", kill=5)
    assert cut.returncode != 0
    assert (tmp_path / "cut" / LAST).exists()
    assert not (tmp_path / "cut" / "model").exists()
    on = torchrun(tmp_path, "cut")
    assert on.returncode == 0, on.stderr[-3000:]
    restarted = torchrun(tmp_path, "restarted", kill=7, restarts=2)
    assert restarted.returncode == 0, restarted.stderr[-3000:]
    assert "exitcode  : -9" in cut.stderr or "Signal 9" in cut.stderr
    assert rows_of(tmp_path / "whole")
    for name in ("cut", "restarted"):
        assert rows_of(tmp_path / name) == rows_of(tmp_path / "whole")
    looks = [int((tmp_path / f"whole-looks-{rank}").read_text()) for rank in (0, 1)]
    images = 22  # those held out are the first of them
    assert sum(looks) == images + 2, looks  # and two probes of the main process
    assert min(looks) >= images // 2
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "full"])
def test_the_other_paradigms_run_in_processes(tmp_path, name):
    from regard.train.saving import load
    from test_train_vlm import pictures

    pictures(tmp_path / "data", 14)
    pictures(tmp_path / "held", 6)
    done = torchrun(tmp_path, name, kill=-1)
    assert done.returncode == 0, done.stderr[-3000:]
    for run in ("two/stage1", "two/stage2") if name == "two" else ("full",):
        metrics = json.loads((tmp_path / run / "metrics.json").read_text())
        assert metrics["processes"] == 2
        assert metrics["steps"] == 4
        assert load(tmp_path / run / "last.safetensors")[0].step == 4


if __name__ == "__main__" and sys.argv[3] == "-1":
    other(Path(sys.argv[1]), sys.argv[2])
elif __name__ == "__main__":
    worker(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
