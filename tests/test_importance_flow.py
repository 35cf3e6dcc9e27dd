"""Rollout and gradient x attention, carried row by row, equal to their matrices in full."""

import pytest
import torch
from torch import Tensor

import tiny_vlms
from regard.doctor import flow, importance
from test_capture import language_model
from tiny_vlms import IMAGE

SOME = ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl", "paligemma", "paligemma2"]


def dense(attentions: tuple[Tensor, ...], slopes: tuple[Tensor, ...] | None) -> Tensor:
    """(B, S, S) as the papers write it, with all matrices held."""
    whole = torch.eye(attentions[0].shape[-1]).expand(len(attentions[0]), -1, -1)
    for number, weights in enumerate(attentions):
        if slopes is None:
            whole = (0.5 * weights.mean(dim=1) + 0.5 * torch.eye(weights.shape[-1])) @ whole
        else:
            whole = whole + (weights * slopes[number]).clamp(min=0).mean(dim=1) @ whole
    return whole


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("method", ["rollout", "gradient"])
def test_rows_are_those_of_the_whole_matrices(models, name, method):
    inputs = tiny_vlms.inputs(name, [1, 2])
    found = importance(models(name), inputs, method)
    out = models(name, "eager")(**inputs, output_attentions=True)
    logits = out.logits[:, -1]
    assert logits.argmax(dim=1).tolist() == found.target.tolist()
    slopes = None
    if method == "gradient":
        slopes = torch.autograd.grad(logits.gather(1, found.target[:, None]).sum(), out.attentions)
    wanted = dense(out.attentions, slopes)[:, -1].detach()
    wanted = wanted.masked_fill(inputs["attention_mask"] == 0, 0)
    scale = float(wanted.max())
    assert torch.allclose(found.columns, wanted, atol=2e-4 * scale, rtol=1e-3)
    counts = [(row == IMAGE).sum() for row in inputs["input_ids"]]
    assert sum(len(values) for values in found.tokens) == sum(counts)


def test_prompts_padded_on_the_right_are_followed_from_their_own_end(models):
    left, right = (tiny_vlms.inputs("llava", [1, 2], pad_left) for pad_left in (True, False))
    for method in ("rollout", "gradient", "mean"):
        one, two = (importance(models("llava"), given, method).tokens for given in (left, right))
        for mine, other in zip(one, two, strict=True):
            assert torch.allclose(mine, other, rtol=1e-3, atol=1e-5 * float(mine.max()))


def test_only_a_few_rows_are_held_at_once(models, monkeypatch):
    """The same with chunks of one row; a mean over heads that skipped one would not be."""
    inputs = tiny_vlms.inputs("llava", [1])
    want = [importance(models("llava"), inputs, method).columns for method in ("rollout", "gradient")]
    monkeypatch.setattr(flow, "CHUNK", 1)
    got = [importance(models("llava"), inputs, method).columns for method in ("rollout", "gradient")]
    for one, two in zip(want, got, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-6 * float(one.max()))


def test_sinks_that_are_no_column_are_left_out():
    """gpt-oss gives a part of each row to no column."""
    from regard.doctor import capture

    model = language_model("gpt_oss", "eager")
    with torch.no_grad(), capture(model) as seen:
        model(input_ids=torch.arange(3, 20)[None])
    sums = seen.weights(0).sum(dim=-1)
    assert bool((sums < 1).all())
