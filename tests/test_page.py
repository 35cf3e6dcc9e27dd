import base64
import hashlib
import html
import json
import re
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image
import pytest
import torch

import regard
from regard.allocate import Allocator
from regard.allocation import Allocation
from regard.record import Answer
from regard.report.page import page
from regard.tokens import Question, VisualTokens

ATTACK = "what is red</script><img src=x onerror=alert(1)>\u2028&amp;<!--"
H, W = 7, 11
COLOURS = {"red": (1.0, -0.5, -0.5), "blue": (-0.5, -0.5, 1.0)}


class ToyEye:
    name = "toy colours"

    def look(self, image):
        small = np.asarray(image.resize((W, H), PIL.Image.Resampling.BOX)).astype("float32") / 255
        features = torch.from_numpy(small).reshape(1, -1, 3)
        return VisualTokens.from_grid(features, (H, W), aligned=features - features.mean(1, keepdim=True))

    def ask(self, text):
        colour = next(colour for name, colour in COLOURS.items() if name in text)
        return Question(torch.tensor([[colour]]), text=text)


@dataclass(frozen=True)
class Blend(Allocator):
    """A mix in which several outputs read the same token."""

    def decide(self, tokens, question, budget):
        n = tokens.features.shape[1]
        weights = torch.zeros(1, budget, n)
        for output in range(budget):
            weights[0, output, output : output + 3] = torch.tensor([0.5, 0.3, 0.2])
        return Allocation.mix(weights)


@pytest.fixture(scope="module")
def record():
    y, x = np.mgrid[0:157, 0:211]
    pixels = np.stack([x * 255 // 210, y * 255 // 156, (x * y) % 256], axis=2).astype("uint8")
    allocators = ["top", "pool", "grid", "random", Blend()]
    return regard.look(
        PIL.Image.fromarray(pixels), [ATTACK, "what is blue"], keep=0.2, allocators=allocators, eye=ToyEye()
    )


@pytest.fixture(scope="module")
def text(record):
    return page(record)


def embedded(text):
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def test_is_small_and_loads_nothing(text, record):
    assert len(text.encode()) < 200_000 + len(record.picture.preview)
    assert "http:" not in text
    assert "https:" not in text
    assert not re.search(r"<(link|iframe|object|embed|base|img)\b|@import|url\(", text)


def test_policy_allows_only_the_two_blocks_of_this_page(text):
    policy = html.unescape(re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[0])
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    digests = {}
    for tag in ("style", "script"):
        (block,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests[tag] = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["style-src"] == f"'sha256-{digests['style']}'"
    assert rules["script-src"] == f"'sha256-{digests['script']}'"
    assert "unsafe" not in policy


def test_no_text_can_break_out(text, record):
    hostile = "</title><script>alert(1)</script>\udcff{{data}}.jpg"
    named = page(replace(record, picture=replace(record.picture, name=hostile), eye="</script>"))
    assert embedded(text)["questions"] == list(record.questions)
    assert "</script><img" in record.questions[0]
    assert embedded(named)["picture"]["name"] == hostile
    for each in (text, named):
        assert each.count("<script") == each.count("</script>") == 2
        assert "<img" not in each
        assert "\u2028" not in each
        assert each.encode()
    assert "<title>&lt;/title&gt;&lt;script&gt;alert(1)" in named


def answered(record):
    seconds = {"vision": 0.1, "decide": 0.0, "prefill": 0.3, "decode": 0.6}
    whole = Answer(None, f"It is red. {ATTACK}", 77, 90, 4, seconds, 10**9, 3 * 10**9)
    few = Answer("top", "", 15, 28, 1, {**seconds, "decide": 0.02, "prefill": 0.08, "decode": 0.0})
    return replace(record, answers=(whole, few))


def test_answers_are_shown_in_what_they_took(record):
    text = page(answered(record))
    whole, few = embedded(text)["answers"]
    assert text.count("<script") == text.count("</script>") == 2
    assert whole["text"].endswith(ATTACK)
    assert whole["first"] == "first token after 400.0 ms"
    assert whole["shares"] == {"vision": 0.25, "decide": 0, "prefill": 0.75}
    assert whole["cost"].endswith("prefill 300.0 ms; then 200.0 ms a token; memory 3,000 MB (+2,000)")
    assert few["cost"] == "vision 100.0 ms + decide 20.0 ms + prefill 80.0 ms"
    assert sum(few["shares"].values()) == pytest.approx(0.5)
    assert embedded(page(record))["answers"] == []


def test_carries_what_the_allocations_say(text, record):
    for look, given in zip(record.looks, embedded(text)["looks"], strict=True):
        given |= embedded(text)["maps"][given["map"]]
        allocation = look.allocation
        spent = allocation.spent()[0]
        assert given["spent"] == pytest.approx(spent.tolist(), rel=1e-4)
        matrix = allocation.matrix()[0]
        owner = torch.where(matrix.any(dim=0), matrix.argmax(dim=0), -1)
        assert given["owner"] == owner.tolist()
        assert given["reads"] == (matrix > 0).sum(dim=1).tolist()
        several = (matrix > 0).sum(dim=0).tolist() if look.allocator == "Blend" else None
        assert given["readers"] == several


def test_says_which_allocators_move_with_the_question(text, record):
    notes = {look["title"]: look["note"] for look in embedded(text)["looks"]}
    assert "the same for every question" in notes["pool"]
    assert "the same for every question" in notes["random (seed 0)"]
    one, two = (set(look.allocation.anchor[0].tolist()) for look in record.looks if look.allocator == "top")
    assert one != two
    assert f"77 → 15 tokens; {100 * len(one - two) / 15:.3g} % of them move" in notes["top"]


def test_one_question_and_no_allocator_make_a_page(record):
    bare = replace(record, questions=record.questions[:1], relevance=record.relevance[:1], looks=())
    assert embedded(page(bare))["looks"] == []
    single = replace(record, questions=record.questions[:1], looks=record.looks[:5])
    assert "question" not in embedded(page(single))["looks"][0]["note"]


@pytest.fixture
def view(browser, text, tmp_path):
    """Opens a page from its file; in the end, nothing else must have been asked for and nothing complained about."""
    contexts, complaints, wanted = [], [], set()

    def opened(source=text, width=1100, height=900, **settings):
        file = tmp_path / f"report-{len(contexts)}.html"
        file.write_text(source, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        context.set_default_timeout(60_000)  # a busy machine takes its time
        tab = context.new_page()
        tab.on("request", lambda request: wanted.add(request.url))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: complaints.append("dialog"))
        tab.goto(file.as_uri())
        settle(tab)
        return tab

    yield opened
    for context in contexts:
        context.close()
    others = {url for url in wanted if not re.match(r"data:image/jpeg;base64,|file:.*/report-\d+\.html$", url)}
    assert (others, complaints) == (set(), [])


def settle(tab):
    tab.evaluate(
        "photo.decode().then(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))))"
    )


def point_at(tab, panel, box):
    canvas = tab.locator("canvas").nth(panel)
    canvas.scroll_into_view_if_needed()
    size = canvas.bounding_box()
    x, y = (box[0] + box[2]) / 2 * size["width"], (box[1] + box[3]) / 2 * size["height"]
    canvas.hover(position={"x": x, "y": y})
    settle(tab)


def pixel(tab, panel, x, y):
    """One pixel of a panel, read through a copy: reading a canvas itself makes Chromium complain."""
    return tab.evaluate(
        "([k, x, y]) => { const c = document.querySelectorAll('canvas')[k];"
        "const copy = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });"
        "copy.drawImage(c, -Math.floor(x * c.width), -Math.floor(y * c.height));"
        "return [...copy.getImageData(0, 0, 1, 1).data]; }",
        [panel, x, y],
    )


def said(tab):
    return tab.locator(".value").all_inner_texts()


def check_values(tab, record, question, patch):
    """What the panels say of a patch, against the record."""
    photo, relevance, *others = said(tab)
    values = record.relevance[question]
    rank = 1 + sum(other > values[patch] for other in values)
    assert "px of the photo" in photo
    number, place, whole = re.findall(r"relevance (\S+), rank (\d+) of (\d+)", relevance)[0]
    assert float(number) == pytest.approx(values[patch], rel=5e-3)
    assert (int(place), int(whole)) == (rank, len(values))
    looks = [look for look in record.looks if look.question == question]
    for look, words in zip(looks, others, strict=True):
        matrix = look.allocation.matrix()[0]
        spent = float(matrix[:, patch].sum())
        if spent == 0:
            assert words == "0 tokens spent: not read"
            continue
        amount, output, reads = re.findall(r"^(\S+) tokens? spent.*read by output (\d+).*\(with (\d+) patch", words)[0]
        assert float(amount) == pytest.approx(spent, rel=5e-3)
        assert int(output) == int(matrix[:, patch].argmax())
        assert int(reads) == int((matrix[int(output)] > 0).sum())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_answers_are_drawn_as_bars(view, record, scheme):
    shown = view(page(answered(record)), color_scheme=scheme)
    assert shown.locator("#cards .card").count() == 2
    assert ATTACK.split("<")[0] in shown.locator("#cards blockquote").first.inner_text()
    bar = shown.locator(".stages").nth(1)
    widths = bar.evaluate(
        "bar => [...bar.children].map((part) => part.getBoundingClientRect().width / bar.clientWidth)"
    )
    assert widths == pytest.approx([0.25, 0.05, 0.2], abs=0.01)
    assert shown.locator("blockquote").nth(1).inner_text() == "(nothing)"
    assert not view(page(record)).locator("#answers").is_visible()


def test_a_pointed_patch_is_shown_in_every_panel(view, record):
    tab = view()
    assert tab.locator("canvas").count() == 7
    for panel, patch in ((0, 0), (2, 38), (6, 5), (3, H * W - 1)):
        point_at(tab, panel, record.boxes[patch])
        check_values(tab, record, 0, patch)
        box = [round(side * size) for side, size in zip(record.boxes[patch], (211, 157, 211, 157), strict=True)]
        row, column = divmod(patch, W)
        assert tab.locator("#status").inner_text() == (
            f"Patch {patch} (from 0): row {row}, column {column}; x {box[0]} to {box[2]}, y {box[1]} to {box[3]} px"
        )
    tab.mouse.move(1, 1)
    assert said(tab) == [""] * 7


def test_the_same_patch_is_marked_in_all_panels(view, record):
    tab = view()
    x0, y0, x1, y1 = record.boxes[38]
    spots = [((x0 + x1) / 2, y0), (x0, (y0 + y1) / 2)]

    def marked(panel):
        near = [pixel(tab, panel, x + dx / 400, y + dy / 400) for x, y in spots for dx in (-1, 0) for dy in (-1, 0)]
        return any(red < 90 and green > 170 and blue > 190 for red, green, blue, _ in near)

    assert not any(marked(panel) for panel in range(7))
    point_at(tab, 1, record.boxes[38])
    assert [marked(panel) for panel in range(7)] == [True] * 7


def test_lights_what_is_read_and_dims_the_rest(view, record):
    tab = view()
    tab.locator("#opacity").fill("100")
    settle(tab)
    owner = record.looks[0].allocation.spent()[0]
    for patch in range(0, H * W, 5):
        x0, y0, x1, y1 = record.boxes[patch]
        shade = pixel(tab, 2, (x0 + x1) / 2, (y0 + y1) / 2)
        assert shade[:3] == ([240, 249, 33] if owner[patch] else [8, 8, 12])


def test_the_slider_fades_the_overlays_by_mouse_and_by_keys(view):
    tab = view()
    slider = tab.locator("#opacity")
    before = [pixel(tab, panel, 0.31, 0.47) for panel in range(7)]
    slider.press("ArrowLeft")
    assert tab.locator("output").inner_text() == "74 %"
    slider.press("Home")
    settle(tab)
    after = [pixel(tab, panel, 0.31, 0.47) for panel in range(7)]
    assert tab.locator("output").inner_text() == "0 %"
    assert after[0] == before[0]
    assert all(faded != full for faded, full in zip(after[1:], before[1:], strict=True))
    assert after[1] == after[0]


def test_the_boxes_can_be_hidden(view):
    tab = view()
    picture = "() => document.querySelectorAll('canvas')[3].toDataURL()"
    full = tab.evaluate(picture)
    tab.get_by_label("Show token boxes").uncheck()
    settle(tab)
    assert tab.evaluate(picture) != full


def test_a_tab_changes_the_question(view, record):
    tab = view()
    assert tab.locator("#question").text_content() == record.questions[0]
    assert tab.locator("img").count() == 0
    point_at(tab, 2, record.boxes[3])
    pictures = "() => [...document.querySelectorAll('canvas')].map((canvas) => canvas.toDataURL())"
    tab.mouse.move(1, 1)
    settle(tab)
    first = tab.evaluate(pictures)
    tabs = tab.get_by_role("tab")
    tabs.nth(0).press("ArrowRight")
    settle(tab)
    second = tab.evaluate(pictures)
    assert [tabs.nth(i).get_attribute("aria-selected") for i in range(2)] == ["false", "true"]
    assert tab.evaluate("document.activeElement.id") == "tab-1"
    assert [a != b for a, b in zip(first, second, strict=True)] == [False, True, True, False, False, False, False]
    point_at(tab, 2, record.boxes[40])
    check_values(tab, record, 1, 40)
    tabs.nth(0).click()
    assert tab.locator("#question").text_content() == record.questions[0]


def test_keys_move_the_patch(view, record):
    tab = view()
    for _ in range(12):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.tagName") == "CANVAS":
            break
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    middle = H // 2 * W + W // 2
    patches = {"ArrowDown": middle, "ArrowRight": middle + 1, "ArrowUp": middle + 1 - W, "ArrowLeft": middle - W}
    patches |= {"PageDown": middle - W + 1, "PageUp": middle - W}
    for key, patch in patches.items():
        tab.keyboard.press(key)
        check_values(tab, record, 0, patch)
    for _ in range(H):
        tab.keyboard.press("ArrowUp")
    assert tab.locator("#status").inner_text().startswith(f"Patch {W // 2} ")
    tab.keyboard.press("Escape")
    assert tab.locator("#status").inner_text() == "No patch chosen"


def test_boxes_of_any_kind_can_be_pointed_at(view, record):
    boxes = [*record.boxes[:-2], (0.0, 0.0, 1.0, 1.0), (0.3, 0.3, 0.31, 0.31)]
    odd = replace(record, grid=None, boxes=tuple(boxes[:20] + [(0.0, 0.0, 0.0, 0.0)] * 55 + boxes[-2:]))
    tab = view(page(odd))
    for point, patch in (((0.305, 0.305), 76), ((0.9, 0.9), 75), ((0.02, 0.02), 0)):
        point_at(tab, 2, point * 2)
        assert tab.locator("#status").inner_text().startswith(f"Patch {patch}: x ")
    assert "rank" in said(tab)[1]
    assert " of 22 " in said(tab)[1]


def test_a_phone_shows_one_column_and_takes_touch(view, record):
    tab = view(width=360, height=740, has_touch=True, is_mobile=True, device_scale_factor=3)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    assert tab.evaluate("innerWidth") == 360
    assert len({round(tab.locator("figure").nth(i).bounding_box()["x"]) for i in range(7)}) == 1
    canvas = tab.locator("canvas").nth(3)
    size = canvas.bounding_box()
    assert tab.evaluate("document.querySelector('canvas').width") == pytest.approx(3 * size["width"], abs=3)
    x0, y0, x1, y1 = record.boxes[14]
    canvas.tap(position={"x": (x0 + x1) / 2 * size["width"], "y": (y0 + y1) / 2 * size["height"]})
    check_values(tab, record, 0, 14)


def test_canvases_follow_the_window(view):
    tab = view()
    before = tab.evaluate("document.querySelector('canvas').width")
    tab.set_viewport_size({"width": 500, "height": 900})
    settle(tab)
    settle(tab)
    assert tab.evaluate("document.querySelector('canvas').width") != before
    assert tab.evaluate("(c => c.width - c.clientWidth)(document.querySelector('canvas'))") == 0


def test_dark_mode_is_dark_and_both_can_be_read(view):
    def luminance(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    grounds = {}
    for scheme in ("light", "dark"):
        tab = view(color_scheme=scheme)
        ground = grounds[scheme] = luminance(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        for selector in ("h1", ".read", "dt", "figcaption", "caption", "td", ".small", ".value", "#status"):
            ink = luminance(tab.evaluate(f"getComputedStyle(document.querySelector('{selector}')).color"))
            assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5, (scheme, selector)
    assert grounds["light"] > 0.8
    assert grounds["dark"] < 0.05


def test_the_table_has_the_numbers(view, record):
    tab = view()
    rows = tab.locator("tbody tr").all()
    for look, row in zip(record.looks, rows, strict=True):
        cells = row.locator("td").all_inner_texts()
        before, after = look.macs_before / 1e9, look.macs_after / 1e9
        assert row.locator("th[scope=row]").inner_text().startswith(look.allocator)
        assert cells[:2] == [str(look.tokens_in), str(look.tokens_out)]
        assert float(cells[2]) == pytest.approx(look.seconds * 1e3, abs=0.006)
        assert float(cells[3]) == pytest.approx(look.nearest_quarter, abs=0.006)
        assert [float(cell.replace(",", "")) for cell in cells[4:6]] == pytest.approx([before, after], abs=0.6)
        assert float(cells[6].split()[0]) == pytest.approx(before / after, abs=0.06)
    assert tab.locator("tbody th[scope=rowgroup]").all_text_contents() == list(record.questions)
    assert tab.locator("thead th[scope=col]").count() == 9
    about = tab.locator("caption").inner_text()
    assert record.language_model in about
    assert ".25" in about
    shares = tab.locator("figcaption strong").all_inner_texts()
    assert shares == [f"{100 * look.nearest_quarter:.0f} %" for look in record.looks[:5]]


def test_the_header_says_what_was_looked_at(view, record):
    noted = replace(record, picture=replace(record.picture, notes=("turned <upright>",)))
    tab = view(page(noted))
    facts = tab.locator("dd").all_inner_texts()
    assert facts == ["211 \u00d7 157 px", "toy colours", "15 of 77 tokens kept, 19.5 %"]
    assert tab.locator("#notes li").all_inner_texts() == ["turned <upright>"]
    small = tab.locator("#small").inner_text()
    assert "seed 0" in small
    assert "encode" in small


def test_without_javascript_the_page_says_so(browser, text, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(60_000)  # a busy machine takes its time
    tab = context.new_page()
    tab.goto(file.as_uri())
    assert "JavaScript" in tab.locator("noscript").inner_text()
    context.close()
