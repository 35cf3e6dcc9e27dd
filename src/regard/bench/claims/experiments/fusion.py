"""Flamingo's gates and where its layers stand: a tiny language model that is frozen, and images of 16 cells.

The language model (Llama, 4 layers, 48 wide) has learned that each of 24 symbols is followed by one of its own, and
that a row and a column are followed by the name of their cell. An image has a symbol in each cell; a prompt gives a row
and a column, and the answer is what follows the symbol that is seen there: the language model knows how to name the
cell and how to go on, and must be shown what is between. Without gates both are held open (tanh = 1). Harm to language
is its loss on text with an image before it, less without one.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.bench.claims.experiments._shared import SEEDS, Series, fit, less, percent
from regard.vlm.fusion.late import Late
from regard.vlm.interleaved import UNLEARNED, Spliced

SYMBOLS, SIDE, DIM, LAYERS, PARTS = 24, 4, 48, 4, 3
CELLS = SIDE * SIDE
PLACES = {"early": (0, 1), "late": (2, 3), "throughout": (0, 2), "all": tuple(range(LAYERS))}
OPEN = 10.0  # of which tanh is 1


class World:
    """A language model that knows what follows each symbol, and images of symbols in cells."""

    def __init__(self, seed: int, steps: int) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        sizes = {
            "hidden_size": DIM,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "intermediate_size": 2 * DIM,
        }
        config = LlamaConfig(vocab_size=1 + SYMBOLS + 2 * SIDE + CELLS, max_position_embeddings=64, **sizes)  # pyright: ignore
        self.model = LlamaForCausalLM(config)
        self.follows = torch.randperm(SYMBOLS, generator=self.generator)
        self.named = torch.randperm(CELLS, generator=self.generator)  # of each row and column
        self.place, self.symbol = torch.randn(CELLS, DIM), torch.randn(SYMBOLS, DIM)
        fit(self.model.parameters(), lambda: self.language(), steps)
        self.model.requires_grad_(False)

    def text(self, count: int) -> tuple[Tensor, Tensor]:
        """Two texts: pairs of a symbol and what follows it, and rows, columns and the names of their cells."""
        first = torch.randint(0, SYMBOLS, (count, PARTS), generator=self.generator)
        pairs = torch.stack((first, self.follows[first]), dim=2).flatten(1) + 1
        row, column = torch.randint(0, SIDE, (2, count, PARTS), generator=self.generator)
        triples = torch.stack((*self.asking(row, column), self.named[row * SIDE + column] + 2 * SIDE), dim=2).flatten(1)
        return F.pad(pairs, (1, 0)), F.pad(triples + 1 + SYMBOLS, (1, 0))

    @staticmethod
    def asking(row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        return row, column + SIDE

    def images(self, count: int) -> tuple[Tensor, Tensor]:
        """Memory (B, 1, CELLS, DIM) and the symbols."""
        symbols = torch.randint(0, SYMBOLS, (count, CELLS), generator=self.generator)
        return (self.place + self.symbol[symbols])[:, None], symbols

    def logits(self, ids: Tensor, fusion: Late | None = None, memory: Tensor | None = None) -> Tensor:
        """Of every place; with a fusion, an image stands before the text."""
        embeddings = self.model.get_input_embeddings()(ids)
        if fusion is None or memory is None:
            return self.model(inputs_embeds=embeddings).logits
        real, none = torch.ones_like(ids, dtype=torch.bool), torch.full_like(ids, UNLEARNED)
        prompt = Spliced(embeddings, real, ~real, none, torch.ones_like(ids))
        shown = torch.ones(memory.shape[:3], dtype=torch.bool)
        with fusion.within(self.model, prompt, memory, shown):
            return self.model(inputs_embeds=embeddings).logits

    def language(self, fusion: Late | None = None, count: int = 32) -> Tensor:
        """The loss of what follows each symbol, with images that have nothing to do with it where there is a fusion."""
        found = []
        for ids, part in zip(self.text(count), (2, 3), strict=True):
            memory = None if fusion is None else self.images(count)[0]
            logits = self.logits(ids, fusion, memory)[:, part - 1 : -1 : part]
            found.append(F.cross_entropy(logits.flatten(0, 1), ids[:, part::part].flatten()))
        return torch.stack(found).mean()

    def asked(self, fusion: Late, count: int = 64) -> tuple[Tensor, Tensor]:
        """Logits and the answers: what follows the symbol of the cell whose row and column are given."""
        memory, symbols = self.images(count)
        row, column = torch.randint(0, SIDE, (2, count), generator=self.generator)
        ids = F.pad(torch.stack(self.asking(row, column), dim=1) + 1 + SYMBOLS, (1, 0))
        cells = self.named[row * SIDE + column, None]
        return self.logits(ids, fusion, memory)[:, -1], self.follows[symbols.gather(1, cells)[:, 0]] + 1


def trained(world: World, places: Sequence[int], gated: bool, steps: int) -> dict[str, float]:
    """Accuracy after training, in percent, and harm to language before and after it, in nats."""
    fusion = Late(world.model, places, heads=4, hidden=2 * DIM)
    if not gated:
        for block in fusion.blocks:
            for gate in (block.attention_gate, block.feed_gate):
                assert isinstance(gate, nn.Parameter)
                nn.init.constant_(gate.requires_grad_(False), OPEN)
    alone, before = _harm(world, None), _harm(world, fusion)

    def loss() -> Tensor:
        return F.cross_entropy(*world.asked(fusion))

    losses = fit(fusion.parameters(), loss, steps)
    with torch.no_grad():
        logits, answer = world.asked(fusion, 2000)
    return {
        "accuracy": percent(logits.argmax(dim=1) == answer),
        "first loss": losses[0],
        "harm before": before - alone,
        "harm after": _harm(world, fusion) - alone,
    }


@torch.no_grad()
def _harm(world: World, fusion: Late | None) -> float:
    kept = world.generator.get_state()
    world.generator.manual_seed(99)
    value = float(world.language(fusion, 256))
    world.generator.set_state(kept)
    return value


def run(seeds: Sequence[int] = SEEDS, steps: int = 400, before: int = 200) -> list[Series]:
    """Gates on and off, and layers early, late and throughout, at two layers each, and before all four."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        world = World(seed, before)
        for name, places in PLACES.items():
            found.setdefault(name, []).append(trained(world, places, True, steps))
        found.setdefault("no gates", []).append(trained(world, PLACES["all"], False, steps))

    def of(name: str, what: str) -> tuple[float, ...]:
        return tuple(one[what] for one in found[name])

    series = [Series(f"cross-attention {name}: accuracy", "%", of(name, "accuracy")) for name in PLACES]
    for one, other in (("early", "late"), ("throughout", "early"), ("throughout", "late")):
        what = f"cross-attention {one} less {other}: accuracy"
        series.append(less(what, "points", of(one, "accuracy"), of(other, "accuracy")))
    for name, gates in (("all", "gates"), ("no gates", "no gates")):
        series += [
            Series(f"{gates}: harm to language before training", "nats", of(name, "harm before")),
            Series(f"{gates}: harm to language after training", "nats", of(name, "harm after")),
            Series(f"{gates}: first loss", "nats", of(name, "first loss")),
            Series(f"{gates}: accuracy", "%", of(name, "accuracy")),
        ]
    lost = less("accuracy that is lost without gates", "points", of("all", "accuracy"), of("no gates", "accuracy"))
    harm = less(
        "harm after training, without gates less with them",
        "nats",
        of("no gates", "harm after"),
        of("all", "harm after"),
    )
    return [*series, lost, harm]
