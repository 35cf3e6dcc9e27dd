"""The published selectors, each against its rule in plain loops, and the greedy choice of a determinantal process."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from regard import DataError, Question, VisualTokens
from regard.allocate import load
from regard.allocate.cdpruner import greedy_map

Array = np.ndarray
Rows = list[Array]  # what each output is: a sum over the inputs


def by_score(scores: Array, slots: Sequence[int]) -> list[int]:
    return sorted(slots, key=lambda i: (-scores[i], i))


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))


def kept(slots: Sequence[int], n: int) -> Rows:
    return [np.eye(n)[i] for i in slots]


def reference_fastervlm(given: dict[str, Array], k: int, skip: int = 0) -> Rows:
    a = given["attention"]
    return kept(by_score(a, range(len(a)))[skip : skip + k], len(a))


def reference_visionzip(given: dict[str, Array], k: int, share: float = 27 / 32) -> Rows:
    a, keys, n = given["attention"], given["keys"], len(given["attention"])
    dominant = by_score(a, range(n))[: round(k * share)]
    rest = [i for i in range(n) if i not in dominant]
    c = k - len(dominant)
    rows = kept(dominant, n)
    if c:
        targets = rest[:: len(rest) // c][:c]
        joined: dict[int, list[int]] = {t: [] for t in targets}
        for i in rest:
            if i not in targets:
                joined[max(targets, key=lambda t: cosine(keys[i], keys[t]))].append(i)
        for target, members in joined.items():
            row = np.eye(n)[target]
            row[members] += 1 / max(len(members), 1)
            rows.append(row)
    return rows


def reference_vispruner(given: dict[str, Array], k: int, drop: int = 8) -> Rows:
    a, x, n = given["attention"], given["features"], len(given["attention"])
    order = by_score(a, range(n))
    important, rest = order[: k // 2], order[k // 2 :]
    while len(rest) > k - k // 2:
        evens, odds = rest[0::2], rest[1::2]
        likeness = {i: max(cosine(x[i], x[j]) for j in odds) for i in evens}
        evens.sort(key=lambda i: -likeness[i])
        rest = evens[min(drop, len(rest) - (k - k // 2), len(evens)) :] + odds
    return kept(important + rest, n)


def reference_cdpruner(given: dict[str, Array], k: int, floor: float = 1e-6) -> Rows:
    """Every candidate's determinant, not the fast update."""
    x, r, n = given["features"], given["relevance"], len(given["relevance"])
    r = floor + (1 - floor) * (r - r.min()) / (r.max() - r.min())
    kernel = np.array([[r[i] * cosine(x[i], x[j]) * r[j] for j in range(n)] for i in range(n)])
    chosen: list[int] = []
    for _ in range(k):
        rest = [i for i in range(n) if i not in chosen]
        chosen.append(max(rest, key=lambda i: np.linalg.slogdet(kernel[np.ix_([*chosen, i], [*chosen, i])])[1]))
    return kept(chosen, n)


def reference_prumerge(given: dict[str, Array], k: int, neighbours: int = 32) -> Rows:
    a, keys, n = given["attention"], given["keys"], len(given["attention"])
    most = by_score(a, range(n))[: k - 1]
    rows = []
    for i in most:
        near = by_score(np.array([cosine(keys[i], keys[j]) for j in range(n)]), [j for j in range(n) if j != i])
        row = np.eye(n)[i]
        for j in near[:neighbours]:
            row[j] = a[j]
        rows.append(row)
    return [*rows, np.array([0 if i in most else a[i] for i in range(n)])]


def reference_holov(given: dict[str, Array], k: int, crops: int = 16) -> Rows:
    a, x, n = given["attention"], given["features"], len(given["attention"])
    cuts = np.array_split(np.arange(n), crops)  # the first of them one longer where they cannot be equal
    scores = []
    for cut in cuts:
        likeness = np.array([[cosine(x[i], x[j]) if i != j else 0 for j in cut] for i in cut])
        others = max(len(cut) - 1, 1)
        variance = ((likeness - likeness.sum(1, keepdims=True) / others) ** 2).sum(1) / others
        scores.append(np.mean(a[cut] + 0.09 * variance * np.mean(a[cut]) / (np.mean(variance) + 1e-6)))
    share = [0] * crops
    while (left := k - sum(share)) > 0:
        room = [p for p in range(crops) if share[p] < len(cuts[p])]
        exact = {p: scores[p] / sum(scores[q] for q in room) * left for p in room}
        more = {p: int(exact[p]) for p in room}
        for p in sorted(room, key=lambda p: -exact[p])[: left - sum(more.values())]:
            more[p] += 1
        for p in room:
            share[p] = min(len(cuts[p]), share[p] + more[p])
    return kept([i for p in range(crops) for i in by_score(a, list(cuts[p]))[: share[p]]], n)


def reference_tome(given: dict[str, Array], k: int, first: int = 0) -> Rows:
    keys, n = given["keys"], len(given["keys"])
    groups = [[i] for i in range(n)]
    while len(groups) > k:
        a, b = groups[first::2], groups[1 - first :: 2]
        mean = {id(g): keys[g].mean(axis=0) for g in groups}
        pairs = []
        for place, source in enumerate(a):
            likeness = [cosine(mean[id(source)], mean[id(other)]) for other in b]
            pairs.append((-max(likeness), place, int(np.argmax(likeness))))
        merged = sorted(pairs)[: min(len(groups) - k, len(groups) // 2)]
        for _, place, other in merged:
            b[other] = b[other] + a[place]
        groups = [g for place, g in enumerate(a) if place not in {place for _, place, _ in merged}] + b
    return [np.eye(n)[g].mean(axis=0) for g in groups]


# the reference, and what makes it another rule
SELECTORS: dict[str, tuple[Callable[..., Rows], dict]] = {
    "fastervlm": (reference_fastervlm, {"skip": 1}),
    "visionzip": (reference_visionzip, {"share": 0.7}),
    "vispruner": (reference_vispruner, {"drop": 7}),
    "cdpruner": (reference_cdpruner, {"floor": 0.3}),
    "prumerge": (reference_prumerge, {"neighbours": 31}),
    "holov": (reference_holov, {"crops": 13}),
    "tome": (reference_tome, {"first": 1}),
}
SIZES = [(59, 5, 13), (61, 7, 23), (97, 11, 31), (43, 3, 1), (67, 13, 2), (41, 17, 29)]


def case(n: int, d: int, b: int = 3) -> tuple[VisualTokens, Question]:
    """A ragged batch, every token and the question random; keys and attention of another size than features."""
    generator = torch.Generator().manual_seed(n)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask = torch.rand(b, n, generator=generator) < torch.tensor([[1.1], [0.93], [0.85]])
    attention = (draw(b, n) * 2).softmax(dim=1) * 5
    tokens = VisualTokens(
        draw(b, n, d),
        torch.rand(b, n, 4, generator=generator),
        mask,
        keys=draw(b, n, d + 2),
        scores={"attention": attention},
    )
    return tokens, Question(draw(b, 3, d))


def compare(name: str, n: int, d: int, k: int, **changed: float) -> None:
    """Row by row, every image; a masked token is not there at all for the reference."""
    tokens, question = case(n, d)
    reference, _ = SELECTORS[name]
    allocation = load(name).allocate(tokens, question, k)
    matrix = allocation.matrix().double()
    matrix = matrix if allocation.gain is None else matrix * allocation.gain[..., None]
    for image, real in enumerate(tokens.valid):
        fields = {"features": tokens.features, "keys": tokens.keys, "attention": tokens.scores["attention"]}
        fields |= {"relevance": tokens.relevance(question)}
        rows = np.array(
            reference({f: v[image, real].numpy() for f, v in fields.items() if v is not None}, k, **changed)
        )
        distance = np.abs(rows[:, None] - matrix[image][:, real].numpy()).max(axis=2)
        assert rows.shape[0] == k
        assert (distance.min(axis=1) < 1e-6).all()
        assert len(set(distance.argmin(axis=1))) == k


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize(("n", "d", "k"), SIZES)
def test_selector_decides_as_its_rule(name: str, n: int, d: int, k: int):
    compare(name, n, d, min(k, d) if name == "cdpruner" else k)  # beyond the rank every determinant is 0


@pytest.mark.parametrize("name", SELECTORS)
def test_the_comparison_can_fail(name: str):
    with pytest.raises(AssertionError):
        compare(name, 97, 11, 11 if name == "cdpruner" else 31, **SELECTORS[name][1])


@pytest.mark.parametrize("name", SELECTORS)
def test_half_precision_decides_in_full(name: str):
    tokens, question = case(61, 7)
    assert tokens.keys is not None
    half = [v.half() for v in (tokens.features, tokens.keys, tokens.scores["attention"], question.features[:, :1])]
    one, two = (
        load(name).allocate(VisualTokens(x, tokens.boxes, keys=key, scores={"attention": a}), Question(q), 17)
        for x, key, a, q in (half, [v.float() for v in half])
    )
    assert one.anchor.equal(two.anchor)
    assert one.matrix().equal(two.matrix())


@pytest.mark.parametrize("name", SELECTORS)
def test_equal_tokens_do_not_depend_on_the_batch(name: str):
    """A flat sky at a size where rounding could part the same cosines."""
    generator = torch.Generator().manual_seed(5)
    x, keys, attention = (torch.randn(3, 401, c, generator=generator) for c in (67, 31, 1))
    for values in (x, keys, attention):
        values[:, 150:] = values[:, 150:151]
    tokens = VisualTokens.from_grid(x, (401, 1), keys=keys, scores={"attention": attention.squeeze(2)})
    question = Question(x[:, 150:151])
    whole = load(name).allocate(tokens, question, 83)
    for image in range(3):
        one = torch.tensor([image])
        alone = load(name).allocate(tokens.images(one), question.images(one), 83)
        assert alone.anchor[0].equal(whole.anchor[image])
        assert alone.matrix()[0].equal(whole.matrix()[image])


# the kernels of OpenVINO GenAI's tests of its DPP (tests/cpp/test_cdpruner_dpp.cpp), and what must be picked
KERNELS = torch.tensor(
    [
        [[0.8, 0.3, 0.1, 0.2], [0.3, 0.9, 0.4, 0.1], [0.1, 0.4, 0.7, 0.5], [0.2, 0.1, 0.5, 0.6]],
        [[0.6, 0.1, 0.2, 0.3], [0.1, 0.8, 0.3, 0.2], [0.2, 0.3, 0.9, 0.4], [0.3, 0.2, 0.4, 0.7]],
    ]
)


@pytest.mark.parametrize(("k", "picks"), [(0, []), (1, [1]), (2, [1, 0]), (3, [1, 0, 3]), (4, [1, 0, 3, 2])])
def test_greedy_map_gives_known_answers(k: int, picks: list[int]):
    assert greedy_map(KERNELS[:1], k).tolist() == [picks]


def test_greedy_map_takes_a_batch():
    assert greedy_map(KERNELS, 2).tolist() == [[1, 0], [2, 1]]  # .8 - .09 / .9 is more than .7 - .16 / .9


@pytest.mark.parametrize(("n", "rank", "k"), [(23, 29, 11), (31, 17, 13), (19, 7, 7)])
def test_greedy_map_enlarges_the_determinant_the_most(n: int, rank: int, k: int):
    x = torch.randn(3, n, rank, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    kernel = x @ x.transpose(1, 2)
    picks = greedy_map(kernel, k).tolist()
    for image in range(3):
        chosen: list[int] = []
        for pick in picks[image]:
            gain = [
                kernel[image][[*chosen, i]][:, [*chosen, i]].logdet().item() if i not in chosen else -np.inf
                for i in range(n)
            ]
            assert pick == int(np.argmax(gain))
            chosen.append(pick)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 5, 13])
def test_greedy_map_beyond_the_rank_picks_each_once_and_the_strongest_first(rank: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(2, 53, rank, generator=generator, dtype=dtype) * torch.rand(2, 53, 1, generator=generator)
    kernel = x @ x.transpose(1, 2)
    picks = greedy_map(kernel, 47)
    for image in range(2):
        assert len(set(picks[image].tolist())) == 47
        rest = kernel[image].diagonal()[picks[image, rank:]]
        assert (rest.diff() <= 0).all()


def test_cdpruner_beyond_the_rank_keeps_the_budget():
    tokens, question = case(59, 3)
    count = load("cdpruner").allocate(tokens, question, 31).spent().sum(dim=1)
    assert count.tolist() == [31, 31, 31]


def test_cdpruner_keeps_what_is_relevant_and_not_what_is_not():
    x = torch.eye(7)[None]
    question = Question(torch.tensor([[[0.1, -3.0, 0.5, 0.7, 0.2, 0.0, -1.0]]]))
    tokens = VisualTokens(x, torch.rand(1, 7, 4))
    assert load("cdpruner").allocate(tokens, question, 3).anchor.tolist() == [[2, 3, 4]]


def test_cdpruner_with_one_relevance_for_all_is_diversity_alone():
    tokens, question = case(53, 11)
    blind = Question(torch.zeros_like(question.features))
    flat = load("cdpruner").allocate(tokens, blind, 7).anchor
    assert flat.equal(load("cdpruner", theta=0.0).allocate(tokens, question, 7).anchor)
    assert not flat.equal(load("cdpruner", theta=0.9).allocate(tokens, question, 7).anchor)


@pytest.mark.parametrize(("budget", "contextual"), [(192, 30), (128, 20), (64, 10), (160, 25), (3, 0), (1, 0)])
def test_visionzip_splits_the_budget_as_published(budget: int, contextual: int):
    tokens = VisualTokens.from_grid(
        torch.randn(1, 576, 3), (24, 24), keys=torch.randn(1, 576, 5), scores={"attention": torch.rand(1, 576)}
    )
    allocation = load("visionzip").allocate(tokens, None, budget)
    assert allocation.n_out == budget
    assert ((allocation.matrix()[0] > 0).sum(dim=1) > 1).sum() == contextual


def test_visionzip_target_that_nobody_joins_stays_as_it_is():
    keys = torch.tensor([[[1.0, 0], [1, 0.1], [1, 0.2], [0, 1], [1, 0.3], [1, 0.2]]])
    tokens = VisualTokens(
        torch.randn(1, 6, 3), torch.rand(1, 6, 4), keys=keys, scores={"attention": torch.tensor([[0.9, 0, 0, 0, 0, 0]])}
    )
    allocation = load("visionzip", dominant=1 / 3).allocate(tokens, None, 3)  # targets 1 and 3, all others like 1
    assert allocation.gain is not None
    order = allocation.anchor[0].tolist()
    assert allocation.gain[0, order.index(0)] == 1
    assert allocation.gain[0, order.index(3)] == 1
    assert sorted(allocation.gain[0].tolist()) == [1, 1, 2]


def test_prumerge_extra_token_is_one_of_the_budget():
    tokens, _ = case(59, 5)
    attention = tokens.scores["attention"].masked_fill(~tokens.valid, -1)
    for budget in (1, 2, 7):
        allocation = load("prumerge").allocate(tokens, None, budget)
        assert allocation.valid.sum(dim=1).tolist() == [budget] * 3
        most = attention.argsort(dim=1, descending=True, stable=True)[:, :budget]
        assert allocation.anchor.equal(most.sort(dim=1).values)  # the extra stands at the most attended dropped one


def test_prumerge_without_attention_keeps_tokens_as_they_are():
    x = torch.randn(1, 41, 3)
    nothing = VisualTokens(
        x, torch.rand(1, 41, 4), keys=torch.randn(1, 41, 5), scores={"attention": torch.zeros(1, 41)}
    )
    out = load("prumerge").allocate(nothing, None, 5).apply(x)
    assert out[0, :4].equal(x[0, :4])
    assert out[0, 4].abs().max() < 1e-30


@pytest.mark.parametrize("n", [64, 61, 11])
def test_holov_gives_on_what_a_crop_cannot_take(n: int):
    attention = torch.full((1, n), 1e-4)
    attention[0, :4] = 1.0  # nearly all of it in the first crop
    tokens = VisualTokens(torch.randn(1, n, 5), torch.rand(1, n, 4), scores={"attention": attention})
    allocation = load("holov").allocate(tokens, None, 9)
    assert allocation.anchor.shape == (1, 9)
    assert allocation.anchor[0, :4].tolist() == [0, 1, 2, 3]


def test_holov_is_blind_to_the_features():
    """Its authors' scaling takes the variety out again: a crop's mean score is 1.09 times its mean attention."""
    tokens, _ = case(97, 11)
    other = VisualTokens(torch.randn_like(tokens.features), tokens.boxes, tokens.mask, scores=tokens.scores)
    one, two = (load("holov").allocate(t, None, 31).anchor for t in (tokens, other))
    assert one.equal(two)


@pytest.mark.parametrize("n", [83, 84])
@pytest.mark.parametrize("k", [2, 3, 7])
def test_vispruner_keeps_the_budget_where_few_are_left(n: int, k: int):
    tokens = VisualTokens(torch.randn(2, n, 5), torch.rand(2, n, 4), scores={"attention": torch.rand(2, n)})
    assert load("vispruner").allocate(tokens, None, k).anchor.shape == (2, k)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("visionzip", {"dominant": 1.5}),
        ("vispruner", {"ratio": -0.1}),
        ("vispruner", {"drop": 0}),
        ("cdpruner", {"theta": 1.0}),
        ("prumerge", {"neighbours": -1}),
        ("holov", {"crops": 0}),
    ],
)
def test_a_parameter_out_of_range_is_named(name: str, fields: dict):
    with pytest.raises(DataError, match=next(iter(fields))):
        load(name, **fields)
