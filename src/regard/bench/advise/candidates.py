"""What can be advised, each test of it a ranking of its own: figures of different tests are never compared.

Detail rebuilt (no training): what of a scene's features its tokens still tell, allocator by allocator.
Questions answered (bridges trained): what the pocket model says through each mechanism.
Images classified (trained from the encoder on): see `classified`.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from regard.bench.advise.asked import Questions
from regard.bench.advise.deciding import AS_ON_CPU, deciding, growing
from regard.bench.advise.growth import cells_of, power
from regard.bench.advise.host import TEXT, Host
from regard.bench.advise.sources import FILES, Figure, number_in
from regard.cost import names
from regard.cost.language import spread
from regard.errors import DataError

ALL = "all"
UNTIMED = "how long they take to decide has not been measured"
Way = Literal["allocator", "bridge", "classifier"]

_SCENES: dict[Questions, tuple[str, ...]] = {"detail": ("mosaic", "cutout", "text"), "global": (), "mixed": ()}
_MEASURES: dict[Questions, tuple[str, ...]] = {
    "detail": ("target",),
    "global": ("whole",),
    "mixed": ("target", "whole"),
}
# kinds of questions of the pocket model; mixed: all
KINDS: dict[Questions, tuple[str, ...]] = {
    "detail": ("colour", "read"),
    "global": ("count", "exists", "missing"),
    "mixed": (),
}
GRID = 400  # tokens of the scene that mechanisms.json times
_EYE, _HIDDEN = 512, 192  # widths of the pocket model's eye and decoder
_SAME = {"qformer": "Q-Former", "resampler": "resampler"}  # mechanisms that the matrix measures too


@dataclass(frozen=True)
class Candidate:
    """A mechanism or allocator in one setting. tokens: visual ones that go on. quality: by the ranking's test, the
    more the better; between: its least and most over seeds, or its interval. latency: seconds. memory: bytes.
    """

    name: str
    way: Way
    setting: str
    tokens: int
    quality: float
    between: tuple[float, float] | None
    latency: float
    memory: float
    figures: tuple[Figure, ...]
    keep: float | None = None

    @property
    def extrapolated(self) -> bool:
        """Whether its latency is not as it was measured."""
        return any(one.unit == "s" and one.kind != "measured" for one in self.figures)

    @property
    def title(self) -> str:
        return f"{self.name}, {self.setting}" if self.setting else self.name


@dataclass(frozen=True)
class Test:
    """What candidates were compared by. left_out: what could not be ranked, and why."""

    name: str
    unit: str
    said: str
    candidates: tuple[Candidate, ...]
    left_out: tuple[str, ...] = ()


def rebuilt(host: Host) -> Test:
    """Allocators in front of a model that is left as it is, by what of a scene can be rebuilt from what they keep."""
    file, asked = "allocators.json", host.asked.questions
    means = host.results.data(file)["notes"].get("means", {})
    known = names()["allocators"]
    rated = [name for name in known if name in means]
    timed = [name for name in rated if deciding(host, name) is not None]
    candidates = [_everything(host, 1.0, "all tokens rebuild all", "definition")]
    candidates += [_kept(host, name, share, means[name][share]) for name in timed for share in means[name]]
    left_out = [
        *_named(f"results/{file} does not say what they keep", set(known) - set(rated)),
        *_named(UNTIMED, set(rated) - set(timed)),
        *_inside(host),
    ]
    said = " and ".join(_MEASURES[asked])
    scenes = ", ".join(_SCENES[asked]) or "all kinds"
    what = f"share of features rebuilt, {said}; scenes of 1024 px: {scenes}"
    return Test("detail rebuilt", "share", what, tuple(candidates), tuple(left_out))


def _kept(host: Host, name: str, share: str, of: dict[str, Any]) -> Candidate:
    asked, file = host.asked.questions, "allocators.json"
    keep = number_in(share, file, f"notes.means.{name}") / 100
    scenes, measures = _SCENES[asked] or tuple(of), _MEASURES[asked]
    row = f"notes.means, {name}, {share}, {'/'.join(scenes)}, {'/'.join(measures)}"
    try:
        seeds = [statistics.fmean(one) for one in zip(*(of[s][m] for s in scenes for m in measures), strict=True)]
        value = statistics.fmean(seeds)
    except (KeyError, TypeError, ValueError, statistics.StatisticsError) as error:
        raise DataError(f"results/{file}, {row} is not as this version writes it: run {FILES[file]}") from error
    tokens = max(1, round(keep * host.tokens))
    figures = Figure("rebuilt", value, "share", f"results/{file}: {row}"), *_taken(host, tokens, deciding(host, name))
    setting = f"{share.replace('%', ' %')} of the tokens"
    return _made(host, name, "allocator", setting, tokens, (min(seeds), max(seeds)), figures, keep)


def _named(why: str, left: set[str]) -> list[str]:
    return [f"{', '.join(sorted(left))}: {why}"] if left else []


def _inside(host: Host) -> Iterator[str]:
    """Pruning between the layers, which no results say the quality of."""
    language, whole = host.model.language, host.tokens
    depth = language.layers
    layers = spread(whole, TEXT, depth, [(2, round(whole / 2))])
    share = language.prefill_macs_of_layers(layers) / language.prefill_macs(whole + TEXT)
    yield (
        f"regard.inside, fastv and pyramiddrop: no results say what they keep; half the tokens from layer 2 on are "
        f"{share:.0%} of the prompt's multiply-accumulates (cost model)"
    )


def answered(host: Host) -> Test:
    """Mechanisms as bridges, by the questions that the pocket model answers right through each."""
    file, asked = "mechanisms.json", host.asked.questions
    rows = host.results.table(file, "mechanisms")
    try:
        candidates = [_bridged(host, row, rows) for row in rows]
    except KeyError as error:
        raise DataError(f"results/{file} has no column {error}: run {FILES[file]}") from error
    kinds = ", ".join(KINDS[asked]) or "all"
    what = f"percent of answers right, kinds: {kinds}; scenes of 448 to 1024 px"
    return Test("questions answered", "%", what, tuple(candidates))


def _bridged(host: Host, row: dict[str, str], rows: list[dict[str, str]]) -> Candidate:
    file, name, kinds = "mechanisms.json", row["mechanism"], KINDS[host.asked.questions]
    where = f"table mechanisms, {name}, {row['tokens']} tokens"
    right, between = _right(host, row, where)
    figure = Figure("right", right, "%", f"results/{file}: {where}{', ' if kinds else ''}{'/'.join(kinds)}")
    if name == ALL:
        return _everything(host, right, figure.source, "measured", "%", between)
    tokens, own = round(number_in(row["tokens"], file, where)), _bridging(host, row, rows, where)
    return _made(host, name, "bridge", f"{tokens} tokens", tokens, between, (figure, *_taken(host, tokens, own)))


def _right(host: Host, row: dict[str, str], where: str) -> tuple[float, tuple[float, float] | None]:
    """The percent of the asked kinds that is right, and its interval where one was kept."""
    file, kinds = "mechanisms.json", KINDS[host.asked.questions]
    if not kinds:
        whole = next((text for column, text in row.items() if column.startswith("right")), "")
        ends = [float(end) for end in whole.partition("(")[2].rstrip(")").split(" to ")] if "(" in whole else []
        return number_in(whole, file, f"{where}, right"), (ends[0], ends[1]) if len(ends) == 2 else None
    groups = host.results.data(file)["notes"].get("groups", {})
    try:
        right, low, high = groups[f"{row['mechanism']}, {row['tokens']} tokens"][host.asked.questions]
    except (KeyError, TypeError, ValueError):
        return statistics.fmean(number_in(row[kind], file, f"{where}, {kind}") for kind in kinds), None
    return right, (low, high)


def _bridging(host: Host, row: dict[str, str], rows: list[dict[str, str]], where: str) -> Figure:
    """A bridge's own seconds: what it takes beyond the quickest that only selects, at the sizes that are asked about.

    What selects grows with the tokens as its decision does, and with the encoder's width; what makes new tokens with
    the product of the widths, and with the tokens as in the matrix where it has the same mechanism; glimpses and a
    cascade's pooling read each token once. On a GPU only products of matrices are taken to be quicker.
    """
    file, name = "mechanisms.json", row["mechanism"]
    selecting = [
        number_in(other["ms alone"], file, where)
        for other in rows
        if other["tokens"] == row["tokens"] and other["mechanism"] in names()["allocators"]
    ]
    spent = max(0.0, number_in(row["ms alone"], file, where) - min(selecting, default=0.0)) / 1e3
    wider, fitted = host.model.vision.dim / _EYE, None
    if name in names()["allocators"]:
        exponent, how = growing(host, name, GRID, host.tokens)
    else:
        wider *= host.model.language.hidden / _HIDDEN
        if name in _SAME and host.results.has("matrix.jsonl"):
            fitted = power(cells_of(host.results, _SAME[name]), "seconds")
        exponent, how = (1.0, "by its formula") if fitted is None else (fitted, "fitted to results/matrix.jsonl")
    faster = host.faster if name in _SAME else 1.0
    seconds = spent * (host.tokens / GRID) ** exponent * wider * host.asked.batch / faster
    source = f"results/{file}: {where}, ms alone less the quickest that selects"
    source += f", x (N / {GRID})^{exponent:.2f} {how}, x {wider:.3g} for the widths"
    if faster != 1:
        source += f", / {faster:.3g}: products of matrices of {host.speed_source}"
    elif host.asked.device == "gpu":
        source += f", {AS_ON_CPU}"
    return Figure(f"bridge, {name}", seconds, "s", source, "extrapolated")


def _everything(
    host: Host,
    quality: float,
    source: str,
    kind: Literal["measured", "definition"],
    unit: str = "share",
    between: tuple[float, float] | None = None,
) -> Candidate:
    """All tokens, as they are."""
    figure = Figure("right" if unit == "%" else "rebuilt", quality, unit, source, kind)
    way: Way = "bridge" if unit == "%" else "allocator"
    return _made(host, "all tokens", way, "", host.tokens, between, (figure, *_taken(host, host.tokens, None)))


def _taken(host: Host, tokens: int, own: Figure | None) -> tuple[Figure, ...]:
    """What it takes to encode, decide and read the prompt, and to hold it all."""
    return (host.encode(), *([] if own is None else [own]), host.prefill(tokens), host.memory(tokens))


def _made(
    host: Host,
    name: str,
    way: Way,
    setting: str,
    tokens: int,
    between: tuple[float, float] | None,
    figures: tuple[Figure, ...],
    keep: float | None = None,
) -> Candidate:
    """figures: its quality first, its memory last, and seconds between them."""
    latency = sum(one.value for one in figures[1:-1])
    return Candidate(name, way, setting, tokens, figures[0].value, between, latency, figures[-1].value, figures, keep)
