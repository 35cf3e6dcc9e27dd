"""The second paradigm (LLaVA's second stage, arXiv 2304.08485): all is trained, the language model whole or by LoRA.

LoRA (arXiv 2106.09685) is peft's. The eye stays frozen, and what it sees is computed once, unless it is to learn too:
then it must be a module whose `forward` gives the tokens of what its `prepare` makes of images, and looks anew at each.
The loop is that of `regard.train.bridge`; another set of parts learns.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from regard.errors import ModelError
from regard.train.bridge import CACHE, Trained, begun, by_answers
from regard.train.guards import fingerprint, freeze_all_but, parts_of
from regard.train.learner import check_precision
from regard.train.rows import Source
from regard.train.run import Run, Tell, feeds, made_of, silent, team_of
from regard.train.saving import locked
from regard.train.settings import Rates, Recipe
from regard.vlm.compose import VLM
from regard.vlm.fusion.deep import Deep
from regard.vlm.fusion.fusion import base_of

RECIPE = Recipe(rates=Rates(bridge=2e-5, fusion=2e-5, language_model=2e-5, eye=2e-6))  # LLaVA's, of all but the eye
LORA_RECIPE = Recipe(rates=Rates(bridge=2e-5, fusion=2e-5, language_model=2e-4, eye=2e-6))  # LLaVA's with LoRA


@dataclass(frozen=True)
class Lora:
    """rank, alpha, dropout: of the adapters. targets: names of linear maps that get one, or "all-linear"."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: tuple[str, ...] = ("all-linear",)


def train(
    vlm: VLM,
    rows: Source,
    folder: str | Path,
    recipe: Recipe | None = None,
    *,
    lora: Lora | None = None,
    eye: bool = False,
    held: Source | None = None,
    cache: str | Path = CACHE,
    tell: Tell = silent,
) -> Trained:
    """Train bridge, fusion and language model, or go on. lora: adapters in place of all of the language model's
    weights. eye: whether it learns too. The rest as for `regard.train.bridge.train`; a bridge that was trained alone
    first is the better start, or let it learn alone for a share of the steps (`curriculum.bridge_first`).

    Raises as that, and ModelError for an eye that cannot learn, or LoRA with deep fusion, whose experts are copies of
    the language model's weights.
    """
    recipe, folder = recipe or (LORA_RECIPE if lora else RECIPE), Path(folder)
    learn = ("bridge", "fusion", "language_model", *(["eye"] if eye else []))
    if eye and not (isinstance(vlm.eye, nn.Module) and callable(getattr(vlm.eye, "prepare", None))):
        raise ModelError(f"the eye {vlm.eye.name!r} cannot learn: take a module with prepare and forward, or freeze it")
    if lora is not None or base_of(vlm.language_model) is not vlm.language_model:  # whose own weights stay as they are
        check_precision(vlm, recipe)
    if lora is not None:
        adapt(vlm, lora)
    team = team_of(recipe, folder)
    with locked(folder / "lock", team):
        feed, held_feed = feeds(vlm, rows, held, Path(cache), team, tell, eye_learns=eye)
        parts = parts_of(vlm)
        learned = freeze_all_but(parts, learn)
        vlm.eye_trained |= eye
        before = fingerprint(parts)
        decides = {"paradigm": "full", "frozen": before, "held": held_feed and held_feed.rows.digest}
        decides |= {"parts": made_of(vlm, "mechanism", "fusion"), "lora": lora and asdict(lora)}
        begun(vlm, feed)
        run = Run(folder, recipe, team, learned, feed, decides, tell)
        return by_answers(vlm, run, held_feed, parts, before)


def _check_adapters(model: Any, lora: Lora) -> None:
    """Raise ModelError where a model has adapters of another rank, alpha or dropout than is asked for."""
    for config in model.peft_config.values():
        there = (config.r, config.lora_alpha, config.lora_dropout)
        if there != (lora.rank, lora.alpha, lora.dropout):
            asked = f"rank {lora.rank}, alpha {lora.alpha}, dropout {lora.dropout}"
            raise ModelError(
                "the language model has adapters already, of rank {}, alpha {}, dropout {}, not of {}: "
                "ask for those, or start from a model without".format(*there, asked)
            )


def adapt(vlm: VLM, lora: Lora) -> None:
    """Put LoRA's adapters into the language model, unless there are some. Raises ModelError where peft cannot."""
    model: Any = vlm.language_model
    if isinstance(vlm.fusion, Deep):
        raise ModelError("deep fusion has a copy of every linear map, which LoRA would change: train without LoRA")
    if base_of(model) is not model:
        _check_adapters(model, lora)
        return
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ModelError("LoRA needs peft: pip install 'regard[hf]'") from error
    targets = lora.targets[0] if lora.targets == ("all-linear",) else list(lora.targets)
    try:
        config = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
        )
        vlm.language_model = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"LoRA does not fit the language model: {str(error).splitlines()[0]}") from error
