"""PerViT and its twin: the same parts but for attention, the same cost, and where each begins."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from regard.attention.peripheral import PeripheralAttention
from regard.errors import ModelError, ShapeError
from regard.mechanisms.pervit import Block, PerViT


def tiny(**others) -> PerViT:
    torch.manual_seed(0)
    given: dict[str, Any] = {"side": 20, "patch": 4, "dim": 16, "depth": 3, "heads": 2}
    return PerViT(5, 1, **given | others).eval()


@torch.no_grad()
def test_the_twin_is_of_equal_cost():
    ours, twin, image = tiny(), tiny(attention="plain"), torch.rand(1, 1, 20, 20)
    spent = []
    for model in (ours, twin):
        model.look(image)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            looked = model.look(image)
        spent.append((int(looked.macs), counter.get_total_flops() // 2))
    assert spent[0] == spent[1]
    assert spent[0][0] == spent[0][1]
    missing, other = ours.load_state_dict(twin.state_dict(), strict=False)
    assert not other
    assert all("periphery" in name for name in missing)


def test_regions_begin_as_in_the_paper():
    layers = [block.attention for block in tiny().blocks if isinstance(block, Block)]
    starts = [
        (a.periphery["norm2"].bias, a.periphery["norm2"].weight) for a in layers if isinstance(a, PeripheralAttention)
    ]
    assert [float(bias.detach()[0]) for bias, _ in starts] == [-5, -0.5, 4]
    torch.testing.assert_close(
        torch.stack([weight.detach()[0] for _, weight in starts]), torch.tensor([3, 1.505, 0.01])
    )


@pytest.mark.parametrize("attention", ["peripheral", "plain"])
def test_every_parameter_learns(attention):
    model = tiny(attention=attention).train()
    for value in model.parameters():
        if value.ndim > 1:
            torch.nn.init.normal_(value, 0, 0.2)
    logits, x = model(torch.rand(4, 1, 20, 20))
    assert x.shape == (4, 25, 16)
    logits.square().sum().backward()
    # a norm of each map takes away what the convolutions before it add to all of it
    silent = {name for name, value in model.named_parameters() if value.grad is None or not value.grad.abs().max() > 0}
    assert all("periphery" in name and name.endswith("bias") for name in silent)


def test_positions_are_told():
    """The same patches elsewhere are not the same image."""
    model, image = tiny(), torch.rand(1, 1, 20, 20)
    with torch.no_grad():
        assert not torch.allclose(model(image)[0], model(image.roll(8, 3))[0], atol=1e-6)


@pytest.mark.parametrize("wrong", [{"patch": 3}, {"patch": 1}, {"side": 22}, {"depth": 0}])
def test_what_cannot_be_built_is_named(wrong):
    with pytest.raises(ShapeError, match="patch must be a power of two"):
        tiny(**wrong)


def test_other_attention_is_named():
    with pytest.raises(ModelError, match="no attention is named"):
        tiny(attention="linear")
    with pytest.raises(ShapeError, match="heads"):
        tiny(heads=3)
