"""A training that goes wrong is told of while it runs, once, and one that goes well is not."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from regard.doctor import Watch, training
from regard.doctor.training import _bits, _sample
from regard.errors import ModelError
from regard.train.bridge import train
from regard.train.settings import Recipe
from test_train_vlm import pictures, toy_vlm


class Small(nn.Module):
    """Two parts, one of which may be cut off, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vision: Any = nn.Sequential(nn.Linear(7, 11), nn.Tanh())
        self.language = nn.Linear(11, 5)
        self.attention_gate = nn.Parameter(torch.tensor(0.5))
        self.cut = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.vision(x)
        return self.language(self.attention_gate.tanh() * (seen.detach() if self.cut else seen))


def run(model: Small, steps: int = 9, rates: dict[str, float] | None = None, **options: Any) -> tuple[Watch, list[str]]:
    """Train with Adam, watched at every second step."""
    lines: list[str] = []
    rates = rates or {}
    groups = [
        {"params": [value], "lr": next((rate for part, rate in rates.items() if name.startswith(part)), 1e-3)}
        for name, value in model.named_parameters()
    ]
    optimizer = torch.optim.Adam(groups)
    generator = torch.Generator().manual_seed(1)
    with Watch(model, every=2, warn=lines.append, **options) as watch:
        for step in range(steps):
            loss = model(torch.randn(13, 7, generator=generator)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            watch(f"loss {float(loss.detach()):.3f}", step + 1, steps)
    assert not any(value._post_accumulate_grad_hooks for value in model.parameters())
    return watch, lines


def test_a_training_that_goes_well():
    watch, lines = run(Small(), steps=21)
    assert lines == [] == watch.findings
    assert set(watch.ratios) == {"vision", "language.weight"}
    assert all(1e-4 < ratio < 0.02 for ratio in watch.ratios.values())


def test_a_ratio_is_of_one_step_however_steps_turn():
    model = nn.Linear(64, 64)
    step = 1e-3 * model.weight.detach()
    with Watch(model, every=4) as watch:
        for turn in range(9):
            with torch.no_grad():
                model.weight.add_(step if turn % 2 else -step)
            watch.step()
    assert watch.ratios["weight"] == pytest.approx(1e-3, rel=1e-2)


def test_samples_are_of_all_columns_and_bits_of_all_pieces(monkeypatch):
    assert len(_sample(torch.arange(64.0).repeat(8192)).unique()) == 64
    monkeypatch.setattr(training, "_PIECE", 7)
    weights = torch.randn(5, 10)
    before = _bits(weights)
    whole = weights.flatten().view(torch.int32).long()
    assert before == sum(int(value) * (place + 1) for place, value in enumerate(whole))
    weights[4, 9] += 1e-6
    assert _bits(weights) != before


def test_frozen_weights_that_move():
    model = Small()
    model.vision.requires_grad_(False)
    moving = torch.randn(11, generator=torch.Generator().manual_seed(1)) * 1e-6

    def moved(*given: Any) -> None:
        model.vision[0].bias.data += moving

    model.register_forward_pre_hook(moved)
    watch, lines = run(model, steps=21)
    assert len(lines) == 1
    assert lines[0].startswith("frozen: 1 frozen parameters have moved: vision.0.bias: ")
    assert watch.findings[0].severity == "error"


def test_frozen_values_that_change_places():
    model = Small()
    model.vision.requires_grad_(False)
    weight = model.vision[0].weight

    def rolled(*given: Any) -> None:
        weight.data = weight.data.roll(1, 0)

    model.register_forward_pre_hook(rolled)
    lines = run(model, steps=4)[1]
    assert ["have moved: vision.0.weight" in line for line in lines] == [True]


def test_parameters_that_get_no_gradient():
    model = Small()
    model.cut = True
    lines = run(model, steps=21)[1]
    told = "frozen: 2 parameters that learn got no gradient in 6 steps: vision.0.bias, vision.0.weight: "
    assert len(lines) == 1
    assert lines[0].startswith(told)


def test_rates_that_do_not_fit():
    lines = run(Small(), steps=21, rates={"language": 1e-7})[1]
    assert len(lines) == 1
    assert "steps move vision by" in lines[0]
    assert lines[0].endswith("give each part a rate of its own")
    lines = run(Small(), steps=5, rates={"vision": 1.0})[1]
    assert lines[0].startswith("frozen: each step moves vision by ")


def test_gates_in_training():
    model = Small()
    with torch.no_grad():
        model.attention_gate.zero_()
    lines = run(model, steps=21, rates={"attention_gate": 0.0})[1]
    assert [line for line in lines if line.startswith("gates: 1 gates are still shut after 6 steps: attention_gate")]
    model = Small()
    with torch.no_grad():
        model.attention_gate.fill_(5)
    assert any("gates are saturated" in line for line in run(model, steps=21)[1])


def test_weights_that_are_not_finite():
    model = Small()
    with torch.no_grad():
        model.language.weight[0, 0] = torch.inf
    assert any("weights are not finite: " in line for line in run(model)[1])


def test_it_warns_by_itself_and_tells_the_next():
    model, told = Small(), list[tuple[str, int, int]]()
    model.vision.requires_grad_(False)
    with Watch(model, every=1, then=lambda *given: told.append(given)) as watch:
        watch("encode", 0, 0)
        watch("loss", 1, 2)
        with torch.no_grad():
            model.vision[0].weight += 1
        with pytest.warns(UserWarning, match="frozen parameters have moved"):
            watch("loss", 2, 2)
    assert told == [("encode", 0, 0), ("loss", 1, 2), ("loss", 2, 2)]
    with pytest.raises(ModelError, match="every and patience must be at least 1"):
        Watch(model, every=0)
    with pytest.raises(ModelError, match="expected a model to watch"):
        Watch("model")  # pyright: ignore


def test_regards_own_recipes(tmp_path):
    lines: list[str] = []
    vlm = toy_vlm("all", "late")
    with Watch(vlm, every=2, warn=lines.append) as watch:
        train(
            vlm, pictures(tmp_path), tmp_path / "run", Recipe(epochs=3, batch=4), cache=tmp_path / "cache", tell=watch
        )
    assert watch.ratios
    assert not [line for line in lines if "frozen parameters" in line or "no gradient" in line]


def test_the_trainer_of_transformers(tmp_path):
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small = Small()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.small(x) - labels).square().mean()}

    model = Loss()
    model.small.cut = True
    lines: list[str] = []
    rows: Any = [{"x": torch.ones(7), "labels": torch.ones(5)}] * 24
    given = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    watch = Watch(model, every=2, warn=lines.append)
    transformers.Trainer(model, given, train_dataset=rows, callbacks=[watch.callback()]).train()
    assert len(lines) == 1
    assert "got no gradient in 6 steps: small.vision.0.bias" in lines[0]
    assert not any(value._post_accumulate_grad_hooks for value in model.parameters())
