"""Allocation against dense matrices: every form, every operation, gradients, types and errors."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regard
from regard import Allocation, Attribution, DataError, ShapeError, TilePlan, VisualTokens

B, N, K, D = 2, 11, 5, 3


def selection(generator: torch.Generator, batch: int, k: int, n: int, gain: bool) -> Allocation:
    index = torch.rand(batch, n, generator=generator).argsort(dim=1)[:, :k].clone()
    if batch > 1 and k > 1:
        index[-1, -1] = -1  # ragged
    return Allocation.select(index, n, gain=torch.rand(batch, k, generator=generator) + 0.5 if gain else None)


def merger(generator: torch.Generator, batch: int, k: int, n: int, gain: bool) -> Allocation:
    group = torch.randint(-1, k, (batch, n), generator=generator)
    group[:, torch.randperm(n, generator=generator)[:k]] = torch.arange(k)
    weight = torch.rand(batch, n, generator=generator) + 0.1
    return Allocation.merge(group, k, weight, gain=torch.rand(batch, k, generator=generator) + 0.5 if gain else None)


def mixture(generator: torch.Generator, batch: int, k: int, n: int, gain: bool) -> Allocation:
    weights = torch.rand(batch, k, n, generator=generator)
    weights[:, :, 0] = 0  # one input that nobody reads
    weights = weights / weights.sum(dim=2, keepdim=True)
    return Allocation.mix(weights, gain=torch.rand(batch, k, generator=generator) + 0.5 if gain else None)


FORMS = {"select": selection, "merge": merger, "mix": mixture}


def dense(allocation: Allocation) -> torch.Tensor:
    gain = torch.ones(allocation.anchor.shape) if allocation.gain is None else allocation.gain
    return allocation.matrix() * gain[..., None]


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_apply_spent_and_restore_are_what_the_matrix_says(form: str, gain: bool):
    generator = torch.Generator().manual_seed(7)
    a = FORMS[form](generator, B, K, N, gain)
    x = torch.randn(B, N, D, generator=generator)
    matrix = a.matrix()
    assert matrix.shape == (B, K, N)
    assert (a.n_in, a.n_out) == (N, K)
    torch.testing.assert_close(matrix.sum(dim=2), a.valid.float())
    torch.testing.assert_close(a.apply(x), dense(a) @ x)
    torch.testing.assert_close(a.apply(x[..., 0]), (dense(a) @ x)[..., 0])
    torch.testing.assert_close(a.spent(), matrix.sum(dim=1))
    y = torch.randn(B, K, D, generator=generator)
    back = torch.zeros(B, N, D)
    for b in range(B):
        for n in range(N):
            if matrix[b, :, n].sum() > 0:
                back[b, n] = (matrix[b, :, n, None] * y[b]).sum(dim=0) / matrix[b, :, n].sum()
    torch.testing.assert_close(a.restore(y), back)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FORMS)), st.sampled_from(sorted(FORMS)), st.booleans(), st.booleans(), st.integers(0, 999)
)
def test_then_is_one_after_the_other(first: str, second: str, gain_1: bool, gain_2: bool, seed: int):
    generator = torch.Generator().manual_seed(seed)
    a = FORMS[first](generator, 1, 7, N, gain_1)
    b = FORMS[second](generator, 1, 3, 7, gain_2)
    x = torch.randn(1, N, D, generator=generator)
    both = a.then(b)
    torch.testing.assert_close(both.apply(x), b.apply(a.apply(x)))
    assert torch.equal(both.anchor, a.anchor.gather(1, b.anchor))
    torch.testing.assert_close(both.matrix().sum(dim=2), both.valid.float())
    torch.testing.assert_close(both.spent().sum(), torch.tensor(3.0))


def test_then_keeps_the_padding_of_the_later():
    a = Allocation.select(torch.tensor([[1, 3, 5, 7], [0, 2, 4, 6]]), N)
    b = Allocation.select(torch.tensor([[0, 3], [2, -1]]), 4)
    both = a.then(b)
    assert both.anchor.tolist() == [[1, 7], [4, 0]]
    assert both.valid.tolist() == [[True, True], [True, False]]
    assert both.apply(torch.ones(2, N, D))[1, 1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("form", FORMS)
def test_gradients_flow_to_features_and_weights(form: str):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(B, N, D, generator=generator, dtype=torch.float64, requires_grad=True)
    group = torch.arange(N).expand(B, N) % K
    weight = torch.rand(B, N, generator=generator, dtype=torch.float64) + 0.1
    scores = torch.randn(B, K, N, generator=generator, dtype=torch.float64)
    index = torch.tensor([[1, 4, 9], [0, 2, 3]])
    gain = torch.tensor([[1.5, 2, 0.5], [1, 3, 2]], dtype=torch.float64)
    if form == "select":
        assert torch.autograd.gradcheck(
            lambda x, g: Allocation.select(index, N, gain=g).apply(x), (x, gain.requires_grad_())
        )
    elif form == "merge":
        assert torch.autograd.gradcheck(
            lambda x, w: Allocation.merge(group, K, w).apply(x), (x, weight.requires_grad_())
        )
    else:
        mixed = lambda x, s: Allocation.mix(s.softmax(dim=2)).apply(x)  # noqa: E731
        assert torch.autograd.gradcheck(mixed, (x, scores.requires_grad_()))


def test_gradients_flow_through_then():
    scores = torch.randn(1, 3, 5, dtype=torch.float64, requires_grad=True)
    group = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, -1]])
    x = torch.randn(1, N, D, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(1, N, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(
        lambda x, w, s: Allocation.merge(group, 5, w).then(Allocation.mix(s.softmax(dim=2))).apply(x),
        (x, weight.requires_grad_(), scores),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_float_types(form: str, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(11)
    a = FORMS[form](generator, B, K, N, False)
    x = torch.randn(B, N, D, generator=generator).to(dtype).requires_grad_()
    y = a.apply(x)
    assert y.dtype == dtype
    torch.testing.assert_close(
        y.float(), a.matrix() @ x.detach().float(), rtol=3e-2 if dtype.itemsize == 2 else 1e-5, atol=2e-2
    )
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.float(), a.spent()[..., None].expand_as(x), rtol=2e-2, atol=2e-2)
    if form == "select":
        assert torch.equal(y[0], x[0, a.anchor[0]])


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_read_cannot_leak(form: str):
    a = FORMS[form](torch.Generator().manual_seed(5), B, K, N, False)
    x = torch.randn(B, N, D)
    unread = a.spent() == 0
    assert unread.any()
    dirty = x.masked_fill(unread[..., None], torch.nan)
    assert torch.equal(a.apply(dirty), a.apply(x))


def test_outputs_are_ordered_by_anchor_and_gain_follows():
    a = Allocation.select(torch.tensor([[7, 2, -1, 5]]), N, gain=torch.tensor([[70.0, 20.0, 0.0, 50.0]]))
    assert a.anchor.tolist() == [[2, 5, 7, 0]]
    assert a.valid.tolist() == [[True, True, True, False]]
    assert a.gain is not None
    assert a.gain.tolist() == [[20.0, 50.0, 70.0, 0.0]]
    merged = Allocation.merge(torch.tensor([[2, 2, 2, 0, 0, 0, 1, -1]]), 3)
    assert merged.anchor.tolist() == [[1, 4, 6]]
    assert merged.matrix()[0, 0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0, 0, 0, 0])


def test_a_merge_is_anchored_at_the_member_nearest_to_the_weighted_centre():
    tokens = VisualTokens.from_grid(torch.randn(1, 12, D), (3, 4))
    group = torch.tensor([[0, 0, 0, -1, 0, 0, 0, -1, 0, 0, 0, 1]])
    assert Allocation.merge(group, 2, boxes=tokens.boxes).anchor.tolist() == [[5, 11]]
    heavy = torch.ones(1, 12)
    heavy[0, 10] = 100
    assert Allocation.merge(group, 2, heavy, boxes=tokens.boxes).anchor.tolist() == [[10, 11]]
    square = torch.tensor([[0, 0, -1, -1, 0, 0, -1, -1, -1, -1, -1, 1]])  # four members as near as each other
    assert Allocation.merge(square, 2, boxes=tokens.boxes).anchor.tolist() == [[0, 11]]


def test_anchors_of_a_mix_are_unique_and_the_stronger_row_wins():
    weights = torch.tensor([[[0.6, 0.4, 0, 0], [0.9, 0.1, 0, 0], [0.5, 0.3, 0.2, 0]]])
    a = Allocation.mix(weights)
    assert a.anchor.tolist() == [[0, 1, 2]]
    assert a.matrix()[0].tolist() == [pytest.approx(row) for row in weights[0][[1, 0, 2]].tolist()]
    with pytest.raises(ShapeError, match="more outputs than inputs that they read"):
        Allocation.mix(torch.tensor([[[1.0, 0, 0], [1.0, 0, 0]]]))


def test_identity_returns_what_it_is_given():
    tokens = VisualTokens.from_grid(torch.randn(B, 12, D), (3, 4), aligned=torch.randn(B, 12, 2))
    a = Allocation.identity(B, 12)
    assert a.apply(tokens) is tokens
    assert a.apply(tokens.features) is tokens.features
    assert a.gain is None
    assert torch.equal(a.matrix(), torch.eye(12).expand(B, 12, 12))
    mask = torch.tensor([[True] * 12, [True] * 7 + [False] * 5])
    assert Allocation.identity(B, 12, mask).matrix().sum(dim=2).tolist() == mask.float().tolist()
    assert a.then(a).apply(tokens) is tokens
    doubled = dataclasses.replace(a, gain=torch.full((B, 12), 2.0))
    assert torch.equal(doubled.apply(tokens.features), 2 * tokens.features)


def test_a_ragged_selection_of_all_slots_is_no_identity():
    a = Allocation.select(torch.tensor([[0, 1, 2], [0, 1, -1]]), 3)
    x = torch.ones(2, 3, 1)
    assert a.apply(x).tolist() == [[[1], [1], [1]], [[1], [1], [0]]]
    assert Allocation.from_dict(a.to_dict()).apply(x)[1, 2] == 0


def test_a_member_without_weight_is_not_read():
    a = Allocation.merge(torch.tensor([[0, 0, 0]]), 1, torch.tensor([[1.0, 0.0, 1.0]]))
    assert a.anchor.tolist() == [[0]]
    assert a.apply(torch.tensor([[[1.0], [torch.nan], [3.0]]])).tolist() == [[[2.0]]]


def test_members_as_near_as_each_other_go_to_the_lower_slot():
    for size in (6, 10, 12):
        a = Allocation.merge((torch.arange(400 * size) // size)[None], 400)
        assert a.anchor[0].tolist() == [size * k + size // 2 - 1 for k in range(400)]


def test_half_precision_weights_are_brought_to_sums_of_one():
    weights = torch.full((1, 1, 2880), 1 / 2880, dtype=torch.bfloat16)
    torch.testing.assert_close(Allocation.mix(weights).apply(torch.ones(1, 2880, 1)), torch.ones(1, 1, 1))
    with pytest.raises(DataError, match="normalise"):
        Allocation.mix(weights * 1.35)


def test_reading_padding_gives_padding():
    a = Allocation.select(torch.tensor([[0, 1], [0, -1]]), 3)
    both = a.then(Allocation.select(torch.tensor([[0, 1], [0, 1]]), 2))
    assert both.valid.tolist() == [[True, True], [True, False]]


def test_padding_cannot_leak_into_what_is_restored():
    weights = torch.tensor([[[0.5, 0.5, 0], [0, 0, 0]]])
    y = torch.tensor([[[2.0], [torch.nan]]])
    assert Allocation.mix(weights).restore(y).tolist() == [[[2.0], [2.0], [0.0]]]


def test_many_rows_that_want_the_same_slots_all_find_one():
    a = Allocation.mix(torch.full((1, 97, 211), 1 / 211))
    assert a.anchor.tolist() == [list(range(97))]


def test_apply_reads_everything_that_belongs_to_the_tokens():
    tokens = VisualTokens.from_grid(
        torch.randn(B, 12, D),
        (3, 4),
        aligned=torch.randn(B, 12, 2),
        keys=torch.randn(B, 12, 5),
        scores={"attention": torch.rand(B, 12)},
        segment=torch.arange(12).expand(B, 12),
    )
    a = Allocation.merge(torch.arange(12).expand(B, 12) % 5, 5, boxes=tokens.boxes, gain=torch.full((B, 5), 3.0))
    out, matrix = a.apply(tokens), a.matrix()
    torch.testing.assert_close(out.features, 3 * matrix @ tokens.features)
    torch.testing.assert_close(out.boxes, matrix @ tokens.boxes)
    assert tokens.aligned is not None
    assert tokens.keys is not None
    torch.testing.assert_close(out.aligned, matrix @ tokens.aligned)
    torch.testing.assert_close(out.keys, matrix @ tokens.keys)
    torch.testing.assert_close(out.scores["attention"], (matrix @ tokens.scores["attention"][..., None])[..., 0])
    assert out.segment is not None
    assert torch.equal(out.segment, a.anchor)
    assert out.grid is None


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_json_there_and_back(form: str, gain: bool):
    a = FORMS[form](torch.Generator().manual_seed(2), B, K, N, gain)
    b = Allocation.from_dict(json.loads(json.dumps(a.to_dict())))
    assert torch.equal(a.matrix(), b.matrix())
    assert torch.equal(a.anchor, b.anchor)
    assert torch.equal(a.valid, b.valid)
    assert (a.gain is None) == (b.gain is None)
    assert a.gain is None or torch.equal(a.gain, b.gain)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"},
        {"index": [[1, 99]]},
        {"index": [[1], [1, 2]]},
        {"anchor": [[1, 9]]},
        {"n_out": 3},
        {"n_in": "x"},
    ],
)
def test_json_that_is_no_allocation(change: dict):
    data = Allocation.select(torch.tensor([[1, 3]]), 5).to_dict()
    assert Allocation.from_dict(data).anchor.tolist() == [[1, 3]]
    with pytest.raises(DataError, match="not an allocation"):
        Allocation.from_dict(data | change)
    with pytest.raises(DataError, match="not an allocation"):
        Allocation.from_dict({"kind": "select"})


GROUP = torch.zeros(1, 4, dtype=torch.long)
MISTAKES = {
    "slot 3 anchors two outputs": lambda: Allocation.select(torch.tensor([[3, 3]]), 5),
    r"index must lie in \[-1, 5\), got 2 to 5": lambda: Allocation.select(torch.tensor([[2, 5]]), 5),
    "index must be whole numbers": lambda: Allocation.select(torch.tensor([[1.0]]), 5),
    r"group must lie in \[-1, 2\), got 2 to 2": lambda: Allocation.merge(GROUP + 2, 2),
    "group must be whole numbers": lambda: Allocation.merge(torch.zeros(1, 4), 2),
    r"weight must be floats of shape \(1, 4\)": lambda: Allocation.merge(GROUP, 1, torch.ones(1, 3)),
    "weight must be finite, >= 0": lambda: Allocation.merge(GROUP, 1, -torch.ones(1, 4)),
    "not 0 for a whole group": lambda: Allocation.merge(GROUP, 1, torch.zeros(1, 4)),
    "weight must be finite": lambda: Allocation.merge(GROUP, 1, torch.full((1, 4), torch.nan)),
    "weights must be floats of shape": lambda: Allocation.mix(torch.ones(3, 4)),
    "sums 2 to 2: normalise": lambda: Allocation.mix(torch.full((1, 1, 4), 0.5)),
    "got minimum -1": lambda: Allocation.mix(torch.tensor([[[2.0, -1.0]]])),
    r"gain must have shape \(B, K\) = \(1, 2\)": lambda: Allocation.select(
        torch.tensor([[1, 2]]), 5, gain=torch.ones(1, 3)
    ),
    r"reads \(B, N\) = \(1, 5\) tokens, got \(1, 6, 3\)": lambda: Allocation.identity(1, 5).apply(torch.ones(1, 6, 3)),
    "the later allocation reads 4 tokens, this one gives 5": lambda: Allocation.identity(1, 5).then(
        Allocation.identity(1, 4)
    ),
    "gain must be finite and over 0": lambda: Allocation.select(torch.tensor([[1]]), 5, gain=torch.zeros(1, 1)),
    r"anchor must be slots in \[0, 2\)": lambda: Allocation.mix(torch.ones(1, 1, 2) / 2, anchor=torch.tensor([[7]])),
    "boxes must be finite and of shape": lambda: Allocation.merge(GROUP, 1, boxes=torch.ones(1, 3, 4)),
    "got 0 to 200": lambda: Allocation.select(torch.tensor([[0, 200]], dtype=torch.uint8), 5),
    "features must have shape": lambda: Allocation.identity(1, 5).restore(torch.ones(1, 6, 3)),
    "boxes must be": lambda: TilePlan(torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.long)),
    "counts must be >= 0": lambda: TilePlan(torch.ones(1, 2, 4), torch.tensor([[64, -1]])),
}


@pytest.mark.parametrize("says", MISTAKES)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_one_line_that_says_what(says: str):
    with pytest.raises(regard.RegardError, match=says) as raised:
        MISTAKES[says]()
    assert "\n" not in str(raised.value)


def test_attribution_is_only_read():
    weights = torch.rand(B, K, N).softmax(dim=2)
    assert torch.equal(Attribution(weights).matrix(), weights)
    torch.testing.assert_close(Attribution(weights).spent(), weights.sum(dim=1))
    assert not hasattr(Attribution, "apply")
