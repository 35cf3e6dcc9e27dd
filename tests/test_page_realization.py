"""The page and the table of looks that say why, against the Realization they are drawn from."""

import io
import re
from bisect import bisect_right
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from rich.console import Console

import regard
import test_page
from regard.allocation import Allocation
from regard.record import STATES, TERMS, WAYS, Look, Realization, Record, Step
from regard.recorded import blank_picture
from regard.report.page import TIMES, page
from regard.report.table import table
from test_page import ATTACK, COLOURS, ToyEye, embedded, pixel, point_at, said, settle

view = test_page.view
H, W, K = 4, 6, 7
N = H * W
GREEN = [57, 255, 136]


def halved(weights, width):
    """A line and its cuts: of all regions the heaviest is halved next, across its longer side."""
    line, cuts = [], []

    def lay(y, x, h, w):
        if h * w == 1:
            line.append(y * width + x)
            return None
        tall = h >= w
        halves = [(y, x, h // 2, w), (y + h // 2, x, h - h // 2, w)] if tall else [(y, x, h, w // 2)]
        halves += [] if tall else [(y, x + w // 2, h, w - w // 2)]
        begin = len(line)
        left = lay(*halves[0])
        place = len(line)
        right = lay(*halves[1])
        return sum(weights[token] for token in line[begin:]), place, left, right

    waiting: list = [lay(0, 0, len(weights) // width, width)]
    while waiting:
        node = max(waiting, key=lambda node: node[0])
        waiting.remove(node)
        cuts.append(node[1])
        waiting += [part for part in node[2:] if part]
    return tuple(line), tuple(cuts)


def groups(why, budget, n=N):
    edges = sorted(why.cuts[: budget - 1])
    group = [-1] * n
    for place, token in enumerate(why.line):
        group[token] = bisect_right(edges, place)
    return group


def partition(owner):
    regions = {}
    for token, region in enumerate(owner):
        if region >= 0:
            regions.setdefault(region, set()).add(token)
    return {frozenset(tokens) for tokens in regions.values()}


def realization(seed=0, **changes):
    draw = np.random.default_rng(seed)
    image = np.random.default_rng(9)
    ways = {name: tuple((draw if name == "participatory" else image).random(N).tolist()) for name in WAYS}
    field = draw.random(N) ** 4
    field /= field.sum()
    parts = {"relevant": 0.7 * field, "explore": 0.2 * draw.dirichlet([1] * N), "diversify": np.full(N, 0.1 / N)}
    line, cuts = halved(sum(parts.values(), np.zeros(N)).tolist(), W)
    why = Realization(
        ways=ways,
        mix={"propositional": 0.25, "perspectival": 0.14, "participatory": 0.61},
        field=tuple(field.tolist()),
        terms={name: tuple(values.tolist()) for name, values in parts.items()},
        detail=tuple((image.random(N) * 2).tolist()),
        states={"scope": 0.8276, "tempering": 0.25, "prioritization": 1.0},
        drives={"scope": (2.08, 0.95), "tempering": (0.43, 0.759), "prioritization": (0.34, 0.76)},
        fixed=("prioritization",),
        transjectivity=0.42,
        line=line,
        cuts=cuts,
    )
    return replace(why, **changes)


def look(why, question=0, name="relevance"):
    group = torch.tensor([groups(why, K)]) if why else torch.arange(N)[None] * K // N
    step = Step(0, Allocation.merge(group, K).to_dict())
    return Look(question, name, {}, K, N, K, 0.001, 0.5, 100, 50, (step,), why)


def recorded(*looks):
    boxes = tuple((x / W, y / H, (x + 1) / W, (y + 1) / H) for y in range(H) for x in range(W))
    return Record(
        picture=blank_picture("grey.jpg", (1, H, W)),
        eye="toy",
        questions=("what is red", "what is blue"),
        boxes=boxes,
        relevance=(tuple(range(N)),) * 2,
        grid=(1, H, W),
        looks=looks,
        language_model="tiny",
        prompt_tokens=5,
        seconds={"read": 0.1},
        made={"regard": "0"},
    )


@pytest.fixture(scope="module")
def record():
    return recorded(look(None, name="pool"), look(realization()), look(realization(1), 1))


@pytest.fixture(scope="module")
def text(record):
    return page(record)


def given(text, number):
    data = embedded(text)
    why = data["looks"][number]["why"]
    return why | {name: data["lists"][place] for name, place in why["lists"].items()}


def owner(tab, panel=-1):
    return tab.evaluate(f"[...panels.at({panel}).owner]")


def test_carries_the_maps_in_three_digits(text, record):
    why, shown = record.looks[1].realization, given(text, 1)
    for name in WAYS:
        assert shown[name] == [float(f"{value:.3g}") for value in why.ways[name]]
    for name, values in [("field", why.field), *why.terms.items()]:
        assert shown[name] == pytest.approx([value * N for value in values], rel=5e-3)
        assert all(value == float(f"{value:.3g}") for value in shown[name])
    assert shown["detail"] == [float(f"{value:.3g}") for value in why.detail]
    assert (shown["line"], shown["cuts"]) == (list(why.line), list(why.cuts))


def test_what_is_the_images_alone_is_carried_once(text):
    one, two = (embedded(text)["looks"][number]["why"]["lists"] for number in (1, 2))
    same = {name for name, place in one.items() if two[name] == place}
    assert same == {"propositional", "perspectival", "detail", "diversify", "line"}
    assert len(embedded(text)["lists"]) == 2 * len(one) - len(same)


def test_a_page_where_nobody_says_why_has_no_more_than_before(view, record):
    text = page(replace(record, looks=(look(None, name="pool"), look(None, 1, "top"))))
    data = embedded(text)
    assert (data["lists"], [shown["why"] for shown in data["looks"]]) == ([], [None, None])
    tab = view(text)
    assert tab.locator("#why").inner_html() == ""
    assert tab.locator("canvas").count() == 3
    point_at(tab, 2, record.boxes[3])
    assert tab.locator("#status p").count() == 0


def real():
    y, x = np.mgrid[0:150, 0:210]
    photo = PIL.Image.fromarray(np.stack([x, y, (x * y) % 256], axis=2).astype("uint8"))
    return regard.look(photo, list(COLOURS), keep=0.3, allocators=["relevance"], eye=ToyEye())


def test_at_its_own_budget_the_slider_shows_what_was_spent(view, record):
    for each in (record, real()):
        tab = view(page(each))
        for question in range(2):
            tab.get_by_role("tab").nth(question).click()
            (spent,) = [each for each in each.looks if each.question == question and each.realization]
            matrix = spent.allocation.matrix()[0]
            assert partition(owner(tab)) == {frozenset(row.nonzero().flatten().tolist()) for row in matrix}
            assert tab.locator(".cutting output").inner_text() == f"{spent.tokens_out} tokens, as this look"


def test_every_budget_can_be_reached_and_cuts_the_one_before_further(view, record):
    why = record.looks[1].realization
    tab = view()
    slider = tab.get_by_role("slider", name="budget of relevance")
    slider.press("Home")
    last = partition(owner(tab))
    assert last == {frozenset(range(N))}
    for budget in range(2, N + 1):
        slider.press("ArrowRight")
        now = partition(owner(tab))
        assert now == partition(groups(why, budget))
        (cut,) = last - now
        assert cut == frozenset().union(*(now - last))
        assert slider.get_attribute("aria-valuetext") == f"{budget} tokens{', as this look' * (budget == K)}, of {N}"
        last = now
    slider.press("ArrowRight")
    assert len(partition(owner(tab))) == N
    reached = [("PageDown", 19), ("ArrowDown", 18), ("PageUp", 23), ("ArrowUp", 24), ("Home", 1), ("End", N)]
    for key, budget in reached:
        slider.press(key)
        assert len(partition(owner(tab))) == budget
    tab.get_by_role("button", name=f"its own: {K}").click()
    assert len(partition(owner(tab))) == K
    assert "More budget only cuts regions further, at these states." in tab.locator("figcaption").last.inner_text()


def edges(group):
    """Where regions meet, as places of the picture."""
    places = {}
    for i in range(N):
        y, x = divmod(i, W)
        if x + 1 < W and group[i] != group[i + 1]:
            places[i, i + 1] = ((x + 1) / W, (y + 0.5) / H)
        if y + 1 < H and group[i] != group[i + W]:
            places[i, i + W] = ((x + 0.5) / W, (y + 1) / H)
    return places


def green(tab, place):
    last, near = tab.locator("canvas").count() - 1, (-1 / 300, 0, 1 / 300)
    return any(pixel(tab, last, place[0] + dx, place[1] + dy)[:3] == GREEN for dx in near for dy in near)


def test_new_cuts_are_green(view, record):
    why = record.looks[1].realization
    tab = view()
    note = tab.locator(".note")
    slider = tab.locator(".cutting input")
    assert note.inner_text() == ""
    slider.press("ArrowRight")
    settle(tab)
    old, new = edges(groups(why, K)), edges(groups(why, K + 1))
    assert {edge for edge, place in new.items() if green(tab, place)} == set(new) - set(old)
    assert note.inner_text() == f"1 new cut since {K} tokens"
    slider.fill(str(np.log(15) / np.log(N)))
    settle(tab)
    later = edges(groups(why, 15))
    assert {edge for edge, place in later.items() if green(tab, place)} == set(later) - set(new)
    assert note.inner_text() == f"7 new cuts since {K + 1} tokens"
    slider.press("ArrowLeft")
    settle(tab)
    assert not any(green(tab, place) for place in edges(groups(why, 14)).values())
    assert note.inner_text() == "1 cut less than at 15 tokens"
    assert float(slider.input_value()) == pytest.approx(np.log(14) / np.log(N))
    slider.fill("1")
    assert note.inner_text() == f"{N - 14} new cuts since 14 tokens"


def test_a_drag_shows_all_that_it_cut(view):
    tab = view()
    slider = tab.locator(".cutting input")
    slider.scroll_into_view_if_needed()
    size = slider.bounding_box()
    y = size["y"] + size["height"] / 2
    tab.mouse.move(size["x"] + size["width"] * 0.3, y)
    tab.mouse.down()
    for share in (0.3, 0.5, 0.7, 0.8, 0.9):
        tab.mouse.move(size["x"] + size["width"] * share, y)
    budget = len(partition(owner(tab)))
    assert budget > 12
    assert tab.locator(".note").inner_text() == f"{budget - K} new cuts since {K} tokens"
    tab.mouse.up()
    slider.press("ArrowRight")
    assert tab.locator(".note").inner_text() == f"1 new cut since {budget} tokens"


def test_a_region_is_told_at_the_budget_of_the_slider(view, record):
    why = record.looks[1].realization
    tab = view()
    for budget, key in ((1, "Home"), (N, "End")):
        tab.locator(".cutting input").press(key)
        point_at(tab, tab.locator("canvas").count() - 1, record.boxes[8])
        size = groups(why, budget).count(groups(why, budget)[8])
        patches, tokens = ("1 patch", "1 token") if size == 1 else (f"{size} patches", f"{1 / size:.3g} tokens")
        assert said(tab)[-1] == f"in a region of {patches}: {tokens} a patch, 1 {TIMES} the fair share"


def reason(why, patch, name="relevance"):
    terms = [round(float(f"{why.terms[term][patch] * N:.3g}"), 2) for term in TERMS]
    ways = [f"{way} {float(f'{why.ways[way][patch]:.3g}'):.2f}" for way in WAYS]
    size = groups(why, K).count(groups(why, K)[patch])
    region = f"in a region of {size} patch{'es' * (size > 1)} (1 token)"
    parts = " + ".join(f"{term} {value:.2f}" for term, value in zip(TERMS, terms, strict=True))
    return (
        f"{name}: {region}. Weight {sum(terms):.2f} {TIMES} the average = "
        f"{parts}; ways: {', '.join(ways)}; detail {float(f'{why.detail[patch]:.3g}'):.3g} {TIMES} the average"
    )


def test_a_patch_has_its_reason_by_pointer_and_by_keys(view, record):
    why = record.looks[1].realization
    tab = view()
    assert tab.locator("#status").inner_text() == "No patch chosen"
    for panel, patch in ((0, 3), (5, 20), (2, 11)):
        point_at(tab, panel, record.boxes[patch])
        assert tab.locator("#status .reason").all_inner_texts() == [reason(why, patch)]
        assert tab.locator("#status").inner_text().startswith(f"Patch {patch} (from 0): row {patch // W}")
        shown = dict(zip(tab.locator("figure h3").all_inner_texts(), said(tab), strict=True))
        assert float(shown["field"].split()[0]) == pytest.approx(why.field[patch] * N, rel=6e-3)
        weight = sum(why.terms[term][patch] for term in TERMS) * N
        assert float(shown["weight"].split()[0]) == pytest.approx(weight, rel=2e-2)
        for name in WAYS:
            assert float(shown[name].removeprefix(f"{name} ")) == pytest.approx(why.ways[name][patch], rel=6e-3)
    tab.mouse.move(1, 1)
    assert tab.locator("#status").inner_text() == "No patch chosen"
    last = tab.locator("canvas").last
    last.focus()
    last.press("PageDown")
    assert tab.locator("#status .reason").all_inner_texts() == [reason(why, 1)]
    tab.get_by_role("tab").nth(1).click()
    assert tab.locator("#status .reason").all_inner_texts() == [reason(record.looks[2].realization, 1)]


def test_the_panels_are_painted_from_their_maps(view, record):
    why = record.looks[1].realization
    tab = view()
    tab.locator("#opacity").fill("100")
    settle(tab)
    names = tab.locator("figure h3").all_inner_texts()
    assert names == ["photo", "relevance", "pool", "relevance", *WAYS, "field", "weight", "regions at any budget"]
    weight = [sum(parts) for parts in zip(*why.terms.values(), strict=True)]
    size = [-groups(why, K).count(region) for region in groups(why, K)]
    maps = [*(why.ways[name] for name in WAYS), why.field, weight, size]
    for panel, values in enumerate(maps, start=4):
        for patch, full in ((int(np.argmin(values)), False), (int(np.argmax(values)), True)):
            x0, y0, x1, y1 = record.boxes[patch]
            red, _, _, _ = pixel(tab, panel, (x0 + x1) / 2, (y0 + y1) / 2)
            assert (red > 200) == full, (names[panel], patch)
    shares = tab.locator("#why figcaption strong").all_inner_texts()
    assert shares == ["25 %", "14 %", "61 %"]


def test_the_weight_is_shown_where_it_differs_from_the_field(view):
    why = realization()
    terms = {"relevant": why.field, "explore": (0.0,) * N, "diversify": (0.0,) * N}
    names = view(page(recorded(look(replace(why, terms=terms))))).locator("#why figure h3").all_inner_texts()
    assert names == [*WAYS, "field", "regions at any budget"]


def test_the_dials_stand_at_their_states(view, record):
    why = record.looks[1].realization
    tab = view()
    assert tab.get_by_role("meter").count() == 3
    texts = {
        "scope": "0.83: 2.08 relevant detail that one token cannot hold, against 0.95 scarcity of tokens",
        "tempering": "0.25: 0.43 disagreement of the three ways, against 0.76 certainty of the field",
        "prioritization": "1.00, fixed",
    }
    poles = {"scope": "compress particularize", "tempering": "exploit explore", "prioritization": "focus diversify"}
    for name, dial in zip(STATES, tab.locator(".dial").all(), strict=True):
        track = dial.get_by_role("meter", name=re.compile(f"^{name}, from 0, {poles[name].split()[0]}, to 1"))
        assert track.get_attribute("aria-valuetext") == texts[name]
        assert float(track.get_attribute("aria-valuenow")) == pytest.approx(why.states[name], abs=5e-4)
        frame, mark = track.bounding_box(), track.locator("i").bounding_box()
        at = (mark["x"] + mark["width"] / 2 - frame["x"]) / frame["width"]
        assert at == pytest.approx(why.states[name], abs=0.01)
        assert dial.locator("b").all_inner_texts() == poles[name].split()
        shown = dial.inner_text()
        assert texts[name].split(":")[0] in shown
        assert ("scarcity of tokens" in shown) == (name == "scope")
        assert "spread" not in shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dials_and_reasons_can_be_read(view, record, scheme):
    tab = view(color_scheme=scheme)
    point_at(tab, 4, record.boxes[0])

    def luminance(selector, kind):
        colour = tab.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{kind}")
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    ground = luminance(".dial", "backgroundColor")
    words = (".dial h3", ".dial h3 span", ".ends", ".ends b", ".reason", ".cutting output", ".cutting button", ".note")
    inks = dict.fromkeys(words, ("color", 4.5)) | dict.fromkeys((".track", ".track i"), ("backgroundColor", 3))
    for selector, (kind, least) in inks.items():
        ink = luminance(selector, kind)
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= least, selector


def test_says_how_much_belongs_to_both_or_that_nothing_was_asked(view, record):
    tab = view()
    assert "Transjectivity 0.42: the share of the relevance that belongs to neither" in tab.locator("#why").inner_text()
    alone = view(page(recorded(look(realization(transjectivity=None)))))
    said = alone.locator("#why").inner_text()
    assert "Image-only: nothing was asked, so this relevance is of the image alone." in said
    assert "Transjectivity" not in said
    assert "61 % of the field; nothing was asked, so it says nothing" in said


def test_says_where_earlier_looks_led(view, record):
    path = view(page(recorded(look(realization(fixations=((0.2, 0.5), (1.0, 0.0))))))).locator("#why").inner_text()
    width, height = record.picture.width, record.picture.height
    assert f"Earlier looks led to x {width // 5}, y {height // 2} px, then to x {width}, y 0 px." in path
    assert "Earlier" not in view().locator("#why").inner_text()


def test_each_look_that_says_why_has_its_section(view, record):
    two = realization(2)
    tab = view(page(recorded(look(realization()), look(two, name="relevance-2"), look(None, 1, "pool"))))
    heads = tab.locator("#why h2").all_inner_texts()
    assert heads == ["Why relevance spent its tokens there", "Why relevance-2 spent its tokens there"]
    assert tab.locator("#why section").nth(1).get_attribute("aria-label") == heads[1]
    tab.get_by_role("slider", name="budget of relevance-2").press("End")
    assert [len(partition(owner(tab, panel))) for panel in (9, -1)] == [K, N]
    point_at(tab, 0, record.boxes[13])
    reasons = tab.locator("#status .reason").all_inner_texts()
    assert reasons == [reason(realization(), 13), reason(two, 13, "relevance-2")]
    tab.get_by_role("tab").nth(1).click()
    assert tab.locator("#why").inner_html() == ""
    assert tab.locator("#status .reason").count() == 0


def test_padding_is_no_token(view, record):
    why = realization()
    line, cuts = list(why.line), why.cuts
    end = line.pop()
    short = replace(why, line=tuple(line), cuts=tuple(cut for cut in cuts if cut < N - 1))
    text = page(recorded(look(short)))
    assert given(text, 0)["field"][end] is None
    assert given(text, 0)["field"][line[0]] == pytest.approx(why.field[line[0]] * (N - 1), rel=5e-3)
    tab = view(text)
    tab.locator("#opacity").fill("100")
    point_at(tab, 0, record.boxes[end])
    assert said(tab)[3:] == ["not a token"] * 6
    assert tab.locator("#status .reason").inner_text() == "relevance: not a token"
    tab.mouse.move(1, 1)
    settle(tab)
    x0, y0, x1, y1 = record.boxes[end]
    for panel in range(3, 9):
        assert pixel(tab, panel, (x0 + x1) / 2, (y0 + y1) / 2)[:3] == [8, 8, 12]
    tab.locator(".cutting input").press("End")
    assert len(partition(owner(tab))) == N - 1


def test_no_name_can_break_out(view):
    text = page(recorded(look(realization(), name=ATTACK)))
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text
    tab = view(text)
    assert tab.locator("img").count() == 0
    assert "</script><img src=x" in tab.locator("#why h2").text_content()


def test_a_phone_shows_it_in_one_column(view, record):
    tab = view(width=360, height=740, has_touch=True, is_mobile=True, device_scale_factor=2)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    cards = [*tab.locator("#why figure").all(), *tab.locator(".dial").all()]
    assert len({round(card.bounding_box()["x"]) for card in cards}) == 1
    frame, slider = (tab.locator(part).last.bounding_box() for part in ("figure", ".cutting input"))
    assert frame["x"] < slider["x"]
    assert slider["x"] + slider["width"] < frame["x"] + frame["width"]


def test_the_table_says_the_states_and_the_ways(record):
    def printed(record):
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(table(record))
        return console.export_text()

    alone = realization(transjectivity=None, fixed=())
    text = printed(recorded(look(realization(), name="[b]relevance"), look(None, name="pool"), look(alone, 1)))
    states, mix = "scope 0.83, tempering 0.25, prioritization 1.00", "propositional 25%, perspectival 14%"
    assert f"[b]relevance, “what is red”: {states} fixed; {mix}, participatory 61%\n" in text
    assert (
        f"relevance, “what is blue”: {states}; {mix}, participatory 61%; "
        "nothing was asked: relevance of the image alone\n"
    ) in text
    assert "tempering" not in printed(recorded(look(None, name="pool")))
