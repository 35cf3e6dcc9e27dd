"""The pocket eye: the embedded one with narrower features that also hold what the middle of its network saw.

    features = ([x_last, x_middle] - mean) P,    P: the 512 first principal components of some scenes, half whitened

The last layer knows what a thing is, the middle one its colours and strokes: words on a sign can be read from them.
"""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from regard.errors import ModelError
from regard.eyes.embedded import EmbeddedEye
from regard.tokens import Question, VisualTokens

WIDTH = 512
WEIGHTS = Path(__file__).with_name("pocket.safetensors")


@dataclass(frozen=True)
class PocketEye:
    """Sees and hears as the embedded eye; features are (1, N, 512). Raises ModelError where its weights are missing."""

    embedded: EmbeddedEye = field(default_factory=EmbeddedEye)

    @property
    def width(self) -> int:
        """Of its tokens' features."""
        return WIDTH

    @property
    def asked(self) -> int:
        """Width of its questions' features."""
        return self.embedded.asked

    @property
    def name(self) -> str:
        """What it is called in records."""
        return "pocket (EfficientNet-Lite0 and MiniLM)"

    def look(self, image: Image.Image) -> VisualTokens:
        """Encode an RGB image: features (1, N, 512), aligned (1, N, 1000), on a grid of 32 x 32 pixels a token."""
        tokens, middle = self.embedded.detailed(image)
        mean, components = _weights()
        return replace(tokens, features=(torch.cat((tokens.features, middle), dim=2) - mean) @ components)

    def ask(self, text: str) -> Question:
        """As `EmbeddedEye.ask`."""
        return self.embedded.ask(text)


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
def _weights() -> tuple[Tensor, Tensor]:
    if not WEIGHTS.exists():
        raise ModelError(f"the pocket eye's weights {str(WEIGHTS)!r} are missing: install the package again")
    weights = load_file(WEIGHTS)
    return weights["mean"].float(), weights["components"].float()
