"""What the recipes of vision-language models share around their loops: processes, steps, checkpoints, history.

Under `torchrun` the processes share the work through accelerate. All that a step draws is decided by seed, step and
process, so a run that was cut anywhere goes on from `last.safetensors` with the losses it would have had.
"""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from regard.errors import ModelError
from regard.files import write_whole
from regard.train.decoded import broken
from regard.train.feed import Feed, planned
from regard.train.guards import Flow, norms
from regard.train.rows import Source, indexed
from regard.train.saving import BEST, LAST, Learned, flat, found, locked, restore
from regard.train.seen import Seen, described, drop_broken
from regard.train.settings import Recipe
from regard.vlm.compose import VLM

Tell = Callable[[str, int, int], None]
_PATIENCE = timedelta(days=1)  # for processes that wait while others encode


def silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


def team_of(recipe: Recipe, folder: Path) -> Any:
    """An `Accelerator` of accelerate: this process among those of `torchrun`, or alone.

    Raises ModelError where accelerate or the tracker is not installed.
    """
    try:
        from accelerate import Accelerator
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
        from accelerate.utils import DistributedDataParallelKwargs, LoggerType
    except ImportError as error:
        raise ModelError("training needs accelerate: pip install 'regard[hf,train]'") from error
    there = {str(one) for one in get_available_trackers()} | LOGGER_TYPE_TO_CLASS.keys() - set(LoggerType.list())
    if recipe.log_with is not None and recipe.log_with not in there:
        known = ", ".join(LOGGER_TYPE_TO_CLASS)
        raise ModelError(f"the tracker {recipe.log_with!r} is not installed, or not known: known are {known}")
    handlers: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=True)]  # it also sums in one order
    cpu = not torch.cuda.is_available()
    if os.environ.get("WORLD_SIZE", "1") != "1" and not distributed.is_initialized():
        _meet("gloo" if cpu else "nccl")
    return Accelerator(cpu=cpu, log_with=recipe.log_with, project_dir=str(folder), kwargs_handlers=handlers)


def _meet(backend: str) -> None:
    """Join the other processes of torchrun's present attempt.

    torchrun keeps one store for all attempts, and without a prefix a process may find addresses of those that died.
    """
    store, rank, world = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    whole = PrefixStore(f"attempt {attempt}", store)
    distributed.init_process_group(backend, store=whole, rank=rank, world_size=world, timeout=_PATIENCE)


def feeds(
    vlm: VLM, rows: Source, held: Source | None, cache: Path, team: Any, tell: Tell, eye_learns: bool = False
) -> tuple[Feed, Feed | None]:
    """Rows to learn from, and those held out, with their images encoded where the eye is frozen. The model is then on
    this process's device.
    """
    vlm.to(team.device)

    def stage(text: str) -> None:
        tell(text, 0, 0)

    with locked(cache / "lock", team, wait=True):
        several = [indexed(source, cache, team, stage) for source in (rows, held) if source is not None]
        images = {key: path for some in several for key, path in some.keys.items()}
        seen = None if eye_learns else Seen(cache, vlm.eye, team)
        if seen is not None:
            seen.fill(images, stage)
        drop_broken(broken(images, cache, team, stage) if seen is None else seen.broken, several)
    made = [Feed(vlm, some, seen) for some in several]
    for feed in made:
        feed.leave_out(team, stage)
    return made[0], made[1] if held is not None else None


def made_of(vlm: VLM, *parts: str) -> dict[str, Any]:
    """Parts of a model by all that decides what they compute but their weights: the arguments of those given by name,
    the kind of those given as they are. parts: "mechanism" and "fusion", or one of them, beside the eye.
    """
    eye = {} if vlm.described_eye["kind"] == "given" else vlm.described_eye
    found: dict[str, Any] = {"eye": {key: eye[key] for key in eye.keys() - {"kind", "name_or_path", "revision"}}}
    for name, part in (("mechanism", vlm.bridge), ("fusion", vlm.fusion)):
        if name in parts:
            found[name] = vlm.described[name] or {"name": type(part).__name__}
    return found


class Run:
    """One run in its folder. learned: what learns, by part and name. feed: its rows; held: those to validate with.

    decides: beside the recipe, all that decides losses. Raises DataError where the folder holds another run.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, team: Any, learned: Learned, feed: Feed, decides: dict[str, Any], tell: Tell
    ) -> None:
        self.folder, self.recipe, self.team = folder, recipe, team
        self.learned, self.feed, self.tell = learned, feed, tell
        seen = None if feed.seen is None else described(feed.seen.eye)
        counts = {name: sum(value.numel() for value in some.values()) for name, some in learned.items()}
        data = {"rows": feed.rows.digest, "count": len(feed.rows), "eye": seen, "processes": team.num_processes}
        self.state = found(folder, {"recipe": recipe.decides, **data, "learned": counts, **decides})
        self._buckets = feed.buckets
        self.each = len(self._plan(0))  # steps of an epoch
        self.total = recipe.epochs * self.each
        self._every = recipe.every or min(200, -(-self.total // 10))
        self._epoch: tuple[int, Any] = (-1, None)
        self._since, self._sums = time.perf_counter(), np.zeros(4)
        groups = [
            {"params": some, "name": name, "weight_decay": recipe.decay if matrices else 0.0}
            for name, parameters in learned.items()
            for matrices in (True, False)
            if (some := [value for value in parameters.values() if (value.ndim > 1) == matrices])
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
        if self.state.step:
            restore(folder / LAST, learned, self.optimizer)
        if recipe.log_with is not None:
            team.init_trackers("regard", config={"settings": json.dumps(self.state.decides)})

    def _plan(self, epoch: int) -> Any:
        recipe, together = self.recipe, self.recipe.accumulate * self.team.num_processes
        short = recipe.curriculum.short_first and epoch == 0
        return planned(self._buckets, self.feed.rows.lengths, recipe.batch, together, (recipe.seed, epoch), short)

    def steps(self) -> Iterator[int]:
        """The steps that are left, each with its rates set and what it draws decided."""
        for step in range(self.state.step, self.total):
            done = (step + 1) / self.total
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.rate(group["name"], done)
            world = self.team.num_processes
            turn = (1_000_003 * self.recipe.seed + step) * world + self.team.process_index
            torch.manual_seed(turn % 2**63)
            yield step

    def rows(self, step: int) -> Sequence[Sequence[int]]:
        """The rows of this process's batches in a step."""
        epoch, number = divmod(step, self.each)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._plan(epoch))
        return self._epoch[1][number, self.team.process_index :: self.team.num_processes]

    def budget(self, step: int) -> int | None:
        """Tokens an image in a step, the same in all processes."""
        if self.recipe.curriculum.budgets is None:
            return self.recipe.budget
        least, most = self.recipe.curriculum.budgets
        return int(np.random.default_rng([self.recipe.seed, 1, step]).integers(least, most + 1))

    def sharing(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Gradients are shared among the processes with a step's last batch."""
        return nullcontext() if last else self.team.no_sync(model)

    def summed(self, *values: float | Tensor) -> list[float]:
        """Each summed over all processes."""
        whole = torch.tensor([float(value) for value in values], dtype=torch.float64, device=self.team.device)
        return self.team.reduce(whole, "sum").tolist()

    def stepped(self, step: int, loss: float, flow: Flow) -> dict[str, float]:
        """Check, clip, and make the optimizer's step; the gradient's norm of each part.

        Raises ModelError where the loss or a gradient is not finite, and as `Flow.check`.
        """
        if not math.isfinite(loss):
            raise self._broken(f"the loss is {loss}", step)
        lengths = norms(self.learned)
        if not all(map(math.isfinite, lengths.values())):
            name = next(name for name, length in lengths.items() if not math.isfinite(length))
            raise self._broken(f"the gradient of the {name} is not finite", step)
        flow.check(lengths)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(flat(self.learned).values(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return lengths

    def _broken(self, what: str, step: int) -> ModelError:
        last = self.folder / LAST
        kept = f"{str(last)!r} is of step {self.state.step}" if last.exists() else "nothing was written yet"
        return ModelError(f"{what} at step {step + 1}: {kept}; try lower rates")

    def note(self, step: int, loss: float, read: float, images: float, **more: float) -> None:
        """Tell of a step, and keep a row of history every so often. read: tokens of the language model. loss, read and
        images: of all processes.
        """
        self._sums += (loss, read, images, 1)
        seconds = max(time.perf_counter() - self._since, 1e-9)
        mean, tokens, pictures = self._sums[:3] / (self._sums[3], seconds, seconds)
        self.tell(f"loss {mean:.4f}, {tokens:.0f} tokens/s, {pictures:.1f} images/s", step + 1, self.total)
        if (step + 1) % self.recipe.log and not self.due(step):
            return
        speed = {"tokens_per_second": round(tokens, 1), "images_per_second": round(pictures, 2)}
        row = {"step": step + 1, "epoch": step // self.each + 1, "loss": float(mean), **more, **speed}
        self.state = replace(self.state, history=[*self.state.history, {**row, "seconds": round(seconds, 2)}])
        self._since, self._sums = time.perf_counter(), np.zeros(4)
        self.team.log({name: value for name, value in row.items() if name != "step"}, step=step + 1)

    def due(self, step: int) -> bool:
        """Whether to validate and to keep a checkpoint after this step."""
        return (step + 1) % self._every == 0 or step + 1 == self.total

    def keep(self, step: int, held: float | None) -> None:
        """Write the checkpoint of a step, and the best. held: the loss of held-out rows, None where there are none."""
        best = self.state.best
        better = held is not None and (best is None or held < best)
        *before, row = self.state.history
        row = row if held is None else {**row, "held_loss": held}
        self.state = replace(self.state, step=step + 1, best=held if better else best, history=[*before, row])
        if held is not None:
            self.team.log({"held_loss": held}, step=step + 1)
        if self.team.is_main_process:
            if better:
                replace(self.state, history=[]).write(self.folder / BEST, self.learned, None)
            self.state.write(self.folder / LAST, self.learned, self.optimizer)
            self.state.write_history(self.folder)
        self.team.wait_for_everyone()
        self._since = time.perf_counter()

    def finish(self, held_out: Feed | None, **more: Any) -> dict[str, Any]:
        """The best weights where there are held-out rows, else the last; metrics.json is written."""
        if (self.folder / BEST).exists():
            restore(self.folder / BEST, self.learned)
        history = self.state.history
        held = [row["held_loss"] for row in history if row.get("held_loss") is not None]
        metrics = {
            "loss": history[-1]["loss"],
            "held_loss": min(held, default=None),
            "steps": self.state.step,
            "rows": len(self.feed.rows),
            "types": dict(Counter(kind for kind in self.feed.rows.kinds if kind)),
            "skipped": dict(self.feed.rows.skipped),
            "held_skipped": {} if held_out is None else dict(held_out.rows.skipped),
            "learned": self.state.decides["learned"],
            "processes": self.team.num_processes,
            "seconds": round(sum(row["seconds"] for row in history), 1),
            **more,
        }
        if self.team.is_main_process:
            write_whole(self.folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        for tracker in self.team.trackers:  # not `end_training`, which ends the processes' group with them
            tracker.finish()
        return metrics
