"""Eyes: vision encoders that yield VisualTokens, with the questions that can be asked of them."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

    from regard.tokens import Question, VisualTokens


class Eye(Protocol):
    """What looks at an image and hears a question, both in one space."""

    @property
    def name(self) -> str:
        """What it is called in records."""
        ...

    def look(self, image: "Image") -> "VisualTokens":
        """Encode one image, once for any number of questions: tokens with a batch of 1."""
        ...

    def ask(self, text: str) -> "Question":
        """Encode one question, with a batch of 1. Its inner product with `aligned` is the relevance of a token."""
        ...


class SizedEye(Eye, Protocol):
    """An eye that says how wide its tokens and questions are, so that a bridge can be made for it."""

    @property
    def width(self) -> int:
        """Of its tokens' features."""
        ...

    @property
    def asked(self) -> int:
        """Width of its questions' features; 0 where it hears none."""
        ...
