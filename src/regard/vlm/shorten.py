"""Fewer visual tokens for a real Hugging Face model: its inputs are shortened, the model is left alone.

transformers (5.19 and later) takes images that are already encoded (`mm_encoder_outputs`). So the images are encoded
once by the model's own function, an allocator decides, and the columns of the prompt whose image tokens are gone are
deleted; what stays keeps its position ids. The result equals that of the untouched model with the dropped tokens
masked out of attention, to rounding, for every causal language model without sliding windows.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regard.allocate import Allocates, load
from regard.allocation import Allocation
from regard.errors import DataError
from regard.eyes.encoder import encoded_with_maps
from regard.tokens import Question
from regard.vlm.columns import Columns, dense_ranks, pads_left
from regard.vlm.decide import budgets_of, decided, image_tokens, needs_of
from regard.vlm.family import Layout, counted
from regard.vlm.opened import Clock, Opened, caution, checked_inputs, opened, window_of
from regard.vlm.prompt import Prompt, asked
from regard.vlm.shortened import Decision, Shortened


def shorten(
    model: nn.Module,
    inputs: Mapping[str, Any],
    allocator: str | Allocates,
    *,
    budget: int | Sequence[int] | None = None,
    keep: float | None = None,
    question: str | Sequence[str] | Question | None = None,
    positions: Literal["original", "compact"] = "original",
    sign: Literal[1, -1] = 1,
    processor: Any = None,
) -> Shortened:
    """Inputs with fewer visual tokens, for `model(**short)` and `model.generate(**short)`; the model is not touched.

    model: a Hugging Face vision-language model, with adapters or without. inputs: what its processor returned, for one
    prompt or several, of one image or several; not changed. allocator: a name of `regard.allocate.catalogue()` or any
    object with `allocate(tokens, question, budget) -> Allocation`. budget: tokens an image, or a list with a number for
    each image (0 drops it whole); or keep: the fraction of each image's tokens to keep.
    question: what the image is compared with, as words (for all prompts, or one text a prompt) or a `Question` in the
    space of the language model's input embeddings; by default each prompt's own text. sign: -1 where the model's
    relevance points away from what is asked (`regard calibrate` measures it).
    positions: "original" leaves each token where it was, as masking would; "compact" renumbers without gaps, as if the
    dropped tokens had never been there, which is another model.
    processor: the model's processor or tokenizer, for a question in words and for `decode`; by default the tokenizer is
    loaded from where the model was.
    Raises ModelError, DataError, BudgetError or ShapeError for what a user can mend.
    """
    options: dict[str, Any] = {"question": question, "positions": positions, "sign": sign, "processor": processor}
    return shorten_each(model, inputs, [allocator], budget=budget, keep=keep, **options)[0]


def shorten_each(
    model: nn.Module,
    inputs: Mapping[str, Any],
    allocators: Sequence[str | Allocates],
    *,
    budget: int | Sequence[int] | None = None,
    keep: float | None = None,
    question: str | Sequence[str] | Question | None = None,
    positions: Literal["original", "compact"] = "original",
    sign: Literal[1, -1] = 1,
    processor: Any = None,
) -> list[Shortened]:
    """As `shorten`, by several allocators of images that are encoded once. The seconds before an allocator decides are
    those of all.
    """
    vlm = opened(model)
    if positions not in ("original", "compact") or sign not in (1, -1):
        raise DataError(f"positions must be 'original' or 'compact' and sign 1 or -1, got {positions!r} and {sign!r}")
    given = checked_inputs(vlm, inputs)
    chosen = [load(allocator) if isinstance(allocator, str) else allocator for allocator in allocators]
    needs, uses = (set().union(*names) for names in zip(*map(needs_of, chosen), strict=True))
    clock = Clock(given["input_ids"].device)
    prompt = Prompt.of(vlm, given)
    layouts = vlm.family.layouts(vlm.base, given, prompt.runs())
    counts = [len(layout.boxes) for layout in layouts]
    spans = prompt.spans(counts)
    rows = [row for row, _, _ in spans]
    budgets = budgets_of(counts, budget, keep)
    full = _positions(vlm, given, prompt)
    ask = partial(asked, vlm, prompt, spans, question, sign, processor)
    compares = bool({"question", "aligned"} & {*needs, *uses})
    heard = ask(must=bool({"question", "aligned"} & set(needs)))[0] if compares else None
    clock.lap("place")

    output, planes, maps = _encoded(vlm, given, layouts, (*needs, *uses), clock)
    images = image_tokens(planes[0].detach(), layouts, maps, aligned=compares)
    heard = None if heard is None else heard.to(planes[0].device)
    starts = torch.tensor([0, *counts]).cumsum(0)[:-1].tolist()
    lengths = prompt.mask.sum(dim=1).tolist()
    several = []
    for each in chosen:
        allocations = decided(images, rows, heard, each, budgets)
        clock.lap("decide")
        kept = [_applied(plane, allocations, counts) for plane in planes]
        anchors = torch.cat([a.anchor[0] + start for a, start in zip(allocations, starts, strict=True)])
        left = prompt.places[anchors.to(prompt.places.device)]
        short = _columns(prompt, left, full, given, vlm, positions)
        sizes = [allocation.n_out for allocation in allocations]
        if sum(sizes):
            short["mm_encoder_outputs"] = {"image": _output(vlm, output, kept, sizes, rows)}
        clock.lap("shorten")
        warning = caution(vlm) if sizes != counts else None
        if warning and prompt.ids.shape[1] > (window_of(vlm) or 0):
            warnings.warn(warning, stacklevel=3)
        decisions = [Decision(*one) for one in zip(images, rows, allocations, budgets, strict=True)]
        several.append(Shortened(short, vlm, each, decisions, ask, lengths, dict(clock.seconds), warning, processor))
    return several


def _encoded(
    vlm: Opened, given: dict[str, Any], layouts: Sequence[Layout], needs: Sequence[str], clock: Clock
) -> tuple[Any, list[Tensor], dict[str, Tensor]]:
    """The model's output for the images, its planes of features (M, D) each, and the maps that are needed (M, C)."""
    family = vlm.family
    wanted = {"keys", "scores:attention"} & set(needs)
    has_cls = getattr(vlm.config, "vision_feature_select_strategy", None) == "default"
    output, lazy = encoded_with_maps(
        lambda: family.encode(vlm.base, given), partial(family.attention_layer, vlm.base), has_cls, wanted
    )
    planes = [family.flat(plane) for plane in (output.pooler_output, *(output.get("deepstack_features") or ()))]
    count = sum(len(layout.boxes) for layout in layouts)
    if any(len(plane) != count for plane in planes):
        raise DataError(f"the model gives {len(planes[0])} image features and the images have places for {count}")
    clock.lap("encode")
    maps = {name: family.arrange(vlm.base, given, make()) for name, make in lazy.items()}
    clock.lap("attention")
    return output, planes, maps


def _applied(plane: Tensor, allocations: Sequence[Allocation], counts: list[int]) -> Tensor:
    """What stays of a plane of features, image after image: (M, D) -> (K, D)."""
    parts = plane.split(counts)
    return torch.cat([a.apply(part[None])[0] for a, part in zip(allocations, parts, strict=True)])


def _output(vlm: Opened, output: Any, kept: list[Tensor], sizes: list[int], rows: list[int]) -> Any:
    """An output like the encoder's with fewer features, and nothing else in it."""
    packed = [vlm.family.packed(plane, output.pooler_output, sizes, rows) for plane in kept]
    deep = {"deepstack_features": packed[1:]} if len(packed) > 1 else {}
    return type(output)(pooler_output=packed[0], **deep)


def _positions(vlm: Opened, given: dict[str, Any], prompt: Prompt) -> Tensor:
    """Position ids of the whole prompt, (B, L) or (3, B, L): those given, or as the model counts them."""
    positions = given.get("position_ids")
    if positions is None:
        return vlm.family.positions(vlm.base, given, prompt.mask)
    if positions.shape[-2:] != prompt.ids.shape:
        raise DataError(f"position_ids must end in the shape of input_ids, got {tuple(positions.shape)}")
    return positions[-3:] if positions.ndim == 3 else positions


def _columns(
    prompt: Prompt, kept: Tensor, full: Tensor, given: dict[str, Any], vlm: Opened, positions: str
) -> dict[str, Any]:
    """Every input but the images, without the dropped columns. kept: (K, 2), row and column of what is left."""
    keep = prompt.mask & ~prompt.image
    keep[kept[:, 0], kept[:, 1]] = True
    prompt.check_end(keep)
    columns = Columns.kept(keep, pads_left(prompt.mask))
    new = columns.gather(full)
    if positions == "compact":
        new = dense_ranks(new, columns.mask)
    if new.ndim == 3:  # time, height, width; the first row is what masks and caches count by
        new = torch.cat((counted(columns.mask)[None], new))
    used = {*vlm.family.encoder_inputs, "attention_mask", "position_ids"}
    short: dict[str, Any] = {}
    for name, value in given.items():
        if name in used:
            continue
        by_column = isinstance(value, Tensor) and value.shape == prompt.ids.shape
        short[name] = columns.gather(value, _padding(name, prompt, vlm)) if by_column else value
    dtype = given["attention_mask"].dtype if "attention_mask" in given else torch.long
    return {**short, "attention_mask": columns.mask.to(dtype), "position_ids": new}


def _padding(name: str, prompt: Prompt, vlm: Opened) -> int:
    if name == "labels":
        return -100
    pad = vlm.text.pad_token_id
    return pad if name == "input_ids" and isinstance(pad, int) and pad not in (-1, vlm.image_token) else 0
