"""Whether learned queries are several: queries that ask the same are one (Q-Former, Perceiver, resampler).

Both the queries as they are learned and what they give for an image are looked at. Two are one where the cosine of
what sets them apart from zero is above 0.999. The effective rank, e to the entropy of the singular values' shares (Roy
and Vetterli, EUSIPCO 2007), says how many directions there are.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.doctor.case import Case
from regard.doctor.finding import Finding
from regard.errors import DataError

_NAMES = ("query_tokens", "queries", "latents", "query_embed", "learned_queries", "latent_queries")
_ONE = 0.999


def learned_queries(model: nn.Module) -> dict[str, nn.Parameter]:
    """The learned queries of a model, each (..., K, D), by their names."""
    return {
        name: value
        for name, value in model.named_parameters()
        if value.ndim >= 2 and (name.rpartition(".")[2] in _NAMES or name.split(".")[-2:-1] == ["query_embed"])
    }


def check(case: Case) -> list[Finding]:
    """Queries that are one, as learned and as they come out. Raises DataError where the model has none."""
    found = learned_queries(case.model)
    found = {name: value for name, value in found.items() if value.shape[-2] > 1}
    if not found:
        raise DataError("the model has no learned queries, as a Q-Former or a resampler has")
    problems = []
    for name, value in found.items():
        problems += _collapsed(value.detach().flatten(0, -2).float(), f"the queries {name}")
    if case.runs and case.images and not problems:
        for name, given in _answers(case, found).items():
            problems += _collapsed(given, f"what the queries {name} read of the image")
    return problems


def _collapsed(rows: Float[Tensor, "k d"], what: str) -> list[Finding]:
    count, several = len(rows), distinct(rows)
    if several > count // 2:
        return []
    rank = effective_rank(rows)
    evidence = f"{what} are {several} and not {count}: the others are copies (effective rank {rank:.1f})"
    advice = "begin them apart (from features: start='vision'), lower their rate, or ask for fewer tokens"
    return [Finding("queries", "error" if several == 1 else "warning", evidence, advice)]


def distinct(rows: Float[Tensor, "k d"]) -> int:
    """How many rows there are, those counted as one that point the same way."""
    unit = F.normalize(rows.double(), dim=1)
    nothing = unit.norm(dim=1) < 0.5
    left = torch.arange(len(rows), device=rows.device)
    near = (unit @ unit.T > _ONE) | (nothing[:, None] & nothing) | (left[:, None] == left)
    for _ in range(len(rows)):  # the lowest number of a group reaches all of it
        lower = torch.where(near, left, len(rows)).amin(dim=1)
        if torch.equal(lower, left):
            break
        left = lower
    return len(left.unique())


def effective_rank(rows: Float[Tensor, "k d"]) -> float:
    """From 1 to min(K, D)."""
    values = torch.linalg.svdvals(rows.double())
    shares = values / values.sum().clamp(min=1e-12)
    return float(torch.special.entr(shares).sum().exp())


def _answers(case: Case, found: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """What the module that reads with some queries gives for the first image, (K, D)."""
    given: dict[str, Tensor] = {}
    modules, handles = dict(case.model.named_modules()), []

    def hooked(name: str, count: int) -> Any:
        def listen(module: nn.Module, args: tuple, result: Any) -> None:
            first = result if isinstance(result, Tensor) else result[0]
            if first.ndim == 3 and first.shape[1] == count and name not in given:
                given[name] = first[0].detach().float()

        return listen

    for name, value in found.items():
        home = name.rpartition(".")[0]
        near = [key for key in modules if "qformer" in key.lower().split(".")] if name.endswith("query_tokens") else []
        handles += [modules[key].register_forward_hook(hooked(name, value.shape[-2])) for key in (home, *near) if key]
    try:
        with torch.no_grad():
            case.run()
    finally:
        for handle in handles:
            handle.remove()
    return given
