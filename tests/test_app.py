"""What the app computes, without its page."""

import base64
import io
import json
import re
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

import tiny_processors
from regard import app
from regard.allocate.divprune import DivPrune
from regard.allocate.relevance import Relevance
from regard.app import markup
from regard.app.desk import Desk, Session, Wish
from regard.app.looks import served
from regard.app.samples import SAMPLES
from regard.app.service import notes, notice
from regard.errors import BudgetError, DataError, ImageError, ModelError
from regard.looking import look
from regard.record import WAYS, Answer
from regard.relevance.realizer import Realizer
from regard.relevance.tensions import States
from regard.vlm.pocket_ask import ask_pocket
from test_layers import loaded_after

ROOT = Path(__file__).parent.parent
SPACE = ROOT / "examples" / "space"
HOSTILE = "</p><img src=x onerror=alert(1)><script>alert(2)</script>${1+1} {{value}} \"quoted'"


@pytest.fixture(scope="module")
def desk():
    return Desk()


@pytest.fixture(scope="module")
def session(desk):
    return desk.opened(SAMPLES[1].path)[0]


def picture_of(panel: str) -> np.ndarray:
    (data,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', panel)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L")).astype(float)


def told(desk, session, wish):
    steps = list(desk.run(session, wish))
    return steps[-1][0], {name: panel for _, panels in steps for name, panel in panels.items()}


@pytest.mark.parametrize("name", ["relevance", "divprune", "fovea"])
def test_heat_maps_are_those_of_regard_look(desk, session, name):
    wish = Wish("which colour is the star?", 40, left=name, right="grid")
    _, panels = told(desk, session, wish)
    eye = desk.models.eye
    allocator = Relevance(realizer=eye.realizer) if name == "relevance" else name
    record = look(SAMPLES[1].path, wish.question, budget=40, allocators=[allocator], eye=eye)
    spent = record.looks[0].allocation.spent()[0].numpy()
    lit = picture_of(panels["left"]) / np.maximum(np.asarray(session.sight.shown.convert("L")), 1)
    h, w = lit.shape
    centres = [(int((y0 + y1) / 2 * h), int((x0 + x1) / 2 * w)) for x0, y0, x1, y1 in record.boxes]
    inside = np.array([np.median(lit[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4]) for y, x in centres])
    expected = 0.3 + 0.7 * np.cbrt(spent / spent.max())
    assert np.corrcoef(inside, expected)[0, 1] > 0.9
    assert f"{len(record.boxes)} → 40 tokens" in panels["left"]


def test_answers_are_those_of_regard_ask(desk, session):
    question = "which colour is the heart?"
    found = desk.models.of_pocket(desk.heard(session, question), ("relevance", "top", "pool"), 32, States())
    names = ("relevance", "pool")
    asked = ask_pocket(SAMPLES[1].path, question, budget=32, mechanisms=names, model=desk.models.pocket)
    assert [(a.allocator, a.text, a.visual_tokens) for a in found] == [
        (a.allocator, a.text, a.visual_tokens) for a in asked.answers
    ]
    _, panels = told(desk, session, Wish(question, 32, left="relevance", right="top"))
    assert panels["answers"].count("<blockquote>") == 2
    assert "not trained with it" in panels["answers"]


def test_an_image_is_encoded_once_for_all_users_and_questions(desk, monkeypatch):
    looked = []
    kind = type(desk.models.eye)
    whole = kind.look
    monkeypatch.setattr(kind, "look", lambda eye, image: looked.append(image.size) or whole(eye, image))
    one, two = desk.opened(SAMPLES[2].path)[0], desk.opened(SAMPLES[2].path)[0]
    first = told(desk, one, Wish("where is the cat?", 16))[0]
    told(desk, first, Wish("where is the nose?", 16))
    told(desk, two, Wish("where is the ear?", 8, left="grid"))
    assert len(looked) == 1


def test_what_is_drawn_is_what_is_answered_through_decided_once(desk, session, monkeypatch):
    calls = []

    def counted(kind, name):
        whole = getattr(kind, name)

        def told_of(*given):
            calls.append(f"{kind.__name__}.{name}")
            return whole(*given)

        monkeypatch.setattr(kind, name, told_of)

    for kind, name in ((Realizer, "measure"), (Realizer, "decide"), (DivPrune, "decide")):
        counted(kind, name)
    order = [set(panels) for _, panels in desk.run(session, Wish("where is the heart?", 40))]
    assert sorted(calls) == ["DivPrune.decide", "Realizer.decide", "Realizer.measure"]
    assert [("left" in panels, "answers" in panels, "why" in panels) for panels in order] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


def test_the_last_few_pictures_are_kept(desk, tmp_path):
    from regard.app.sight import Sights

    sights = Sights(most=2)
    paths = []
    for shade in range(3):
        paths.append(tmp_path / f"{shade}.png")
        Image.new("RGB", (64, 64), (80 * shade, 90, 90)).save(paths[-1])
    first = [sights.opened(path, desk.models.eye) for path in paths]
    again = [sights.opened(path, desk.models.eye) for path in reversed(paths)]
    assert [one is two for one, two in zip(first, reversed(again), strict=True)] == [False, True, True]


def test_a_picture_has_the_name_that_its_user_gave_it(desk, tmp_path):
    looks = []
    for name in ("mine.png", "yours.png"):
        Image.new("RGB", (64, 64), (9, 90, 90)).save(tmp_path / name)
        looks.append(desk.sights.opened(tmp_path / name, desk.models.eye))
    assert [look.picture.name for look in looks] == ["mine.png", "yours.png"]
    assert looks[0].tokens is looks[1].tokens, "encoded once"


def test_a_question_is_measured_once_and_dials_hold_what_they_are_given(desk, session):
    session, free = told(desk, session, Wish("where is the star?", 48))
    assert set(free["states"]) == {"scope", "tempering", "prioritization"}
    assert desk.heard(session, " where  is the star? ") is session.heard
    maps = []
    for scope in (0.0, 1.0):
        _, panels = told(desk, session, Wish("where is the star?", 48, states=States(scope=scope)))
        assert set(panels["states"]) == {"tempering", "prioritization"}
        assert f"<output>{scope:.2f}, fixed</output>" in panels["why"]
        maps.append(picture_of(panels["left"]))
    assert np.abs(maps[0] - maps[1]).mean() > 1


def wired(desk):
    """What events call, without a page."""
    from regard.app.page import _Wires

    wires = object.__new__(_Wires)
    wires.service = SimpleNamespace(desk=desk)  # pyright: ignore
    return wires


def test_what_was_asked_before_says_nothing_after_the_newest(desk, session):
    """Two runs of one user end in any order; those of two users have nothing to do with each other."""
    from regard.app.page import _Turns, gr

    wires, turns, others = wired(desk), _Turns(), _Turns()
    turns.sight = others.sight = session.sight
    said = ("where is the star?", 16, "pocket", "relevance", "grid")
    free, fixed = (*said, [], 0.5, 0.5, 0.5), (*said, ["scope"], 0.0, 0.5, 0.5)
    older = wires.move(turns, session.sight, None, *free)
    other = wires.move(others, session.sight, None, *free)
    assert any(value != gr.skip() for value in next(older)), "its maps are there"
    next(other)
    assert "0.00, fixed" in str(list(wires.move(turns, session.sight, None, *fixed)))
    (late,) = older
    assert all(value == gr.skip() for value in late)
    assert any(value != gr.skip() for values in other for value in values)


def test_the_picture_that_was_opened_last_is_the_one_that_opens(desk, session):
    """A slower one before it, an answer about it and a gallery of it say nothing any more."""
    from regard.app.page import _Turns, gr

    wires, turns = wired(desk), _Turns()
    first, second = (desk.opened(sample.path)[0].sight for sample in SAMPLES[:2])
    turns.sight = first
    said = ("where is the star?", 16, "pocket", "relevance", "grid", [], 0.5, 0.5, 0.5)
    given = (turns, first, None, *said)
    late = [wires.press(*given), wires.every(*given), wires.pick(turns, SAMPLES[0].title)]
    for run in late:
        next(run)
    opening = wires.drop(turns, str(SAMPLES[1].path))
    next(opening)
    late += [wires.every(*given), wires.move(*given)]  # asked while it opens
    for run in late[-2:]:
        next(run)
    assert next(opening)[0] is second is turns.sight
    assert all(value == gr.skip() for run in late for values in run for value in values)
    assert list(wires.drop(turns, __file__))[-1][0] is None
    assert turns.sight is None


def test_what_is_moved_beside_a_slow_model_loses_no_answer(desk, session, monkeypatch):
    from regard.app.page import _Turns

    wires, turns = wired(desk), _Turns()
    turns.sight = session.sight
    monkeypatch.setattr(desk, "_other", lambda *given: {"answers": "it is there"})
    said = ("where is the star?", 16, "another/model", "relevance", "grid", [], 0.5, 0.5, 0.5)
    asking = wires.press(turns, session.sight, None, *said)
    assert "answers: this can take a while" in str(next(asking))
    assert "press Ask" in str(list(wires.move(turns, session.sight, None, *said)))
    assert "it is there" in str(list(asking))


def test_a_late_answer_brings_no_picture_back(desk):
    """What only opens a picture says which is open; a question about another picture is heard anew."""
    from regard.app.page import _Turns, gr

    wires = wired(desk)
    first, second = (desk.opened(sample.path)[0].sight for sample in SAMPLES[:2])
    said = ("where is the cat?", 16, "pocket", "relevance", "grid", [], 0.5, 0.5, 0.5)
    turns = _Turns()
    turns.sight = first
    several = [*wires.press(turns, first, None, *said), *wires.every(turns, first, None, *said)]
    assert all(values[0] == gr.skip() for values in several), "which picture is open stays"
    heard = several[0][1]
    assert heard.sight is first
    assert desk.heard(Session(first, heard), said[0]) is heard
    assert desk.heard(Session(second, heard), said[0]).sight is second
    opening = list(wires.pick(_Turns(), SAMPLES[1].title))[-1]
    assert opening[0] is second
    assert opening[1] is None


def test_reasons_name_the_ways_the_poles_and_what_pulls(desk, session):
    _, panels = told(desk, session, Wish("where is the star?", 48, left="grid", right="grid"))
    why = panels["why"]
    assert all(
        name in why for name in (*WAYS, "field", "Transjectivity", "compress", "diversify", "scarcity of tokens")
    )
    assert why.count("<img") == why.count('alt="') == 4


def test_the_gallery_has_every_mechanism(desk, session):
    _, panels = desk.gallery(session, Wish("which colour is the star?", 32))
    names = re.findall(r"<b>([^<]+)</b>", panels["gallery"])
    expected = "all tokens,relevance,pool,grid,random,divprune,fovea,qformer,resampler,cascade,recurrent"
    assert names == [*expected.split(","), "relevance, looking again"]
    assert panels["gallery"].count("tokens, ") == 11


def test_it_offers_what_the_eye_can_serve(desk, session):
    names = desk.choices(session, Wish("where is the star?", 8))
    assert {"relevance", "divprune", "cdpruner", "top"} <= set(names)
    assert not {"visionzip", "tome"} & set(names)  # they need what the pocket eye does not give
    assert names == served(desk.heard(session, "where is the star?"))
    assert "visionzip" in desk.choices(session, Wish("where is the star?", 8, model="other"))


def test_a_model_of_hugging_face_answers_when_it_is_asked(desk, session, tmp_path):
    tiny = str(tiny_processors.build("llava", tmp_path))
    wish = Wish("where is the cat", 4, model=tiny, left="visionzip", right="relevance")
    (waiting,) = [panels for _, panels in desk.run(session, wish, pressed=False)]
    assert "press Ask" in waiting["notice"]
    _, panels = told(desk, session, wish)
    assert panels["answers"].count("<blockquote>") == 3
    assert "→ 4 tokens" in panels["left"]
    assert "prioritization" in panels["why"]
    _, bare = told(desk, session, replace(wish, left="top", right="grid"))
    assert "Take relevance for one of the two" in bare["why"]
    with pytest.raises(ModelError, match="no config.json"):
        told(desk, session, replace(wish, model=str(tmp_path)))


@pytest.mark.parametrize(
    ("wish", "error", "says"),
    [
        (Wish("  ", 8), DataError, "the question is empty"),
        (Wish("что это?", 8), DataError, "ask in English"),
        (Wish("cat " * 300, 8), DataError, "shorten it"),
        (Wish("a cat", 0), BudgetError, "at least 1"),
        (Wish("a cat", 8, left="nothing"), ModelError, "no allocator is named"),
    ],
)
def test_what_cannot_be_asked_is_said(desk, session, wish, error, says):
    with pytest.raises(error, match=says):
        told(desk, session, wish)


def test_nothing_is_asked_without_a_picture(desk):
    with pytest.raises(DataError, match="pick one or drop one"):
        told(desk, Session(), Wish("a cat", 8))


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("script.png", b"#!/bin/sh\nrm -rf /\n", "not an image"),
        ("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        ("cut.jpg", SAMPLES[2].path.read_bytes()[:9000], "damaged or cut short"),
        ("empty.png", b"", "empty"),
    ],
)
def test_bad_files_are_refused_without_a_path(desk, tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError, match=says) as refused:
        desk.opened(tmp_path / name)
    assert str(tmp_path) not in str(refused.value)


def test_text_is_shown_as_text(tmp_path):
    seconds = {"vision": 0.1, "decide": 0.0, "prefill": 0.1, "decode": 0.1}
    image = Image.new("RGB", (32, 32))
    shown = [
        notice(HOSTILE, wrong=True),
        notes([HOSTILE]),
        markup.answers([Answer(HOSTILE, HOSTILE, 4, 8, 2, seconds)], [HOSTILE], [HOSTILE]),
        markup.photo(image, HOSTILE, [HOSTILE]),
    ]
    for text in shown:
        assert "&lt;img" in text
        assert not re.search(r"<script|<img src=x|onerror=alert\(1\)>", text)
        assert re.sub(r'"[^"]*"', "", text).count("<") == re.sub(r'"[^"]*"', "", text).count(">")


def test_five_at_once_get_their_own(desk, session):
    questions = [f"which colour is the {name}?" for name in ("star", "heart", "circle", "square", "sign")]
    wishes = [Wish(question, 8 * (1 + i)) for i, question in enumerate(questions)]
    alone, together = [told(desk, session, wish)[1] for wish in wishes], [{}] * 5

    def work(i):
        together[i] = told(desk, session, wishes[i])[1]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(picture_of(one["left"]), picture_of(other["left"]))
        assert one["why"] == other["why"]
        pattern = r"<blockquote>(.*?)</blockquote>"
        assert re.findall(pattern, one["answers"]) == re.findall(pattern, other["answers"])


def test_importing_it_is_light_and_asks_nobody():
    loaded = loaded_after("import regard.app, os; assert 'GRADIO_ANALYTICS_ENABLED' not in os.environ")
    assert not {"gradio", "torch", "numpy", "transformers"} & loaded
    assert "torch" not in loaded_after("import regard.app; regard.app.build(); regard.app.settings()")


def test_without_gradio_one_line_says_what_to_install(regard, monkeypatch):
    found = util.find_spec
    monkeypatch.setattr(app, "find_spec", lambda name: None if name == "gradio" else found(name))
    code, out, err = regard("app")
    assert (code, out, err) == (1, "", "regard: the app needs Gradio: pip install 'regard[app]'\n")


@pytest.mark.parametrize("line", [["--port", "{taken}"], ["--host", "203.0.113.7"], ["--host", "no such host"]])
def test_an_address_that_cannot_be_served_is_one_line(regard, line):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, out, err = regard("app", *(word.format(taken=taken.getsockname()[1]) for word in line))
    assert (code, out) == (1, "")
    assert re.fullmatch(r"regard: cannot serve .*: give another --port or --host\n", err)
    assert regard("app", "--port", "0")[0] == 2


def test_others_may_type_a_model_on_this_machine_alone(monkeypatch):
    class BuiltError(Exception):
        pass

    def built(models, *, free, service):
        raise BuiltError(free, models)

    monkeypatch.setattr(app, "build", built)
    for host, free in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)):
        with pytest.raises(BuiltError) as stopped:
            app.serve(host, models=["one"])
        assert stopped.value.args == (free, ["one"])


def test_the_space_is_whole():
    card = (SPACE / "README.md").read_text().split("---\n")
    about = yaml.safe_load(card[1])
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert (about["sdk"], about["sdk_version"]) == ("gradio", pins["gradio"])
    assert "regard[app,embedded,hf]" in (SPACE / "requirements.txt").read_text()
    code = (
        "import json, runpy, sys; made = runpy.run_path(sys.argv[1])\n"
        "props = [part['props'] for part in made['demo'].config['components']]\n"
        "print(json.dumps({p['label']: p.get('allow_custom_value') for p in props if 'label' in p}))"
    )
    line = [sys.executable, "-c", code, str(SPACE / about["app_file"])]
    typed = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    assert {"Question", "Budget", "Model", "Allocator, left"} <= set(typed)
    assert typed["Model"] is False
