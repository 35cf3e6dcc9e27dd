"""The HTML of the page's panels. All text that is not written here is escaped."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from regard.app.service import notes
from regard.record import WAYS, Answer, Look, Realization
from regard.report.page import cards
from regard.report.pictures import lit, tinted
from regard.report.realization import why

Boxes = Sequence[Sequence[float]]


def photo(shown: Image.Image, name: str, facts: Iterable[str]) -> str:
    """The picture itself, and what reading it did."""
    return _figure(shown, f"the picture {name}", name, "; ".join(facts))


def spent(shown: Image.Image, boxes: Boxes, look: Look) -> str:
    """Where one allocator spends its tokens."""
    before, after = look.macs_before / 1e12, look.macs_after / 1e12
    facts = (
        f"{look.tokens_in} → {look.tokens_out} tokens, {look.nearest_quarter:.0%} of them on the quarter nearest to "
        f"the question (blind: 25%); decided in {look.seconds * 1e3:.1f} ms; prefill of a 7B model {before:.2f} → "
        f"{after:.2f} TMACs"
    )
    picture = lit(shown, boxes, look.allocation.spent()[0].numpy())
    return _figure(picture, f"where {look.allocator} spends {look.tokens_out} tokens: lit", "", facts)


def looked(shown: Image.Image, boxes: Boxes, found: Iterable[Any]) -> str:
    """The gallery: what each mechanism looks at, and what it answers. found: of `models.Looked`."""
    figures = []
    for each in found:
        picture = lit(shown, boxes, each.spent.numpy())
        _mark(picture, each.path)
        figures.append(_figure(picture, f"where {each.name} looks: lit", each.name, _said(each)))
    return f'<div class="rg-grid">{"".join(figures)}</div>'


def _said(found: Any) -> str:
    if found.answer is None:
        looks = len(found.path) + 1
        return f"{looks} looks, led by the question; no answer" if looks > 1 else "one look was enough; no answer"
    answer = found.answer
    made = (answer.seconds["decide"] + answer.seconds["prefill"] + answer.seconds["decode"]) * 1e3
    return f"“{answer.text or '(nothing)'}”, {answer.visual_tokens} tokens, {made:.0f} ms"


def _mark(picture: Image.Image, path: Iterable[tuple[float, float]]) -> None:
    """Draw fixations, numbered. path: x and y in [0, 1]."""
    draw, radius = ImageDraw.Draw(picture), max(picture.size) / 40
    for number, (x, y) in enumerate(path, 1):
        centre = (x * picture.width, y * picture.height)
        draw.circle(centre, radius, fill="#f59e0b", outline="white", width=2)
        draw.text(centre, str(number), fill="black", font=ImageFont.load_default(radius * 1.3), anchor="mm")


def answers(given: Sequence[Answer], missing: Iterable[str] = (), lines: Iterable[str] = ()) -> str:
    """A card an answer, with its times as a bar. missing: allocators that have none. lines: small print."""
    parts = [_card(card) for card in cards(tuple(given))]
    parts += [
        f'<article class="rg-card"><h3>{html.escape(name)}</h3><p class="rg-small">The pocket model was not trained '
        "with it, and gives no answer through it.</p></article>"
        for name in missing
    ]
    return f'<div class="rg-cards" aria-live="polite">{"".join(parts)}</div>{notes(lines)}'


def reasons(shown: Image.Image, boxes: Boxes, look: Look, picture: Any) -> str:
    """The three ways, the field that they make, and the states of the tensions."""
    told, found = why(look, picture), look.realization
    if told is None or found is None:
        return notes(("Take relevance for one of the two to see its reasons in this model.",))
    maps = [(way["name"], way["share"], way["about"], found.ways[way["name"]]) for way in told["ways"]]
    maps.append(("field", "", "the relevance that the three make together", found.field))
    figures = [
        _figure(tinted(shown, boxes, np.array(values)), f"{name}: bright is more", f"{name} {share}".strip(), about)
        for name, share, about, values in maps
    ]
    fact = told["fact"]
    shared = f'<p class="rg-fact"><b>{fact["name"]} {fact["value"]}</b> {html.escape(fact["about"])}</p>'
    dials = "".join(_dial(dial) for dial in told["dials"])
    assert len(figures) == len(WAYS) + 1
    return f'<div class="rg-grid four">{"".join(figures)}</div>{shared}<div class="rg-dials">{dials}</div>'


def states_of(found: Realization) -> tuple[float, ...]:
    """Of scope, tempering and prioritization, as the sliders show them."""
    return tuple(round(state, 2) for state in found.states.values())


def _figure(picture: Image.Image, alt: str, title: str, facts: str) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    source = base64.b64encode(file.getvalue()).decode("ascii")
    head = f"<b>{html.escape(title)}</b> " if title else ""
    return (
        f'<figure class="rg-figure"><img src="data:image/jpeg;base64,{source}" alt="{html.escape(alt)}" '
        f'width="{picture.width}" height="{picture.height}"><figcaption>{head}{html.escape(facts)}</figcaption>'
        "</figure>"
    )


def _card(card: dict[str, Any]) -> str:
    bar = "".join(
        f'<i class="{stage}" style="width:{100 * share:.1f}%"></i>' for stage, share in card["shares"].items()
    )
    return (
        f'<article class="rg-card"><h3>{html.escape(card["name"])}</h3>'
        f"<blockquote>{html.escape(card['text'] or '(nothing)')}</blockquote>"
        f'<div class="rg-bar" role="img" aria-label="{html.escape(card["first"])}">{bar}</div>'
        f'<p class="rg-small">{html.escape(card["tokens"])}; {html.escape(card["first"])}</p>'
        f'<p class="rg-small">{html.escape(card["cost"])}</p></article>'
    )


def _dial(dial: dict[str, Any]) -> str:
    low, high = dial["poles"]
    pulls = "".join(f"<span>{html.escape(pull)}</span>" for pull in dial["pulls"]) or "<span>held by hand</span>"
    name, value = html.escape(dial["name"]), html.escape(dial["value"])
    return (
        f'<div class="rg-dial"><p><b>{name}</b> <output>{value}</output></p><div class="rg-poles"><span>{low}</span>'
        f'<span>{high}</span></div><div class="rg-track" role="img" aria-label="{name} is {value}, of {low} to {high}">'
        f'<i style="left:{100 * dial["state"]:.1f}%"></i></div><div class="rg-pulls">{pulls}</div></div>'
    )
