"""Whether each token sees what it should, and nothing else: by changing columns, and by gradients.

A token of a causal language model sees itself and all that is real before it (as far as its windows reach). Those of a
prompt that is read both ways (PaliGemma, arXiv 2407.07726) or of an image that is (Gemma 3, arXiv 2503.19786) may look
ahead there. The trap of packed sequences: transformers takes a gap in `position_ids` for the begin of another sequence
where there is no attention_mask, so that a token loses sight of all before the gap.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from regard.doctor.case import Case, gradients
from regard.doctor.finding import Finding
from regard.errors import DataError, ModelError

_PADS = 5
_BOTH_WAYS = {"paligemma"}
_IMAGES_BOTH_WAYS = {"gemma3", "gemma3n", "gemma4"}


def check(case: Case) -> list[Finding]:
    """Columns seen that should not be, columns unseen that should be, and what leaks between rows of a batch."""
    wrong = _given(case)
    if any(f.severity == "error" for f in wrong):
        return wrong
    wrong += _seen(case)
    return wrong if any(f.severity == "error" for f in wrong) else [*wrong, *_rows(case), *_before_images(case)]


def _error(evidence: str, advice: str) -> Finding:
    return Finding("masks", "error", evidence, advice)


def _given(case: Case) -> list[Finding]:
    """The mask among the inputs: one that hides all, or words in the midst; and padding that no mask tells of."""
    if case.vlm is not None or "input_ids" not in case.inputs:
        return []
    ids, mask = case.inputs["input_ids"], case.inputs.get("attention_mask")
    if mask is None:
        return _unmasked(case, ids)
    if mask.shape != ids.shape:
        return []
    if not bool(mask.any(dim=1).all()):
        return [_error("the attention_mask of a prompt hides all of it", "1 (or True) is what may be seen, 0 what not")]
    if not (hidden := int(_holes(mask).sum())):
        return []
    evidence = f"the attention_mask hides {hidden} tokens in the midst of the prompt"
    return [Finding("masks", "warning", evidence, "mask padding alone, unless tokens are dropped by it on purpose")]


def _holes(mask: Tensor) -> Bool[Tensor, "b l"]:
    """Columns that are hidden between columns that are not."""
    seen = mask.bool()
    return ~seen & (seen.long().cumsum(dim=1) > 0) & (seen.flip(1).long().cumsum(dim=1).flip(1) > 0)


def _unmasked(case: Case, ids: Tensor) -> list[Finding]:
    text = case.model.config.get_text_config()
    pad = text.pad_token_id
    if pad is None or pad in (text.bos_token_id, text.eos_token_id):
        return []
    count = int(((ids[:, 0] == pad) | (ids[:, -1] == pad)).sum())
    evidence = f"{count} of {len(ids)} prompts begin or end with padding (id {pad}), and there is no attention_mask"
    return [_error(evidence, "pass the attention_mask that the processor returns")] if count else []


def _seen(case: Case) -> list[Finding]:
    real, may, must = case.real[0], _may(case), _must(case)
    columns = real.nonzero()[:, 0].tolist()
    if len(columns) < 3:
        raise DataError(f"the prompt has {len(columns)} tokens: give one of at least 3")
    looks = dict(zip(*_by_gradient(case, _probes(case)), strict=True))
    ahead, blind = [], []
    for column in _touched(case):
        moved = case.change(_with(case, column))[0] > case.noise
        ahead += [(query, column) for query in (moved & real & ~may[:, column]).nonzero()[:, 0].tolist()]
    for query, seen in looks.items():
        wrong = (seen & ~may[query]).nonzero()[:, 0].tolist()
        if wrong and _moves(case, query, wrong[-1]):
            ahead.append((query, wrong[-1]))
        missed = (~seen & must[query]).nonzero()[:, 0].tolist()
        if missed and not _moves(case, query, missed[0], exactly=True):
            blind.append((query, missed))
    return [*_ahead(case, ahead), *_blind(case, blind)]


def _ahead(case: Case, found: list[tuple[int, int]]) -> list[Finding]:
    if not found:
        return []
    query, column = found[0]
    what = "padding" if not bool(case.real[0, column]) else "the future" if column > query else "what is masked"
    evidence = f"token {query} sees {what}: it changes with column {column} ({len(found)} such pairs were found)"
    return [_error(evidence, "the attention mask is lost or of the wrong sign: give the kernel a causal mask")]


def _blind(case: Case, found: list[tuple[int, list[int]]]) -> list[Finding]:
    if not found:
        return []
    query, missed = max(found, key=lambda pair: len(pair[1]))
    evidence = f"token {query} does not see {len(missed)} of the real tokens before it, columns {missed[0]} to "
    evidence += f"{missed[-1]}: nothing that is put there changes it"
    positions, mask = case.call.get("position_ids"), case.call.get("attention_mask")
    gaps = mask is None and positions is not None and _gapped(positions, missed[-1])
    if gaps:
        evidence += "; the position ids have a gap there, and no attention_mask was given"
        return [_error(evidence, "pass attention_mask: without it a gap in position_ids begins another sequence")]
    return [_error(evidence, "the attention mask hides real tokens: compare it with the prompt, True (or 1) = visible")]


def _gapped(positions: Tensor, column: int) -> bool:
    row = positions.reshape(-1, positions.shape[-1])[0]
    return column + 1 < len(row) and int(row[column + 1] - row[column]) != 1


def _probes(case: Case) -> list[int]:
    """Queries whose sight is taken whole: the first word after the images, the last token of them, the last token."""
    columns, image = case.real[0].nonzero()[:, 0].tolist(), case.image[0].nonzero()[:, 0].tolist()
    chosen = {columns[-1], columns[len(columns) // 2], *case.words()[:1], *image[-1:]}
    return sorted(chosen)


def _touched(case: Case) -> list[int]:
    """Columns that are changed: the last, one within the images, and one in the middle."""
    columns, image = case.real[0].nonzero()[:, 0].tolist(), case.image[0].nonzero()[:, 0].tolist()
    return sorted({columns[-1], columns[len(columns) // 2], *image[len(image) // 2 :][:1]})


def _with(case: Case, column: int) -> Tensor:
    changed = case.embeddings.clone()
    changed[0, column] = -changed[0, column] + changed[0].std()
    with torch.no_grad():
        return case.decoded(inputs_embeds=changed)


def _moves(case: Case, query: int, column: int, exactly: bool = False) -> bool:
    after = case.change(_with(case, column))[0, query]
    return float(after) > (0 if exactly else case.noise)


def _by_gradient(case: Case, queries: list[int]) -> tuple[list[int], list[Bool[Tensor, " l"]]]:
    """The columns that each query depends on; nothing where the model has no way back, as of some quantised ones."""
    embeddings = case.embeddings.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        hidden = case.decoded(inputs_embeds=embeddings)
        if not hidden.requires_grad:
            return [], []
        generator = torch.Generator().manual_seed(0)
        ways = torch.randn(hidden.shape[-1], generator=generator).to(hidden)
        found = []
        for query in queries:
            try:
                slope = gradients(hidden[0, query] @ ways, [embeddings])[0]
            except ModelError:
                return [], []
            assert slope is not None
            found.append((slope[0] != 0).any(dim=-1))
    return queries, found


def _may(case: Case) -> Bool[Tensor, "l l"]:
    """(query, column): what may be seen."""
    real, count = case.real[0], case.real.shape[1]
    may = torch.ones(count, count, dtype=torch.bool, device=real.device).tril()
    if case.vlm is None:
        kind, types = case.model.config.model_type, case.inputs.get("token_type_ids")
        if kind in _BOTH_WAYS:
            prefix = torch.ones_like(real) if types is None else types[0] == 0
            may |= prefix[:, None] & prefix
        if kind in _IMAGES_BOTH_WAYS:
            may |= case.image[0][:, None] & case.image[0]
    return may & real


def _must(case: Case) -> Bool[Tensor, "l l"]:
    """(query, column): what has to be seen."""
    config = case.patient.config.get_text_config()
    count, real = case.real.shape[1], case.real[0]
    must = torch.ones(count, count, dtype=torch.bool, device=real.device).tril()
    kinds, window = getattr(config, "layer_types", None) or [], getattr(config, "sliding_window", None)
    slides = all(kind == "sliding_attention" for kind in kinds) if kinds else bool(window)
    if window and slides:
        must = must.triu(1 - window)
    return must & real


def _rows(case: Case) -> list[Finding]:
    """Each prompt alone, and padded beside others: the same, but for rounding."""
    if case.shortened:
        reason = "whether padding or rows of a batch leak was not checked: the inputs are shortened"
        return [Finding("masks", "skipped", reason, "give the processor's own inputs")]
    count = len(case.real)
    try:
        together = case.padded(_PADS)
        after = case.outputs(together)[:count, _PADS:]
    except (DataError, ModelError) as error:
        reason = f"whether padding or rows of a batch leak was not checked: {error}"
        return [Finding("masks", "skipped", reason, "give a batch of padded prompts to the model and compare")]
    worst = float(case.change(after)[case.real].max())
    if worst < max(10 * case.noise, 0.01):
        return []
    evidence = f"a prompt in a batch, with {_PADS} columns of padding before it, gives other values than alone: "
    evidence += f"they move by {worst:.2g} of their size"
    return [_error(evidence, "padding is seen, or counted as positions: see that attention_mask reaches every layer")]


def _before_images(case: Case) -> list[Finding]:
    """Where images are a memory beside the prompt: words before an image do not see it."""
    if case.vlm is None or case.vlm.fusion.in_prompt or not case.images:
        return []
    prompt, memory, shown = case._within
    before = prompt.mask & (prompt.seen == 0)
    with torch.no_grad(), case.vlm.fusion.within(case.vlm.language_model, prompt, -memory, shown):
        after = case.patient.decoder(**case.call)[0]  # pyright: ignore[reportOptionalCall]
    moved = case.change(after)[before]
    if not len(moved) or float(moved.max()) < case.noise:
        return []
    evidence = f"words before the first image change with it, by {float(moved.max()):.2g} of their size"
    return [_error(evidence, "mask the memory: a word sees images that stand before it")]
