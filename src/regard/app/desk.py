"""What happens when somebody picks a picture, asks, or moves something: panels by name, as they are ready."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from regard.allocate import catalogue, checked_budget
from regard.app import markup
from regard.app.looks import RELEVANCE, looks, served
from regard.app.models import Models
from regard.app.service import notes, notice
from regard.app.sight import Heard, Sight, Sights
from regard.errors import DataError
from regard.looking import checked_questions
from regard.record import STATES, Look
from regard.relevance.tensions import States
from regard.report.page import TIMES
from regard.vlm.pocket import MECHANISMS

POCKET = "pocket"
NO_PICTURE = "there is no picture: pick one or drop one"
ONCE = "vision was paid once, when the picture was opened; a new question does not pay it again"
Panels = dict[str, Any]
BLANK: Panels = dict.fromkeys(("left", "right", "answers", "why", "gallery"), "")


@dataclass(frozen=True, eq=False)
class Session:
    """What one user has open: a picture and, once something is asked, the question."""

    sight: Sight | None = None
    heard: Heard | None = None


@dataclass(frozen=True)
class Wish:
    """What one user asks for. left, right: names of allocators. budget: tokens."""

    question: str
    budget: int
    model: str = POCKET
    left: str = RELEVANCE
    right: str = "divprune"
    states: States = field(default_factory=States)


class Desk:
    """Serves all users. Panels are HTML by name (left, right, answers, why, gallery, photo, notice), and `states`,
    those of the tensions; what is not named stays as it is. Raises RegardError for what a user can mend.
    """

    def __init__(self) -> None:
        self.models, self.sights = Models(), Sights()

    def opened(self, path: str | Path) -> tuple[Session, Panels]:
        """A picture that is picked or dropped, encoded if nobody had it yet."""
        sight = self.sights.opened(path, self.models.eye)
        picture = sight.picture
        facts = [f"{picture.width} {TIMES} {picture.height} pixels", f"{sight.count} tokens", *picture.notes]
        return Session(sight), BLANK | {"photo": markup.photo(sight.shown, picture.name, facts)}

    def choices(self, session: Session, wish: Wish) -> tuple[str, ...]:
        """The allocators that the model's eye can serve; of a model of Hugging Face all that there are."""
        return served(self.heard(session, wish.question)) if wish.model == POCKET else catalogue()

    def heard(self, session: Session, question: str) -> Heard:
        """The question about the session's picture, measured once."""
        if session.sight is None:
            raise DataError(NO_PICTURE)
        (text,) = checked_questions(question)
        heard = session.heard
        if heard is not None and heard.sight is session.sight and heard.text == text:
            return heard
        return Heard.of(self.models.eye, session.sight, text)

    def run(self, session: Session, wish: Wish, pressed: bool = True) -> Iterator[tuple[Session, Panels]]:
        """Where two allocators look, then what is answered. pressed: whether the user asked, or moved something: a
        model of Hugging Face takes too long to follow every move.
        """
        budget = checked_budget(wish.budget)
        heard = self.heard(session, wish.question)
        session = replace(session, heard=heard)
        if wish.model == POCKET:
            yield from self._pocket(session, heard, replace(wish, budget=budget))
        elif pressed:
            yield session, {"notice": notice(f"{wish.model} answers: this can take a while")}
            yield session, self._other(heard, replace(wish, budget=budget))
        else:
            yield session, {"notice": notice(f"press Ask to let {wish.model} answer with this")}

    def gallery(self, session: Session, wish: Wish) -> tuple[Session, Panels]:
        """What every mechanism of the pocket model looks at."""
        budget = checked_budget(wish.budget)
        heard = self.heard(session, wish.question)
        found = self.models.mechanisms(heard, budget)
        head = notes((f"“{heard.text}”, through {budget} tokens at most, by the pocket model:",))
        drawn = markup.looked(heard.sight.small, heard.sight.boxes, found)
        return replace(session, heard=heard), {"gallery": head + drawn}

    def _pocket(self, session: Session, heard: Heard, wish: Wish) -> Iterator[tuple[Session, Panels]]:
        sight = heard.sight
        found = looks(heard, (wish.left, wish.right), wish.budget, wish.states)
        yield session, self._maps(sight, sight.boxes, found, wish) | {"notice": ""}
        names = (wish.left, wish.right)
        missing = [name for name in dict.fromkeys(names) if name not in MECHANISMS]
        lines = (*self.models.notes(heard.text), ONCE)
        given = self.models.of_pocket(heard, names, wish.budget, wish.states)
        yield session, {"answers": markup.answers(given, missing, lines)}
        yield session, self._reasons(sight, sight.boxes, found, wish)

    def _other(self, heard: Heard, wish: Wish) -> Panels:
        names = (wish.left, wish.right)
        asked = self.models.of_other(wish.model, heard.sight, heard.text, names, wish.budget, wish.states)
        record = asked.records[0]
        drawn = (heard.sight, record.boxes, record.looks, wish)
        answers = markup.answers(asked.answers, lines=asked.notes)
        return self._maps(*drawn) | self._reasons(*drawn) | {"answers": answers, "notice": ""}

    def _maps(self, sight: Sight, boxes: markup.Boxes, found: tuple[Look, ...], wish: Wish) -> Panels:
        by_name = {look.allocator: look for look in found}
        sides = (("left", wish.left), ("right", wish.right))
        return {side: markup.spent(sight.shown, boxes, by_name[name]) for side, name in sides}

    def _reasons(self, sight: Sight, boxes: markup.Boxes, found: tuple[Look, ...], wish: Wish) -> Panels:
        look = next((look for look in found if look.realization is not None), found[0])
        panels: Panels = {"why": markup.reasons(sight.small, boxes, look, sight.picture)}
        if look.realization is None:
            return panels
        told = zip(STATES, markup.states_of(look.realization), strict=True)
        return panels | {"states": {name: state for name, state in told if name not in wish.states.fixed}}
