"""A vision-language model as its processes share it: one forward pass from a batch to the loss of its answers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regard.errors import ModelError
from regard.train.feed import Batch, Feed
from regard.train.run import Run
from regard.train.settings import Recipe
from regard.vlm.compose import VLM


def check_precision(vlm: VLM, recipe: Recipe) -> None:
    """Raise ModelError for a language model in 16 bits that is to compute without mixed precision."""
    dtypes = {str(value.dtype) for value in vlm.language_model.parameters()} - {"torch.float32", "torch.float64"}
    if dtypes and recipe.mixed_precision == "no":
        kind = sorted(dtypes)[0].removeprefix("torch.")
        raise ModelError(
            f"the language model is in {kind}: train it with mixed_precision='bf16', or load it with dtype='float32'"
        )


class Learner(nn.Module):
    """`learner(batch, budget)`: the mean loss over the batch's answers, and how many tokens the language model read."""

    def __init__(self, vlm: VLM, recipe: Recipe) -> None:
        super().__init__()
        self.vlm, self.narrow = vlm, recipe.mixed_precision == "bf16"

    def forward(self, batch: Batch, budget: int | None) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.vlm.device.type, torch.bfloat16, enabled=self.narrow):
            eye: Any = self.vlm.eye
            tokens = batch.tokens if batch.pixels is None else eye(**batch.pixels)
            out = self.vlm(batch.prompts, tokens, batch.question, budget)
        assert out.loss is not None
        if torch.is_grad_enabled() and not out.loss.requires_grad:
            raise ModelError("no gradient reaches the bridge: the language model computes without, let it compute with")
        assert out.bridged is not None
        words = batch.prompts.mask.sum() - batch.prompts.image.sum()
        return out.loss, words + out.bridged.mask.sum()


def shared(learner: nn.Module, team: Any) -> Any:
    """The learner on this process's device, its gradients shared with the other processes' where there are any.

    What is frozen is left as it is, and not sent about.
    """
    frozen = [name for name, value in learner.named_parameters() if not value.requires_grad]
    frozen += [name for name, _ in learner.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(learner, frozen)
    return team.prepare(learner)


@torch.no_grad()
def validated(learner: Learner, held: Feed | None, run: Run) -> float | None:
    """The mean loss over the answers of held-out rows, at the largest budget of training; None where there are none."""
    if held is None:
        return None
    recipe, team = run.recipe, run.team
    budgets = recipe.curriculum.budgets
    modes = [(part, part.training) for part in learner.modules()]
    learner.eval()
    total = count = 0.0
    order = held.buckets.argsort(kind="stable")
    chunks = [order[start : start + recipe.batch] for start in range(0, len(order), recipe.batch)]
    for places in chunks[team.process_index :: team.num_processes]:
        batch = held.batch(places).to(team.device)
        loss, _ = learner(batch, recipe.budget if budgets is None else budgets[1])
        total, count = total + float(loss) * batch.learned, count + batch.learned
    for part, training in modes:
        part.training = training
    total, count = run.summed(total, count)
    return total / count
