"""The answer: who leads in which test, the nearest where nothing is within the limits, and what was assumed."""

from dataclasses import asdict, dataclass
from typing import Any

from regard.bench.advise.asked import Asked
from regard.bench.advise.candidates import Candidate
from regard.bench.advise.changes import changes
from regard.bench.advise.host import TEXT, Host
from regard.bench.advise.ranking import Ranking, beyond, rankings
from regard.bench.advise.sources import Results
from regard.bench.advise.start import start
from regard.bench.advise.words import amount, long


@dataclass(frozen=True)
class Advice:
    """lead: of the first ranking with one within the limits, None where nothing is. nearest: then, the one that exceeds
    them least. missing: tests that could not be had. assumed: what figures rest on beside measurements. code: to start.
    """

    asked: Asked
    rankings: tuple[Ranking, ...]
    lead: Candidate | None
    test: str
    nearest: Candidate | None
    why: str
    changes: tuple[str, ...]
    missing: tuple[str, ...]
    assumed: tuple[str, ...]
    code: str

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        found = asdict(self)
        for ranking, own in zip(found["rankings"], self.rankings, strict=True):
            ranking["test"] = {key: ranking["test"][key] for key in ("name", "unit", "said", "left_out")}
            ranking["order"] = [{"title": one.title, **asdict(one)} for one in own.order]
        for name in ("lead", "nearest"):
            one = getattr(self, name)
            found[name] = None if one is None else {"title": one.title, **asdict(one)}
        return {"schema": 1, **found}


def advise(asked: Asked, results: Results) -> Advice:
    """Rank by what results hold. Raises DataError where they hold nothing that can be ranked, or cannot be read."""
    found, missing = rankings(asked, results)
    led = next(((each, each.order[0]) for each in found if each.within), None)
    ranking, one = led or min(((each, each.order[0]) for each in found), key=lambda pair: beyond(pair[1], asked))
    turned = changes(asked, results, found, led)
    missing += [f"results/{file}: the last line was cut off and is left out" for file in results.torn]
    return Advice(
        asked,
        tuple(found),
        None if led is None else one,
        ranking.test.name,
        one if led is None else None,
        _why(asked, ranking, one, led is not None),
        tuple(turned),
        tuple(dict.fromkeys(missing)),
        tuple(_assumed(asked, results, found)),
        start(asked, one),
    )


def _why(asked: Asked, ranking: Ranking, one: Candidate, within: bool) -> str:
    quality = f"{long(one.quality, ranking.test.unit)}, {ranking.test.name}"
    if within:
        limited = asked.latency is not None or asked.memory is not None
        which = f"the best of {ranking.within} within the limits" if limited else f"the best of {len(ranking.order)}"
        return f"{one.title}: {quality}, {which}; {_spends(one)}"
    over = [
        f"{name} {amount(getattr(one, name), unit)} for at most {amount(getattr(asked, name), unit)}"
        for name, unit in (("latency", "s"), ("memory", "bytes"))
        if getattr(asked, name) is not None and getattr(one, name) > getattr(asked, name)
    ]
    return f"Nothing is within the limits. The nearest is {one.title}: {' and '.join(over)}; {quality}"


def _spends(one: Candidate) -> str:
    return f"{amount(one.latency, 's')}, {amount(one.memory, 'bytes')}, {one.tokens:,} tokens"


def _assumed(asked: Asked, results: Results, found: list[Ranking]) -> list[str]:
    host = Host(asked, results)
    lines = ["quality is taken as measured, at the same share or number of tokens, whatever the resolution"]
    if any(one.test.unit != "points" for one in found):
        lines.append(
            f"times and memory are of {host.model.said}: {host.windows} windows of its encoder, {host.tokens:,} "
            f"visual tokens and {TEXT} of text, until the first word; --model takes another"
        )
        lines.append(
            "the tokens are one grid, as Qwen2.5-VL's; of a model that cuts images into tiles, allocators that need a "
            "grid (regard list) are refused"
        )
    if asked.batch > 1:
        lines.append("a batch takes as many times as long as one, where it was not measured")
    if any(one.test.unit == "points" for one in found):
        lines.append(
            "classifiers have no language model: of small images the matrix's, 4 blocks of width 192, early exits not "
            "counted on; of a thing on a photo the networks that were trained for it"
        )
    if asked.device == "gpu" and host.file is None:
        lines.append(
            f"no model was measured on a GPU: times are rooflines of {host.speed_source} at the share of its products "
            f"that self-attention reached on the CPU of results/matrix.jsonl ({host.share:.0%})"
        )
    return lines
