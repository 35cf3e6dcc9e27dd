"""Advice as text: for the terminal and, the same, for the document."""

from rich.console import Console
from rich.table import Table

from regard.bench.advise.advice import Advice
from regard.bench.advise.candidates import Candidate
from regard.bench.advise.ranking import Ranking
from regard.bench.advise.words import amount, measure

_MARKS = {
    "measured": "",
    "extrapolated": "extrapolated: ",
    "cost model": "cost model: ",
    "data sheet": "data sheet: ",
    "definition": "",
}


def show(advice: Advice, console: Console, code: bool = True) -> None:
    """All of it; code: with what to start with."""

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False)

    say(advice.why, "bold")
    one = advice.lead or advice.nearest
    assert one is not None
    say("\nIts figures:")
    console.print(_figures(one))
    for ranking in advice.rankings:
        console.print(_ranking(ranking))
        if any(one.extrapolated for one in ranking.order):
            say("~ extrapolated", "dim")
        for line in ranking.test.left_out:
            say(f"not ranked: {line}", "dim")
    _list(say, "\nWhat would change it:", advice.changes or ("nothing that was tried",))
    _list(say, "\nMissing:", advice.missing)
    _list(say, "\nAssumed:", advice.assumed)
    if code:
        say("\nTo start:\n")
        console.print(advice.code, markup=False, highlight=False, soft_wrap=True, end="")


def _list(say, title: str, lines: tuple[str, ...]) -> None:
    if lines:
        say(title)
        for line in lines:
            say(f"- {line}")


def _figures(one: Candidate) -> Table:
    grid = Table("what", "figure", "from", header_style="bold")
    grid.columns[1].no_wrap = True
    for figure in one.figures:
        value = (
            measure(figure.value, figure.unit) if figure.unit in ("share", "%") else amount(figure.value, figure.unit)
        )
        grid.add_row(figure.of, value, f"{_MARKS[figure.kind]}{figure.source}")
    return grid


def _ranking(ranking: Ranking) -> Table:
    test = ranking.test
    title = f"\n{test.name}: {test.said}"
    settings = any(one.setting for one in ranking.order)
    grid = Table(
        "", *[""] * settings, test.unit, "tokens", "latency", "memory", "in limits", title=title, title_justify="left"
    )
    for column in grid.columns[1 + settings : 5 + settings]:
        column.justify = "right"
        column.no_wrap = True
    for place, one in enumerate(ranking.order):
        rated = measure(one.quality, test.unit)
        if one.between:
            rated += f" ({' to '.join(measure(end, test.unit).removesuffix(' %') for end in one.between)})"
        guessed = one.figures[-1].kind == "extrapolated"
        held = "~" * guessed + amount(one.memory, "bytes")
        cost = (f"{one.tokens:,}", "~" * one.extrapolated + amount(one.latency, "s"), held)
        grid.add_row(one.name, *[one.setting] * settings, rated, *cost, "yes" if place < ranking.within else "no")
    return grid
