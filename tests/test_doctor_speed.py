"""The doctor encodes an image that stays as it is once, and finds the same."""

from typing import Any

import pytest
import torch

import regard.doctor
import tiny_vlms
from regard.doctor.case import Case
from tiny_vlms import FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_encoded_before_changes_no_bit(models, name):
    case = Case(models(name), tiny_vlms.inputs(name, [1, 2]))
    with torch.no_grad():
        assert torch.equal(case.run(case.seen).logits, case.run().logits)
    assert "pixel_values" in case.inputs
    assert "pixel_values" not in case.seen


def test_images_are_encoded_once_where_they_stay(models, monkeypatch):
    model: Any = models("llava")
    calls: list[int] = []
    plain = model.model.get_image_features

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(*args, **kwargs)

    monkeypatch.setattr(model.model, "get_image_features", counted)
    found: dict[str, int] = {}
    for name in ("masks", "positions", "heads", "frozen", "sinks", "image_ignored"):
        calls.clear()
        assert not regard.doctor.examine(model, tiny_vlms.inputs("llava", [1]), only=[name]).findings
        found[name] = len(calls)
    # masks: alone and in a batch; heads and frozen look into the encoder; image_ignored: the image and two others
    assert found == {"masks": 2, "positions": 1, "heads": 1, "frozen": 1, "sinks": 1, "image_ignored": 3}
    calls.clear()
    regard.doctor.examine(model, tiny_vlms.inputs("llava", [1]))
    assert len(calls) == 6


def test_a_prompt_without_an_image_and_another_model_are_as_they_are(models):
    words = {name: value[:, -5:] for name, value in tiny_vlms.inputs("llava", [1]).items() if name != "pixel_values"}
    assert Case(models("llava"), words).seen is words
