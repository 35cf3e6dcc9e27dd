"""Pictures of measured cost: curves over the tokens, small multiples, accuracy against cost, and a page of them."""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from regard.errors import ModelError
from regard.report.glimpses import COLOURS
from regard.report.page import _ascii, _digest, _template

Curve = Sequence[tuple[float, float, float, float]]  # tokens, and a cost with its quartiles
Dot = tuple[str, float, float, bool]  # a name, cost, accuracy, and whether no other is as good for as little
NAMED = 16  # dots of a panel that have a name each
MARKS = "osD^v<>PX*"
_IN_POINTS: Any = {"textcoords": "offset points"}


def check_drawing() -> None:
    """Raise ModelError without matplotlib."""
    _figure(1, 1)


def scaling(curves: Mapping[str, Curve], cost: str) -> bytes:
    """All curves on one picture, log over log. cost: what they are of, for the axis."""
    figure = _figure(10, 6)
    axes = figure.subplots()
    for place, (name, curve) in enumerate(curves.items()):
        look = {"color": COLOURS[place % len(COLOURS)], "marker": MARKS[place % len(MARKS)], "markersize": 4}
        axes.plot([at for at, *_ in curve], [middle for _, middle, *_ in curve], label=name, linewidth=1.2, **look)
    axes.set(xscale="log", yscale="log", xlabel="visual tokens n", ylabel=cost)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return _png(figure)


def multiples(curves: Mapping[str, Curve], notes: Mapping[str, str], cost: str, columns: int = 4) -> bytes:
    """One small panel for each curve, with its quartiles, the others grey behind it. notes: below each name."""
    rows = max(1, -(-len(curves) // columns))
    figure = _figure(3 * columns, 2.4 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for panel, (name, curve) in zip(panels, curves.items(), strict=False):
        for other in curves.values():
            panel.plot([at for at, *_ in other], [middle for _, middle, *_ in other], color="#bbbbbb", linewidth=0.6)
        places = [at for at, *_ in curve]
        panel.fill_between(
            places, [low for *_, low, _ in curve], [high for *_, high in curve], alpha=0.3, color="#0a58ad"
        )
        panel.plot(places, [middle for _, middle, *_ in curve], color="#0a58ad", marker="o", markersize=3)
        panel.set_title(f"{name}\n{notes.get(name, '')}", fontsize=8)
        panel.set(xscale="log", yscale="log")
        panel.tick_params(labelsize=7)
        panel.tick_params(which="minor", labelbottom=False, labelleft=False)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    figure.supxlabel("visual tokens n", fontsize=9)
    figure.supylabel(cost, fontsize=9)
    return _png(figure)


def pareto(tasks: Mapping[str, Sequence[Dot]]) -> bytes:
    """A panel for each task: accuracy over multiply-accumulates, from the cheapest on; those on the front are joined,
    and of many they alone have their names.
    """
    columns = min(2, max(1, len(tasks)))
    rows = max(1, -(-len(tasks) // columns))
    figure = _figure(7 * columns, 3.6 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (task, dots) in zip(panels, tasks.items(), strict=False):
        front = sorted((cost, right) for _, cost, right, best in dots if best)
        panel.plot([cost for cost, _ in front], [right for _, right in front], color="#0a58ad", linewidth=1)
        named = [dot for dot in sorted(dots, key=lambda dot: (dot[1], dot[2])) if dot[3] or len(dots) <= NAMED]
        for _, cost, right, _ in dots:
            panel.plot(cost, right, marker="o", color="#bbbbbb", markersize=4, linestyle="")
        for number, (name, cost, right, best) in enumerate(named, 1):
            colour, aside = "#0a58ad" if best else "#777777", (4, 3) if number % 2 else (-9, -9)
            panel.plot(cost, right, marker="o", color=colour, markersize=5, linestyle="", label=f"{number}  {name}")
            panel.annotate(str(number), (cost, right), fontsize=7, color=colour, xytext=aside, **_IN_POINTS)
        panel.set(xscale="log", title=task, xlabel="multiply-accumulates an image", ylabel="accuracy, %")
        if dots:
            panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=0.8)
        panel.tick_params(which="minor", labelbottom=False)
        panel.margins(x=0.3, y=0.15)
        panel.grid(alpha=0.3)
    for panel in panels[len(tasks) :]:
        panel.set_axis_off()
    return _png(figure)


def matrix_page(title: str, about: str, pictures: Mapping[str, bytes], tables: Mapping[str, Mapping[str, Any]]) -> str:
    """One HTML file that needs no network and runs no script, in the style of report.html. tables: each of columns
    and rows of text.
    """
    template = _template()
    style = re.findall("<style>.*?</style>", template, re.DOTALL)[0]
    policy = f"default-src 'none'; img-src data:; style-src '{_digest(template, 'style')}'; base-uri 'none'"
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="read muted">{html.escape(about)}</p>']
    for name, picture in pictures.items():
        data = base64.b64encode(picture).decode("ascii")
        image = f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'
        parts.append(f'<h2>{html.escape(name)}</h2><div class="scroll">{image}</div>')
    parts += [_table(name, one) for name, one in tables.items() if one["rows"]]
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
    head += f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
    body = "\n".join(parts)
    return _ascii(f'<!doctype html>\n<html lang="en">\n<head>{head}{style}</head>\n<body>\n{body}\n</body>\n</html>\n')


def _table(name: str, one: Mapping[str, Any]) -> str:
    def line(kind: str, values: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(value)}</{kind}>" for value in values) + "</tr>"

    rows = "".join(line("td", row) for row in one["rows"])
    whole = f"<table><thead>{line('th', one['columns'])}</thead><tbody>{rows}</tbody></table>"
    return f'<h2>{html.escape(name)}</h2><div class="scroll">{whole}</div>'


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModelError("drawing the matrix needs matplotlib: pip install 'regard[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
