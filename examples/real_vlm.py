"""SmolVLM and Qwen2.5-VL-3B with 100 % to 5 % of their visual tokens: answers, times, pictures. NOT RUN BY US YET.

Needs a GPU (10 GB are enough), the hub (or its cache), and `pip install -e '.[hf,embedded,dev]'`:

    python examples/real_vlm.py --device cuda

Every part of it runs in our tests on small models with random weights; what these two models answer, nobody here has
seen. Where you run it, please send us the table.
"""

import argparse
from pathlib import Path

import skimage.data
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

import regard
from regard.report.page import page
from regard.vlm.processors import load_model, load_processor

MODELS = ["HuggingFaceTB/SmolVLM-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"]
QUESTION = "What is in the cup, and what is beside it?"
ALLOCATORS = ["grid", "divprune", "fastervlm", "visionzip", "cdpruner"]
KEPT = [0.5, 0.25, 0.1, 0.05]


def four_photos() -> Image.Image:
    """A cat, a coffee, an astronaut and a rocket, each a quarter of a picture of 1344 x 1008."""
    whole = Image.new("RGB", (1344, 1008))
    shots = (skimage.data.chelsea(), skimage.data.coffee(), skimage.data.astronaut(), skimage.data.rocket())
    for place, shot in enumerate(shots):
        part = ImageOps.fit(Image.fromarray(shot), (672, 504), Image.Resampling.BICUBIC)
        whole.paste(part, (place % 2 * 672, place // 2 * 504))
    return whole


def main() -> None:
    """Ask each model at each budget; print one table and write a report for each budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help=f"one or several; by default {', '.join(MODELS)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("real-vlm"))
    options = parser.parse_args()
    photo = four_photos()
    for name in options.model or MODELS:
        folder = options.out / Path(name).name
        model, processor = load_model(name, device=options.device), load_processor(name)
        table = Table("kept", "allocator", "visual tokens", "first token s", "a token ms", "answer", title=name)
        for keep in KEPT:
            asked = regard.ask(model, processor, photo, QUESTION, keep=keep, compare=ALLOCATORS)
            for answer in asked.answers if keep == KEPT[0] else asked.answers[1:]:
                first = sum(answer.seconds[stage] for stage in ("vision", "decide", "prefill"))
                each = answer.seconds["decode"] / max(answer.new_tokens - 1, 1)
                kept = "100 %" if answer.allocator is None else f"{keep:.0%}"
                cells = (
                    answer.allocator or "all tokens",
                    str(answer.visual_tokens),
                    f"{first:.3f}",
                    f"{each * 1e3:.1f}",
                )
                table.add_row(kept, *cells, answer.text)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"report-{keep:.0%}.html").write_text(page(asked.records[0]))
        Console().print(table)
        print(f"Open the reports in {folder}")


if __name__ == "__main__":
    main()
