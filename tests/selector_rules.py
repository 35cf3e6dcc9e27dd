"""The rules of the published selectors in plain loops, and random tokens to try them on."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from regard import Question, VisualTokens

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
