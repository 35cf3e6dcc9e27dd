"""The embedded eye: offline and query-aware, from two small models that install as packages, with nothing trained.

Each 32 x 32 pixels are a token. EfficientNet-Lite0's classifier, applied at every cell, says how much of each of
ImageNet's 1000 classes is there; a question becomes weights over the classes, by how near its words are to WordNet's
words for each. So the inner product of a token and a question is how much of what is asked for is there. It knows what
ImageNet knows (animals, tools, food, vehicles), and English only; it is no CLIP.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from regard.errors import DataError
from regard.eyes.class_vectors import class_vectors
from regard.eyes.efficientnet import STRIDE, EfficientNetLite0
from regard.eyes.minilm import MiniLM
from regard.tokens import Question, VisualTokens, grid_boxes

LONGEST_QUESTION = 200  # words
_NEAR = 1024  # pixels, the longest side that the near look has, as nearly as a power of two allows
_TEMPERATURE = 0.05
# The words of a question that do not say what is asked for.
_ASKING = frozenset(
    """where is are was were be the a an of in on at to for from with by and or what which who whom whose how many much
    does do did can could would will you me my i we us it its this that these those there here please show find locate
    see look point tell give photo photos picture pictures image images one any some something anything""".split()
)


@dataclass(frozen=True)
class EmbeddedEye:
    """Sees a token for every 32 x 32 pixels; hears a question in English.

    longest: a longer side is scaled down to this, in pixels. pyramid: classify at two or three sizes, not only at the
    image's own: things of a tenth of the image are found as well as things of half of it.
    """

    longest: int = 2048
    pyramid: bool = True

    @property
    def width(self) -> int:
        """Of its tokens' features."""
        return 1280

    @property
    def asked(self) -> int:
        """Width of its questions' features."""
        return 1000

    @property
    def name(self) -> str:
        """What it is called in records."""
        return "embedded (EfficientNet-Lite0 and MiniLM)"

    @cached_property
    def _net(self) -> EfficientNetLite0:
        return EfficientNetLite0.installed()

    @cached_property
    def _text(self) -> MiniLM:
        return MiniLM.installed()

    @cached_property
    def _classes(self) -> Float[Tensor, "1000 384"]:
        return class_vectors()

    def look(self, image: Image.Image) -> VisualTokens:
        """Encode an RGB image: features (1, N, 1280), aligned (1, N, 1000), on a grid of 32 x 32 pixels a token.

        The last row and column stand for what is left of the image; their boxes say so.
        """
        return self.detailed(image)[0]

    @torch.no_grad()
    def detailed(self, image: Image.Image) -> tuple[VisualTokens, Float[Tensor, "1 n 448"]]:
        """What `look` gives, and finer features of each token, from the middle of the network: 2 x 2 of 112."""
        image = image.convert("RGB")
        if max(image.size) > self.longest:
            image.thumbnail((self.longest, self.longest), Image.Resampling.LANCZOS, reducing_gap=2.0)
        pixels = _pixels(image)
        features, middle = self._net.detailed(pixels)
        aligned = _smooth(self._seen(pixels, self._net.logits(features)))
        aligned = aligned - aligned.mean(dim=(0, 1))
        h, w = features.shape[:2]
        tokens = VisualTokens(
            features.flatten(0, 1)[None],
            grid_boxes(_edges(image.width, w), _edges(image.height, h)),
            aligned=aligned.flatten(0, 1)[None],
            grid=(1, h, w),
        )
        return tokens, middle.flatten(0, 1)[None]

    def _seen(self, pixels: Float[Tensor, "1 3 H W"], own: Float[Tensor, "h w c"]) -> Float[Tensor, "h w c"]:
        """Logits of a far look (longest side about 512), a near one (about 1024) and, of a larger image, its own."""
        if not self.pyramid:
            return own
        near = min(2.0, 2.0 ** round(math.log2(_NEAR / max(pixels.shape[-2:]))))
        weights = {near / 2: 0.5, near: 1.0} | ({1.0: 0.5} if near < 1 else {})
        looks = [weight * (own if scale == 1 else self._at(pixels, scale)) for scale, weight in weights.items()]
        return torch.stack(looks).sum(dim=0)

    def _at(self, pixels: Float[Tensor, "1 3 H W"], scale: float) -> Float[Tensor, "h w c"]:
        """Logits at twice the size, the maximum of each cell's 2 x 2, or at a fraction of it, interpolated."""
        if scale > 1:
            closer = self._net.logits(self._net.features(pixels, scale=2))
            return closer.unflatten(0, (-1, 2)).unflatten(2, (-1, 2)).amax(dim=(1, 3))
        step, (height, width) = round(1 / scale), pixels.shape[-2:]
        whole = F.pad(pixels, (0, -width % (STRIDE * step), 0, -height % (STRIDE * step)), mode="replicate")
        coarse = self._net.logits(self._net.features(F.avg_pool2d(whole, step)))
        fine = F.interpolate(coarse.permute(2, 0, 1)[None], scale_factor=step, mode="bilinear")
        return fine[0, :, : height // STRIDE, : width // STRIDE].permute(1, 2, 0)

    @torch.no_grad()
    def ask(self, text: str) -> Question:
        """A question as weights over the classes, (1, 1, 1000), that sum to 1.

        Raises DataError for more than 200 words, or for a question without a Latin letter.
        """
        heard = self.classes_of(self.hear(text))
        return Question(heard[None, None], text=text, reference=self._others)

    @torch.no_grad()
    def hear(self, text: str) -> Float[Tensor, " 384"]:
        """The sentence embedding of what a question asks for, of length 1. Raises as `ask`."""
        words = text.split()
        if len(words) > LONGEST_QUESTION:
            raise DataError(
                f"the question has {len(words)} words, the embedded eye hears {LONGEST_QUESTION}: shorten it"
            )
        if not re.search("[A-Za-z]", text):
            raise DataError(f"the embedded eye knows English only, the question is {text!r}: ask in English")
        return self._text.embed(_asked_for(text))

    def classes_of(self, heard: Float[Tensor, "... 384"]) -> Float[Tensor, "... 1000"]:
        """How much each class is meant; they sum to 1."""
        return (heard @ self._classes.T / _TEMPERATURE).softmax(dim=-1)

    @cached_property
    def _others(self) -> Float[Tensor, "64 1000"]:
        return self.classes_of(self.reference)

    @property
    def reference(self) -> Float[Tensor, "64 384"]:
        """Reference questions, heard: every 16th or so of the classes, asked for by its own words."""
        return self._classes[torch.linspace(0, len(self._classes) - 1, 64).long()]


def _asked_for(question: str) -> str:
    """The question without the words that only ask; all of it where nothing else is left."""
    words = re.findall(r"[\w'-]+", question.lower())
    return " ".join(word for word in words if word not in _ASKING) or question


def _pixels(image: Image.Image) -> Float[Tensor, "1 3 H W"]:
    """The pixels in [-1, 1], padded with the edge to multiples of 32."""
    array = np.asarray(image)
    array = np.pad(array, ((0, -array.shape[0] % STRIDE), (0, -array.shape[1] % STRIDE), (0, 0)), mode="edge")
    return torch.from_numpy(array).permute(2, 0, 1)[None].float().sub_(127).div_(128)


def _smooth(x: Float[Tensor, "h w c"]) -> Float[Tensor, "h w c"]:
    """The mean of each cell and its neighbours, 3 x 3, fewer at the border."""
    return F.avg_pool2d(x.permute(2, 0, 1)[None], 3, 1, 1, count_include_pad=False)[0].permute(1, 2, 0)


def _edges(side: int, cells: int) -> Float[Tensor, " c1"]:
    """Where cells of 32 pixels begin and end, in parts of the side; the last ends with the image."""
    return torch.arange(cells + 1).mul(STRIDE).clamp(max=side) / side
