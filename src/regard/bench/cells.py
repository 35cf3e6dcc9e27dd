"""What the matrix measures: the survey's mechanisms at one width and depth, from pixels on.

Width 192, 4 blocks of 3 heads, an MLP of 768, patches of 16 pixels (DeiT-Ti's, a third as deep), random weights. Each
reads pixels as bytes and gives a prediction or the tokens that go on; one that is a layer of a larger model reads what
the same embedding of patches makes. What depends on what was learned is measured at its ends: the cascade where every
image stops at once and where none does, FoveaTer never sure, A-ViT with nothing halted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard.allocate.relevance import Relevance
from regard.attention.cross import GatedCrossAttentionBlock
from regard.attention.linear import LinearAttention
from regard.attention.qformer import QFormer
from regard.attention.resampler import PerceiverResampler
from regard.attention.scaled import TransformerBlock
from regard.attention.swin import SwinTransformer
from regard.attention.vision import VisionTransformer
from regard.mechanisms.cascade import Cascade
from regard.mechanisms.dynamic import Kind, wrap
from regard.mechanisms.foveated import FoveaTer
from regard.mechanisms.gaze_vit import GazeViT
from regard.mechanisms.looker import Looker
from regard.mechanisms.pervit import PerViT
from regard.mechanisms.recurrent import RecurrentAttention
from regard.tokens import Question, VisualTokens

WIDTH, DEPTH, HEADS, HIDDEN, PATCH = 192, 4, 3, 768, 16
TEXT, QUERIES, LATENTS, KEPT, WINDOW, GLIMPSES = 32, 32, 64, 128, 7, 6
PIXELS = 3 * PATCH**2  # of a patch


@dataclass(frozen=True, eq=False)
class Work:
    """A mechanism, made for images of one size. run: pixels (B, 3, S, S), uint8, to a tensor of the batch. macs:
    multiply-accumulates of an image. tokens: visual tokens that the mechanism ends with.
    """

    module: nn.Module
    run: Callable[[Tensor], Tensor]
    macs: int
    tokens: int

    @property
    def parameters(self) -> int:
        return sum(value.numel() for value in self.module.parameters())


@dataclass(frozen=True)
class Mechanism:
    """One row of the matrix. make: of a side in pixels. survey: its row there; time, memory: what the survey says of
    them, and the power of the number of visual tokens n that this means, None where it says none.
    """

    name: str
    survey: str
    make: Callable[[int], Work]
    time: str = ""
    memory: str = ""
    power: float | None = None
    memory_power: float | None = None
    holds: Callable[[int], int] = lambda side: 0  # bytes that it keeps whatever the batch


def made(name: str, side: int, device: str = "cpu") -> Work:
    """A mechanism by its name, with the weights of seed 0."""
    torch.manual_seed(0)
    work = next(one for one in MECHANISMS if one.name == name).make(side)
    work.module.to(device).eval().requires_grad_(False)
    return work


def pixels(side: int, batch: int, device: str = "cpu") -> Tensor:
    """Images of noise, uint8, of seed 0."""
    drawn = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return drawn.to(device)


def patches(side: int) -> int:
    """The visual tokens n of an image."""
    return (side // PATCH) ** 2


def _block_macs(tokens: int) -> int:
    return tokens * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN) + 2 * tokens**2 * WIDTH


def _looking(looker: Looker, side: int, tokens: int, **more: Any) -> Work:
    """A mechanism that says itself what it spends."""
    looker.eval()
    with torch.no_grad():
        macs = int(looker.look(pixels(side, 1), **more).macs[0])
    return Work(looker, lambda x: looker.look(x, **more).logits, macs, tokens)


def _vision(side: int, depth: int = DEPTH, class_token: bool = True) -> VisionTransformer:
    return VisionTransformer(side, PATCH, WIDTH, depth, HEADS, HIDDEN, class_token=class_token)


def _of_vit(kind: Kind) -> Callable[[int], Work]:
    def make(side: int) -> Work:
        looker = wrap(_vision(side), kind)
        with torch.no_grad():
            stages = looker.eval().look(pixels(side, 1)).stages[0]
        kept = int((stages == stages.max()).sum())
        return _looking(looker, side, kept + (kind == "evit"))

    return make


def _embedding(side: int) -> VisionTransformer:
    """Patches and their positions, and no block."""
    return _vision(side, 0, False)


def _read(embedding: VisionTransformer, x: Tensor) -> Tensor:
    return embedding(x.to(embedding.patches.weight.dtype) / 127.5 - 1)


def _over_patches(side: int, layers: nn.Module, run: Callable[[Tensor], Tensor], macs: int, tokens: int) -> Work:
    """run: what becomes of the embedded patches (B, N, D)."""
    embedding = _embedding(side)
    whole = nn.ModuleList([embedding, layers])
    return Work(whole, lambda x: run(_read(embedding, x)), patches(side) * PIXELS * WIDTH + macs, tokens)


def windowed(side: int) -> Work:
    """Two stages of Swin that end on the same grid and width as the others' tokens."""
    half, n = WIDTH // 2, patches(side)
    tower = SwinTransformer(PATCH // 2, half, (2, 2), (HEADS, 2 * HEADS), WINDOW)
    stages = sum(2 * count * wide * (12 * wide + 2 * WINDOW**2) for count, wide in ((4 * n, half), (n, WIDTH)))
    macs = n * PIXELS * half + n * 4 * half * WIDTH + stages
    return Work(tower, lambda x: tower(x.to(tower.patches.weight.dtype) / 127.5 - 1), macs, n)


def linear(side: int) -> Work:
    """Blocks whose attention is linear."""
    n, head = patches(side), WIDTH // HEADS
    blocks = nn.ModuleList(TransformerBlock(WIDTH, HEADS, HIDDEN) for _ in range(DEPTH))
    for block in blocks:
        block.attention = LinearAttention(WIDTH, HEADS)

    def run(x: Tensor) -> Tensor:
        for block in blocks:
            assert isinstance(block, TransformerBlock)
            x = block.fed(block.attended(x, block.attention(block.norm1(x))))
        return x

    macs = n * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN + 2 * WIDTH * head + WIDTH)
    return _over_patches(side, blocks, run, DEPTH * macs, n)


def cross(side: int) -> Work:
    """Text that reads all patches in gated blocks, as in Flamingo, without the language model between them."""
    n = patches(side)
    blocks = nn.ModuleList(GatedCrossAttentionBlock(WIDTH, HEADS, HIDDEN) for _ in range(DEPTH))
    layers = nn.ModuleDict({"blocks": blocks, "text": nn.Embedding(TEXT, WIDTH)})

    def run(x: Tensor) -> Tensor:
        text = layers["text"].weight.expand(len(x), -1, -1)  # pyright: ignore
        for block in blocks:
            text = block(text, x)
        return text

    macs = TEXT * (2 * WIDTH**2 + 2 * WIDTH * HIDDEN) + n * 2 * WIDTH**2 + 2 * TEXT * n * WIDTH
    return _over_patches(side, layers, run, DEPTH * macs, n)


def qformer(side: int) -> Work:
    """The Q-Former, cross-attention in every second layer."""
    n, d = patches(side), WIDTH
    former = QFormer(d, HEADS, DEPTH, HIDDEN, encoder_dim=d, queries=QUERIES)
    alone = QUERIES * (4 * d**2 + 2 * d * HIDDEN) + 2 * QUERIES**2 * d
    reading = QUERIES * 2 * d**2 + n * 2 * d**2 + 2 * QUERIES * n * d
    return _over_patches(side, former, lambda x: former(None, x), DEPTH * alone + -(-DEPTH // 2) * reading, QUERIES)


def resampler(side: int) -> Work:
    """Flamingo's Perceiver Resampler."""
    keys, d = patches(side) + LATENTS, WIDTH
    layer = PerceiverResampler(d, HEADS, LATENTS, DEPTH, HIDDEN)
    macs = LATENTS * (2 * d**2 + 2 * d * HIDDEN) + keys * 2 * d**2 + 2 * LATENTS * keys * d
    return _over_patches(side, layer, layer, DEPTH * macs, LATENTS)


def relevance(side: int) -> Work:
    """Relevance realization keeps 128 tokens of the patches for a question of 8 words, and blocks read them."""
    n, kept, words = patches(side), min(KEPT, patches(side)), 8
    allocator, grid = Relevance(), (side // PATCH, side // PATCH)
    blocks = nn.ModuleList(TransformerBlock(WIDTH, HEADS, HIDDEN) for _ in range(DEPTH))
    layers = nn.ModuleDict({"blocks": blocks, "question": nn.Embedding(words, WIDTH)})

    def run(x: Tensor) -> Tensor:
        asked = layers["question"].weight.expand(len(x), -1, -1)  # pyright: ignore
        tokens = VisualTokens.from_grid(x, grid)
        x = allocator.allocate(tokens, Question(asked), kept).apply(tokens).features
        for block in blocks:
            x = block(x)
        return x

    # 9 products of a token beside the question's, and 387 maps smoothed along the grid's rows and columns
    deciding = n * ((words + 9) * WIDTH + 2 * 387 * grid[0])
    return _over_patches(side, layers, run, deciding + DEPTH * _block_macs(kept), kept)


def peripheral(side: int) -> Work:
    """PerViT, whose positions are made once and kept."""
    return _looking(PerViT(10, 3, side, PATCH, WIDTH, DEPTH, HEADS), side, patches(side))


def _peripheral_holds(side: int) -> int:
    """The kept positions of every block and, while they are made, the maps of one, of 4 bytes a number."""
    n, wide = patches(side), side // PATCH
    return 4 * (DEPTH * HEADS * n**2 + 3 * 4 * HEADS * n * (wide + 2) ** 2)


def gaze(side: int) -> Work:
    """20 tokens about a gaze that is predicted from the image at 64 x 64 pixels."""
    looker = GazeViT(10, 3, WIDTH, DEPTH, HEADS)
    return _looking(looker, side, looker.tokens.count)


def foveater(side: int) -> Work:
    """Four fixations, each over regions that double in size outwards, on a convolutional backbone."""
    looker = FoveaTer(10, 3, WIDTH, DEPTH, HEADS, 4, 2.0)
    return _looking(looker, side, 4 * len(looker.slots))


def _cascade(stops: bool) -> Callable[[int], Work]:
    def make(side: int) -> Work:
        looker = cascade(side, 2)
        looker.set_thresholds([0.0 if stops else 1.0])
        return _looking(looker, side, looker.lengths[0 if stops else 1])

    return make


def cascade(side: int, stages: int) -> Cascade:
    """CF-ViT of patches of 32 and then 16 pixels; of one stage, all patches of 16."""
    return Cascade(10, 3, side, PATCH, stages, width=WIDTH, depth=DEPTH, heads=HEADS)


def recurrent(side: int) -> Work:
    """RAM: one run of six glimpses of 16 x 16 pixels at three scales."""
    looker = RecurrentAttention(10, 3, GLIMPSES, PATCH, 3)
    return _looking(looker, side, GLIMPSES * 3, copies=1)


_QUADRATIC = ("O(n²)", "O(n²)", 2.0, 2.0)
_READ_BY_TEXT = ("O(n_text \u00d7 n_vision)", "O(n_text \u00d7 n_vision)", 1.0, 1.0)
_QUERIES = ("O(k \u00d7 n_vision)", "O(k \u00d7 n_vision)", 1.0, 1.0)
_FOVEATED = ("O(n_high + n_low)", "variable")
_CASCADE = ("O(n₁ + \u03b1·n₂ + β·n₃)", "staged", 1.0)
MECHANISMS = (
    Mechanism("self-attention", "Self-Attention", _of_vit("vit"), *_QUADRATIC),
    Mechanism("windowed (Swin)", "Self-Attention, Section 5.2", windowed, "all attend to all"),
    Mechanism("linear", "Section 5.1", linear, "linear", "", 1.0),
    Mechanism(
        "cross-attention", "Cross-Attention", cross, "O(n_text \u00d7 n_vision)", "O(n_text \u00d7 n_vision)", 1.0, 1.0
    ),
    Mechanism("Q-Former", "Learned Queries", qformer, *_QUERIES),
    Mechanism("resampler", "Learned Queries", resampler, *_QUERIES),
    Mechanism("peripheral (PerViT)", "Foveated", peripheral, *_FOVEATED, holds=_peripheral_holds),
    Mechanism("gaze tokens", "Foveated", gaze, *_FOVEATED, 0.0),
    Mechanism("FoveaTer, never sure", "Foveated", foveater, *_FOVEATED),
    Mechanism("cascade, first exit", "Cascade", _cascade(True), *_CASCADE),
    Mechanism("cascade, no exit", "Cascade", _cascade(False), *_CASCADE),
    Mechanism("recurrent (RAM)", "Recurrent", recurrent, "O(g \u00d7 k²)", "O(1)", 0.0, 0.0),
    Mechanism("DynamicViT", "Section 5.3", _of_vit("dynamicvit")),
    Mechanism("EViT", "Section 5.3", _of_vit("evit")),
    Mechanism("A-ViT, nothing halts", "Section 5.3", _of_vit("avit")),
    Mechanism("relevance", "Section 6", relevance),
)
