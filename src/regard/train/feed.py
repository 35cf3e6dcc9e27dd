"""Which rows make which batch, by seed and epoch alone, and what a batch is.

The images of a batch have one grid where that is possible: rows go to buckets by the grids of their images.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from regard.errors import DataError, RegardError
from regard.images import load_image
from regard.tokens import Question, VisualTokens
from regard.train.rows import Row, Rows
from regard.train.seen import Seen
from regard.vlm.compose import VLM, blind_at
from regard.vlm.interleaved import IMAGE, UNLEARNED, Interleaved, interleaved, without_images
from regard.vlm.together import asked_together, seen_together

Stage = Callable[[str], None]
_ASKED = 4096  # questions that are kept encoded


@dataclass(frozen=True, eq=False)
class Batch:
    """prompts, with answers. tokens: of all images in order, in parts of one grid; or pixels: what an eye that learns
    is given. question: what is asked of each image. texts: without markers, for losses that read them elsewhere.
    """

    prompts: Interleaved
    tokens: list[VisualTokens]
    pixels: dict[str, Tensor] | None
    question: Question | None
    texts: list[str]

    @property
    def images(self) -> int:
        return int(self.prompts.image.sum())

    @property
    def learned(self) -> int:
        """Tokens of answers."""
        return int((self.prompts.labels != UNLEARNED).sum())

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        pixels = None if self.pixels is None else {name: value.to(device) for name, value in self.pixels.items()}
        question = None if self.question is None else self.question.to(device)
        tokens = [part.to(device) for part in self.tokens]
        return Batch(self.prompts.to(device), tokens, pixels, question, self.texts)


class Feed:
    """Batches of rows for a model. seen: what its eye made of their images; None: the eye learns, and looks itself."""

    def __init__(self, vlm: VLM, rows: Rows, seen: Seen | None) -> None:
        self.vlm, self.rows, self.seen = vlm, rows, seen
        self._ask = lru_cache(maxsize=_ASKED)(vlm.eye.ask)

    def batch(self, places: Iterable[int]) -> Batch:
        """The rows at these places of the index."""
        rows = [self.rows[int(place)] for place in places]
        whole = self._prompts(rows)
        question = None
        if self.vlm.eye.asked and self.vlm.bridge.hears:
            question = asked_together([self._heard(row) for row in rows for _ in row.images])
        texts = [_text(row) for row in rows]
        if self.seen is None:
            eye: Any = self.vlm.eye
            pixels = eye.prepare([load_image(path) for row in rows for _, path in row.images])
            return Batch(whole, [], pixels, question, texts)
        found = [self.seen[key] for row in rows for key, _ in row.images]
        parts = [seen_together(list(part)) for _, part in groupby(found, lambda tokens: tokens.grid)]
        return Batch(whole, parts, None, question, texts)

    def tokens(self, key: str) -> VisualTokens:
        """Of one image, as the eye is now."""
        return self.vlm.eye.look(load_image(self.rows.keys[key])) if self.seen is None else self.seen[key]

    def leave_out(self, team: Any, stage: Stage = lambda text: None) -> None:
        """Leave out, and count, the rows that the model cannot learn from: whose answer has no token, that end with an
        image where no word would see it, whose text is longer than its positions, or whose question the eye cannot
        hear. team: an `Accelerator`, whose processes share the hearing.

        Raises DataError where no row is left.
        """
        most = self.vlm.longest
        hears, why = self.vlm.eye.asked and self.vlm.bridge.hears, dict[int, str]()
        asked: dict[str, list[int]] = {}
        for place, row in enumerate(self.rows.all()):
            if place % 1000 == 0:
                stage(f"check the rows: {place} of {len(self.rows)}")
            bare = not (row.question.replace(IMAGE, "").strip() and row.answer.strip())
            if most is not None or bare or row.question.rstrip().endswith(IMAGE):
                why |= {place: reason} if (reason := self._unlearnable(row, most)) else {}
            if hears:
                asked.setdefault(without_images(row.question), []).append(place)
        for text in self._unheard(list(asked), team, stage):
            why |= dict.fromkeys(asked[text], "the eye cannot hear its question")
        if len(why) == len(self.rows):
            raise DataError(f"no row can be used: of the first, {why[0]}")
        self.rows.leave_out(why)

    def _unlearnable(self, row: Row, most: int | None) -> str:
        """Why nothing can be learned from a row; nothing where it can. most: positions of the language model."""
        prompts = self._prompts([row])
        if not bool((prompts.labels != UNLEARNED).any()):
            return "its answer has no token"
        if most is not None and int(prompts.mask.sum()) > most:
            return f"its text is longer than the language model's {most} positions"
        blind = not self.vlm.fusion.in_prompt and blind_at(prompts) is not None
        return "it ends with an image, which no word sees" if blind else ""

    def _unheard(self, texts: Sequence[str], team: Any, stage: Stage) -> list[str]:
        """The questions that the eye cannot hear."""
        from accelerate.utils import gather_object

        mine = texts[team.process_index :: team.num_processes]
        found = []
        for number, text in enumerate(mine):
            if number % 100 == 0:
                stage(f"hear the questions: {number} of {len(mine)}")
            try:
                self._ask(text)
            except RegardError:
                found.append(text)
        return gather_object(found)

    def _prompts(self, rows: Sequence[Row]) -> Interleaved:
        counts = [len(row.images) for row in rows]
        prompts = [row.question if IMAGE in row.question else IMAGE * len(row.images) + row.question for row in rows]
        return interleaved(self.vlm.tokenizer, prompts, counts, [row.answer for row in rows])

    def _heard(self, row: Row) -> Question:
        try:
            return self._ask(without_images(row.question))
        except RegardError as error:
            raise DataError(f"the eye cannot hear the row with the question {row.question[:60]!r}: {error}") from error

    @property
    def buckets(self) -> Int[np.ndarray, " n"]:
        """The bucket of each row: rows with the same one have images of one grid; -1 for those with several."""
        if self.seen is None:
            return np.zeros(len(self.rows), dtype=np.int64)
        known: dict[Any, int] = {}
        found = []
        for keys in self.rows.uses:
            grids = {self.seen.grid(key) for key in keys}
            found.append(known.setdefault(grids.pop(), len(known)) if len(grids) == 1 else -1)
        return np.array(found, dtype=np.int64)


def _text(row: Row) -> str:
    """What is said of a row's image: the answer, after the question where the row has its own."""
    asked = without_images(row.question) if row.asked else ""
    return f"{asked} {row.answer}".strip()


def planned(
    buckets: Int[np.ndarray, " n"],
    lengths: Int[np.ndarray, " n"],
    batch: int,
    together: int,
    seed: Sequence[int],
    short_first: bool = False,
) -> Int[np.ndarray, "steps together batch"]:
    """The rows of an epoch: of each step `together` batches of `batch` rows.

    Each row comes once; what is missing in the last batch and step is taken again from the first. short_first: from
    short answers to long, at random among those as long.
    """
    generator = np.random.default_rng(list(seed))
    order = generator.permutation(len(buckets))
    if short_first:
        order = order[np.argsort(lengths[order], kind="stable")]
    whole, rest = [], []
    for bucket in np.unique(buckets):
        members = order[buckets[order] == bucket]
        cut = len(members) // batch * batch
        whole += list(members[:cut].reshape(-1, batch))
        rest.append(members[cut:])
    left = np.concatenate(rest)
    left = np.concatenate((left, np.resize(order, -len(left) % batch)))
    batches = np.array([*whole, *left.reshape(-1, batch)])
    if short_first:
        batches = batches[np.argsort(lengths[batches].mean(axis=1), kind="stable")]
    else:
        batches = batches[generator.permutation(len(batches))]
    missing = -len(batches) % together
    batches = np.concatenate((batches, batches[np.arange(missing) % len(batches)]))
    return batches.reshape(-1, together, batch)
