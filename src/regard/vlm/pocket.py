"""The pocket model: the pocket eye, a bridge for each mechanism, and one small decoder that answers through them all.

It knows what it was trained on: scenes of cut-outs and signs on photographs, and eight kinds of questions about them
(`about`). Its weights come with the package; nothing is fetched.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_model
from torch import nn

from regard.allocate import made
from regard.allocate.relevance import Relevance
from regard.errors import ModelError
from regard.eyes.pocket import PocketEye
from regard.relevance.tensions import States
from regard.vlm.bridges import ALL, Bridge, load
from regard.vlm.bridges.behind import Behind
from regard.vlm.bridges.projector import Projector
from regard.vlm.compose import VLM

FOLDER = Path(__file__).with_name("pocket_weights")
DECODER = {  # of a Llama
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
SELECTING = (ALL, "relevance", "pool", "grid", "random", "divprune", "fovea")  # they share one bridge
MAKING = {  # new tokens, each by a bridge of its own behind the projector
    "qformer": {"queries": 128, "heads": 6},
    "resampler": {"latents": 128, "heads": 6},
    "cascade": {},
    "recurrent": {"glimpses": 32},
}
MECHANISMS = (*SELECTING, *MAKING)


class Pocket(nn.Module):
    """The decoder and all bridges. words: of its tokenizer, without the special ones."""

    def __init__(self, words: Iterable[str]) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        self.tokenizer = _tokenizer(words)
        self.eye = PocketEye()
        self.decoder: nn.Module = LlamaForCausalLM(LlamaConfig(vocab_size=len(self.tokenizer), **DECODER))
        width, dim = self.eye.width, DECODER["hidden_size"]
        self.bridges = nn.ModuleDict({"projector": Projector(width, dim, hidden=2 * dim, hearing=True)})
        for name, arguments in MAKING.items():
            self.bridges[name] = load(name, dim, dim, **arguments)

    def vlm(self, mechanism: str) -> VLM:
        """The decoder behind one mechanism. Raises ModelError for a name that is not of MECHANISMS."""
        return VLM(self.eye, self.bridge(mechanism), self.decoder, self.tokenizer)

    def bridge(self, mechanism: str) -> Bridge:
        """The mechanism's bridge; all share the projector. Raises ModelError."""
        if mechanism not in MECHANISMS:
            raise ModelError(f"the pocket model has no mechanism {mechanism!r}: it has {', '.join(MECHANISMS)}")
        shared = self.bridges["projector"]
        assert isinstance(shared, Projector)
        if mechanism in MAKING:
            own = self.bridges[mechanism]
            assert isinstance(own, Bridge)
            return Behind(shared, own)
        selecting = load(mechanism, shared.width, shared.dim, hidden=shared.out.in_features, hearing=True)
        assert isinstance(selecting, Projector)
        selecting.read, selecting.hearing, selecting.out = shared.read, shared.hearing, shared.out
        selecting.allocator = None if mechanism == ALL else self.allocator(mechanism)
        return selecting

    def allocator(self, name: str, seed: int = 0, states: States | None = None) -> Any:
        """As `allocate.made`; relevance has what was learned for the model's eye."""
        found = made(name, seed, states)
        return replace(found, realizer=self.eye.realizer) if isinstance(found, Relevance) else found


def _tokenizer(words: Iterable[str]) -> Any:
    """Words, digits and marks, each a token, lower case."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    known = {word: place for place, word in enumerate([*SPECIAL, *words])}
    made = Tokenizer(WordLevel(known, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    pieces = Regex(r"[a-z]+(?:-[a-z]+)*|[0-9]|[^\sa-z0-9]")
    made.pre_tokenizer = pre_tokenizers.Split(pieces, "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@cache
def pocket() -> Pocket:
    """The model that comes with the package, for inference. Raises ModelError where its weights are missing."""
    path, about = FOLDER / "model.safetensors", FOLDER / "about.json"
    if not path.exists() or not about.exists():
        raise ModelError(f"the pocket model's weights {str(path)!r} are missing: install the package again")
    model = Pocket(json.loads(about.read_text())["words"])
    load_model(model, path)
    return model.requires_grad_(False).eval()


def unknown_words(text: str, words: Iterable[str]) -> list[str]:
    """The words of a question that the model does not know."""
    return sorted(set(re.findall(r"[a-z]+(?:-[a-z]+)*", text.lower())) - set(words))
