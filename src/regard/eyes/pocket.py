"""The pocket eye: the embedded one with narrower features that also hold what the middle of its network saw, and with
a sense of where in a picture what is asked for may be.

    features = ([x_last, x_middle] - mean) P,    P: the 512 first principal components of some scenes, half whitened
    aligned = [classes, t],    question = [classes meant, q],    t and q by a `Grounding` that was learned from scenes

The last layer knows what a thing is, the middle one its colours and strokes: words on a sign can be read from them.
"""

from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from regard.errors import ModelError
from regard.eyes.embedded import EmbeddedEye
from regard.eyes.grounding import Grounding
from regard.relevance.realizer import Realizer
from regard.tokens import Question, VisualTokens

WIDTH = 512
WEIGHTS = Path(__file__).with_name("pocket.safetensors")
GROUNDING = Path(__file__).with_name("pocket_grounding.safetensors")


@dataclass(frozen=True)
class PocketEye:
    """Features are (1, N, 512). Raises ModelError where its weights are missing."""

    embedded: EmbeddedEye = field(default_factory=EmbeddedEye)

    @property
    def width(self) -> int:
        """Of its tokens' features."""
        return WIDTH

    @property
    def asked(self) -> int:
        """Width of its questions' features."""
        return self.embedded.asked + self.grounding.dim

    @property
    def name(self) -> str:
        """What it is called in records."""
        return "pocket (EfficientNet-Lite0 and MiniLM)"

    @property
    def grounding(self) -> Grounding:
        """What it learned of where named things are."""
        return _grounding()

    @property
    def reference(self) -> Float[Tensor, "64 384"]:
        """As `EmbeddedEye.reference`."""
        return self.embedded.reference

    @property
    def realizer(self) -> Realizer:
        """The parameters of relevance, learned for these tokens and questions."""
        return _realizer()

    def look(self, image: Image.Image) -> VisualTokens:
        """Encode an RGB image: features (1, N, 512), aligned (1, N, 1128), on a grid of 32 x 32 pixels a token."""
        tokens = self.see(image)
        assert tokens.aligned is not None
        with torch.no_grad():
            found = self.grounding.tokens(tokens.features, tokens.boxes)
        return replace(tokens, aligned=torch.cat((tokens.aligned, found), dim=2))

    def see(self, image: Image.Image) -> VisualTokens:
        """As `look`, aligned with the classes alone: (1, N, 1000)."""
        tokens, middle = self.embedded.detailed(image)
        mean, components = _weights()
        return replace(tokens, features=(torch.cat((tokens.features, middle), dim=2) - mean) @ components)

    def ask(self, text: str) -> Question:
        """A question in the space of `aligned`, (1, 1, 1128). Raises as `EmbeddedEye.ask`."""
        return Question(self.meant(self.hear(text)[None])[None], text=text, reference=self._others)

    @cached_property
    def _others(self) -> Float[Tensor, "64 1128"]:
        return self.meant(self.reference)

    def hear(self, text: str) -> Float[Tensor, " 384"]:
        """As `EmbeddedEye.hear`."""
        return self.embedded.hear(text)

    def classes_of(self, heard: Float[Tensor, "q 384"]) -> Float[Tensor, "q 1000"]:
        """As `EmbeddedEye.classes_of`."""
        return self.embedded.classes_of(heard)

    @torch.no_grad()
    def meant(self, heard: Float[Tensor, "q 384"]) -> Float[Tensor, "q 1128"]:
        """What was heard, in the space of `aligned`."""
        return torch.cat((self.classes_of(heard), self.grounding.questions(heard)), dim=1)


def fitted(features: Float[Tensor, "n f"]) -> dict[str, Tensor]:
    """The weights of the eye by the features of many tokens, those of the last layer and of the middle together.

    Each is brought to unit variance first; then components are divided by the root of their deviation.
    """
    x = features.double()
    mean, scale = x.mean(dim=0), x.std(dim=0).clamp(min=1e-3)
    values, vectors = torch.linalg.eigh(((x - mean) / scale).T.cov())
    best = values.argsort(descending=True)[:WIDTH]
    vectors = vectors[:, best] * vectors[:, best].sum(dim=0).sign()  # eigenvectors have no sign of their own
    components = vectors / scale[:, None] / values[best].clamp(min=1e-6).pow(0.25)
    return {"mean": mean.half(), "components": components.half()}


@cache
def _grounding() -> Grounding:
    made = Grounding(WIDTH, 384)
    made.load_state_dict(_learned("grounding."))
    return made.requires_grad_(False).eval()


@cache
def _realizer() -> Realizer:
    made = Realizer()
    made.load_state_dict(_learned("realizer."))
    return made.requires_grad_(False).eval()


def _learned(prefix: str) -> dict[str, Tensor]:
    there = _loaded(GROUNDING).items()
    return {name.removeprefix(prefix): value.float() for name, value in there if name.startswith(prefix)}


@cache
def _weights() -> tuple[Tensor, Tensor]:
    weights = _loaded(WEIGHTS)
    return weights["mean"].float(), weights["components"].float()


def _loaded(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise ModelError(f"the pocket eye's weights {str(path)!r} are missing: install the package again")
    return load_file(path)
