"""What the doctor found, as a web page: a single file that runs no script and needs no network."""

import html
import re
from collections.abc import Mapping, Sequence
from importlib import resources

from regard.report.page import _ascii, _digest

_TOLD = {
    "error": "What the model says cannot be trusted",
    "warning": "Look at these",
    "note": "Good to know, and normal",
    "skipped": "Could not be checked",
}


def page(
    model: str,
    findings: Sequence[Mapping[str, str]],
    silent: Sequence[str],
    facts: Sequence[str] = (),
    question: str | None = None,
    picture: str | None = None,
) -> str:
    """The HTML. findings: each "check", "severity", "evidence" and "advice". silent: checks that found nothing. facts:
    about the run. picture: what was shown, a JPEG in base64.
    """
    template = resources.files("regard.report").joinpath("doctor.html").read_text("utf-8")
    counts = {kind: sum(finding["severity"] == kind for finding in findings) for kind in _TOLD}
    parts = {
        "title": _text(f"{model}: what the doctor found"),
        "policy": html.escape(_policy(template)),
        "facts": _text("; ".join(facts)),
        "state": "failed" if counts["error"] else "passed",
        "result": _text(_result(counts)),
        "asked": _asked(question, picture),
        "findings": "\n".join(_group(kind, [f for f in findings if f["severity"] == kind]) for kind in _TOLD),
        "silent": _silent(silent),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _policy(template: str) -> str:
    style = _digest(template, "style")
    return f"default-src 'none'; img-src data:; style-src '{style}'; base-uri 'none'; form-action 'none'"


def _text(text: str) -> str:
    return _ascii(html.escape(text))


def _result(counts: Mapping[str, int]) -> str:
    words = {"error": "error", "warning": "warning", "note": "note"}
    said = [f"{counts[kind]} {word}{'s' if counts[kind] > 1 else ''}" for kind, word in words.items() if counts[kind]]
    return ", ".join(said) if said else "nothing found"


def _asked(question: str | None, picture: str | None) -> str:
    if question is None:
        return ""
    shown = "" if picture is None else f'<img src="data:image/jpeg;base64,{picture}" alt="The picture that was shown">'
    return f'<div class="asked">{shown}<p>&#8220;{_text(question)}&#8221;</p></div>'


def _group(kind: str, findings: Sequence[Mapping[str, str]]) -> str:
    if not findings:
        return ""
    cards = [
        f'<article class="{kind}"><p><span class="name">{_text(finding["check"])}</span> '
        f'<span class="kind">{kind}</span></p><p>{_text(finding["evidence"])}</p>'
        f'<p class="advice">{_text(finding["advice"])}</p></article>'
        for finding in findings
    ]
    return f"<h2>{_TOLD[kind]}</h2>\n" + "\n".join(cards)


def _silent(names: Sequence[str]) -> str:
    if not names:
        return ""
    listed = "".join(f"<li>{_text(name)}</li>" for name in names)
    return f'<h2>Nothing found</h2>\n<ul class="silent">{listed}</ul>'
