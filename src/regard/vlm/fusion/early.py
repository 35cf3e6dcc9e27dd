"""Early fusion: images are in the prompt (LLaVA, arXiv 2304.08485; of learned queries BLIP-2, arXiv 2301.12597).

    prompt = [words before, out_1 ... out_K, words after],    out of the bridge, in the width of the words

The language model stays as it is; what its words attend to are tokens like any other.
"""

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from regard.vlm.fusion.fusion import Fusion
from regard.vlm.interleaved import Spliced


class Early(Fusion):
    """Has no parameters: the bridge's tokens are the language model's input where an image stands."""

    name = "early"
    in_prompt = True

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()

    def within(
        self, language_model: nn.Module, prompt: Spliced, memory: Tensor | None, shown: Tensor | None
    ) -> AbstractContextManager[None]:
        return nullcontext()
