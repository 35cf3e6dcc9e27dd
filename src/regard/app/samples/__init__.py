"""The pictures that the app begins with, each with a question."""

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Sample:
    """title: for people. file: its name here. question: one that fits."""

    title: str
    file: str
    question: str

    @property
    def path(self) -> Path:
        """Of the JPEG."""
        return FOLDER / self.file


SAMPLES = (
    Sample("four photos", "four-photos.jpg", "where is the cat?"),
    Sample("shapes and a sign", "shapes.jpg", "which colour is the star?"),
    Sample("a cat", "cat.jpg", "where is the cat?"),
)
