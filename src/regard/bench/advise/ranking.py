"""Candidates in order: those within the limits by quality, then those beyond by how far."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

from regard.bench.advise.asked import Asked, Questions
from regard.bench.advise.candidates import Candidate, Test, answered, rebuilt
from regard.bench.advise.classified import fashion, search
from regard.bench.advise.host import Host
from regard.bench.advise.sources import FILES, Results
from regard.errors import DataError


@dataclass(frozen=True)
class Kind:
    """A test, the trainings and questions under which it counts, and the files that it cannot do without."""

    test: Callable[[Host], Test]
    name: str
    train: tuple[str, ...]
    needs: tuple[str, ...]
    questions: tuple[str, ...] = get_args(Questions)


# answers say more about answers than features rebuilt, and both more than images classified
KINDS = (
    Kind(answered, "questions answered", ("bridge", "all"), ("mechanisms.json", "shorten.json")),
    Kind(rebuilt, "detail rebuilt", ("none", "bridge", "all"), ("allocators.json", "shorten.json")),
    Kind(search, "images classified, search", ("all",), ("matrix.jsonl",), ("detail", "mixed")),
    Kind(fashion, "images classified, fashion", ("all",), ("matrix.jsonl",), ("global", "mixed")),
)


@dataclass(frozen=True)
class Ranking:
    """test: what was compared. order: the best setting of each name, those within the limits first. within: how many
    of them are.
    """

    test: Test
    order: tuple[Candidate, ...]
    within: int

    @property
    def lead(self) -> Candidate | None:
        return self.order[0] if self.within else None


def rankings(asked: Asked, results: Results) -> tuple[list[Ranking], list[str]]:
    """Of every test that counts, and what is missing. Raises DataError where nothing can be ranked."""
    found, missing = [], []
    for kind, one in _each(asked, results):
        if isinstance(one, str):
            missing.append(f"{kind.name}: {one}")
        else:
            found.append(one)
    if not found:
        raise DataError(f"nothing can be ranked from {str(results.path)!r}: {'; '.join(missing)}")
    return found, missing


def leading(asked: Asked, results: Results) -> tuple[Ranking, Candidate] | None:
    """The lead of the first ranking that has one; those after it are not made."""
    found = (one for _, one in _each(asked, results) if isinstance(one, Ranking))
    return next(((one, one.order[0]) for one in found if one.within), None)


def _each(asked: Asked, results: Results) -> Iterator[tuple[Kind, Ranking | str]]:
    """Each test that counts, and its ranking, or why there is none."""
    host = Host(asked, results)
    for kind in KINDS:
        if asked.train not in kind.train or asked.questions not in kind.questions:
            continue
        more = ("matrix.jsonl",) if asked.device == "gpu" else ()
        lacking = [file for file in dict.fromkeys((*kind.needs, *more)) if not results.has(file)]
        if lacking:
            yield kind, "not ranked without " + ", ".join(f"results/{file} ({FILES[file]})" for file in lacking)
            continue
        test = kind.test(host)
        yield kind, ranked(test, asked) if test.candidates else "nothing was measured that answers these questions"


def ranked(test: Test, asked: Asked) -> Ranking:
    """Of each name the best setting within the limits, or the nearest to them."""
    best: dict[str, Candidate] = {}
    for one in sorted(test.candidates, key=lambda one: _place(one, asked)):
        best.setdefault(one.name, one)
    order = tuple(best.values())
    return Ranking(test, order, sum(beyond(one, asked) <= 1 for one in order))


def beyond(one: Candidate, asked: Asked) -> float:
    """How many times a limit is taken, of the one that is exceeded most."""
    latency = one.latency / asked.latency if asked.latency else 0.0
    return max(latency, one.memory / asked.memory if asked.memory else 0.0)


def _place(one: Candidate, asked: Asked) -> tuple[bool, float, float, str]:
    """Beyond the limits those are equally near that are so to two figures, and the better comes first."""
    far = beyond(one, asked)
    if far <= 1:
        return (False, -one.quality, one.latency, one.title)
    return (True, float(f"{far:.2g}"), -one.quality, one.title)
