"""A training run watched as it goes: what is frozen and moves, what learns and gets no gradient, rates, gates.

How far a step takes a part of a model is measured against its weights, |step| / |weights|: about 0.001 is usual; parts
that are 1000 times apart learn with rates that do not fit (docs/doctor.md).
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from regard.doctor.finding import Finding, listed
from regard.doctor.gates import SATURATED, SHUT, gates, opened
from regard.errors import ModelError

FAST, APART = 0.1, 1000.0
_SAMPLE = 4096
_PIECE = 1 << 20  # weights at once
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Watch:
    """Looks at a model's weights as a training goes on, and warns once for each thing that goes wrong.

    Call it after each step: it is a `tell` of regard's recipes (stage, done, total), `callback()` is one for the
    Trainer of transformers, and `step()` is for a loop of your own. every: steps from look to look. patience: looks
    after which what has not learned is told of. warn: is told each finding's line; `warnings.warn` by default. then:
    a `tell` that is called afterwards. findings: so far. ratios: |step| / |weights| of each part, at the last look.

    Which parameters learn is taken from requires_grad at the first step. Use it in a `with` block, or call `close`, so
    that no hook is left on the model.
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 10,
        patience: int = 3,
        warn: Callable[[str], None] | None = None,
        then: Callable[[str, int, int], None] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ModelError(f"expected a model to watch, got {type(model).__name__}")
        if every < 1 or patience < 1:
            raise ModelError(f"every and patience must be at least 1, got {every} and {patience}")
        self.model, self.every, self.patience, self.then = model, every, patience, then
        self.warn = warn or (lambda line: warnings.warn(line, stacklevel=4))
        self.findings: list[Finding] = []
        self.ratios: dict[str, float] = {}
        self._told: set[str] = set()
        self._steps = self._looks = 0
        self._begun = False

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave no hook on the model."""
        for handle in self._handles if self._begun else ():
            handle.remove()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """A `tell`. Steps are those that say how many there are."""
        if total:
            self.step()
        if self.then is not None:
            self.then(stage, done, total)

    def step(self) -> None:
        """After a step of the optimizer."""
        if not self._begun:
            self._begin()
            return
        self._steps += 1
        if self._steps % self.every == 0:
            self._looks += 1
            self._look()
        if (self._steps + 1) % self.every == 0:
            self._before = self._samples()

    def callback(self) -> Any:
        """For `Trainer(callbacks=[...])` of transformers."""
        from transformers import TrainerCallback

        watch = self

        class Watching(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                watch.step()

            def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                watch.close()

        return Watching()

    def _begin(self) -> None:
        self._begun = True
        named = dict(self.model.named_parameters())
        self._learned = {name: value for name, value in named.items() if value.requires_grad}
        self._frozen = {name: (value, _bits(value)) for name, value in named.items() if not value.requires_grad}
        self._silent = set(self._learned)
        self._before = self._samples()
        self._handles = [
            value.register_post_accumulate_grad_hook(lambda value, name=name: self._reached(name, value))
            for name, value in self._learned.items()
        ]

    def _reached(self, name: str, value: Tensor) -> None:
        if name in self._silent and value.grad is not None and bool(value.grad.any()):
            self._silent.discard(name)

    def _samples(self) -> dict[str, Tensor]:
        return {name: _sample(value) for name, value in self._learned.items()}

    def _look(self) -> None:
        for finding in (*self._moved(), *self._unreached(), *self._rates(), *self._gates()):
            self.findings.append(finding)
            self.warn(f"{finding.check}: {finding.evidence}: {finding.advice}")

    def _new(self, what: str, names: list[str]) -> list[str]:
        """Those that were not told of."""
        new = [name for name in names if f"{what} {name}" not in self._told]
        self._told |= {f"{what} {name}" for name in new}
        return new

    def _moved(self) -> Iterator[Finding]:
        moved = self._new("moved", [name for name, (value, bits) in self._frozen.items() if _bits(value) != bits])
        if moved:
            evidence = f"{len(moved)} frozen parameters have moved: {listed(moved)}"
            yield Finding("frozen", "error", evidence, "leave them out of the optimizer, or let them take gradients")

    def _unreached(self) -> Iterator[Finding]:
        silent = self._new("silent", sorted(self._silent)) if self._looks >= self.patience else []
        if silent:
            evidence = f"{len(silent)} parameters that learn got no gradient in {self._steps} steps: {listed(silent)}"
            yield Finding("frozen", "warning", evidence, "see what stands between them and the loss, or freeze them")

    def _rates(self) -> Iterator[Finding]:
        after = self._samples()
        wrong = self._new("finite", [name for name, value in after.items() if not bool(value.isfinite().all())])
        if wrong:
            yield Finding("frozen", "error", f"weights are not finite: {listed(wrong)}", "lower the rates, or clip")
        steps: dict[str, list[tuple[float, float]]] = {}
        for name, value in after.items():
            if self._learned[name].ndim > 1:
                gap = float((value - self._before[name]).square().sum())
                steps.setdefault(_module(name), []).append((gap, float(value.square().sum())))
        sums = {name: [sum(column) for column in zip(*some, strict=True)] for name, some in steps.items()}
        self.ratios = {name: (gap / size) ** 0.5 for name, (gap, size) in sums.items() if size}
        moving = {name: ratio for name, ratio in self.ratios.items() if ratio > 0}
        for name in self._new("fast", [name for name, ratio in moving.items() if ratio > FAST]):
            evidence = f"each step moves {name} by {moving[name]:.0%} of its weights"
            yield Finding("frozen", "warning", evidence, "lower its rate: about 0.1 % is usual")
        if moving and self._looks >= self.patience:
            slow, quick = min(moving, key=moving.__getitem__), max(moving, key=moving.__getitem__)
            if moving[quick] > APART * moving[slow] and self._new("apart", [f"{slow} {quick}"]):
                evidence = f"steps move {quick} by {moving[quick]:.1e} of its weights and {slow} by {moving[slow]:.1e}"
                yield Finding("frozen", "warning", evidence, "give each part a rate of its own")

    def _gates(self) -> Iterator[Finding]:
        if self._looks < self.patience:
            return
        states = {name: opened(value) for name, value in gates(self.model).items() if name in self._learned}
        shut = self._new("shut", [name for name, state in states.items() if state < SHUT])
        full = self._new("full", [name for name, state in states.items() if state > SATURATED])
        if shut:
            evidence = f"{len(shut)} gates are still shut after {self._steps} steps: {listed(shut)}"
            yield Finding("gates", "warning", evidence, "give the gates a higher rate than the rest")
        if full:
            evidence = f"{len(full)} gates are saturated after {self._steps} steps: {listed(full)}"
            yield Finding("gates", "warning", evidence, "lower the rate of the gates, or decay them")


def _module(name: str) -> str:
    """The part of a model that a parameter is of: what stands before a layer's number, at most two words of it."""
    pieces = name.split(".")
    first = next((place for place, piece in enumerate(pieces) if piece.isdecimal()), len(pieces))
    return ".".join(pieces[: min(first, 2)]) or name


def _sample(value: Tensor) -> Tensor:
    """Some of a tensor's values, evenly drawn over rows and columns, kept apart."""
    flat = value.detach().flatten()
    return flat[:: max(1, len(flat) // _SAMPLE) | 1].float().clone()


def _bits(value: Tensor) -> int:
    """A number that is another once any bit of a tensor is."""
    flat = value.detach().contiguous().flatten()
    total = 0
    for number, piece in enumerate(flat.view(_INTEGERS[flat.element_size()]).split(_PIECE)):
        first = 1 + number * _PIECE
        total += int((piece.long() * torch.arange(first, first + len(piece), device=piece.device)).sum())
    return total
