"""docs/index-of-mechanisms.md, whole."""

from pathlib import Path

from regard.bench.index import allocators, bridges, layers, mechanisms
from regard.bench.index.entry import Entry, Figures

PLACE = Path("docs") / "index-of-mechanisms.md"
_HEAD = """# The index of mechanisms

Every way of spending attention that regard has: what it computes, where it is from, what it costs, and when to use it
by our measurements. `regard advise` asks the same measurements for one case of yours.

```sh
regard advise --resolution 1344 --questions detail --train none
```

No verdict here is typed: each is computed from `results/` and from the [cost model](cost.md), by
`python -m regard.bench.readme`, and says so where nothing was measured. The measurements are of composed scenes, small
models and one machine; where one is behind another, its page says by how much and how sure that is.
"""
_ALLOCATORS = """Ways of spending a budget of tokens, in front of a model that stays as it is. *target* is what of the
detail of what is asked about can be rebuilt from the tokens that are left, *whole* the same of the image (1 is all),
*on target* the share of the tokens that are spent there ([how it is measured](relevance.md#when-it-is-worth-it))."""
_BRIDGES = """What stands between an eye and a language model, and learns. Allocators are bridges too, with a projector
behind them: `regard.VLM(eye, "relevance", language_model)`. *Beyond chance* is beyond the 95 % intervals of both."""
_FUSIONS = """How a bridge's tokens reach the language model."""
_PRUNERS = """Tokens dropped between the layers of a language model."""
_LAYERS = """Attention to use alone. The pictures are the weights of layers with random parameters. In
[the matrix](matrix.md) what reads an encoder's output (cross-attention, Q-Former, resampler) is timed without it."""
_MECHANISMS = """Classifiers that choose where to look: the best run of each, beside the best that reads everything (and
was measured with it, where one was), in points of accuracy and in multiply-accumulates. *Unbeaten*: no run of that
task is more right at its cost."""


def page(root: Path) -> str:
    """The page, for the checkout at root."""
    figures, docs = Figures(root / "results"), root / "docs"
    sections: dict[str, tuple[str, list[Entry]]] = {
        "Allocators": (_ALLOCATORS, allocators.entries(figures)),
        "Bridges": (_BRIDGES, bridges.bridges(figures)),
        "Fusions": (_FUSIONS, bridges.fusions(figures)),
        "Pruners inside the language model": (_PRUNERS, bridges.pruners()),
        "Attention layers": (_LAYERS, layers.entries(figures, docs)),
        "Mechanisms that look": (_MECHANISMS, mechanisms.entries(figures, docs)),
    }
    parts = [_HEAD]
    for title, (about, entries) in sections.items():
        parts.append(f"## {title}\n\n{about}\n\n{_summary(entries)}")
        parts += [entry.markdown() for entry in entries]
    return "\n".join(parts)


def _summary(entries: list[Entry]) -> str:
    lines = ["| | when to use it, by our measurements |", "|---|---|"]
    lines += [f"| [{one.name}](#{one.anchor}) | {one.when} |" for one in entries]
    return "\n".join(lines) + "\n"
