"""The formulas of mechanisms and allocators against themselves: parameters, torch's counter, and their own accounts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from regard import cost
from regard.allocate import catalogue, load
from regard.cost.allocators import DECIDING
from regard.cost.counted import Cost
from regard.cost.mechanisms import RAM, Cascade, FoveaTer, Gaze
from regard.cost.models.mechanisms import MODELS
from regard.cost.pervit import PerViT as PerViTCost
from regard.cost.pruned import DynamicViT as DynamicViTCost
from regard.cost.pruned import EViT as EViTCost
from regard.cost.vit import ViT
from regard.mechanisms.avit import AViT
from regard.mechanisms.cascade import Cascade as CascadeModule
from regard.mechanisms.dynamicvit import DynamicViT
from regard.mechanisms.evit import EViT
from regard.mechanisms.foveated import FoveaTer as FoveaTerModule
from regard.mechanisms.gaze_vit import GazeViT
from regard.mechanisms.looker import Looker
from regard.mechanisms.pervit import PerViT
from regard.mechanisms.recurrent import RecurrentAttention, noise
from regard.mechanisms.vit import StaticViT
from regard.tokens import Question, VisualTokens
from test_cost_layers import MAPPING

VISION = {"image_size": 60, "patch_size": 5, "dim": 24, "depth": 8, "heads": 3, "hidden": 61}
VIT = ViT(24, 8, 3, 5, 60, 61, out=10)
AT = (2, 4, 6)
Case = tuple[Looker, Cost, tuple[int, ...], Callable[[Any, Tensor], Tensor] | None]


def ran(it: RecurrentAttention, pixels: Tensor) -> Tensor:
    """What it learns from; random draws are its own."""
    run = it(pixels, noise(len(pixels), it.glimpses, torch.Generator().manual_seed(0)))
    return run.logits.sum() + run.log_prob.sum() + run.baselines.sum()


def gazed(it: GazeViT, pixels: Tensor) -> Tensor:
    """The glance learns from where to look, the reader from a place that is given."""
    glanced = it.predict(pixels)
    return it(pixels, torch.zeros(len(pixels), 2))[0].logits.sum() + glanced.scores.sum() + glanced.places.sum()


def from_known_positions(it: PerViT, pixels: Tensor) -> Tensor:
    for name, parameter in it.named_parameters():
        parameter.requires_grad_("periphery" not in name)
    return it(pixels)[0].sum()


def scanned(it: FoveaTerModule, pixels: Tensor) -> Tensor:
    cells, grid = it.features(pixels)
    return torch.stack([one.read.logits for one in it.scan(cells, grid, torch.zeros(len(pixels), 2))]).sum()


CASES: dict[str, Callable[[], Case]] = {
    "ram": lambda: (
        RecurrentAttention(channels=3, glimpses=4, scales=2, hidden=22),
        RAM(channels=3, glimpses=4, scales=2, hidden=22).cost(40),
        (3, 40, 40),
        ran,
    ),
    "ram of lstm": lambda: (
        RecurrentAttention(hidden=22, core="lstm"),
        RAM(hidden=22, lstm=True).cost(40),
        (1, 40, 40),
        ran,
    ),
    "gaze": lambda: (
        GazeViT(7, dim=24, depth=3, heads=3),
        Gaze(7, dim=24, depth=3, heads=3).cost(301),
        (3, 301, 301),
        gazed,
    ),
    "foveater": lambda: (
        FoveaTerModule(7, dim=24, heads=3, glimpses=3, threshold=2, inhibit=0.01),
        FoveaTer(7, dim=24, heads=3, glimpses=3).cost(150),
        (3, 150, 150),
        scanned,
    ),
    "pervit": lambda: (
        PerViT(7, 3, 56, 8, 24, 3, 3),
        PerViTCost((24,) * 3, (6, 12, 24), 3, 7, shared=False).cost(56),
        (3, 56, 56),
        from_known_positions,
    ),
    "cascade": lambda: (
        CascadeModule(7, 3, 80, 5, 3, None, 24, 3, 3),
        Cascade(7, 3, 5, 3, 24, 3, 3).cost(80),
        (3, 80, 80),
        lambda it, pixels: torch.stack(it(pixels)).sum(),
    ),
    "vit": lambda: (StaticViT(VISION), VIT.cost(60), (3, 60, 60), lambda it, pixels: it(pixels)[0].sum()),
    "avit": lambda: (AViT(VISION, centre=1e6), VIT.cost(60), (3, 60, 60), None),
    "dynamicvit": lambda: (DynamicViT(VISION, layers=AT), DynamicViTCost(VIT, 0.7, AT).cost(60), (3, 60, 60), None),
    "evit": lambda: (
        EViT(VISION, keep=0.7, layers=AT),
        EViTCost(VIT, 0.7, AT).cost(60),
        (3, 60, 60),
        lambda it, pixels: it(pixels).sum(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mechanism_costs_what_its_module_does(name: str):
    it, expected, shape, learns = CASES[name]()
    assert expected.params == sum(one.numel() for one in it.parameters())
    pixels = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    it.eval()
    with torch.no_grad():
        looked = it.look(pixels)
        runs = 10 if isinstance(it, RecurrentAttention) else 1  # look() takes the mean of so many
        assert int(looked.macs) == runs * expected.macs
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            it.look(pixels)
    assert expected.macs == pytest.approx(counter.get_total_flops() // 2 / runs, rel=0.01)
    if learns is not None:
        with sdpa_kernel(SDPBackend.MATH):
            loss = learns(it, pixels)
            with FlopCounterMode(display=False, custom_mapping=MAPPING) as counter:
                loss.backward()
        assert expected.backward == pytest.approx(counter.get_total_flops() // 2, rel=0.01)


def test_every_mechanism_has_a_formula_and_is_checked():
    assert {name.split()[0] for name in CASES} == set(MODELS)


def given(side: int, width: int, words: int) -> tuple[VisualTokens, Question]:
    draw = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=draw)

    scores = {"attention": some(side**2).abs()}
    tokens = VisualTokens.from_grid(some(side**2, width), (side, side), keys=some(side**2, width), scores=scores)
    return tokens, Question(some(words, width))


@pytest.mark.parametrize("budget", [5, 40, 130])
@pytest.mark.parametrize("name", sorted(DECIDING))
def test_deciding_costs_what_an_allocator_does(name: str, budget: int):
    tokens, question = given(13, 24, 7)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        load(name).allocate(tokens, question, budget)
    assert DECIDING[name](169, budget, 24, 7) == pytest.approx(counter.get_total_flops() // 2, rel=0.01)


def test_every_allocator_has_a_formula():
    assert set(DECIDING) == {name for name in catalogue() if type(load(name)).__module__.startswith("regard.allocate.")}


def test_an_allocator_keeps_what_it_is_told():
    answer = cost.of("divprune", resolution=448, tokens=128)
    assert (answer["visual_tokens"], answer["tokens"]) == (1024, 128)
    assert answer["macs"] == pytest.approx(1024 * 1024 * 1024 / 1e9)
