"""Language models alone."""

from regard.cost import language
from regard.cost.vlm import Decoder

MODELS = {
    "vicuna_7b": Decoder(language.VICUNA_7B),
    "vicuna_13b": Decoder(language.VICUNA_13B),
    "qwen2.5_3b": Decoder(language.QWEN2_5_3B),
    "qwen2.5_7b": Decoder(language.QWEN2_5_7B),
}
