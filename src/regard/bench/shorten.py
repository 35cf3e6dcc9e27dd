"""What shortening costs and gains on a real architecture with random weights: `python -m regard.bench.shorten`.

A LLaVA with the language model of SmolLM2-135M and a CLIP-B encoder, 576 visual tokens, a quarter kept; and one with an
encoder without a class token, of the width of SigLIP-So400m, 729 tokens, as all of its attention must be made again to
be read. Ratios in one run, alternating, medians. On a GPU the same with `--device cuda`.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from regard.allocate import catalogue
from regard.bench.results import Row, medians, provenance, publish
from regard.vlm.shorten import shorten

IMAGE, TEXT, KEEP = 49151, 32, 0.25
CLIP = {"model_type": "clip_vision_model", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
CLIP |= {"num_attention_heads": 12, "image_size": 336, "patch_size": 14}
SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 6}
SIGLIP |= {"num_attention_heads": 16, "image_size": 378, "patch_size": 14, "vision_use_head": False}


def main() -> None:
    """Measure and write results/shorten.json (results/shorten-cuda.json on a GPU)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    made = provenance()
    torch.manual_seed(0)
    rounds = options.rounds
    with torch.inference_mode():
        model, inputs = build(CLIP, options.device)
        rows = [*prefill(model, inputs, rounds), *deciding(model, inputs, rounds), *memory(model, inputs)]
        rows += without_class_token(*build(SIGLIP, options.device), rounds)
    name = "shorten" if options.device == "cpu" else f"shorten-{options.device}"
    publish(name, f"python -m regard.bench.{name.replace('-', ' --device ')}", rows, made, seed=0)


def build(vision: dict[str, Any], device: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model and one prompt: text, an image, text."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    text |= {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}
    strategy = "default" if vision is CLIP else "full"
    more = {"image_token_index": IMAGE, "vision_feature_select_strategy": strategy}
    config = AutoConfig.for_model("llava", text_config=text, vision_config=vision, **more)
    model = AutoModelForImageTextToText.from_config(config).eval().to(device)
    side = vision["image_size"]
    words = torch.randint(1000, 40000, (1, TEXT))
    ids = torch.cat((words[:, : TEXT // 2], torch.full((1, (side // 14) ** 2), IMAGE), words[:, TEXT // 2 :]), dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, side, side)}
    return model, {name: value.to(device) for name, value in inputs.items()}


def prefill(model: Any, inputs: dict[str, torch.Tensor], rounds: int) -> list[Row]:
    """Reading the shortened prompt, against a prompt of text that was that short from the start, and the whole one."""
    short, whole = shorten(model, inputs, "divprune", keep=KEEP), shorten(model, inputs, "divprune", keep=1.0)
    fresh = {"input_ids": short["input_ids"].masked_fill(short["input_ids"] == IMAGE, 7)}
    fresh["attention_mask"] = torch.ones_like(fresh["input_ids"])
    work = {"short": short, "whole": whole, "fresh": fresh}
    seconds = medians({name: _reading(model, given) for name, given in work.items()}, rounds)
    return [
        Row("prefill, shortened / as short from the start", seconds["short"] / seconds["fresh"], "ratio", "<= 1.15"),
        Row("prefill, whole / shortened to a quarter", seconds["whole"] / seconds["short"], "ratio"),
        Row("prefill of the whole prompt", seconds["whole"] * 1e3, "ms"),
    ]


def _reading(model: Any, given: Any) -> Callable[[], object]:
    def read() -> float:
        return float(model(**given, logits_to_keep=1).logits[0, -1, 0])  # a number: waits for a GPU

    return read


def deciding(model: Any, inputs: dict[str, torch.Tensor], rounds: int) -> list[Row]:
    """Attention and decision of each selector as a share of the whole prompt's prefill, in the same rounds."""
    whole = shorten(model, inputs, "divprune", keep=1.0)
    shares: dict[str, list[float]] = {name: [] for name in ("encode", *catalogue())}
    read = _reading(model, whole)
    for turn in range(rounds + 1):
        full = medians({"full": read}, 1)["full"]
        for name in catalogue():
            seconds = shorten(model, inputs, name, keep=KEEP).seconds
            if turn:
                shares[name].append((seconds["attention"] + seconds["decide"]) / full)
                shares["encode"].append(seconds["encode"] / full)
    rows = [Row("encoding the image / prefill of the whole prompt", statistics.median(shares.pop("encode")), "ratio")]
    for name, values in shares.items():
        rows.append(Row(f"deciding / prefill, {name}", statistics.median(values), "ratio", "<= 0.03"))
    return rows


def memory(model: Any, inputs: dict[str, torch.Tensor]) -> list[Row]:
    """Peak of what is allocated while shortening, over that while encoding the image."""
    encode = peak(lambda: model.model.get_image_features(inputs["pixel_values"], return_dict=True))
    peaks = {name: peak(lambda name=name: shorten(model, inputs, name, keep=KEEP)) for name in catalogue()}
    worst = max(peaks, key=lambda name: peaks[name])
    return [
        Row("peak memory of encoding the image", encode / 2**20, "MiB"),
        Row("peak memory of shorten / encoding, divprune", peaks["divprune"] / encode, "ratio", "<= 1.1"),
        Row(f"peak memory of shorten / encoding, the most: {worst}", peaks[worst] / encode, "ratio", "<= 1.1"),
    ]


def without_class_token(model: Any, inputs: dict[str, torch.Tensor], rounds: int) -> list[Row]:
    """FasterVLM where attention received is a mean over all queries: no target, as no row of it can be spared."""
    read = _reading(model, shorten(model, inputs, "divprune", keep=1.0))
    shares = []
    for _ in range(rounds):
        full = medians({"full": read}, 1)["full"]
        seconds = shorten(model, inputs, "fastervlm", keep=KEEP).seconds
        shares.append((seconds["attention"] + seconds["decide"]) / full)
    encode = peak(lambda: model.model.get_image_features(inputs["pixel_values"], return_dict=True))
    ratio = peak(lambda: shorten(model, inputs, "fastervlm", keep=KEEP)) / encode
    return [
        Row("deciding / prefill, fastervlm, no class token: every query's row", statistics.median(shares), "ratio"),
        Row("peak memory of shorten / encoding, fastervlm, no class token", ratio, "ratio", "<= 1.1"),
    ]


def peak(work: Callable[[], object]) -> int:
    """Bytes that tensors take at most while the work runs, beyond what they took before."""
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        kept = work()
    del kept
    most = now = 0
    events: list[Any] = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]  # pyright: ignore
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


if __name__ == "__main__":
    main()
