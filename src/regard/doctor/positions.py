"""Whether positions are what they should be: ids that are moved and exchanged, M-RoPE's rows, tables, gaps.

Rotary positions are relative (RoFormer, arXiv 2104.09864): all ids moved by as much change nothing; two ids exchanged
change much. M-RoPE (Qwen2-VL, arXiv 2409.12191): an image's tokens have one time, and rows and columns of their grid
from the first free id on; the next word follows the largest of them.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.doctor.case import Case
from regard.doctor.finding import Finding, Severity
from regard.vlm.shortened import Shortened

_SHIFT = 32
_TABLES = ("position", "pos_emb", "wpe")
_RELATIVE = 0.02  # a change that rounding of angles may make, of the size of the values
_SMOOTH = 1e-3


def check(case: Case) -> list[Finding]:
    """Ids first, then the tables of learned positions; the tables alone where the model cannot be run."""
    tables = _tables(case.model)
    return [*tables, *_ids(case)] if case.runs else tables or [case.without("positions")]


def _found(severity: Severity, evidence: str, advice: str) -> Finding:
    return Finding("positions", severity, evidence, advice)


def _ids(case: Case) -> list[Finding]:
    ids = case.call.get("position_ids")
    decoder: Any = case.patient.decoder
    absolute = any(_is_table(name, module) for name, module in decoder.named_modules())
    takes = "position_ids" in inspect.signature(decoder.forward).parameters
    found = [] if ids is None else [*_order(case, ids), *_grid(case, ids)]
    found += _shortened(case)
    if not takes:
        return found
    where = torch.arange(case.real.shape[1], device=case.real.device)[None] if ids is None else ids
    with torch.no_grad():
        before = case.decoded(position_ids=where) if ids is None else case.hidden
    if not absolute:
        found += _shift(case, where, before)
    return found + _swap(case, where, before)


def _shift(case: Case, ids: Tensor, before: Tensor) -> list[Finding]:
    """All ids moved by as much."""
    with torch.no_grad():
        after = case.decoded(position_ids=ids + _SHIFT)
    worst = float(case.change(after, before)[case.real].max())
    if worst < max(_RELATIVE, case.noise):
        return []
    evidence = f"positions are not relative: with all ids {_SHIFT} higher, values move by {worst:.2g} of their size"
    return [_found("error", evidence, "rotate queries and keys alike, by the same angles: one of them is not, or late")]


def _swap(case: Case, ids: Tensor, before: Tensor) -> list[Finding]:
    """The ids of two tokens exchanged."""
    columns = case.real[0].nonzero()[:, 0].tolist()
    image = case.image[0].nonzero()[:, 0].tolist()
    if len(columns) < 4:
        return []
    pairs = {"words": (columns[0], columns[-2])}
    if len(image) > 3:
        pairs["tokens of the image"] = (image[0], image[-1])
    found = []
    for what, (one, other) in pairs.items():
        changed = ids.clone()
        changed[..., one], changed[..., other] = ids[..., other], ids[..., one]
        with torch.no_grad():
            after = case.decoded(position_ids=changed)
        moved = float(case.change(after, before)[0, columns[-1]])
        if moved == 0:
            evidence = f"the order of the {what} is lost: with the ids of columns {one} and {other} exchanged, nothing "
            found.append(_found("error", evidence + "changes", "see that position_ids reach the attention's angles"))
    return found


def _order(case: Case, ids: Tensor) -> list[Finding]:
    """Ids that go back, or twice the same, where words stand."""
    flat = ids.reshape(-1, *ids.shape[-2:])[-1 if ids.ndim == 2 else 0]
    flat = flat if ids.ndim == 2 else ids.amax(dim=0)
    found = []
    for row in range(len(flat)):
        words = case.real[row % len(case.real)] & ~case.image[row % len(case.real)]
        steps = flat[row][words].diff()
        if bool((steps <= 0).any()):
            place = int(words.nonzero()[:, 0][1:][steps <= 0][0])
            evidence = f"the position of word {place} of prompt {row} is not after that of the word before it"
            found.append(_found("error", evidence, "count positions along the prompt: cumsum(attention_mask) - 1"))
    return found[:1]


def _grid(case: Case, ids: Tensor) -> list[Finding]:
    """Time, rows and columns of M-RoPE against the grids of the images."""
    grids = None if case.vlm is not None else case.inputs.get("image_grid_thw")
    if grids is None or ids.ndim != 3 or case.shortened:
        return []
    merge = case.model.config.vision_config.spatial_merge_size
    wanted = mrope(case.real, case.image, grids, merge)
    given = ids[-3:]
    wrong = (given != wanted).any(dim=0) & case.real
    if not bool(wrong.any()):
        return []
    row, column = wrong.nonzero()[0].tolist()
    have, want = given[:, row, column].tolist(), wanted[:, row, column].tolist()
    evidence = f"{int(wrong.sum())} M-RoPE positions do not fit image_grid_thw: column {column} of prompt {row} has "
    evidence += f"(time, row, column) {tuple(have)} and should have {tuple(want)}"
    return [_found("error", evidence, "leave position_ids to the model's get_rope_index, with the processor's grids")]


def mrope(real: Tensor, image: Tensor, grids: Tensor, merge: int) -> Int[Tensor, "3 b l"]:
    """Positions by the rule. real, image: (B, L). grids: (I, 3), (time, height, width) in patches. merge: patches of a
    token's side. 0 where padding is.
    """
    places = torch.zeros(3, *real.shape, dtype=torch.long, device=real.device)
    images = iter(grids.tolist())
    for row in range(len(real)):
        columns, number, following = real[row].nonzero()[:, 0].tolist(), 0, 0
        while number < len(columns):
            column = columns[number]
            if not bool(image[row, column]):
                places[:, row, column], number, following = following, number + 1, following + 1
                continue
            t, h, w = next(images)
            h, w = h // merge, w // merge
            cell = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w)).view(-1, 3).T + following
            places[:, row, columns[number] : columns[number] + t * h * w] = cell.to(places)
            number, following = number + t * h * w, int(cell.max()) + 1
    return places


def _shortened(case: Case) -> list[Finding]:
    """What dropping tokens did to the positions of those that are left."""
    given = case.inputs
    if not isinstance(given, Shortened):
        return []
    gone, ids = given.tokens_in - given.tokens_out, given["position_ids"]
    last = int(ids.max()) + 1
    if not gone or ids.ndim == 3 or last > int(case.real.sum(dim=1).max()):
        return []
    evidence = (
        f"{gone} visual tokens were dropped and the positions of those left closed up: what was far apart is near"
    )
    return [_found("warning", evidence, "shorten with positions='original', as the model was trained")]


def _is_table(name: str, module: nn.Module) -> bool:
    last = name.rpartition(".")[2]
    return isinstance(module, nn.Embedding) and any(word in last for word in _TABLES)


def _tables(model: nn.Module) -> list[Finding]:
    """Learned positions: rows that are one, that are nothing, or that were only drawn out of a smaller table."""
    found = []
    tables: list[tuple[str, Any]] = [(name, m.weight) for name, m in model.named_modules() if _is_table(name, m)]
    tables += [
        (name, value.reshape(-1, value.shape[-1]))
        for name, value in model.named_parameters()
        if value.ndim in (2, 3) and any(word in name.rpartition(".")[2] for word in _TABLES)
    ]
    for name, value in tables:
        table = value.detach().float()
        if len(table) < 4:
            continue
        same = len(table) - len(table.unique(dim=0))
        if same:
            evidence = f"{same + 1} of {len(table)} rows of {name} are the same, so their places cannot be told apart"
            advice = "the table was stretched to the nearest, or never loaded: see to it"
            found.append(_found("error" if same > len(table) // 10 else "warning", evidence, advice))
        elif small := drawn_out(table):
            evidence = f"{name} ({len(table)} rows) is a table of {small} x {small} drawn out, and nothing more"
            advice = "train it on at this resolution, or give images of the size that the encoder was trained with"
            found.append(_found("warning", evidence, advice))
    return found


def drawn_out(table: Float[Tensor, "n d"]) -> int | None:
    """The side of the smaller square table that (N, D) rows are an interpolation of, if any: without or with one row
    for the class token.
    """
    for first in (0, 1):
        side = round((len(table) - first) ** 0.5)
        if side * side != len(table) - first or side < 6:
            continue
        grid = table[first:].T.reshape(1, -1, side, side)
        for small in range(side // 2, int(0.8 * side) + 1):
            for mode in ("bicubic", "bilinear"):
                if _left(grid, small, mode) < _SMOOTH:
                    return small
    return None


def _left(grid: Tensor, small: int, mode: str) -> float:
    """What of a table no smaller one can make, as a share of its squares."""
    side = grid.shape[-1]
    line = F.interpolate(torch.eye(small)[None, :, None], (1, side), mode=mode, align_corners=False)[0, :, 0].to(grid)
    onto = line.T @ torch.linalg.pinv(line.T)  # the nearest that stretching one axis can make
    made = onto @ grid[0] @ onto.T
    spread = (grid - grid.mean(dim=(2, 3), keepdim=True)).square().sum()
    return float((grid[0] - made).square().sum() / spread.clamp(min=1e-12))
