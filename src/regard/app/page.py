"""The page: its controls, and what follows from each."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.themes import Base

from regard.app.samples import SAMPLES
from regard.app.service import Service, notice
from regard.errors import RegardError

if TYPE_CHECKING:
    from regard.app.desk import Session, Wish
    from regard.app.sight import Heard, Sight

STYLE = Path(__file__).with_name("style.css")
POCKET = "pocket"
TENSIONS = ("scope", "tempering", "prioritization")
HEAD = (
    "<header class='rg-head'><h1>regard</h1><p>Spend a vision-language model's attention where the question is.</p>"
    "</header>"
)
LOADING = "the models are loading: this takes some seconds, once"
PANELS = ("photo", "notice", "left", "right", "answers", "why", "gallery")
_Steps = Iterator[list[Any]]  # values of all outputs
_HOLD = "(held) => [held.includes('{0}') ? held : [...held, '{0}']]"  # a list of one output
_FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
_QUIET: Any = {"show_progress": "hidden"}
_STAYS = gr.skip()
_LIVE: Any = {"trigger_mode": "always_last", **_QUIET}
_ANEW: Any = {"trigger_mode": "multiple", **_QUIET}


def theme() -> Base:
    """Fonts of the system, and quiet colours that can be read in the light and in the dark."""
    return Base(primary_hue="teal", neutral_hue="slate", font=_FONTS, font_mono=("ui-monospace", "monospace")).set(
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_dark="#0f766e",
        button_primary_text_color="#ffffff",
        body_text_color_subdued="#475569",
        body_text_color_subdued_dark="#a3b1c6",
        block_info_text_color="#475569",
        block_info_text_color_dark="#a3b1c6",
    )


def page(models: tuple[str, ...], free: bool, service: Service) -> gr.Blocks:
    """The page. models: to choose from beside the pocket model. free: whether others may be typed."""
    with gr.Blocks(title="regard", analytics_enabled=False, fill_width=True, delete_cache=(600, 600)) as blocks:
        gr.HTML(HEAD)
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=290):
                controls = _asking(models, free)
                photo = gr.HTML()
            with gr.Column(scale=3, min_width=280):
                shown = _looking()
        shown["photo"] = photo
        _wire(blocks, _Wires(service, controls, shown))
    blocks.queue(default_concurrency_limit=8)
    return blocks


def _asking(models: tuple[str, ...], free: bool) -> dict[str, Any]:
    """What a user says."""
    sample = SAMPLES[0]
    others = "a folder or a Hugging Face name can be typed; " if free else ""
    return {
        "sample": gr.Radio([each.title for each in SAMPLES], value=sample.title, label="Picture"),
        "file": gr.File(label="Or drop a picture, 20 MB at most", height=150),
        "question": gr.Textbox(sample.question, label="Question", max_length=2000, lines=1, elem_id="question"),
        "ask": gr.Button("Ask", variant="primary", elem_id="ask"),
        "budget": gr.Slider(4, 256, 64, step=1, label="Budget", info="tokens of the picture that go on"),
        "model": gr.Dropdown(
            [POCKET, *models],
            value=POCKET,
            allow_custom_value=free,
            label="Model",
            info=f"{others}the pocket model comes with the package and is often wrong",
        ),
    }


def _looking() -> dict[str, Any]:
    """What a user sees, and the controls that stand beside it."""
    shown: dict[str, Any] = {"notice": gr.HTML(notice(LOADING), elem_id="notice")}
    with gr.Row():
        for side, name in (("left", "relevance"), ("right", "divprune")):
            with gr.Column(min_width=240):
                shown[f"{side} name"] = gr.Dropdown(
                    [name], value=name, label=f"Allocator, {side}", elem_id=f"{side}-name"
                )
                shown[side] = gr.HTML(elem_id=side)
    shown["answers"] = gr.HTML(elem_id="answers")
    with gr.Tabs():
        with gr.Tab("Reasons"):
            shown["why"] = gr.HTML(elem_id="why")
            with gr.Row():
                for name in TENSIONS:
                    shown[name] = gr.Slider(0, 1, 0.5, step=0.01, label=f"Hold {name} at", min_width=180, elem_id=name)
            shown["held"] = gr.CheckboxGroup(
                list(TENSIONS), label="Held by hand", info="moving a dial holds it; the others follow the picture"
            )
        with gr.Tab("Every mechanism"):
            shown["every"] = gr.Button("Let every mechanism look", elem_id="every")
            shown["gallery"] = gr.HTML(elem_id="gallery")
    return shown


class _Turns:
    """How often one user opened a picture, and asked, and what is open: runs end in any order, and one that is late
    says nothing.

    Gradio's `cancels` would lose what is moved while a step that cannot be stopped ends.
    """

    def __init__(self) -> None:
        self.opened = self.asked = 0
        self.sight: Sight | None = None


class _Wires:
    """Between Gradio's lists of values and the desk's panels by name."""

    def __init__(self, service: Service, controls: dict[str, Any], shown: dict[str, Any]) -> None:
        self.service, self.controls, self.shown = service, controls, shown
        self.turns, self.sight, self.heard = gr.State(_Turns()), gr.State(), gr.State()
        self.sides = [shown["left name"], shown["right name"]]
        self.dials = [shown[name] for name in TENSIONS]
        words = [controls[name] for name in ("question", "budget", "model")]
        self.inputs = [self.sight, self.heard, *words, *self.sides, shown["held"], *self.dials]
        self.asking = [self.turns, *self.inputs]
        self.outputs = [self.sight, self.heard, *(shown[name] for name in PANELS), *self.dials]

    def pick(self, turns: _Turns, title: str) -> _Steps:
        """One of the samples."""
        yield from self._open(turns, next(each.path for each in SAMPLES if each.title == title))

    def drop(self, turns: _Turns, path: str | None) -> _Steps:
        """A file of the user's."""
        yield from self._open(turns, path) if path is not None else self._nothing()

    def press(self, turns: _Turns, sight: "Sight | None", heard: "Heard | None", *said: Any) -> _Steps:
        """Ask."""
        yield from self._ask(turns, _session(sight, heard), said, pressed=True)

    def move(self, turns: _Turns, sight: "Sight | None", heard: "Heard | None", *said: Any) -> _Steps:
        """Something was moved, or a picture opened."""
        if sight is None:  # what was to be opened was not: it is said already
            yield from self._nothing()
        else:
            yield from self._ask(turns, _session(sight, heard), said, pressed=False)

    def every(self, turns: _Turns, sight: "Sight | None", heard: "Heard | None", *said: Any) -> _Steps:
        """The gallery."""
        yield from self._until(lambda: sight is not turns.sight, self._gallery(_session(sight, heard), said))

    def choose(self, sight: "Sight | None", heard: "Heard | None", *said: Any) -> list[Any]:
        """The allocators that the model can be served by."""
        try:
            names = self.service.desk.choices(_session(sight, heard), _wish(*said))
        except RegardError:  # whatever follows says why
            return [gr.skip(), gr.skip()]
        return [gr.Dropdown(choices=list(names)) for _ in self.sides]

    def _open(self, turns: _Turns, path: str | Path) -> _Steps:
        turns.asked += 1  # what was asked of another picture is over
        turn = turns.opened = turns.opened + 1
        return self._until(lambda: turn != turns.opened, self._opened(turns, turn, path))

    def _ask(self, turns: _Turns, session: "Session", said: tuple, pressed: bool) -> _Steps:
        wish = _wish(*said)
        turns.asked += pressed or wish.model == POCKET  # no other model follows what is moved
        turn, sight = turns.asked, session.sight
        steps = self._answered(session, wish, pressed)
        return self._until(lambda: turn != turns.asked or sight is not turns.sight, steps)

    def _until(self, over: Callable[[], bool], steps: _Steps) -> _Steps:
        for values in steps:
            if over():
                yield from self._nothing()
                return
            yield values

    def _opened(self, turns: _Turns, turn: int, path: str | Path) -> _Steps:
        yield self._values({"notice": notice("the picture is looked at")})
        sight = None
        try:
            session, panels = self.service.desk.opened(path)
            sight = session.sight
        except RegardError as error:
            panels = dict.fromkeys(PANELS, "") | {"notice": notice(str(error), wrong=True)}
        if turn == turns.opened:
            turns.sight = sight
        yield self._values(panels, sight, None)

    def _answered(self, session: "Session", wish: "Wish", pressed: bool) -> _Steps:
        try:
            for found, panels in self.service.desk.run(session, wish, pressed):
                yield self._values(panels, heard=found.heard)
        except RegardError as error:
            yield self._values({"notice": notice(str(error), wrong=True)})

    def _gallery(self, session: "Session", said: tuple) -> _Steps:
        yield self._values({"notice": notice("every mechanism looks")})
        try:
            found, panels = self.service.desk.gallery(session, _wish(*said))
            yield self._values(panels | {"notice": ""}, heard=found.heard)
        except RegardError as error:
            yield self._values({"notice": notice(str(error), wrong=True)})

    def _nothing(self) -> _Steps:
        """Everything stays as it is: Gradio empties the outputs of a generator that ends without a word."""
        yield self._values({})

    def _values(self, panels: dict[str, Any], sight: Any = _STAYS, heard: Any = _STAYS) -> list[Any]:
        """In the order of the outputs; what is not named stays as it is.

        What only opens a picture says which is open: an answer that is late brings none back.
        """
        states = panels.get("states", {})
        return [
            sight,
            heard,
            *(panels.get(name, gr.skip()) for name in PANELS),
            *(states.get(name, gr.skip()) for name in TENSIONS),
        ]


def _wire(blocks: gr.Blocks, wires: _Wires) -> None:
    """Which event calls what. The first picture is opened with the page."""
    controls, shown = wires.controls, wires.shown
    given = (wires.asking, wires.outputs)
    for trigger in (controls["question"].submit, controls["ask"].click):
        trigger(wires.press, *given, **_LIVE)
    gr.on([each.input for each in (controls["budget"], *wires.sides, shown["held"])], wires.move, *given, **_LIVE)
    changed = controls["model"].change(wires.choose, wires.inputs, wires.sides, **_QUIET)
    changed.then(wires.move, *given, **_QUIET)
    for name in TENSIONS:
        held = shown[name].input(None, shown["held"], shown["held"], js=_HOLD.format(name))
        held.then(wires.move, *given, **_LIVE)
    shown["every"].click(wires.every, *given, **_QUIET)
    sample, file = ([wires.turns, controls[name]] for name in ("sample", "file"))
    opened = [
        blocks.load(wires.pick, sample, wires.outputs, **_ANEW),
        controls["sample"]
        .input(_question_of, controls["sample"], controls["question"], **_ANEW)
        .then(wires.pick, sample, wires.outputs, **_ANEW),
        controls["file"]
        .upload(wires.drop, file, wires.outputs, **_ANEW)
        .then(lambda: None, None, controls["file"], **_QUIET),  # so that another can be dropped
    ]
    for event in opened:
        chosen = event.then(wires.choose, wires.inputs, wires.sides, **_ANEW)
        chosen.then(wires.move, *given, **_ANEW)


def _question_of(title: str) -> str:
    return next(each.question for each in SAMPLES if each.title == title)


def _session(sight: "Sight | None", heard: "Heard | None") -> "Session":
    from regard.app.desk import Session

    return Session(sight, heard)


def _wish(question: str, budget: float, model: str, left: str, right: str, held: list[str], *states: float) -> "Wish":
    """What the controls say."""
    from regard.app.desk import Wish
    from regard.relevance.tensions import States

    given = {name: state for name, state in zip(TENSIONS, states, strict=True) if name in held}
    return Wish(question or "", int(budget), model or POCKET, left, right, States(**given))
