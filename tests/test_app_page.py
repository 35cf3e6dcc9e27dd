"""The app's page in a real browser: every control by click, bad files, five users, and nothing asked of the network."""

import io
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regard.app.samples import SAMPLES

TIMEOUT = 150_000  # milliseconds: a busy machine takes its time
HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{value}} where is the star?"
# `regard app`, in a process in which a look-up of any other machine's name is written down and fails
SERVER = """
import socket, sys
real = socket.getaddrinfo
def own(host, *rest, **more):
    if host not in (None, "127.0.0.1", "localhost", b"127.0.0.1"):
        print("LOOKUP", host, flush=True)
        raise socket.gaierror(f"no look-up of {host}")
    return real(host, *rest, **more)
socket.getaddrinfo = own
from regard.cli import main
sys.argv = ["regard", "app", *sys.argv[1:]]
main()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory, browser):
    """The address of the app, and the file of what it said."""
    said = tmp_path_factory.mktemp("app") / "said.txt"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with said.open("w") as file:
        line = [sys.executable, "-c", SERVER, "--port", str(port)]
        process = subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 150
        while "Open http" not in said.read_text():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < end, said.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/", said
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def complaints():
    """Of the browser's console, and errors and dialogs of the page."""
    return []


@pytest.fixture
def view(browser, server, complaints):
    """Opens the page; in the end it must have asked for nothing elsewhere and complained about nothing."""
    contexts, wanted = [], set()

    def opened(width=1280, height=900, **settings):
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        context.set_default_timeout(TIMEOUT)
        tab = context.new_page()
        tab.on("request", lambda request: wanted.add(request.url))
        tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: complaints.append("dialog"))
        tab.goto(server[0])
        tab.get_by_role("button", name="Ask", exact=True).wait_for()
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert {url for url in wanted if not url.startswith((server[0], "data:", "blob:"))} == set()
    assert complaints == []


def answered(tab, cards=3):
    tab.locator("#answers .rg-card").nth(cards - 1).wait_for()
    return tab.locator("#answers blockquote").all_inner_texts()


def changes(tab, panel, do):
    """Do something that must change a panel's picture."""
    image = tab.locator(f"{panel} img").first
    before = image.get_attribute("src")
    do()
    tab.wait_for_function(
        "([panel, before]) => { const i = document.querySelector(panel + ' img'); return i && i.src !== before; }",
        arg=[panel, before],
    )


def pick(tab, label, name):
    tab.get_by_label(label, exact=True).click()
    tab.get_by_role("option", name=name, exact=True).click()


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (390, "dark")], ids=["a desktop in the light", "a phone in the dark"]
)
def test_it_opens_with_a_picture_looked_at(view, width, scheme):
    tab = view(width, color_scheme=scheme)
    answered(tab)
    tab.locator("#why img").nth(3).wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    images = tab.locator(".rg-figure img")
    assert images.count() == 7
    assert all(images.nth(i).get_attribute("alt") for i in range(7))
    assert not tab.locator("#notice p").count()
    seen = np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("L"))
    assert np.ptp(seen) > 150  # something is drawn
    assert (seen.mean() > 127) == (scheme == "light")


def test_everything_that_can_be_moved_moves_the_maps(view):
    tab = view()
    answered(tab)
    tab.get_by_label("shapes and a sign").check()
    tab.get_by_text("shapes.jpg").wait_for()
    question = tab.get_by_label("Question", exact=True)
    assert question.input_value() == SAMPLES[1].question
    answered(tab)

    def ask():
        question.fill("where is the heart?")
        tab.get_by_role("button", name="Ask", exact=True).click()

    changes(tab, "#left", ask)
    budget = tab.get_by_label("number input for Budget")

    def spend():
        budget.fill("16")
        budget.press("Enter")

    changes(tab, "#left", spend)
    tab.get_by_text("→ 16 tokens").first.wait_for()
    changes(tab, "#right", lambda: pick(tab, "Allocator, right", "grid"))
    tab.locator("#answers h3", has_text="grid").wait_for()
    changes(tab, "#left", lambda: pick(tab, "Allocator, left", "fovea"))
    changes(tab, "#left", lambda: pick(tab, "Allocator, left", "relevance"))

    def hold():
        dial = tab.get_by_label("number input for Hold scope at")
        dial.fill("0")
        dial.press("Enter")

    changes(tab, "#left", hold)
    tab.get_by_text("0.00, fixed").wait_for()
    assert tab.get_by_label("scope", exact=True).is_checked()
    changes(tab, "#left", lambda: tab.get_by_label("scope", exact=True).uncheck())
    tab.get_by_text("0.00, fixed").wait_for(state="detached")


def test_the_gallery_opens(view):
    tab = view()
    answered(tab)
    tab.get_by_role("tab", name="Every mechanism").click()
    tab.get_by_role("button", name="Let every mechanism look").click()
    tab.locator("#gallery figure").nth(11).wait_for()
    assert tab.locator("#gallery b").nth(7).inner_text() == "qformer"


def test_html_in_a_question_is_text(view):
    tab = view()
    answered(tab)
    changes(
        tab,
        "#left",
        lambda: (
            tab.get_by_label("Question", exact=True).fill(HOSTILE),
            tab.get_by_role("button", name="Ask", exact=True).click(),
        ),
    )
    answered(tab)
    tab.get_by_role("tab", name="Every mechanism").click()
    tab.get_by_role("button", name="Let every mechanism look").click()
    shown = tab.locator("#gallery .rg-small").first
    shown.wait_for()
    assert HOSTILE in shown.inner_text()
    assert tab.locator("#gallery img[src=x]").count() == 0


def test_what_is_missing_is_said(view):
    tab = view()
    answered(tab)
    tab.get_by_label("Question", exact=True).fill("   ")
    tab.get_by_role("button", name="Ask", exact=True).click()
    alert = tab.get_by_role("alert")
    alert.wait_for()
    assert "the question is empty" in alert.inner_text()
    tab.get_by_label("Model", exact=True).fill("no/such model")
    tab.get_by_label("Model", exact=True).press("Enter")
    tab.get_by_label("Question", exact=True).fill("where is the cat?")
    tab.get_by_role("button", name="Ask", exact=True).click()
    alert.filter(has_text="there is no model folder 'no/such model'").wait_for()
    pick(tab, "Model", "pocket")
    alert.wait_for(state="detached")
    answered(tab)


def bad_files(folder: Path) -> list[tuple[Path, str]]:
    whole = SAMPLES[2].path.read_bytes()
    files = {
        "script.png": (b"#!/bin/sh\nrm -rf /\n", "not an image"),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "SVG"),
        "cut.jpg": (whole[: len(whole) // 2], "damaged or cut short"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    Image.new("1", (20_000, 10_000)).save(folder / "vast.png")  # 200 megapixels in a few kilobytes
    return [*((folder / name, says) for name, (_, says) in files.items()), (folder / "vast.png", "too many pixels")]


def test_bad_files_are_refused_and_the_page_goes_on(view, tmp_path):
    tab = view()
    answered(tab)
    alert = tab.get_by_role("alert")
    for file, says in bad_files(tmp_path):
        drop(tab, file)
        alert.filter(has_text=says).wait_for()
        assert str(tmp_path.parent) not in alert.inner_text()
        assert tab.locator("#left img").count() == 0
        tab.get_by_role("button", name="Ask", exact=True).click()
        alert.filter(has_text="there is no picture").wait_for()
    drop(tab, SAMPLES[2].path)
    answered(tab)
    tab.get_by_text("cat.jpg").first.wait_for()
    assert alert.count() == 0


def drop(tab, file):
    tab.locator("input[type=file]").set_input_files(file)


def test_a_gigabyte_is_refused(view, complaints, tmp_path):
    tab = view()
    answered(tab)
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(10**9)  # sparse
    drop(tab, large)
    tab.get_by_text(re.compile("exceeds? .*maximum .*size", re.IGNORECASE)).first.wait_for()
    changes(tab, "#left", lambda: tab.get_by_label("a cat", exact=True).check())
    answered(tab)
    complaints.clear()  # the browser says that what was sent was refused


def test_five_users_at_once_get_their_own(view):
    tabs = [view() for _ in range(5)]
    questions = [f"which colour is the {name}?" for name in ("star", "heart", "circle", "square", "sign")]
    for tab in tabs:
        answered(tab)
        tab.get_by_label("shapes and a sign").check()
    for i, (tab, question) in enumerate(zip(tabs, questions, strict=True)):
        tab.get_by_text("shapes.jpg").wait_for()
        answered(tab)
        tab.get_by_label("number input for Budget").fill(str(8 * (i + 1)))
        tab.get_by_label("Question", exact=True).fill(question)
    for tab in tabs:
        tab.get_by_role("button", name="Ask", exact=True).click()
    sources = set()
    for i, tab in enumerate(tabs):
        tab.locator("#left").get_by_text(f"→ {8 * (i + 1)} tokens").wait_for()
        tab.locator("#answers").get_by_text(re.compile(rf"^{8 * (i + 1)} visual tokens")).first.wait_for()
        sources.add(tab.locator("#left img").get_attribute("src"))
    assert len(sources) == 5


def test_no_other_machine_was_looked_up(server):
    said = server[1].read_text()
    # the one name that was asked for on purpose is that of a model of the hub
    assert {line for line in said.splitlines() if line.startswith("LOOKUP")} <= {"LOOKUP huggingface.co"}
    assert "Traceback" not in said
