"""What the page shows of a Realization: why a look spent its tokens there."""

import json
from typing import Any

from regard.record import STATES, TERMS, WAYS, Look, Picture, Realization
from regard.report.digits import short

DIGITS = 3
POLES = {
    "scope": ("compress", "particularize"),
    "tempering": ("exploit", "explore"),
    "prioritization": ("focus", "diversify"),
}
PULLS = {
    "scope": ("scarcity of tokens", "relevant detail that one token cannot hold"),
    "tempering": ("certainty of the field", "disagreement of the three ways"),
    "prioritization": ("concentration of the relevance", "spread of the relevance"),
}
ABOUT = {
    "propositional": "local surprise: what the patches around do not foretell",
    "perspectival": "salience: what stands out from what surrounds it",
    "participatory": "what the question and the content have with one another",
}


def why(look: Look, picture: Picture) -> dict[str, Any] | None:
    """What the script draws of one look; None where the allocator did not say why."""
    found = look.realization
    if found is None:
        return None
    return {
        "name": look.allocator,
        "budget": look.tokens_out,
        "fact": _fact(found),
        "path": [f"x {x * picture.width:.0f}, y {y * picture.height:.0f} px" for x, y in found.fixations],
        "ways": [_way(name, found) for name in WAYS],
        "terms": TERMS,
        "dials": [_dial(name, found) for name in STATES],
        "lists": _lists(found),
    }


def pooled(reasons: list[dict[str, Any]]) -> list[list[Any]]:
    """The lists of all, taken out of them, each once: what is the image's alone is so for every question."""
    places: dict[str, int] = {}
    for reason in reasons:
        texts = {name: json.dumps(values) for name, values in reason["lists"].items()}
        reason["lists"] = {name: places.setdefault(text, len(places)) for name, text in texts.items()}
    return [json.loads(text) for text in places]


def _lists(found: Realization) -> dict[str, list[Any]]:
    """One value for each token, None where it is none of the image's. field and terms: over their average."""
    count, real = len(found.line), set(found.line)

    def told(values: tuple[float, ...], scale: int = 1) -> list[Any]:
        return [short(value * scale, DIGITS) if i in real else None for i, value in enumerate(values)]

    maps = {name: told(found.ways[name]) for name in WAYS} | {name: told(found.terms[name], count) for name in TERMS}
    maps |= {"field": told(found.field, count), "detail": told(found.detail)}
    return maps | {"line": list(found.line), "cuts": list(found.cuts)}


def _fact(found: Realization) -> dict[str, str]:
    if found.transjectivity is None:
        return {
            "name": "Image-only",
            "value": "",
            "about": "nothing was asked, so this relevance is of the image alone.",
        }
    return {
        "name": "Transjectivity",
        "value": f"{found.transjectivity:.2f}",
        "about": "the share of the relevance that belongs to neither the image nor the question alone, but to both "
        "together.",
    }


def _way(name: str, found: Realization) -> dict[str, str]:
    silent = name == "participatory" and found.image_only
    about = "nothing was asked, so it says nothing" if silent else ABOUT[name]
    return {"name": name, "share": f"{100 * found.mix[name]:.0f} %", "about": about}


def _dial(name: str, found: Realization) -> dict[str, Any]:
    """A state between its poles. pulls: what pulls it to the first and to the second, none where it is fixed."""
    up, down = found.drives[name]
    pulls = [f"{drive:.2f} {word}" for drive, word in zip((down, up), PULLS[name], strict=True)]
    fixed = name in found.fixed
    return {
        "name": name,
        "state": short(found.states[name], DIGITS),
        "value": f"{found.states[name]:.2f}" + (", fixed" if fixed else ""),
        "poles": POLES[name],
        "pulls": [] if fixed else pulls,
    }
