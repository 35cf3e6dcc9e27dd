"""What capturing attention costs: `python -m regard.bench.capture`, seconds and memory beside the plain forward.

A Llama of SmolLM2-135M's shape with random weights reads 4,096 tokens; 32 rows of all layers are captured, of each
head, in half precision too, and of their mean. Every run is a process of its own, and kinds alternate, so that peaks
of memory are each one's own.
"""

import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from typing import Any

import torch

from regard.bench.results import Row, provenance, publish
from regard.vlm.measure import PeakMemory

KINDS = ("plain", "captured", "captured in half precision", "captured, mean of heads")
ROWS = 32


def main(rounds: int = 2, tokens: int = 4096) -> None:
    """Measure, and write results/capture.json."""
    made = provenance()
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            line = [sys.executable, "-m", "regard.bench.capture", kind, str(tokens)]
            runs[kind].append(json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout))
    middle = {
        kind: {name: statistics.median(run[name] for run in found) for name in found[0]} for kind, found in runs.items()
    }
    plain, size = middle["plain"], f"{ROWS} rows of all layers at {tokens:,} tokens"
    rows = [
        Row("plain forward, median seconds of the processor", plain["seconds"], "s"),
        Row("plain forward, peak memory of the process", plain["peak"], "MiB"),
        Row("plain forward, peak beyond the loaded model", plain["beyond"], "MiB"),
    ]
    for kind in KINDS[1:]:
        found = middle[kind]
        rows += [
            Row(f"{kind}: {size}, time / plain", found["seconds"] / plain["seconds"], "ratio", "<= 1.15"),
            Row(f"{kind}: peak memory of the process / plain", found["peak"] / plain["peak"], "ratio", "<= 1.1"),
            Row(f"{kind}: peak beyond the loaded model", found["beyond"], "MiB"),
            Row(f"{kind}: rows kept", found["kept"], "MiB"),
            Row(f"{kind}: largest difference of a logit", found["difference"], ""),
        ]
    notes = {
        "model": "a Llama of SmolLM2-135M's shape with random weights, float32, SDPA, one prompt, logits of the last "
        "token, one thread; a warm-up of 64 tokens before each run",
        "runs": f"{rounds} of each kind, alternating, medians; time is of the processor, as other programs ran beside",
        "seconds": {kind: [round(run["seconds"], 2) for run in found] for kind, found in runs.items()},
    }
    publish("capture", "python -m regard.bench.capture", rows, made, seed=0, notes=notes)


def run(kind: str, tokens: int) -> dict[str, float]:
    """One forward in this process. kept: MiB of the rows. difference: of a logit of a short prompt."""
    from regard.doctor import capture

    torch.set_num_threads(1)
    model = language_model()
    prompt = torch.randint(3, 1000, (1, tokens), generator=torch.Generator().manual_seed(0))
    short, kept, difference = prompt[:, :64], 0.0, 0.0
    heads: Any = "mean" if "mean" in kind else None
    dtype = torch.float16 if "half" in kind else torch.float32
    with torch.no_grad():
        plain = model(input_ids=short, use_cache=False).logits
        memory = PeakMemory(torch.device("cpu"))
        watched = (
            nullcontext()
            if kind == "plain"
            else capture(model, heads=heads, queries=range(tokens - ROWS, tokens), dtype=dtype)
        )
        start = time.process_time()
        with watched as seen:
            model(input_ids=prompt, use_cache=False, logits_to_keep=1)
        seconds = time.process_time() - start
        peak, before = ((value or 0) / 2**20 for value in (memory.peak, memory.before))
        if seen is not None:
            kept = sum(seen.weights(layer).nbytes for layer in seen.layers) / 2**20
            with capture(model, queries=[-1]):
                difference = float((model(input_ids=short, use_cache=False).logits - plain).abs().max())
    return {"seconds": seconds, "peak": peak, "beyond": peak - before, "kept": kept, "difference": difference}


def language_model() -> Any:
    """A Llama of SmolLM2-135M's shape, random."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config).eval()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(run(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
