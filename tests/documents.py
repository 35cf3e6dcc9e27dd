"""The project's Markdown files, parsed: their headings, links, pictures and blocks of code."""

import re
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
NAMES = [str(file.relative_to(ROOT)) for file in FILES]
_HTML = re.compile(r"""<(?:img|a)\b[^>]*?\b(?:src|href)=["']([^"']+)["']""")


def tokens(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def inner(text: str) -> list[Token]:
    """Also those within paragraphs, headings and cells."""
    return [one for token in tokens(text) for one in (token, *(token.children or ()))]


def slug(title: str) -> str:
    """As GitHub makes it: lower case, no punctuation, a hyphen for each space."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """Of all headings; of equal ones, the second ends with -1."""
    every, seen, parsed = set(), Counter(), tokens(text)
    for heading, content in pairwise(parsed):
        if heading.type == "heading_open":
            words = "".join(one.content for one in content.children or () if one.type in ("text", "code_inline"))
            name = slug(words)
            every.add(name if not seen[name] else f"{name}-{seen[name]}")
            seen[name] += 1
    return every


@cache
def anchors_of(file: Path) -> set[str]:
    return anchors(file.read_text(encoding="utf-8"))


def links(text: str) -> list[str]:
    """Where links and pictures point, Markdown's and HTML's."""
    found = []
    for one in inner(text):
        if one.type == "link_open":
            found.append(str(one.attrs["href"]))
        elif one.type == "image":
            found.append(str(one.attrs["src"]))
        elif one.type in ("html_inline", "html_block"):
            found += _HTML.findall(one.content)
    return found


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of the fenced blocks, from top to bottom."""
    return [(one.info.strip(), one.content) for one in tokens(text) if one.type == "fence"]


def indented(text: str) -> list[str]:
    """Blocks of code that are indented, where no language can be told."""
    return [one.content for one in tokens(text) if one.type == "code_block"]
