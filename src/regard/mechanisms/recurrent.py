"""RAM, the recurrent attention model (Mnih et al., arXiv 1406.6247): glimpses, and a policy for where the next is.

    g_t = relu(W relu(W retina(x, l_t)) + W relu(W l_t))        what is seen, and where
    h_t = relu(W h_{t-1} + W g_t), or an LSTM                   what is known
    l_{t+1} ~ N(tanh(W h_t), std^2),    l_1 ~ U(-1, 1)^2        where to look next
    p = softmax(W h_T)

A location is (x, y) in [-1, 1], (-1, -1) the top left corner. The class learns by cross-entropy through glimpse and
core; the location net alone by REINFORCE, with reward 1 for the right class and a baseline W h_t that learns the mean
reward (`loss`). Ours differs in that the glimpses of a whole batch are cut at once, at a cost that does not depend on
the size of the image, and in that it may look several times: a class has the mean probability of these runs.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.errors import ShapeError
from regard.mechanisms._crop import windows
from regard.mechanisms.looker import Looked, Looker, check_fixations, check_pixels

COPIES = 10  # runs over an image whose probabilities are averaged


def retina(
    images: Float[Tensor, "b c h w"] | Int[Tensor, "b c h w"], at: Float[Tensor, "b 2"], size: int, scales: int
) -> Float[Tensor, "b s c g g"]:
    """Patches about a location: the first of size x size pixels, each next twice as wide, all averaged to size x size.

    images: floats, or uint8, which are read as [0, 1]. What lies outside of the image is 0. The patch is moved to whole
    pixels. (B, scales, C, size, size).
    """
    widest, white = size * 2 ** (scales - 1), 255 if images.dtype == torch.uint8 else 1
    patch = windows(images, at, widest).to(at.dtype)
    levels = []
    for scale in range(scales):
        wide = size * 2**scale
        edge = (widest - wide) // 2
        crop = patch[..., edge : edge + wide, edge : edge + wide]
        levels.append(F.avg_pool2d(crop, 2**scale, divisor_override=white * 4**scale) if scale else crop / white)
    return torch.stack(levels, dim=1)


@dataclass(frozen=True, eq=False)
class Glimpses:
    """What a batch saw. logits: (B, classes). locations: (B, T, 2), where each glimpse was, x and y in [-1, 1].
    states: (B, T, hidden), what was known after each. log_prob: (B, T - 1) of the locations that were chosen.
    baselines: (B, T - 1), the reward expected before each.
    """

    logits: Float[Tensor, "b k"]
    locations: Float[Tensor, "b t 2"]
    states: Float[Tensor, "b t d"]
    log_prob: Float[Tensor, "b u"]
    baselines: Float[Tensor, "b u"]


class RecurrentAttention(Looker):
    """RAM over images of `channels` channels and any size. glimpse: pixels of a side of the finest patch.

    scales: patches of a glimpse. std: of the policy, in the units of a location. core: "rectifier", the paper's for
    classification, or "lstm", its for control. policy: "random" looks anywhere, to compare with.
    """

    name = "ram"
    runs = COPIES

    def __init__(
        self,
        classes: int = 10,
        channels: int = 1,
        glimpses: int = 6,
        glimpse: int = 8,
        scales: int = 1,
        hidden: int = 256,
        std: float = 0.1,
        core: Literal["rectifier", "lstm"] = "rectifier",
        policy: Literal["learned", "random"] = "learned",
    ) -> None:
        super().__init__()
        if min(glimpses, glimpse, scales, channels) < 1 or not 0 < std < math.inf:
            got = f"glimpses={glimpses}, glimpse={glimpse}, scales={scales}, channels={channels} and std={std}"
            raise ShapeError(
                f"glimpses, glimpse, scales and channels must be 1 or more and std a number above 0, got {got}"
            )
        self.channels, self.std, self.hidden = channels, std, hidden
        self.glimpses, self.glimpse, self.scales, self.policy = glimpses, glimpse, scales, policy
        half = hidden // 2
        self.what = nn.Sequential(nn.Linear(scales * channels * glimpse**2, half), nn.ReLU(), nn.Linear(half, hidden))
        self.where = nn.Sequential(nn.Linear(2, half), nn.ReLU(), nn.Linear(half, hidden))
        self.core = nn.LSTMCell(hidden, hidden) if core == "lstm" else nn.Linear(2 * hidden, hidden)
        self.locate = nn.Linear(hidden, 2)
        self.expect = nn.Linear(hidden, 1)
        self.classify = nn.Linear(hidden, classes)

    def forward(self, images: Tensor, noise: Float[Tensor, "b t 2"]) -> Glimpses:
        """images: (B, C, H, W), uint8, or floats in [0, 1]. noise: (B, T, 2): the first location, U(-1, 1), and N(0, 1)
        for each next. Raises ShapeError for a glimpse that is larger than the image, or scales of which the
        last two both hold all of it from anywhere.
        """
        check_pixels(images, self.channels)
        if self.glimpse > min(images.shape[2:]):
            size = f"{images.shape[3]} x {images.shape[2]}"
            raise ShapeError(f"a glimpse of {self.glimpse} x {self.glimpse} is larger than the image, {size} pixels")
        widest, longest = self.glimpse * 2 ** (self.scales - 1), max(images.shape[2:])
        if self.scales > 1 and widest >= 4 * longest:
            raise ShapeError(
                f"{self.scales} scales read {widest} pixels of a side, the image has {longest}: take fewer"
            )
        at, state = noise[:, 0], None
        hidden = at.new_zeros(len(images), self.hidden)
        locations, log_probs, baselines, states = [at], [], [], []
        for turn in range(1, self.glimpses + 1):
            patch = retina(images, at, self.glimpse, self.scales).flatten(1)
            seen = F.relu(self.what(patch) + self.where(at))
            if isinstance(self.core, nn.LSTMCell):
                state = self.core(seen, state)
                hidden = state[0]
            else:
                hidden = F.relu(self.core(torch.cat((hidden, seen), dim=1)))
            states.append(hidden)
            if turn < self.glimpses:
                known = hidden.detach()
                mean = self.locate(known).tanh()
                chosen = (mean + self.std * noise[:, turn]).detach()
                error = ((chosen - mean) / self.std).square().sum(dim=1)
                log_probs.append(-0.5 * error - 2 * math.log(self.std) - math.log(2 * math.pi))
                baselines.append(self.expect(known)[:, 0])
                at = chosen.clamp(-1, 1) if self.policy == "learned" else torch.erf(noise[:, turn] / math.sqrt(2))
                locations.append(at)
        none = at.new_zeros(len(images), 0)
        stacked = [torch.stack(part, dim=1) if part else none for part in (log_probs, baselines)]
        return Glimpses(
            self.classify(hidden), torch.stack(locations, dim=1), torch.stack(states, dim=1), stacked[0], stacked[1]
        )

    def look(self, pixels: Tensor, seed: int = 0, copies: int = COPIES) -> Looked:
        """Look `copies` times, with other first locations and draws each, the same for all images: a class has the mean
        of its probabilities, and the glimpses are those of the first copy.
        """
        return self._looked(pixels, self._draws(copies, seed), None)

    def look_at(self, pixels: Tensor, fixations: Float[Tensor, "b 2"], seed: int = 0) -> Looked:
        """As `look`, with the first glimpse of every copy at these places."""
        check_fixations(fixations, len(pixels))
        return self._looked(pixels, self._draws(COPIES, seed), fixations)

    def _draws(self, copies: int, seed: int) -> Float[Tensor, "c t 2"]:
        return noise(copies, self.glimpses, torch.Generator().manual_seed(seed)).to(self.locate.weight)

    def _looked(self, pixels: Tensor, draws: Float[Tensor, "c t 2"], first: Float[Tensor, "b 2"] | None) -> Looked:
        check_pixels(pixels, self.channels)
        batch, copies = len(pixels), len(draws)
        each_draw = draws[:, None].repeat(1, batch, 1, 1)
        if first is not None:
            each_draw[:, :, 0] = first
        runs = [self(pixels, draw) for draw in each_draw]
        logits = torch.stack([run.logits.softmax(dim=1) for run in runs]).mean(dim=0).log()
        height, width = pixels.shape[2:]
        centres = (runs[0].locations + 1) / 2
        half = self.glimpse * 2 ** (self.scales - 1) / 2 / centres.new_tensor((width, height))
        boxes = torch.cat((centres - half, centres + half), dim=-1).clamp(0, 1)
        turns = torch.arange(self.glimpses, device=centres.device).expand(batch, -1)
        each = torch.ones_like(turns[:, 0])
        return Looked(
            logits,
            runs[0].states,
            boxes,
            turns,
            each * (self.glimpses - 1),
            each * copies * self.glimpses * self.scales,
            each * copies * self.macs,
            centres,
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run over one image: products of its linear layers."""
        return self._macs(self.glimpses)

    def full_macs(self, height: int, width: int) -> int:
        """Of one run with as many glimpses as cover the image by their finest patches."""
        return self._macs(-(-height // self.glimpse) * -(-width // self.glimpse))

    def _macs(self, glimpses: int) -> int:
        linear = [one for one in self.modules() if isinstance(one, nn.Linear)]
        once = {id(self.classify): 1, id(self.locate): glimpses - 1, id(self.expect): glimpses - 1}
        total = sum(one.weight.numel() * once.get(id(one), glimpses) for one in linear)
        core = self.core.weight_ih.numel() + self.core.weight_hh.numel() if isinstance(self.core, nn.LSTMCell) else 0
        return total + core * glimpses


def loss(seen: Glimpses, labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    """Cross-entropy, the baseline's squared error, and REINFORCE: -(R - b_t) log pi(l_t), R = 1 for the right class."""
    reward = (seen.logits.argmax(dim=1) == labels).to(seen.logits.dtype)[:, None]
    gain = (reward - seen.baselines).detach()
    policy = -(gain * seen.log_prob).sum(dim=1).mean()
    return F.cross_entropy(seen.logits, labels) + (seen.baselines - reward).square().sum(dim=1).mean() + policy


def noise(batch: int, glimpses: int, generator: torch.Generator | None = None) -> Float[Tensor, "b t 2"]:
    """What `forward` needs: a uniform first location, and a normal draw for each next. On the CPU, whose draws are the
    same for every device.
    """
    first = torch.rand(batch, 1, 2, generator=generator, device="cpu") * 2 - 1
    return torch.cat((first, torch.randn(batch, glimpses - 1, 2, generator=generator, device="cpu")), dim=1)
