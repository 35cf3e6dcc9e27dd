"""Of whole models and mechanisms: tokens, parameters, MACs and how they grow."""

import math
from functools import cache
from typing import Any

import torch

from regard import cost
from regard.attention.cross import GatedCrossAttentionBlock
from regard.attention.qformer import QFormer
from regard.attention.scaled import TransformerBlock
from regard.attention.vision import VisionTransformer
from regard.bench.claims.now._shared import (
    DIM,
    HEADS,
    exponent,
    now,
    on_meta,
    parameters,
)
from regard.cost.layers import perceiver_resampler
from regard.mechanisms._reader import ClassReader
from regard.mechanisms.cascade import Cascade
from regard.mechanisms.pervit import PerViT
from regard.mechanisms.recurrent import RecurrentAttention, noise
from regard.mechanisms.vit import StaticViT
from regard.relevance.budget import LADDER

FASHION_VIT = {"image_size": 28, "channels": 1, "patch_size": 4, "dim": 64, "depth": 8, "heads": 2, "hidden": 256}
FASHION_CASCADE: dict[str, Any] = {"side": 32, "patch": 4, "width": 64, "depth": 3, "heads": 4, "expand": 2}


@cache
def _base() -> StaticViT:
    sizes = {"patch_size": 16, "dim": 768, "depth": 1, "heads": 12, "hidden": 3072}
    model = on_meta(lambda: StaticViT({"image_size": 224, **sizes}))
    assert isinstance(model, StaticViT)
    return model


@now("ViT-B block: share of scores at 196 tokens", "share")
def _share_of_scores() -> float:
    return 2 * 196**2 * 768 / _base().block_macs(0, 196)


def _grows(name: str, sides: tuple[int, int], patch: int) -> float:
    macs = [cost.of(name, resolution=side).values["macs"] for side in sides]
    return math.log(macs[1] / macs[0]) / math.log((sides[1] // patch) ** 2 / (sides[0] // patch) ** 2)


now("ViT-B/16: exponent of MACs in tokens, 224 to 448 pixels", "exponent")(
    lambda: _grows("vit_base_patch16_224", (224, 448), 16)
)
now("ViT-B/16: exponent of MACs in tokens, 1344 to 2688 pixels", "exponent")(
    lambda: _grows("vit_base_patch16_224", (1344, 2688), 16)
)
now("Swin-T: exponent of MACs in tokens, 224 to 448 pixels", "exponent")(
    lambda: _grows("swin_tiny_patch4_window7_224", (224, 448), 4)
)
now("Swin-T: exponent of MACs in tokens, 1344 to 2688 pixels", "exponent")(
    lambda: _grows("swin_tiny_patch4_window7_224", (1344, 2688), 4)
)


@cache
def _qformer() -> QFormer:
    made = on_meta(QFormer)
    assert isinstance(made, QFormer)
    return made


now("Q-Former: queries", "queries")(lambda: len(_qformer().queries))
now("Q-Former: blocks", "blocks")(lambda: len(_qformer().blocks))
now("Q-Former: blocks that read the image", "blocks")(
    lambda: sum(any("cross" in name for name, _ in block.named_parameters()) for block in _qformer().blocks)
)
now("Q-Former: image tokens of 224 pixels, patch 14, for each query", "x")(
    lambda: (16**2 + 1) / len(_qformer().queries)
)
now("Q-Former without its text half / LLaVA-1.5 projector: parameters", "x")(
    lambda: parameters(_qformer()) / 1e6 / cost.of("llava_1.5_7b_projector").values["params"]
)
now("Flamingo-80B's 10.2 G trainable parameters / the Q-Former's", "x")(
    lambda: 10_200 / cost.of("blip2_qformer").values["params"]
)


@now("gated block / layer of a language model of 7B: parameters", "ratio")
def _added() -> float:
    block = on_meta(lambda: GatedCrossAttentionBlock(4096, 32, 16384))
    return parameters(block) / parameters(on_meta(lambda: TransformerBlock(4096, 32, 11008, bias=False, gated=True)))


def _tokens(side: int, patch: int, class_token: bool = False) -> float:
    model = VisionTransformer(side, patch, DIM, 1, HEADS, DIM, class_token=class_token)
    with torch.no_grad():
        return model(torch.zeros(1, 3, side, side)).shape[1]


for _side, _patch in ((224, 16), (336, 14), (512, 16), (1344, 14)):
    now(f"tokens of {_side} pixels, patch {_patch}", "tokens")(lambda s=_side, p=_patch: _tokens(s, p))
now("tokens of 224 pixels, patch 16, with the class token", "tokens")(lambda: _tokens(224, 16, True))


@now("PerViT: different numbers of tokens among its blocks", "")
def _pervit() -> float:
    model, seen = PerViT().eval(), set()
    handles = [block.register_forward_hook(lambda m, i, out: seen.add(out.shape[1])) for block in model.blocks]
    with torch.no_grad():
        model(torch.zeros(1, 1, 28, 28))
    for handle in handles:
        handle.remove()
    return len(seen)


def _ram(**given: Any) -> int:
    return RecurrentAttention(**given).macs


now("RAM: exponent of MACs in glimpses", "exponent")(lambda: exponent((6, 24), lambda n: _ram(glimpses=n)))
now("RAM: exponent of MACs in the side of a glimpse, 8 to 16", "exponent")(
    lambda: exponent((8, 16), lambda k: _ram(glimpse=k))
)
now("RAM: exponent of MACs in the side of a glimpse, 128 to 256", "exponent")(
    lambda: exponent((128, 256), lambda k: _ram(glimpse=k, hidden=32))
)
now("RAM of 6 glimpses / transformer on Fashion-MNIST: MACs", "ratio")(
    lambda: _ram(glimpses=6) / StaticViT(FASHION_VIT).full_macs(28, 28)
)
now("RAM that covers 28 x 28 by glimpses of 8 / 6 glimpses: MACs", "ratio")(
    lambda: RecurrentAttention().full_macs(28, 28) / _ram(glimpses=6)
)


def _state(glimpses: int) -> float:
    model = RecurrentAttention(glimpses=glimpses)
    with torch.no_grad():
        return model(torch.zeros(1, 1, 28, 28), noise(1, glimpses)).states[:, -1].numel()


now("RAM: numbers carried on after 2 glimpses", "numbers")(lambda: _state(2))
now("RAM: numbers carried on after 32 glimpses", "numbers")(lambda: _state(32))


@now("RAM: locations that are recorded, of 6 glimpses", "locations")
def _located() -> float:
    with torch.no_grad():
        return RecurrentAttention()(torch.zeros(1, 1, 28, 28), noise(1, 6)).locations.shape[1]


def _cascade(stages: int = 2) -> Cascade:
    return Cascade(stages=stages, keep=[6] if stages == 2 else None, **FASHION_CASCADE)


now("cascade, an image that goes through both stages / all at the finest: MACs", "ratio")(
    lambda: _cascade().costs[-1] / _cascade().full_macs(32, 32)
)
now("cascade: cost of the second stage over the first / tokens of the second over the first", "ratio")(
    lambda: (_cascade().costs[1] / _cascade().costs[0] - 1) / (_cascade().lengths[1] / _cascade().lengths[0])
)
now("reader of foveated tokens: exponent of MACs from 20 to 80 tokens", "exponent")(
    lambda: exponent((20, 80), lambda n: ClassReader(96, 3, 4, 10).macs(n))
)
now("reader of foveated tokens: exponent of MACs from 4096 to 16384 tokens", "exponent")(
    lambda: exponent((4096, 16384), lambda n: ClassReader(96, 3, 4, 10).macs(n))
)
now("tiles of relevance: least tokens", "tokens")(lambda: min(LADDER))
now("tiles of relevance: most tokens", "tokens")(lambda: max(LADDER))


@now("resampler's MACs of 64 latents / of 16, 1024 tokens", "ratio")
def _latents() -> float:
    large, small = (perceiver_resampler(1024, 1536, 16, count, 6, 6144).macs for count in (64, 16))
    return large / small
