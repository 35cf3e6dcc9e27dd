"""Tiny models of every family with random weights, and inputs for them like their processors'."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

IMAGE, START, END, GLOBAL, FAKE, NEWLINE, PAD = 99, 98, 97, 96, 95, 94, 0
VOCAB = 101


def text(kind: str, **extra) -> dict:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    small = {"vocab_size": VOCAB, "num_key_value_heads": 2, "max_position_embeddings": 512}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD}
    return {"model_type": kind, **sizes, **small, **ends, "tie_word_embeddings": False, **extra}


def vision(kind: str | None = None, **extra) -> dict:
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
    return {**({"model_type": kind} if kind else {}), **sizes, "image_size": 28, "patch_size": 4, **extra}


def qwen_vision(**extra) -> dict:
    return {"depth": 3, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, **extra}


M_ROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
QWEN = {
    "image_token_id": IMAGE,
    "video_token_id": 93,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


def parts(name: str) -> dict:
    """The configuration of a family's tiny model."""
    llava = {"image_token_index": IMAGE, "text_config": text("llama")}
    clip = vision("clip_vision_model", projection_dim=16)
    siglip = vision("siglip_vision_model", vision_use_head=False)
    if name == "llava":
        return {"vision_config": clip, **llava}
    if name == "llava_siglip":
        return {"vision_config": siglip, "vision_feature_select_strategy": "full", **llava}
    if name == "llava_next":
        return {"vision_config": clip, "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]], **llava}
    if name == "qwen2_vl":
        seen = {"depth": 3, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4}
        return {"vision_config": seen, "text_config": text("qwen2_vl_text", rope_parameters=M_ROPE), **QWEN}
    if name == "qwen2_5_vl":
        seen = qwen_vision(intermediate_size=48, out_hidden_size=32, window_size=16, fullatt_block_indexes=[0, 1])
        return {"vision_config": seen, "text_config": text("qwen2_5_vl_text", rope_parameters=M_ROPE), **QWEN}
    if name == "qwen3_vl":
        deep = {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 49}
        seen = qwen_vision(intermediate_size=48, out_hidden_size=32, **deep)
        words = text("qwen3_vl_text", rope_parameters={**M_ROPE, "mrope_interleaved": True}, head_dim=8)
        return {"vision_config": seen, "text_config": words, **QWEN}
    if name in ("smolvlm", "idefics3"):
        return {
            "vision_config": vision(image_size=24),
            "text_config": text("llama"),
            "image_token_id": IMAGE,
            "scale_factor": 2,
        }
    if name == "internvl":
        seen = vision(image_size=[24, 24], patch_size=[4, 4])
        return {"vision_config": seen, "text_config": text("qwen2"), "image_token_id": IMAGE, "downsample_ratio": 0.5}
    words = text("gemma2" if name == "paligemma2" else "gemma", head_dim=8)
    return {"vision_config": siglip, "text_config": words, "image_token_index": IMAGE, "projection_dim": 32}


FAMILIES = [
    "llava",
    "llava_siglip",
    "llava_next",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "smolvlm",
    "idefics3",
    "internvl",
    "paligemma",
    "paligemma2",
]


def build(name: str, folder: Path) -> Path:
    """A model with random weights, saved; logits have a scale of about 10."""
    torch.manual_seed(0)
    kernel = "eager" if name == "paligemma2" else "sdpa"
    kind = {"llava_siglip": "llava", "paligemma2": "paligemma"}.get(name, name)
    config = transformers.AutoConfig.for_model(kind, tie_word_embeddings=False, **parts(name))
    model: Any = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation=kernel)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
        model.get_output_embeddings().weight.normal_(std=1.8)
    model.generation_config.suppress_tokens = [IMAGE, 93, START, END]
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder / name)
    return folder / name


def load(path: Path, **options) -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(path, **options).eval()


def inputs(name: str, pictures: list[int], pad_left: bool = True, seed: int = 1) -> dict[str, torch.Tensor]:
    """A batch of prompts, with so many images each."""
    generator = torch.Generator().manual_seed(seed)
    rows, pixels = [], []
    for row, count in enumerate(pictures):
        ids = words(3 + row, generator)
        for number in range(count):
            more, pixel = MAKERS[name.split("_siglip")[0]](row + number, generator)
            ids += more + words(2 + number, generator)
            pixels.append(pixel)
        rows.append(ids + words(4, generator))
    longest = max(len(ids) for ids in rows)
    gaps = [[PAD] * (longest - len(ids)) for ids in rows]
    ids = torch.tensor([(gap + row if pad_left else row + gap) for gap, row in zip(gaps, rows, strict=True)])
    batch = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    if "qwen" in name:
        batch["mm_token_type_ids"] = (ids == IMAGE).int()
    if "paligemma" in name:
        batch["token_type_ids"] = torch.zeros_like(ids)
    return batch | COLLATE.get(name, stacked)(pixels, pictures)


def words(count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(5, 90, (count,), generator=generator).tolist()


def noise(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


def one_grid(number: int, generator: torch.Generator):
    return [IMAGE] * 49, noise(3, 28, 28, generator=generator)


def next_tiles(number: int, generator: torch.Generator):
    """Sizes of other shapes than the grid of their tiles, so that padding is cut away. Tokens: base, rows, newlines."""
    (height, width), tiles = [((40, 90), 2), ((33, 31), 4), ((90, 30), 2)][number % 3]
    h, w = unpadded(height, width, tiles)
    pixel = (noise(tiles + 1, 3, 28, 28, generator=generator), (height, width))
    return [IMAGE] * (49 + h * (w + 1)), pixel


def unpadded(height: int, width: int, tiles: int) -> tuple[int, int]:
    rows, columns = {(40, 90): (7, 14), (33, 31): (14, 14), (90, 30): (14, 7)}[height, width]
    if width / height > columns / rows:
        padding = (rows - round(height * columns / width - 1e-9)) // 2
        return rows - 2 * padding, columns
    padding = (columns - int(round(width * rows / height, 7))) // 2
    return rows, columns - 2 * padding


def qwen_grid(number: int, generator: torch.Generator):
    h, w = [(4, 6), (8, 4), (6, 10)][number % 3]
    ids = [START, *[IMAGE] * (h * w // 4), END]
    return ids, (noise(h * w, 3 * 2 * 4 * 4, generator=generator), (1, h, w))


def smolvlm_tiles(number: int, generator: torch.Generator):
    """Marks of one token each."""
    return tiles_of(number, generator, lambda row, column: [50 + 4 * row + column], [GLOBAL])


def idefics_tiles(number: int, generator: torch.Generator):
    """Marks of several tokens, all ending in the same, as the larger models' tokenizers make them."""
    return tiles_of(number, generator, lambda row, column: [31, 40 + row, 45 + column, 49], [31, 32, 49])


def tiles_of(number: int, generator: torch.Generator, mark: Callable[[int, int], list[int]], whole: list[int]):
    rows, columns = [(2, 3), (0, 0), (1, 2)][number % 3]
    tile = [IMAGE] * 9
    ids: list[int] = []
    for row in range(rows):
        for column in range(columns):
            ids += [FAKE, *mark(row, column), *tile]
        ids += [NEWLINE]
    ids += ([NEWLINE] if rows else []) + [FAKE, *whole, *tile, FAKE]
    return ids, noise(rows * columns + 1, 3, 24, 24, generator=generator)


def internvl_tiles(number: int, generator: torch.Generator):
    """A thumbnail of the tiles as they lie, as the processor makes it."""
    rows, columns = [(3, 2), (1, 1), (1, 3)][number % 3]
    if rows * columns == 1:
        return [START, *[IMAGE] * 9, END], noise(1, 3, 24, 24, generator=generator)
    photo = noise(1, 3, 6 * rows, 6 * columns, generator=generator)
    photo = nn.functional.interpolate(photo, (24 * rows, 24 * columns), mode="bicubic")
    tiles = photo[0].unflatten(1, (rows, 24)).unflatten(3, (columns, 24)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    thumbnail = nn.functional.interpolate(photo, (24, 24), mode="area")
    return [START, *[IMAGE] * 9 * (rows * columns + 1), END], torch.cat((tiles, thumbnail))


MAKERS: dict[str, Callable] = {
    "llava": one_grid,
    "llava_next": next_tiles,
    "qwen2_vl": qwen_grid,
    "qwen2_5_vl": qwen_grid,
    "qwen3_vl": qwen_grid,
    "smolvlm": smolvlm_tiles,
    "idefics3": idefics_tiles,
    "internvl": internvl_tiles,
    "paligemma": one_grid,
    "paligemma2": one_grid,
}


def stacked(pixels, pictures):
    return {"pixel_values": torch.stack(pixels)}


def joined(pixels, pictures):
    return {"pixel_values": torch.cat(pixels)}


def next_padded(pixels, pictures):
    most = max(len(tiles) for tiles, _ in pixels)
    padded = [nn.functional.pad(tiles, (0, 0, 0, 0, 0, 0, 0, most - len(tiles))) for tiles, _ in pixels]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor([size for _, size in pixels])}


def qwen_patches(pixels, pictures):
    grids = torch.tensor([grid for _, grid in pixels])
    return {"pixel_values": torch.cat([patches for patches, _ in pixels]), "image_grid_thw": grids}


def by_prompt(pixels, pictures):
    """(B, tiles of the fullest prompt, 3, H, W), empty tiles all 0."""
    left = iter(pixels)
    prompts = [torch.cat([next(left) for _ in range(count)]) for count in pictures]
    values = nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    return {"pixel_values": values, "pixel_attention_mask": torch.ones(values[:, :, 0].shape, dtype=torch.long)}


COLLATE: dict[str, Callable] = {
    "llava_next": next_padded,
    "qwen2_vl": qwen_patches,
    "qwen2_5_vl": qwen_patches,
    "qwen3_vl": qwen_patches,
    "smolvlm": by_prompt,
    "idefics3": by_prompt,
    "internvl": joined,
}
