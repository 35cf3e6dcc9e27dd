"""A visual attention sink in a small trained transformer, and what removing it does.

Before a text stand four visual tokens that say nothing of it: three of noise and one that is always the same, a blank
patch. The text is a Markov chain of 24 words, three of which are triggers: after one, the word before it comes again
(Bigram-Backcopy; Guo et al., arXiv 2410.13835). Heads that copy have nothing to do at the other words. A sink is the
visual token that is attended to most, at words that are no triggers and follow none.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention.scaled import TransformerBlock
from regard.bench.claims.experiments._shared import SEEDS, Series, fit, less

WORDS, TRIGGERS, LENGTH, VISUAL, DIM, HEADS, DEPTH = 24, 3, 24, 4, 64, 2, 2


class Reader(nn.Module):
    """Causal blocks over visual tokens and words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.blank = nn.Embedding(WORDS, DIM), nn.Parameter(torch.randn(DIM))
        self.positions = nn.Parameter(torch.randn(VISUAL + LENGTH, DIM) * 0.1)
        self.blocks = nn.ModuleList(TransformerBlock(DIM, HEADS, 2 * DIM) for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, WORDS)
        self.register_buffer("causal", torch.ones(VISUAL + LENGTH, VISUAL + LENGTH, dtype=torch.bool).tril())

    def embedded(self, noise: Tensor, words: Tensor) -> Tensor:
        blank = self.blank.expand(len(words), 1, -1)
        return torch.cat((blank, noise, self.words(words)), dim=1) + self.positions[: VISUAL + words.shape[1]]

    def forward(self, noise: Tensor, words: Tensor, hidden: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the words, attention of each layer (L, B, H, N, N), and norms after the first block. hidden: a
        visual token that no other token may see; its attention goes to the others in proportion.
        """
        x = self.embedded(noise, words)
        size = x.shape[1]
        mask = self.causal[:size, :size].expand(len(x), -1, -1)  # pyright: ignore
        if hidden is not None:
            mask = mask.clone()
            mask[:, hidden + 1 :, hidden] = False
        weights, norms = [], None
        for block in self.blocks:
            weights.append(block.weights(x, mask))  # pyright: ignore
            x = block(x, mask)
            norms = x.norm(dim=-1) if norms is None else norms
        assert norms is not None
        return self.head(self.norm(x[:, VISUAL:])), torch.stack(weights), norms


class Text:
    """The chain."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(WORDS, WORDS, generator=self.generator) * 2
        self.chain = scores.softmax(dim=1)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Noise of three patches (B, 3, D), and words (B, LENGTH + 1)."""
        words = [torch.randint(TRIGGERS, WORDS, (count,), generator=self.generator)]
        for _ in range(LENGTH):
            drawn = torch.multinomial(self.chain[words[-1]], 1, generator=self.generator)[:, 0]
            copied = words[-1] < TRIGGERS
            words.append(torch.where(copied, words[-2] if len(words) > 1 else drawn, drawn))
        return torch.randn(count, VISUAL - 1, DIM, generator=self.generator), torch.stack(words, dim=1)


def measured(seed: int, steps: int) -> dict[str, float]:
    """Of a reader trained with this seed: shares of attention and losses in nats."""
    torch.manual_seed(seed)
    text, model = Text(seed), Reader()

    def loss() -> Tensor:
        noise, words = text.batch(32)
        return F.cross_entropy(model(noise, words[:, :-1])[0].flatten(0, 1), words[:, 1:].flatten())

    fit(model.parameters(), loss, steps)
    noise, words = text.batch(400)
    with torch.no_grad():
        whole, weights, norms = model(noise, words[:, :-1])
        idle = words[:, 2:-1] >= TRIGGERS
        shares = weights[..., VISUAL + 2 :, :VISUAL].amax(dim=0).amax(dim=1)[idle]  # of the head that gives it most
        sink = int(shares.mean(dim=0).argmax())
        fair = (1 / torch.arange(VISUAL + 3, VISUAL + LENGTH + 1)).expand(len(words), -1)[idle]
        other = max(place for place in range(VISUAL) if place != sink)
        without, without_other = (model(noise, words[:, :-1], hidden)[0] for hidden in (sink, other))

    def nats(logits: Tensor) -> float:
        return float(F.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten()))

    return {
        "sink": float(shares[:, sink].mean()),
        "other": float(shares[:, other].mean()),
        "fair": float(fair.mean()),
        "blank": float(sink == 0),
        "norm": float((norms[:, sink] / norms.median(dim=1).values).mean()),
        "loss": nats(whole),
        "without": nats(without),
        "without other": nats(without_other),
    }


def run(seeds: Sequence[int] = SEEDS, steps: int = 1000) -> list[Series]:
    """The sink's share of attention, its norm, and the loss with it and without it."""
    found = [measured(seed, steps) for seed in seeds]

    def of(what: str) -> tuple[float, ...]:
        return tuple(one[what] for one in found)

    fair = tuple(a / b for a, b in zip(of("sink"), of("fair"), strict=True))
    return [
        Series("attention to the sink, of the head that gives it most", "share", of("sink")),
        Series("attention to another visual token, the same", "share", of("other")),
        Series("attention to the sink / an even share", "times", fair),
        Series("runs whose sink is the blank patch", "share", of("blank")),
        Series("norm of the sink after the first block / median token", "ratio", of("norm")),
        Series("loss of the text", "nats", of("loss")),
        less("loss that removing the sink adds", "nats", of("without"), of("loss")),
        less("loss that removing another visual token adds", "nats", of("without other"), of("loss")),
    ]
