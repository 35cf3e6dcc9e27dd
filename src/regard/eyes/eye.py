"""What an eye made of a trained encoder offers beyond a `SizedEye`: batches."""

from collections.abc import Sequence
from typing import Protocol

from PIL.Image import Image

from regard.eyes import SizedEye
from regard.tokens import VisualTokens


class BatchEye(SizedEye, Protocol):
    """A `SizedEye` that looks at several images at once."""

    def look(self, image: Image | Sequence[Image]) -> VisualTokens:
        """Encode images without gradients: tokens with a batch of as many; where their counts differ, with a mask."""
        ...
