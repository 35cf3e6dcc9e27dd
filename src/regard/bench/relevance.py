"""What relevance realization takes: `python -m regard.bench.relevance` (part of `make bench`)."""

from typing import Any

import torch

from regard import Question, VisualTokens
from regard.allocate import load
from regard.bench.results import Row, medians, provenance, publish
from regard.bench.shorten import peak
from regard.relevance.budget import LADDER, solve
from regard.relevance.quadtree import Quadtree
from regard.relevance.realizer import Realizer, plan_tiles
from regard.relevance.ways import standardised

N, D, WORDS, K = 1024, 1024, 16, 102
# of the sizes of Qwen2.5-0.5B (arXiv 2412.15115): 494M parameters
SIZES: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}


def main() -> None:
    """Measure everything and write results/relevance.json."""
    made = provenance()
    torch.manual_seed(0)
    tokens = VisualTokens.from_grid(torch.randn(1, N, D), (32, 32))
    question = Question(torch.randn(1, WORDS, D), reference=torch.randn(64, D))
    rows = [*_solver(), *_decision(tokens, question), *_parts(tokens, question)]
    publish("relevance", "python -m regard.bench.relevance", rows, made, seed=0)


def _solver() -> list[Row]:
    ladder = torch.tensor(LADDER)
    rows = []
    for regions, target in ((1024, "<= 3"), (65_536, "<= 250")):
        weights, values = torch.rand(1, regions), torch.rand(1, regions, len(LADDER)).cumsum(dim=2)
        seconds = medians({"solve": lambda r=regions, w=weights, v=values: solve(w, v, ladder, 160 * r)}, rounds=15)
        rows.append(Row(f"solve, {regions} regions of 7 rungs", seconds["solve"] * 1e3, "ms", target))
    return rows


def _decision(tokens: VisualTokens, question: Question) -> list[Row]:
    """The whole decision, beside the prefill of a model of 500M parameters that reads all the tokens."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    relevance = load("relevance")
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)).eval()
    embeddings = torch.randn(1, N + WORDS, SIZES["hidden_size"])

    def prefill() -> None:
        with torch.no_grad():
            model(inputs_embeds=embeddings, logits_to_keep=1)

    alone = medians({"decide": lambda: relevance.allocate(tokens, question, K)}, rounds=31)
    both = medians({"decide": lambda: relevance.allocate(tokens, question, K), "prefill": prefill}, rounds=5)
    levels = int(Quadtree.of(standardised(tokens), (1, 32, 32), tokens.valid).depth.max()) + 1
    most = peak(lambda: relevance.allocate(tokens, question, K)) / (N * (D + levels) * 4)
    return [
        Row(f"decision, N={N}, D={D}, {WORDS} words", alone["decide"] * 1e3, "ms", "<= 20"),
        Row("decision / prefill of a model of 494M parameters", both["decide"] / both["prefill"], "ratio", "<= 0.01"),
        Row("peak memory of a decision / N x (D + levels) floats", most, "ratio"),
    ]


def _parts(tokens: VisualTokens, question: Question) -> list[Row]:
    realizer = Realizer()

    @torch.no_grad()
    def again() -> object:
        return realizer.decide(measured, K).allocation

    with torch.no_grad():
        measured = realizer.measure(tokens, question)
    work = {
        "another budget or other states, once measured": again,
        "plan of tiles": lambda: plan_tiles(tokens, question, K * 10),
    }
    return [Row(name, seconds * 1e3, "ms") for name, seconds in medians(work, rounds=15).items()]


if __name__ == "__main__":
    main()
