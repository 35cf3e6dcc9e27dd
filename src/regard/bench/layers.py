"""Our attention layers beside their references, in time and memory: `regard bench layers` (about fifteen minutes).

Both run in turn, with the same weights and inputs, at real sizes; a figure is the median of the ratio of neighbours,
ours over the reference, with an interval of 95 % (bootstrap). A third runner, the reference again, shows what identical
code measures in the same run.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regard.bench.results import Row, medians, provenance, publish
from regard.bench.shorten import peak

LIMIT = "<= 1.05"


@dataclass(frozen=True)
class Pair:
    """A reference and ours, as functions of one input that takes a gradient. modules: whose parameters get some."""

    name: str
    reference: Callable[[Tensor], Tensor]
    ours: Callable[[Tensor], Tensor]
    x: Tensor
    modules: tuple[nn.Module, nn.Module]


def pairs() -> list[Callable[[], Pair]]:
    """Every pair that is measured, each made when its turn comes."""
    return [vit, clip_block, swin_1, swin_3, qformer, resampler, longformer, bigbird]


def vit() -> Pair:
    from transformers import ViTConfig, ViTModel

    from regard.attention.vision import VisionTransformer

    tower = ViTModel(ViTConfig(), add_pooling_layer=False).eval()
    ours = VisionTransformer.from_transformers(tower)
    pixels = torch.randn(1, 3, 224, 224)
    return Pair("ViT-B/16", lambda x: tower(x).last_hidden_state, ours, pixels, (tower, ours))


def clip_block() -> Pair:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from regard.attention.scaled import TransformerBlock

    sizes: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    block = CLIPVisionModel(CLIPVisionConfig(**sizes, num_hidden_layers=1)).eval().encoder.layers[0]
    ours = TransformerBlock.from_transformers(block)
    return Pair("CLIP L/14 block", lambda x: _first(block(x, None)), ours, torch.randn(1, 257, 1024), (block, ours))


def swin_1() -> Pair:
    return _swin("Swin-T stage 1", 0, 56)


def swin_3() -> Pair:
    return _swin("Swin-T stage 3", 2, 14)


def _swin(name: str, stage: int, side: int) -> Pair:
    from transformers import SwinConfig, SwinModel

    from regard.attention.window import SwinBlock

    layer: Any = SwinModel(SwinConfig(), add_pooling_layer=False).eval().encoder.layers[stage]
    grid = (side, side)
    ours = nn.ModuleList([SwinBlock.from_transformers(block) for block in layer.blocks])

    def reference(x: Tensor) -> Tensor:
        for block in layer.blocks:
            x = _first(block(x, grid))
        return x

    def mine(x: Tensor) -> Tensor:
        for block in ours:
            x = block(x, grid)
        return x

    return Pair(name, reference, mine, torch.randn(1, side * side, 96 * 2**stage), (layer.blocks, ours))


def qformer() -> Pair:
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    from regard.attention.qformer import QFormer

    model = Blip2QFormerModel(Blip2QFormerConfig()).eval()
    ours = QFormer.from_transformers(model).eval()
    queries, states = torch.randn(1, 32, 768), torch.randn(1, 257, 1408)
    return Pair(
        "Q-Former base, 257 tokens",
        lambda x: model(query_embeds=queries, encoder_hidden_states=x).last_hidden_state,
        lambda x: ours(queries, x),
        states,
        (model, ours),
    )


def resampler() -> Pair:
    from transformers.models.idefics.configuration_idefics import IdeficsConfig
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    from regard.attention.resampler import PerceiverResampler

    config = IdeficsConfig(vision_config={"embed_dim": 1024})  # pyright: ignore
    model = IdeficsPerceiverResampler(config, 1024, 6, 16, 64, 64).eval()
    ours = PerceiverResampler.from_transformers(model).eval()
    return Pair("Perceiver Resampler, 64 latents, 1024 tokens", model, ours, torch.randn(1, 1024, 1024), (model, ours))


def longformer() -> Pair:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    from regard.attention.sliding import SlidingWindowAttention

    model = LongformerSelfAttention(LongformerConfig(attention_window=[512] * 12), 0).eval()
    ours = SlidingWindowAttention.from_transformers(model).eval()
    mask, no = torch.zeros(1, 4096), torch.zeros(1, 4096, dtype=torch.bool)

    def reference(x: Tensor) -> Tensor:
        return _first(
            model(x, mask, is_index_masked=no, is_index_global_attn=no, is_global_attn=False, output_attentions=False)
        )

    return Pair("Longformer base attention, 4096 tokens", reference, ours, torch.randn(1, 4096, 768), (model, ours))


def bigbird() -> Pair:
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    from regard.attention.block_sparse import BlockSparseAttention

    model = BigBirdBlockSparseAttention(BigBirdConfig(), seed=0).eval()
    ours = BlockSparseAttention.from_transformers(model, 4096).eval()
    blocked, band, before, after = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(1, 4096), 64)

    def reference(x: Tensor) -> Tensor:
        return _first(
            model(
                x, band_mask=band, from_mask=before, to_mask=after, from_blocked_mask=blocked, to_blocked_mask=blocked
            )
        )

    return Pair("BigBird attention, 4096 tokens", reference, ours, torch.randn(1, 4096, 768), (model, ours))


def main(rounds: int = 21, only: Sequence[str] = ()) -> None:
    """Measure every pair and write results/layers.json. only: parts of the names to measure, without writing."""
    made, rows = provenance(), []
    torch.manual_seed(0)
    for make in pairs():
        pair = make()
        if not only or any(part.lower() in pair.name.lower() for part in only):
            rows += measured(pair, rounds)
    if not only:
        rows += growth()
    publish("layers", "regard bench layers", rows, made, seed=0, write=not only)


def measured(pair: Pair, rounds: int) -> list[Row]:
    """Forward, forward and backward, and peak memory of both."""
    sparse = any(name in pair.name for name in ("Longformer", "BigBird"))
    limit, rows = "<= 0.7" if sparse else LIMIT, []
    for what, wrap in (("forward", _forward), ("forward and backward", _both)):
        work = [wrap(pair.reference, pair, 0), wrap(pair.ours, pair, 1), wrap(pair.reference, pair, 0)]
        ratio, (low, high), same = _ratios(work, rounds)
        rows.append(Row(f"{pair.name}, {what} ({low:.2f} to {high:.2f}; itself {same:.2f})", ratio, "ratio", limit))
    for what, wrap in (("forward", _forward), ("forward and backward", _both)):
        theirs, ours = (peak(wrap(run, pair, i)) for i, run in enumerate((pair.reference, pair.ours)))
        rows.append(Row(f"{pair.name}, {what}, peak memory", ours / theirs, "ratio", limit))
    return rows


def growth(lengths: Sequence[int] = (2048, 4096, 8192, 16_384, 32_768)) -> list[Row]:
    """How the time of the linear ones grows with the length, and how they stand to dense attention at 4096 tokens."""
    from regard.attention.block_sparse import BlockSparseAttention
    from regard.attention.delta import DeltaAttention
    from regard.attention.linear import LinearAttention
    from regard.attention.scaled import MultiHeadAttention
    from regard.attention.sliding import SlidingWindowAttention

    width, heads, rows = 256, 4, []
    dense = MultiHeadAttention(width, heads).eval()
    xs = {n: torch.randn(1, n, width) for n in lengths}
    for name, make in {
        "sliding window of 512": lambda n: SlidingWindowAttention(width, heads, 512),
        "BigBird, blocks of 64": lambda n: BlockSparseAttention(width, heads, n),
        "linear attention": lambda n: LinearAttention(width, heads),
        "delta rule": lambda n: DeltaAttention(width, heads),
    }.items():
        seconds = {n: _median(make(n).eval(), x) for n, x in xs.items()}
        slope = np.polyfit(np.log(lengths), np.log([seconds[n] for n in lengths]), 1)[0]
        what = f"{name}: exponent of the time from {lengths[0]} to {lengths[-1]} tokens"
        rows.append(Row(what, float(slope), "exponent", "<= 1.15"))
        at = [_median(each, xs[4096]) for each in (dense, make(4096).eval(), dense)]
        rows.append(Row(f"{name} / dense at 4096 tokens", 2 * at[1] / (at[0] + at[2]), "ratio", "<= 1"))
    return rows


def _median(layer: nn.Module, x: Tensor, rounds: int = 7) -> float:
    with torch.no_grad():
        return medians({"it": lambda: layer(x)}, rounds)["it"]


def _ratios(work: Sequence[Callable[[], object]], rounds: int) -> tuple[float, tuple[float, float], float]:
    """The median of ours over the reference, its interval, and of the reference over itself."""
    seconds = np.empty((rounds, 3))
    for turn in range(rounds + 2):
        for place, do in enumerate(work):
            start = time.perf_counter()
            do()
            if turn > 1:
                seconds[turn - 2, place] = time.perf_counter() - start
    ratios = 2 * seconds[:, 1] / (seconds[:, 0] + seconds[:, 2])
    draws = np.random.default_rng(0).integers(0, rounds, (2000, rounds))
    low, high = np.quantile(np.median(ratios[draws], axis=1), (0.025, 0.975))
    return float(np.median(ratios)), (float(low), float(high)), float(np.median(seconds[:, 2] / seconds[:, 0]))


def _forward(run: Callable[[Tensor], Tensor], pair: Pair, place: int) -> Callable[[], object]:
    def once() -> float:
        with torch.no_grad():
            return float(run(pair.x).flatten()[0])

    return once


def _both(run: Callable[[Tensor], Tensor], pair: Pair, place: int) -> Callable[[], object]:
    def once() -> float:
        x = pair.x.clone().requires_grad_()
        out = run(x)
        out.sum().backward()
        pair.modules[place].zero_grad(set_to_none=True)
        return float(out.flatten()[0].detach())

    return once


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


if __name__ == "__main__":
    main()
