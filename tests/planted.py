"""A LLaVA whose answer depends on one patch, by weights set by hand, with a sink that is attended to more.

Vision: a token is the colour of its patch. In the language model the last token's head 2 asks for red where the
question is ASKS, and says what it read; heads 0 and 1 look at green whatever is asked, and say nothing. With `hops`, a
word first reads the red patch, and the last token reads that word alone.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import tiny_vlms
from tiny_vlms import IMAGE

ASKS, NEUTRAL, WORD, ANSWER, OTHER = 50, 51, 52, 60, 61
RED, GREEN, BLUE = 0, 1, 2
SIDE = 7  # patches of a side


def model(hops: bool = False) -> Any:
    torch.manual_seed(0)
    parts = tiny_vlms.parts("llava")
    parts["text_config"]["num_hidden_layers"] = 3
    config = transformers.AutoConfig.for_model("llava", tie_word_embeddings=False, **parts)
    made: Any = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for name, value in made.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            value.fill_(1.0) if norm else value.normal_(std=1e-3)
        seer(made.model.vision_tower)
        projector = made.model.multi_modal_projector
        projector.linear_1.weight[:24, :24] += torch.eye(24)
        projector.linear_2.weight += torch.eye(32)
        reader(made, hops)
    made.generation_config.eos_token_id = None
    return made.eval()


def seer(tower: Any) -> None:
    patches = tower.embeddings.patch_embedding.weight  # (24, 3, 4, 4)
    for colour in range(3):
        patches[colour, colour] += 1 / 16


def reader(made: Any, hops: bool) -> None:
    words = made.get_input_embeddings().weight
    words[:, 20] += 4.0  # what no head asks for, so that a norm does not make noise of nothing
    for token, place in [(ASKS, 8), (NEUTRAL, 9), (WORD, 12)]:
        words[token, place] += 4.0
    layers = made.model.language_model.layers
    last = layers[-1].self_attn
    for head in (0, 1):  # of the first pair of keys: the sink
        last.q_proj.weight[8 * head + 3, [8, 9]] += 3.0
    last.k_proj.weight[3, GREEN] += 2.0
    last.q_proj.weight[8 * 2 + 3, 8] += 3.0
    source = 13 if hops else RED
    last.k_proj.weight[8 + 3, source] += 2.0
    last.v_proj.weight[8, source] += 1.0
    last.o_proj.weight[10, 8 * 2] += 4.0
    if hops:
        first = layers[0].self_attn
        first.q_proj.weight[8 * 2 + 3, 12] += 3.0
        first.k_proj.weight[8 + 3, RED] += 2.0
        first.v_proj.weight[8, RED] += 1.0
        first.o_proj.weight[13, 8 * 2] += 3.0
    made.lm_head.weight[ANSWER, 10] += 2.0


def picture(red: int = 17, green: int = 40) -> Tensor:
    """(1, 3, 28, 28), blue, with one red and one green patch."""
    pixels = torch.zeros(1, 3, 28, 28)
    pixels[:, BLUE] = 1
    for patch, colour in [(red, RED), (green, GREEN)]:
        y, x = 4 * (patch // SIDE), 4 * (patch % SIDE)
        pixels[:, :, y : y + 4, x : x + 4] = 0
        pixels[:, colour, y : y + 4, x : x + 4] = 1
    return pixels


def inputs(question: int = ASKS, red: int = 17, green: int = 40) -> dict[str, Tensor]:
    ids = torch.tensor([[5, 6, *[IMAGE] * SIDE**2, 7, WORD, 8, question]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": picture(red, green)}


def saved(folder: Path, hops: bool = False) -> Path:
    model(hops).save_pretrained(folder)
    return folder
