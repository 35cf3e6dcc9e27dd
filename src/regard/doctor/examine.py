"""A model examined by every check: `regard.doctor.examine`, and what it found as plain data."""

import difflib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

from torch import nn

from regard.doctor.case import Case
from regard.doctor.finding import SEVERITIES, Finding
from regard.errors import DataError, ModelError, RegardError

CHECKS = {  # each a file of this folder with a function `check`, in the order in which they run
    "masks": "masks",
    "positions": "positions",
    "heads": "heads",
    "gates": "gates",
    "frozen": "frozen",
    "queries": "learned_queries",
    "sinks": "sinks",
    "image_ignored": "image_ignored",
}


@dataclass(frozen=True)
class Examination:
    """findings: the gravest first. checks: those that ran. seconds: that each took."""

    findings: tuple[Finding, ...]
    checks: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether there is an error among the findings."""
        return any(finding.severity == "error" for finding in self.findings)

    @property
    def silent(self) -> tuple[str, ...]:
        """The checks that found nothing."""
        return tuple(name for name in self.checks if not any(finding.check == name for finding in self.findings))

    def to_dict(self) -> dict[str, Any]:
        """{"findings": [{"check", "severity", "evidence", "advice"}]}, for JSON."""
        return {"findings": [asdict(finding) for finding in self.findings]}


def examine(
    model: nn.Module,
    inputs: Any = None,
    *,
    only: Sequence[str] | None = None,
    why: str = "no inputs were given",
    progress: Callable[[str], None] = lambda stage: None,
) -> Examination:
    """Run the checks on a model; in a test of your own, `assert not regard.doctor.examine(model, inputs).failed`.

    model: a vision-language or language model of Hugging Face, or a `regard.VLM`; a compiled one is examined as it was
    before. inputs: what its processor returns for a prompt with an image and a question behind it, of a `regard.VLM`
    what `prepared` returns; without, only what is seen in the weights is checked, and the findings say why. only: names
    of CHECKS. progress: told the name of each check as it starts.

    The model is left as it was: its mode, its gradients, and without a hook. Raises ModelError for what is no model,
    and for a check that is not known. What a check cannot do is a finding, "skipped", and the others run.
    """
    names = checked(only)
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a model to examine, got {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    case, findings, seconds = Case(model, inputs, why), list[Finding](), dict[str, float]()
    with evaluating(model):
        for name in names:
            progress(name)
            start = time.perf_counter()
            findings += _found(name, case)
            seconds[name] = round(time.perf_counter() - start, 3)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Examination(tuple(findings), tuple(names), seconds)


def checked(only: Sequence[str] | None) -> list[str]:
    """The checks of these names in their order, all for None. Raises ModelError for one that is not known."""
    names = list(CHECKS) if only is None else list(only)
    for name in names:
        if name not in CHECKS:
            near = difflib.get_close_matches(name, CHECKS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(CHECKS)}"
            raise ModelError(f"no check is named {name!r}: {hint}")
    if not names:
        raise ModelError(f"no check is named: there are {', '.join(CHECKS)}")
    return [name for name in CHECKS if name in names]


def _found(name: str, case: Case) -> list[Finding]:
    try:
        return import_module(f"regard.doctor.{CHECKS[name]}").check(case)
    except DataError as error:
        return [Finding(name, "skipped", str(error), "nothing, where that is as it should be")]
    except RegardError as error:
        return [Finding(name, "skipped", str(error), "mend this and examine the model again")]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, and afterwards as it was."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True
