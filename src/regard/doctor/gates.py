"""Whether gates of cross-attention let images through: tanh gates that are shut, wide open for good, or out of reach.

What images add goes through tanh(a), which begins at 0 (Flamingo, arXiv 2204.14198). Shut, images say nothing; where
|tanh(a)| is near 1 its slope 1 - tanh(a)^2 is near 0, and the gate can hardly move again.
"""

import torch
from torch import Tensor, nn

from regard.doctor.case import Case, gradients, learning
from regard.doctor.finding import Finding, listed
from regard.errors import DataError

SHUT, SATURATED = 1e-3, 0.995
# of regard, open_flamingo, Idefics and Mllama
_NAMES = ("attention_gate", "feed_gate", "attn_gate", "ff_gate", "alpha_cross_attn", "alpha_dense")
_MORE = ("cross_attn_attn_gate", "cross_attn_mlp_gate")


def gates(model: nn.Module) -> dict[str, nn.Parameter]:
    """The tanh gates of a model, by the names of their parameters."""
    return {name: value for name, value in model.named_parameters() if name.rpartition(".")[2] in (*_NAMES, *_MORE)}


def opened(value: Tensor) -> float:
    """How far a gate lets through, the mean |tanh| over its channels."""
    return float(value.detach().float().tanh().abs().mean())


def check(case: Case) -> list[Finding]:
    """Gates by their values, and where there are inputs whether a gradient reaches them. Raises DataError for none."""
    found = gates(case.model)
    if not found:
        raise DataError("the model has no tanh gates, as cross-attention of Flamingo, Idefics and Mllama has")
    states = {name: opened(value) for name, value in found.items()}
    shut = [name for name, state in states.items() if state < SHUT]
    full = [name for name, state in states.items() if state > SATURATED]
    problems = []
    if shut:
        grave = len(shut) == len(found)
        evidence = f"{len(shut)} of {len(found)} gates are shut (|tanh| < {SHUT:g}): {listed(shut)}"
        advice = "train on, with a rate for the gates; where the model is trained, see that their weights were loaded"
        problems.append(Finding("gates", "error" if grave else "warning", evidence, advice))
    if full:
        evidence = f"{len(full)} of {len(found)} gates are saturated (|tanh| > {SATURATED:g}): {listed(full)}"
        advice = "lower the rate of the gates, or decay them: their slope is below 1 %, so they hardly move again"
        problems.append(Finding("gates", "warning", evidence, advice))
    return [*problems, *_reached(case, found)] if case.runs else problems


def _reached(case: Case, found: dict[str, nn.Parameter]) -> list[Finding]:
    """Gates that no gradient of the loss reaches. A gate behind one that is shut gets one all the same."""
    if not case.images:
        return []
    values = list(found.values())
    with torch.enable_grad(), learning(values):
        slopes = gradients(case.loss(), values)
    dead = [name for name, slope in zip(found, slopes, strict=True) if slope is None or not bool((slope != 0).any())]
    if not dead:
        return []
    evidence = f"no gradient reaches {len(dead)} of {len(found)} gates: {listed(dead)}"
    return [Finding("gates", "error", evidence, "see that what the gate multiplies is not 0, detached or masked away")]
