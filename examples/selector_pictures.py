"""The pictures of docs/selectors.md: one photo, one question, and where each allocator spends a tenth of the tokens.

The embedded eye has neither attention nor keys. For these pictures only, each token's share of the activation energy
stands in for the attention it receives, and its features for its keys.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from demo import photos  # pyright: ignore[reportAttributeAccessIssue]  # a folder of that name may hide it
from PIL import Image

import regard
from regard.allocate import catalogue
from regard.eyes.embedded import EmbeddedEye
from regard.report.pictures import heat_map
from regard.tokens import Question, VisualTokens

FOLDER = Path("docs") / "selectors"
QUESTION = "where is the cat?"


@dataclass(frozen=True)
class StandIn:
    """The embedded eye, with something in the place of attention and keys."""

    eye: EmbeddedEye = field(default_factory=EmbeddedEye)
    name: str = "embedded, with a stand-in for attention and keys"

    def look(self, image: Image.Image) -> VisualTokens:
        tokens = self.eye.look(image)
        energy = tokens.features.square().sum(dim=2)
        attention = energy / energy.sum(dim=1, keepdim=True)
        return replace(tokens, keys=tokens.features, scores={"attention": attention})

    def ask(self, text: str) -> Question:
        return self.eye.ask(text)


def main() -> None:
    """Write docs/selectors/NAME.jpg for every allocator."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    record = regard.look(photos(1280, 960), QUESTION, keep=0.1, allocators=catalogue(), eye=StandIn())
    for look in record.looks:
        picture = heat_map(record, look)
        picture.thumbnail((640, 640), Image.Resampling.LANCZOS)
        picture.save(FOLDER / f"{look.allocator}.jpg", quality=78, optimize=True)
        print(f"{look.allocator}: {look.tokens_in} → {look.tokens_out} tokens, {look.seconds * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
