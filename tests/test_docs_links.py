"""Every link of every Markdown file leads somewhere, every picture is there, and every page can be found."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from documents import FILES, NAMES, ROOT, anchors, anchors_of, links, slug

LARGEST = 500_000  # bytes of a picture that is shown in a page


def broken(file: Path, target: str) -> str | None:
    """What is wrong with a link of a file; None where it leads somewhere."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        fine = parts.scheme in ("https", "mailto") and ("." in parts.netloc or parts.scheme == "mailto")
        return None if fine and " " not in target else "expected https://host.name/..."
    place = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if not place.is_relative_to(ROOT) or not place.exists():
        return "there is no such file"
    if parts.fragment and (place.suffix != ".md" or parts.fragment not in anchors_of(place)):
        return "there is no such heading"
    return None


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_links_lead_somewhere(file):
    wrong = {target: why for target in links(file.read_text("utf-8")) if (why := broken(file, target))}
    assert not wrong


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_pictures_are_pictures_and_small(file):
    for target in links(file.read_text("utf-8")):
        place = file.parent / urlsplit(target).path
        if place.suffix in (".png", ".jpg") and not urlsplit(target).scheme:
            with Image.open(place) as picture:
                picture.verify()
            assert place.stat().st_size <= LARGEST, f"{target}: over {LARGEST} bytes"


def test_every_page_is_in_the_map():
    pages = {file for file in FILES if file.parent.name == "docs"} - {ROOT / "docs" / "README.md"}
    listed = links((ROOT / "docs" / "README.md").read_text("utf-8"))
    linked = {(ROOT / "docs" / urlsplit(one).path).resolve() for one in listed}
    assert len(pages) > 15
    assert pages <= linked, "docs/README.md leads to every page"


def test_every_picture_is_shown_somewhere():
    shown = {(file.parent / urlsplit(one).path).resolve() for file in FILES for one in links(file.read_text("utf-8"))}
    kept = {file for end in ("png", "jpg") for file in (ROOT / "docs").rglob(f"*.{end}")}
    assert len(kept) > 30
    assert kept <= shown


def test_the_check_can_fail(tmp_path):
    here = ROOT / "docs" / "allocators.md"
    assert broken(here, "selectors.md#divprune") is None
    assert broken(here, "../README.md#the-one-idea") is None
    assert broken(here, "https://arxiv.org/abs/2503.02175") is None
    for target in ("nothing.md", "selectors.md#nothing", "#nothing", "../../elsewhere.md", "http://a.org", "https://a"):
        assert broken(here, target), target
    text = "# A `b` (c)!\n## A b c\n[x](one.md)\n<img src='two.png'>\n\n`[no](no.md)`\n"
    text += "\n| a |\n|---|\n| ![](three.png) |\n"
    assert anchors(text) == {"a-b-c", "a-b-c-1"}
    assert links(text) == ["one.md", "two.png", "three.png"]
    assert slug("What it takes: time & memory") == "what-it-takes-time--memory"
