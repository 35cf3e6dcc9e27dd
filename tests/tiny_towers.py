"""Tiny vision models of Hugging Face with random weights, saved with all that belongs to them, as the hub has them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn

WORDS = "a photo of where is the cat dog coffee red blue cup".split()
PLAIN: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
TEXT: dict[str, Any] = {**PLAIN, "hidden_size": 20, "vocab_size": 31, "max_position_embeddings": 23, "pad_token_id": 0}
ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 29}
SQUARE: dict[str, Any] = {"image_size": 28, "patch_size": 4}
STAGED: dict[str, Any] = {"image_size": 48, "patch_size": 4}
STAGED_CONVNEXT: dict[str, Any] = {
    "num_stages": 3,
    "hidden_sizes": [8, 12, 20],
    "depths": [1, 2, 1],
    "layer_scale_init_value": 1.0,
}
QFORMER: dict[str, Any] = {
    **PLAIN,
    "hidden_size": 16,
    "encoder_hidden_size": 24,
    "vocab_size": 31,
    "num_hidden_layers": 1,
}
OPT: dict[str, Any] = {"model_type": "opt", "vocab_size": 31, "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1}

CONFIGS: dict[str, Any] = {
    "clip": lambda: transformers.CLIPConfig(
        text_config={**TEXT, **ENDS}, vision_config={**PLAIN, **SQUARE}, projection_dim=17
    ),
    "clip_vision_model": lambda: transformers.CLIPVisionConfig(**PLAIN, **SQUARE),
    "siglip": lambda: transformers.SiglipConfig(
        text_config={**TEXT, **ENDS, "projection_size": 24}, vision_config={**PLAIN, **SQUARE}
    ),
    "siglip_vision_model": lambda: transformers.SiglipVisionConfig(**PLAIN, **SQUARE, vision_use_head=False),
    "siglip2": lambda: transformers.Siglip2Config(
        text_config={**TEXT, **ENDS, "projection_size": 24}, vision_config={**PLAIN, "patch_size": 4, "num_patches": 49}
    ),
    "siglip2_vision_model": lambda: transformers.Siglip2VisionConfig(**PLAIN, patch_size=4, num_patches=49),
    "blip-2": lambda: transformers.Blip2Config(
        vision_config={**PLAIN, **SQUARE},
        qformer_config=QFORMER,
        text_config={**OPT, "num_attention_heads": 2, "word_embed_proj_dim": 16},
    ),
    "blip_2_vision_model": lambda: transformers.Blip2VisionConfig(**PLAIN, **SQUARE),
    "dinov2": lambda: transformers.Dinov2Config(**PLAIN, **SQUARE, mlp_ratio=2),
    "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersConfig(**PLAIN, **SQUARE, num_register_tokens=3),
    "vit": lambda: transformers.ViTConfig(**PLAIN, **SQUARE),
    "swin": lambda: transformers.SwinConfig(
        **STAGED, embed_dim=8, depths=[2, 1, 2], num_heads=[1, 2, 2], window_size=3
    ),
    "convnext": lambda: transformers.ConvNextConfig(**STAGED, **STAGED_CONVNEXT),
    "convnextv2": lambda: transformers.ConvNextV2Config(**STAGED, **STAGED_CONVNEXT),
}
LEADING = {"clip": 1, "blip-2": 1, "blip_2_vision_model": 1, "clip_vision_model": 1, "dinov2": 1, "vit": 1}
LEADING["dinov2_with_registers"] = 4  # class tokens and registers
FAMILIES = list(CONFIGS)
STAGES = ("swin", "convnext", "convnextv2")
TWO_TOWERS = ("clip", "siglip", "siglip2")


def build(family: str, folder: Path) -> Path:
    """A whole checkpoint, saved: random weights, none of them zero; the processor; a tokenizer where there is text."""
    place = folder / family
    if place.exists():
        return place
    torch.manual_seed(3)
    config = CONFIGS[family]()
    kind: Any = {
        "blip-2": transformers.Blip2ForConditionalGeneration,
        "blip_2_vision_model": transformers.Blip2VisionModel,
        "vit": transformers.ViTForImageClassification,
    }.get(family)
    model: Any = kind(config) if kind else transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.2)
    model.save_pretrained(place)
    image_processor(family).save_pretrained(place)
    if family in TWO_TOWERS:
        tokenizer().save_pretrained(place)
    return place


def image_processor(family: str, **other: Any) -> Any:
    """As the family's checkpoints have them: CLIP and DINOv2 crop, ConvNeXt too, the others squash."""
    kind = family.split("_")[0].removesuffix("-2")
    crop = {"size": {"shortest_edge": 31}, "crop_size": {"height": 28, "width": 28}}
    side = 48 if kind == "swin" else 28
    square = {"size": {"height": side, "width": side}}
    makers: dict[str, tuple[Any, dict]] = {
        "clip": (transformers.CLIPImageProcessor, crop),
        "siglip": (transformers.SiglipImageProcessor, square),
        "siglip2": (transformers.Siglip2ImageProcessor, {"patch_size": 4, "max_num_patches": 30}),
        "blip": (transformers.BlipImageProcessor, square),
        "dinov2": (transformers.BitImageProcessor, crop),
        "convnext": (transformers.ConvNextImageProcessor, {"size": {"shortest_edge": 48}}),
        "convnextv2": (transformers.ConvNextImageProcessor, {"size": {"shortest_edge": 48}}),
    }
    maker, settings = makers.get(kind, (transformers.ViTImageProcessor, square))
    return maker(**{**settings, **other})


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise, so that no two places are alike."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def tokenizer() -> Any:
    """One word a token, and an end: CLIP reads the state there, SigLIP the last."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<unk>": 3, "<eos>": 29, **{word: 5 + i for i, word in enumerate(WORDS)}}
    made = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 29)])
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)
