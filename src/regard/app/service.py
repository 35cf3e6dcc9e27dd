"""The desk, loaded when it is first needed: the page is there before torch is. And its notices, which need no torch."""

import html
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from regard.app.samples import SAMPLES
from regard.errors import RegardError

if TYPE_CHECKING:
    from regard.app.desk import Desk


class Service:
    """One desk for all users."""

    def __init__(self) -> None:
        self._loading = threading.Lock()
        self._desk: Desk | None = None

    @property
    def desk(self) -> "Desk":
        """Loads it, or waits for who does."""
        with self._loading:
            if self._desk is None:
                from regard.app.desk import Desk

                self._desk = Desk()
            return self._desk

    def warm_up(self) -> None:
        """Load the pocket model and look at the first picture, beside what else goes on."""

        def load() -> None:
            with suppress(RegardError):  # whoever asks is told
                self.desk.opened(SAMPLES[0].path)

        threading.Thread(target=load, daemon=True).start()


def notice(text: str, wrong: bool = False) -> str:
    """A line about what goes on, or, where something is wrong, an alert; as HTML, escaped."""
    if not text:
        return ""
    kind, role = ("wrong", "alert") if wrong else ("busy", "status")
    return f'<p class="rg-notice {kind}" role="{role}">{html.escape(text)}</p>'


def notes(lines: Iterable[str]) -> str:
    """Small print, as HTML, escaped."""
    return "".join(f'<p class="rg-small">{html.escape(line)}</p>' for line in lines)
