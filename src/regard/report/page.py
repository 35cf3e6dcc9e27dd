"""One run as a web page: a single file that needs no network, to look at every allocation patch by patch."""

import base64
import hashlib
import html
import json
import re
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from regard.allocation import Allocation, Mixed
from regard.record import Answer, Look, Record
from regard.report.digits import short
from regard.report.realization import pooled, why
from regard.report.table import memory_of, name_of

TIMES = "\u00d7"
TABLE = (
    "Question",
    "Allocator",
    "Tokens in",
    "Tokens out",
    "Decide, ms",
    "On the nearest quarter",
    "GMACs before",
    "GMACs after",
    "Saving",
)


def page(record: Record) -> str:
    """The HTML of report.html. Its policy lets nothing run or load but what is in the file."""
    template = _template()
    parts = {
        "title": _ascii(html.escape(f"{record.picture.name}: where the tokens go")),
        "policy": html.escape(_policy(template)),
        "data": _embedded(_data(record)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def cards(answers: tuple[Answer, ...]) -> list[dict[str, Any]]:
    """What was answered, and the time to the first token as shares of the longest."""
    longest = max((answer.first_token for answer in answers), default=0) or 1
    found = []
    for answer in answers:
        stages = {stage: answer.seconds[stage] for stage in ("vision", "decide", "prefill")}
        times = [f"{stage} {seconds * 1e3:,.1f} ms" for stage, seconds in stages.items()]
        after = [] if answer.per_token is None else [f"then {answer.per_token * 1e3:,.1f} ms a token"]
        memory = [] if answer.memory_peak is None else [f"memory {memory_of(answer)}"]
        found.append(
            {
                "name": name_of(answer),
                "text": answer.text,
                "tokens": f"{answer.visual_tokens} visual tokens of {answer.prompt_tokens} in the prompt",
                "first": f"first token after {answer.first_token * 1e3:,.1f} ms",
                "shares": {stage: short(seconds / longest) for stage, seconds in stages.items()},
                "cost": "; ".join([" + ".join(times), *after, *memory]),
            }
        )
    return found


def _template() -> str:
    """page.html with the scripts that it names inside."""
    folder = resources.files("regard.report")

    def inside(found: re.Match[str]) -> str:
        return folder.joinpath(found[1]).read_text("utf-8").rstrip("\n")

    return re.sub(r"\{\{(\w+\.js)\}\}", inside, folder.joinpath("page.html").read_text("utf-8"))


def _ascii(text: str) -> str:
    """Text for HTML, whatever bytes a file's name is made of."""
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _policy(template: str) -> str:
    """The content security policy: this one style, this one script, images from the file itself."""
    style, script = (_digest(template, tag) for tag in ("style", "script"))
    sources = f"img-src data:; style-src '{style}'; script-src '{script}'"
    return f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'"


def _digest(template: str, tag: str) -> str:
    blocks = re.findall(f"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
    assert len(blocks) == 1, f"the template must have one <{tag}>"
    return "sha256-" + base64.b64encode(hashlib.sha256(blocks[0].encode()).digest()).decode("ascii")


def _embedded(data: dict[str, Any]) -> str:
    """JSON in ASCII that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(record: Record) -> dict[str, Any]:
    """What the script draws from, its texts included."""
    picture, looks = record.picture, _looks(record)
    return {
        "picture": {"name": picture.name, "width": picture.width, "height": picture.height, "jpeg": picture.preview},
        "notes": [*picture.notes, *record.notes],
        "facts": _facts(record),
        "answers": cards(record.answers),
        "questions": record.questions,
        "boxes": [short(side, 6) for box in record.boxes for side in box],
        "grid": record.grid,
        "relevance": [[short(value) for value in values] for values in record.relevance],
        "maps": _shared(looks),
        "lists": pooled([look["why"] for look in looks if look["why"]]),
        "looks": looks,
        "table": {"caption": _caption(record), "names": TABLE},
        "small": [
            "Time: " + ", ".join(f"{stage} {seconds:.3g} s" for stage, seconds in record.seconds.items()),
            "Made with " + ", ".join(f"{name} {value}" for name, value in record.made.items()),
        ],
    }


def _caption(record: Record) -> str:
    return (
        f"Prefill of {record.language_model} with {record.prompt_tokens} tokens of text beside the image, in 10⁹ "
        "multiply-accumulates (GMACs). Nearest quarter: the share of the budget spent on the 25 % of patches nearest "
        "to the question; chance level .25."
    )


def _facts(record: Record) -> dict[str, str]:
    facts = {"Picture": f"{record.picture.width} {TIMES} {record.picture.height} px", "Eye": record.eye}
    if record.looks:
        kept, whole = record.looks[0].tokens_out, record.looks[0].tokens_in
        facts["Budget"] = f"{kept} of {whole} tokens kept, {100 * kept / whole:.1f} %"
    return facts


def _looks(record: Record) -> list[dict[str, Any]]:
    allocations = [look.allocation for look in record.looks]
    spent = [allocation.spent()[0] for allocation in allocations]
    moved = _moved(record.looks, spent)
    reasons = [why(look, record.picture) for look in record.looks]
    looks = [_look(*each) for each in zip(record.looks, allocations, spent, moved, strict=True)]
    return [{**look, "why": reason} for look, reason in zip(looks, reasons, strict=True)]


def _shared(looks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The maps of the looks, taken out of them, each once: a blind allocator has one for all questions."""
    maps: dict[str, int] = {}
    for look in looks:
        text = json.dumps({name: look.pop(name) for name in ("spent", "owner", "reads", "readers")})
        look["map"] = maps.setdefault(text, len(maps))
    return [json.loads(text) for text in maps]


def _look(look: Look, allocation: Allocation, spent: Tensor, moved: float | None) -> dict[str, Any]:
    """One panel: spent and owner have one value for each token, reads one for each output.

    owner: the output that reads the token (most), -1 where none does. readers: how many do, where it can be several.
    """
    owner, reads, readers = _owners(allocation, spent)
    fields = ", ".join(f"{name} {value}" for name, value in look.fields.items() if value not in (None, "auto"))
    return {
        "question": look.question,
        "title": f"{look.allocator} ({fields})" if fields else look.allocator,
        "note": _note(look, moved),
        "nearest": short(look.nearest_quarter),
        "fair": look.tokens_out / look.tokens_in,
        "cells": _cells(look),
        "spent": [short(value) for value in spent.tolist()],
        "owner": owner.tolist(),
        "reads": reads.tolist(),
        "readers": None if readers is None else readers.tolist(),
    }


def _note(look: Look, moved: float | None) -> str:
    layers = [str(step.layer) for step in look.steps if step.layer > 0]
    note = f"{look.tokens_in} → {look.tokens_out} tokens" + (f" (by layer {', '.join(layers)})" if layers else "")
    if moved is None:
        return note
    share = f"{100 * moved:.3g} % of them move with the question"
    return f"{note}; {share if moved > 0 else 'the same for every question'}"


def _cells(look: Look) -> list[str]:
    before, after = look.macs_before / 1e9, look.macs_after / 1e9
    return [
        str(look.tokens_in),
        str(look.tokens_out),
        f"{look.seconds * 1e3:.2f}",
        f"{look.nearest_quarter:.2f}",
        f"{before:,.0f}",
        f"{after:,.0f}",
        f"{before / after:.1f} {TIMES}",
    ]


def _owners(allocation: Allocation, spent: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of one image: each input's output, how many inputs each output reads, and, in a mix, each input's readers."""
    if isinstance(allocation.reading, Mixed):
        weights = allocation.matrix()[0]
        read = weights > 0
        owner = torch.where(read.any(dim=0), weights.argmax(dim=0), -1)
        return owner, read.sum(dim=1), read.sum(dim=0)
    place = torch.arange(allocation.n_out, dtype=torch.float64)[None, :, None]
    owner = torch.where(spent > 0, allocation.restore(place)[0, :, 0].round().long(), -1)
    return owner, owner[owner >= 0].bincount(minlength=allocation.n_out), None


def _moved(looks: tuple[Look, ...], spent: list[Tensor]) -> list[float | None]:
    """The share of each look's tokens that the same allocator spends elsewhere for the other questions, on average."""
    shares: list[float | None] = []
    for i, look in enumerate(looks):
        others = [
            spent[j]
            for j, other in enumerate(looks)
            if (other.allocator, other.fields) == (look.allocator, look.fields) and other.question != look.question
        ]
        if others:
            common = torch.stack([torch.minimum(spent[i], other).sum() / spent[i].sum() for other in others])
            shares.append(round(1 - float(common.mean()), 4))
        else:
            shares.append(None)
    return shares
