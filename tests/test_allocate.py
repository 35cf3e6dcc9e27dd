"""What each first allocator decides, against independent references, and how allocators are found."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import BudgetError, DataError, ModelError, Question, RegardError, VisualTokens
from regard.allocate import load


def reference_divprune(features: np.ndarray, k: int) -> list[int]:
    """The paper's rule (arXiv 2503.02175, Algorithm 1) in plain loops."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    distance = (distance + distance.T) / 2  # a matrix product need not be symmetric to the last bit
    n = len(features)
    nearest = [min(distance[i, j] for j in range(n) if j != i) for i in range(n)]
    kept = [int(np.argmax(nearest))]
    while len(kept) < k:
        rest = [i for i in range(n) if i not in kept]
        kept.append(max(rest, key=lambda i: (min(distance[i, j] for j in kept), -i)))
    return sorted(kept)


@pytest.mark.parametrize(("n", "d", "k"), [(31, 5, 7), (53, 11, 13), (17, 3, 16), (23, 7, 1)])
def test_divprune_keeps_what_the_paper_keeps(n: int, d: int, k: int):
    features = torch.randn(3, n, d, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    kept = load("divprune").allocate(VisualTokens(features, torch.rand(3, n, 4)), None, k).anchor
    for image in range(3):
        assert kept[image].tolist() == reference_divprune(features[image].numpy(), k)


def test_divprune_starts_at_the_token_farthest_from_its_nearest_neighbour():
    angle = torch.tensor([0.0, 0.1, 0.2, 1.5, 3.0])  # the plain farthest-point start would be 0 or 4, too
    features = torch.stack([angle.cos(), angle.sin()], dim=1)[None]
    assert load("divprune").allocate(VisualTokens(features, torch.rand(1, 5, 4)), None, 1).anchor.tolist() == [[4]]


def test_divprune_with_duplicates_still_keeps_the_budget():
    features = torch.ones(1, 7, 3)
    assert load("divprune").allocate(VisualTokens(features, torch.rand(1, 7, 4)), None, 4).anchor.tolist() == [
        [0, 1, 2, 3]
    ]


@pytest.mark.parametrize("name", ["top", "divprune"])
def test_equal_tokens_go_by_slot_whatever_the_batch(name: str):
    """A flat sky: hundreds of tokens that are the same to the last bit, at sizes where rounding could part them."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(3, 729, 768, generator=generator)
    features[:, 300:] = features[:, 300:301]
    tokens, question = VisualTokens(features, torch.rand(3, 729, 4)), Question(features[:, 300:301] * 0.5)
    whole = load(name).allocate(tokens, question, 72).anchor
    for image in range(3):
        one = torch.tensor([image])
        assert load(name).allocate(tokens.images(one), question.images(one), 72).anchor[0].equal(whole[image])
    if name == "top":
        assert whole.tolist() == [list(range(300, 372))] * 3


def test_divprune_takes_features_that_are_being_trained():
    tokens = VisualTokens(torch.randn(1, 12, 4, requires_grad=True), torch.rand(1, 12, 4))
    assert load("divprune").allocate(tokens, None, 3).apply(tokens).features.requires_grad


def test_top_keeps_the_most_relevant_and_breaks_ties_by_slot():
    features = torch.tensor([[[1.0], [5.0], [3.0], [5.0], [3.0], [3.0]]])
    tokens = VisualTokens(features, torch.rand(1, 6, 4))
    top = load("top")
    assert top.allocate(tokens, Question(torch.ones(1, 1, 1)), 4).anchor.tolist() == [[1, 2, 3, 4]]
    assert top.allocate(tokens, Question(-torch.ones(1, 1, 1)), 2).anchor.tolist() == [[0, 2]]
    aligned = VisualTokens(features, torch.rand(1, 6, 4), aligned=-features)
    assert top.allocate(aligned, Question(torch.ones(1, 1, 1)), 2).anchor.tolist() == [[0, 2]]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 13), st.integers(1, 13), st.data())
def test_pool_tiles_any_grid_with_any_count_of_nearly_equal_areas(height: int, width: int, data: st.DataObject):
    n = height * width
    k = data.draw(st.integers(1, max(1, n - 1)))
    if k >= n:
        return
    tokens = VisualTokens.from_grid(torch.randn(1, n, 3), (height, width))
    pooled = load("pool").allocate(tokens, None, k)
    sizes = (pooled.matrix()[0] > 0).sum(dim=1)
    assert sizes.sum() == n
    assert sizes.min() >= 1
    assert sizes.max() <= 2 * math.ceil(n / k) + 1
    torch.testing.assert_close(pooled.spent().sum(), torch.tensor(float(k)))


@pytest.mark.parametrize(("side", "k"), [(24, 144), (24, 64), (32, 256), (27, 81), (24, 36)])
def test_pool_is_average_pooling_where_the_numbers_allow(side: int, k: int):
    x = torch.randn(2, side * side, 5)
    tokens = VisualTokens.from_grid(x, (side, side))
    got = load("pool").allocate(tokens, None, k).apply(tokens)
    out = math.isqrt(k)
    image = x.transpose(1, 2).unflatten(2, (side, side))
    want = torch.nn.functional.adaptive_avg_pool2d(image, out).flatten(2).transpose(1, 2)
    order = (got.boxes[0, :, 1] * 1e3 + got.boxes[0, :, 0]).argsort()
    torch.testing.assert_close(got.features[:, order], want)


@pytest.mark.parametrize(("frames", "k"), [(2, 6), (8, 24), (3, 2), (5, 7)])
def test_pool_keeps_frames_apart_where_the_budget_allows(frames: int, k: int):
    mask = torch.ones(1, frames * 12, dtype=torch.bool)
    mask[0, :2] = False
    tokens = VisualTokens(torch.randn(1, frames * 12, 3), torch.rand(1, frames * 12, 4), mask=mask, grid=(frames, 3, 4))
    seen = (load("pool").allocate(tokens, None, k).matrix()[0] > 0).view(k, frames, 12).any(dim=2).sum(dim=1)
    assert (seen == 1).all() == (k >= frames)


def test_pool_prefers_whole_rows_and_columns():
    tokens = VisualTokens.from_grid(torch.randn(1, 1024, 3), (32, 32))
    pooled = load("pool").allocate(tokens, None, 128)  # 11.3 bands of 11.3 would be square; 8 of 16 or 16 of 8 fit
    for area in pooled.matrix()[0].view(128, 32, 32) > 0:
        rows, columns = area.any(dim=1).sum(), area.any(dim=0).sum()
        assert area.sum() == rows * columns == 8


@pytest.mark.parametrize("k", [7, 36, 64, 100])
def test_grid_is_evenly_spread(k: int):
    tokens = VisualTokens.from_grid(torch.randn(1, 576, 3), (24, 24))
    kept = load("grid").allocate(tokens, None, k).apply(tokens)
    centres = (kept.boxes[0, :, :2] + kept.boxes[0, :, 2:]) / 2
    everywhere = (tokens.boxes[0, :, :2] + tokens.boxes[0, :, 2:]) / 2
    farthest = torch.cdist(everywhere, centres).amin(dim=1).max()
    assert farthest < 1.25 / math.sqrt(k)  # a random subset leaves holes about three times as large
    drawn = load("random").allocate(tokens, None, k).apply(tokens)
    holes = torch.cdist(everywhere, (drawn.boxes[0, :, :2] + drawn.boxes[0, :, 2:]) / 2).amin(dim=1).max()
    assert farthest < holes


def test_random_draws_from_its_seed_and_is_fair():
    tokens = VisualTokens(torch.randn(1, 97, 3), torch.rand(1, 97, 4))
    draws = torch.stack([load("random", seed=s).allocate(tokens, None, 13).spent()[0] for s in range(600)])
    assert len({tuple(d.tolist()) for d in draws}) > 595
    rate, error = 13 / 97, math.sqrt(13 / 97 * 84 / 97 / 600)
    assert (draws.mean(dim=0) - rate).abs().max() < 5 * error
    together = (draws.T @ draws) / 600  # neighbours are kept independently
    assert abs(float(together.diagonal(1).mean()) - rate * 12 / 96) < 0.003


def test_what_is_missing_is_named():
    tokens = VisualTokens(torch.randn(1, 7, 3), torch.rand(1, 7, 4))
    with pytest.raises(DataError, match="^Top needs question"):
        load("top").allocate(tokens, None, 3)
    with pytest.raises(DataError, match="^Pool needs grid"):
        load("pool").allocate(tokens, None, 3)
    with pytest.raises(BudgetError, match="^the budget must be at least 1 token, got 0$"):
        load("random").allocate(tokens, None, 0)
    with pytest.raises(DataError, match="^DivPrune: features of image 0 is not finite at token 2"):
        dirty = tokens.features.clone()
        dirty[0, 2, 1] = torch.nan
        load("divprune").allocate(VisualTokens(dirty, tokens.boxes), None, 3)


def test_an_unknown_name_lists_the_names():
    with pytest.raises(
        ModelError, match="no allocator is named 'topp': the names are cdpruner, divprune, .*, visionzip, vispruner"
    ):
        load("topp")
    with pytest.raises(ModelError, match="allocator random: .*sede"):
        load("random", sede=3)


def test_the_catalogue_imports_no_allocator():
    code = (
        "import sys, regard.allocate as a; names = a.catalogue(); "
        "bad = [n for n in names if f'regard.allocate.{n}' in sys.modules]; assert names and not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


TOY = '''
from dataclasses import dataclass
import torch
from regard.allocate import Allocator
from regard.allocation import Allocation


@dataclass(frozen=True)
class First(Allocator):
    """Keep the first valid tokens."""

    skip: int = 0

    def decide(self, tokens, question, budget):
        order = (~tokens.valid).int().sort(dim=1, stable=True).indices
        return Allocation.select(order[:, :budget], order.shape[1])
'''
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "toy-allocator"
version = "0.0.1"
[project.entry-points."regard.allocate"]
first = "toy_allocator:First"
broken = "toy_allocator:Missing"
top = "toy_allocator:First"
"""
USE = """
import regard.allocate as a
from regard.testing import check_allocator
from regard.allocate.top import Top
assert {"first", "broken", "divprune"} <= set(a.catalogue()), a.catalogue()
check_allocator(a.load("first", skip=3), examples=5)
assert a.name_of(a.load("first")) == "first"
assert type(a.load("top")) is Top  # another package cannot take a name of ours
try:
    a.load("broken")
except a.ModelError as error:
    print(error)
"""


def test_another_package_joins_by_its_entry_point(tmp_path: Path):
    (tmp_path / "toy_allocator.py").write_text(TOY)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(place)]
    subprocess.run([*pip, str(tmp_path)], check=True, capture_output=True)
    use = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(place)!r})\n{USE}"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert use.returncode == 0, use.stderr
    assert use.stdout.startswith("allocator broken (toy_allocator:Missing) cannot be loaded (AttributeError: ")


def test_every_error_of_an_allocator_is_a_value_error():
    assert issubclass(RegardError, ValueError)
