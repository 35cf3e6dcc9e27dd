"""How noisy RAM's gradients are: of the location net, by REINFORCE with its baseline and without, and of the rest.

A bright square in one of four corners is the class. After a short training, the gradient of the location net is taken
of many batches of the same images with other draws; noise is its total standard deviation over the length of its mean,
which the baseline does not move, and for the classifier, which learns by cross-entropy, the same. Ten seeds.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.bench.claims.experiments._shared import Series, fit, percent
from regard.mechanisms.recurrent import Glimpses, RecurrentAttention, loss, noise

SIDE, GLIMPSES = 16, 3


def images(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A square of 4 pixels in a corner, moved by up to 3, and where."""
    labels = torch.randint(0, 4, (count,), generator=generator)
    moved = torch.randint(0, 4, (count, 2), generator=generator)
    x, y = labels % 2 * (SIDE // 2 + 1) + moved[:, 0], labels // 2 * (SIDE // 2 + 1) + moved[:, 1]
    axis = torch.arange(SIDE)
    wide, high = ((axis >= at[:, None]) & (axis < at[:, None] + 4) for at in (x, y))
    return (high[:, :, None] & wide[:, None]).float()[:, None], labels


def noises(seed: int, steps: int, draws: int = 200) -> tuple[float, float, float, float]:
    """Of the location net with the baseline and without it, of the classifier, and the accuracy in percent."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = RecurrentAttention(4, glimpses=GLIMPSES, glimpse=4, hidden=32, std=0.2)

    def learn() -> Tensor:
        pixels, labels = images(64, generator)
        return loss(model(pixels, noise(64, GLIMPSES, generator)), labels)

    fit(model.parameters(), learn, steps, 2e-3)
    pixels, labels = images(64, generator)
    kinds: list[list[Tensor]] = [[], [], []]
    right = []
    for _ in range(draws):
        seen = model(pixels, noise(64, GLIMPSES, generator))
        right.append(percent(seen.logits.argmax(dim=1) == labels))
        for place, value in enumerate((policy(seen, labels, True), policy(seen, labels, False))):
            kinds[place].append(torch.autograd.grad(value, model.locate.weight, retain_graph=True)[0].flatten())
        value = F.cross_entropy(seen.logits, labels)
        kinds[2].append(torch.autograd.grad(value, model.classify.weight)[0].flatten())
    with_it, without, classifier = (torch.stack(some) for some in kinds)
    found = _noise(with_it, with_it), _noise(without, with_it), _noise(classifier, classifier)
    return *found, sum(right) / len(right)


def policy(seen: Glimpses, labels: Tensor, baseline: bool) -> Tensor:
    """REINFORCE alone, as in `regard.mechanisms.recurrent.loss`, and without what it takes off."""
    reward = (seen.logits.argmax(dim=1) == labels).float()[:, None]
    gain = (reward - seen.baselines if baseline else reward).detach()
    return -(gain * seen.log_prob).sum(dim=1).mean()


def _noise(gradients: Tensor, least: Tensor) -> float:
    """The standard deviation over the length of the mean; least: of the same mean, with the least noise."""
    return float(gradients.var(dim=0).sum().sqrt() / least.mean(dim=0).norm())


def run(seeds: Sequence[int] = range(10), steps: int = 400) -> list[Series]:
    """Noise of the gradients, in lengths of their mean."""
    found = list(zip(*(noises(seed, steps) for seed in seeds), strict=True))
    names = ("location net, with the baseline", "location net, without it", "classifier, by cross-entropy")
    spread = [Series(f"noise of the gradient: {name}", "lengths", found[place]) for place, name in enumerate(names)]
    return [
        *spread,
        Series(
            "noise without the baseline / with it", "ratio", tuple(b / a for a, b, _, _ in zip(*found, strict=True))
        ),
        Series(
            "noise of the location net / of the classifier",
            "ratio",
            tuple(a / c for a, _, c, _ in zip(*found, strict=True)),
        ),
        Series("accuracy at that time", "%", found[3]),
    ]
