"""What would change the advice: the nearest limit, size or figure at which another leads, found by ranking again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

from regard.bench.advise.asked import LARGEST, Asked, Device, Questions, Train
from regard.bench.advise.candidates import Candidate
from regard.bench.advise.models import MODELS
from regard.bench.advise.ranking import Ranking, beyond, leading
from regard.bench.advise.sources import Results
from regard.bench.advise.words import amount, long, measure
from regard.errors import DataError

_STEPS = (1.25, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_UNITS = {"latency": "s", "memory": "bytes"}


def changes(
    asked: Asked, results: Results, made: Sequence[Ranking], led: tuple[Ranking, Candidate] | None
) -> list[str]:
    """Sentences, none where nothing would. made: the rankings of what is asked."""
    found = [line for ranking in made if not ranking.within for line in _loosened(asked, ranking)]
    if led is not None:
        found += [*_figures(*led), *_limits(asked, *led)]
    for name, top in (("resolution", LARGEST), ("batch", LARGEST)):
        for factors in (_STEPS, [1 / step for step in _STEPS]):
            turned = _turned(asked, results, led, name, factors, top)
            if turned:
                found.append(turned)
    for name, options in (
        ("questions", get_args(Questions)),
        ("device", get_args(Device)),
        ("train", get_args(Train)),
        ("model", tuple(MODELS)),
    ):
        found += _others(asked, results, led, name, options)
    return found


def _figures(ranking: Ranking, lead: Candidate) -> list[str]:
    """The one behind, and by how much."""
    others = ranking.order[1 : ranking.within]
    if not others:
        return []
    second, unit = others[0], ranking.test.unit
    line = f"{second.title} would lead were its {measure(second.quality, unit)} above {measure(lead.quality, unit)}"
    if lead.between and second.between and second.between[1] > lead.between[0]:
        ends = [" to ".join(measure(end, unit) for end in one.between or ()) for one in (lead, second)]
        line += f"; their ranges overlap ({ends[0]}, and {ends[1]})"
    return [line]


def _limits(asked: Asked, ranking: Ranking, lead: Candidate) -> list[str]:
    """The nearest limits, wider and tighter, at which another leads."""
    found, every = [], ranking.test.candidates
    for name, unit in _UNITS.items():
        limit = getattr(asked, name)
        free = replace(asked, **{name: None})
        better = [one for one in every if _better(one, lead) and beyond(one, free) <= 1]
        if limit is not None and better:
            first = min(better, key=lambda one: getattr(one, name))
            found.append(f"--{name} of {amount(getattr(first, name), unit)} or more: {_as(first, ranking)} leads")
        tight = [one for one in every if getattr(one, name) < getattr(lead, name) and beyond(one, free) <= 1]
        if tight and (limit is not None or name == "latency"):
            then = max(tight, key=lambda one: (one.quality, -one.latency))
            found.append(f"--{name} below {amount(getattr(lead, name), unit)}: {_as(then, ranking)} leads")
    return found


def _loosened(asked: Asked, ranking: Ranking) -> list[str]:
    """Where none is within the limits: who leads as they are loosened, the least first."""
    found, best = [], float("-inf")
    for one in sorted(ranking.test.candidates, key=lambda one: (float(f"{beyond(one, asked):.2g}"), -one.quality)):
        if one.quality > best:
            best = one.quality
            over = [name for name in _UNITS if _over(one, asked, name)]
            limits = " and ".join(f"--{name} {amount(getattr(one, name), _UNITS[name])}" for name in over)
            found.append(f"{limits}: {_as(one, ranking)} leads in {ranking.test.name}")
    return found


def _over(one: Candidate, asked: Asked, name: str) -> bool:
    limit = getattr(asked, name)
    return limit is not None and getattr(one, name) > limit


def _better(one: Candidate, lead: Candidate) -> bool:
    return (one.quality, -one.latency) > (lead.quality, -lead.latency)


def _as(one: Candidate, ranking: Ranking) -> str:
    return f"{one.title} ({measure(one.quality, ranking.test.unit)})"


def _title(led: tuple[Ranking, Candidate] | None) -> tuple[str, str] | None:
    return None if led is None else (led[0].test.name, led[1].title)


def _turned(
    asked: Asked,
    results: Results,
    led: tuple[Ranking, Candidate] | None,
    name: str,
    factors: Any,
    top: int,
) -> str | None:
    """The value nearest to the asked one, up or down, at which another leads: bracketed, then halved."""
    own, same = getattr(asked, name), getattr(asked, name)
    lead_at: Callable[[int], Any] = lambda value: leading(replace(asked, **{name: value}), results)  # noqa: E731
    for factor in factors:
        other = min(top, max(1, round(own * factor)))
        if other != same and _title(lead_at(other)) != _title(led):
            break
        same = other
    else:
        return None
    while abs(other - same) > 1:
        middle = (other + same) // 2
        if _title(lead_at(middle)) == _title(led):
            same = middle
        else:
            other = middle
    return f"--{name} {other}: {_then(lead_at(other))}"


def _others(
    asked: Asked, results: Results, led: tuple[Ranking, Candidate] | None, name: str, options: tuple[str, ...]
) -> list[str]:
    """Each other value of an option at which another leads."""
    found = []
    for value in options:
        if value == getattr(asked, name):
            continue
        try:
            now = leading(replace(asked, **{name: value}), results)
        except DataError:
            continue  # files that are not there, or broken, are said where they are asked for
        if _title(now) != _title(led):
            found.append(f"--{name} {value}: {_then(now)}")
    return found


def _then(led: tuple[Ranking, Candidate] | None) -> str:
    if led is None:
        return "nothing is within the limits"
    return f"{led[1].title} leads ({led[0].test.name}: {long(led[1].quality, led[0].test.unit)})"
