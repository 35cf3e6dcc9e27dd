"""What `regard bench allocators` found, as tables, as verdicts on each part, and as a file in `results/`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from regard.bench.allocators import BUDGETS, MEASURES, ON_THE_FIELD, SIMPLE, Cells, mean_states
from regard.bench.results import Row, publish
from regard.intervals import interval

WORTH = 0.01  # what a part has to gain on some task before it is worth it
SHOWN = 0.1  # the budget of the tables that show one
BASELINES = (*SIMPLE, *ON_THE_FIELD)


def rows(cells: Cells) -> list[Row]:
    """The figures of a summary: relevance beside the best simple baseline of each kind of scene, at a tenth."""
    found = []
    for kind in dict.fromkeys(cells.kinds):
        own = cells.array("relevance", SHOWN, "target", kind).mean()
        best = _best(cells, SHOWN, "target", kind)
        found.append(Row(f"{kind}: target rebuilt by a tenth of the tokens, relevance", round(float(own), 4), "share"))
        value = cells.array(best, SHOWN, "target", kind).mean()
        found.append(Row(f"{kind}: the same, the best of the others: {best}", round(float(value), 4), "share"))
    return found


def tables(cells: Cells) -> dict[str, dict[str, Any]]:
    """By name: columns and rows of text, one table for each measure, of budgets, of parts and of states."""
    budgets = [budget for budget in BUDGETS if budget in next(iter(cells.values.values()))]
    made = {measure.replace(" ", "-"): _by_kind(cells, measure, SHOWN) for measure in MEASURES}
    made["budgets"] = _by_budget(cells, budgets)
    made["parts"] = _parts(cells)
    made["states"] = _states(cells)
    made["losses"] = _losses(cells, budgets)
    return made


def verdicts(cells: Cells) -> dict[str, str]:
    """What each part, and each simple way on the same field, is to relevance: in how many cells (kind of scene x budget
    x target or least) relevance with it is better beyond the interval, and in how many worse. Not worth it where it is
    better by 1 % or more in none.
    """
    found = {}
    for method in cells.values:
        if "without" not in method and method not in ON_THE_FIELD:
            continue
        better, worse, of, best, where = 0, 0, 0, 0.0, ""
        for budget in cells.values[method]:
            for kind in dict.fromkeys(cells.kinds):
                for measure in ("target", "least"):
                    difference = _difference(cells, "relevance", method, budget, measure, kind)
                    low, high = interval(difference) if difference.any() else (0.0, 0.0)
                    gain, of = float(difference.mean()), of + 1
                    better += low > 0 and gain >= WORTH
                    worse += high < 0 and gain <= -WORTH
                    if low > 0 and gain > best:
                        best, where = gain, f", most {gain:+.3f} ({measure} of {kind} at {budget:.0%})"
        found[method] = (
            f"{'worth it' if better else 'not worth it'}: better in {better} of {of}, worse in {worse}{where}"
        )
    return found


def publish_proof(name: str, command: str, cells: Cells, made: dict[str, Any]) -> None:
    """Print the tables and write results/NAME.json: figures, tables, verdicts and the mean of every cell."""
    made_tables = tables(cells)
    show(made_tables)
    means = {
        method: {f"{budget:.0%}": _means(cells, method, budget) for budget in by_budget}
        for method, by_budget in cells.values.items()
    }
    verdict = {line[0]: line[-1] for line in made_tables["parts"]["rows"]}
    notes = {"scenes": len(cells.kinds), "seeds": 1 + max(cells.seeds), "verdicts": verdict, "means": means}
    publish(name, command, rows(cells), made, seed=0, notes=notes, tables=made_tables)


def show(shown: dict[str, dict[str, Any]]) -> None:
    """Print every table."""
    terminal = Console(width=200)
    for title, content in shown.items():
        grid = Table(*content["columns"], title=title, title_justify="left", header_style="bold")
        for line in content["rows"]:
            grid.add_row(*line)
        terminal.print(grid)


def _means(cells: Cells, method: str, budget: float) -> dict[str, dict[str, list[float]]]:
    """By kind and measure: the mean of each seed."""
    kinds, seeds = np.array(cells.kinds), np.array(cells.seeds)
    values = np.array(cells.values[method][budget])
    return {
        kind: {
            measure: [
                round(float(values[(kinds == kind) & (seeds == seed), i].mean()), 4)
                for seed in sorted(set(cells.seeds))
            ]
            for i, measure in enumerate(MEASURES)
        }
        for kind in dict.fromkeys(cells.kinds)
    }


def _difference(cells: Cells, one: str, two: str, budget: float, measure: str, kind: str | None) -> np.ndarray:
    return cells.array(one, budget, measure, kind) - cells.array(two, budget, measure, kind)


def _best(cells: Cells, budget: float, measure: str, kind: str | None) -> str:
    return max(BASELINES, key=lambda name: float(cells.array(name, budget, measure, kind).mean()))


def _by_kind(cells: Cells, measure: str, budget: float) -> dict[str, Any]:
    """Means by kind. Where a method differs from relevance beyond its interval: + better, - worse."""
    kinds = list(dict.fromkeys(cells.kinds))
    lines = []
    for method in cells.values:
        line = [method]
        for kind in (*kinds, None):
            value = float(cells.array(method, budget, measure, kind).mean())
            line.append(f"{value:.3f}" + _mark(_difference(cells, method, "relevance", budget, measure, kind)))
        lines.append(line)
    return {"columns": ["allocator", *kinds, "all"], "rows": lines}


def _mark(difference: np.ndarray) -> str:
    if not difference.any():
        return ""
    low, high = interval(difference)
    return " +" if low > 0 else " −" if high < 0 else ""  # noqa: RUF001


def _by_budget(cells: Cells, budgets: Sequence[float]) -> dict[str, Any]:
    """Means over all scenes of the target and of the whole, at each budget."""
    lines = []
    for method in cells.values:
        line = [method]
        for measure in ("target", "whole"):
            for budget in budgets:
                value = float(cells.array(method, budget, measure).mean())
                line.append(f"{value:.3f}" + _mark(_difference(cells, method, "relevance", budget, measure, None)))
        lines.append(line)
    columns = [f"{measure} {budget:.0%}" for measure in ("target", "whole") for budget in budgets]
    return {"columns": ["allocator", *columns], "rows": lines}


def _parts(cells: Cells) -> dict[str, Any]:
    """What leaving a part out costs, with intervals, over all scenes, and the verdict."""
    lines = []
    for method, verdict in verdicts(cells).items():
        line = [method]
        for measure in ("target", "least", "whole"):
            difference = _difference(cells, "relevance", method, SHOWN, measure, None)
            low, high = interval(difference)
            line.append(f"{difference.mean():+.3f} ({low:+.3f} to {high:+.3f})")
        lines.append([*line, verdict])
    return {"columns": ["relevance less", "target 10%", "least 10%", "whole 10%", "verdict"], "rows": lines}


def _states(cells: Cells) -> dict[str, Any]:
    states = mean_states(cells)
    names = list(next(iter(states.values())))
    lines = [[kind, *(f"{values[name]:.2f}" for name in names)] for kind, values in states.items()]
    return {"columns": ["scenes", *names], "rows": lines}


def _losses(cells: Cells, budgets: Sequence[float]) -> dict[str, Any]:
    """Every place where a baseline beats relevance beyond the interval."""
    lines = []
    for measure in MEASURES:
        for budget in budgets:
            for kind in dict.fromkeys(cells.kinds):
                for method in BASELINES:
                    difference = _difference(cells, method, "relevance", budget, measure, kind)
                    low, high = interval(difference)
                    if low > 0:
                        by = f"{difference.mean():+.3f} ({low:+.3f} to {high:+.3f})"
                        lines.append([measure, f"{budget:.0%}", kind, method, by])
    return {"columns": ["measure", "budget", "scenes", "better than relevance", "by"], "rows": lines}
