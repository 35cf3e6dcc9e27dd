"""Three ways of knowing, each a map of one image's tokens in [0, 1], and the field of relevance that they make.

Propositional: what surprises, given its neighbours. Perspectival: what stands out from here. Participatory: what this
question and this content have with one another, and neither has alone. The fourth, procedural, is not measured: it is
what training changes in the parameters here. Everything is of one image: nothing is normalised over a batch. Sums whose
rounding could depend on batch or padding are taken in float64.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.errors import DataError, ShapeError
from regard.tokens import Question, VisualTokens

CENTRE, SURROUND = 1.0, 5.0  # tokens: the deviations of the two Gaussians
ACUITY_HALVES, ACUITY_SHARE = 0.15, 0.5  # in diagonals: where acuity is a half; how much of salience it scales
_CHANNELS = 128
_FLAT = 1e-5  # of the largest value: deviations under it are rounding


def needed_grid(tokens: VisualTokens) -> tuple[int, int, int]:
    """The grid of the tokens. Raises DataError where they are none."""
    if tokens.grid is None:
        raise DataError(
            "relevance needs tokens on a grid (grid), got tokens without one, as of a picture cut into tiles: "
            "take an eye that gives a grid, or another allocator"
        )
    return tokens.grid


def standardised(tokens: VisualTokens) -> Float[Tensor, "b n d"]:
    """Features about the image's mean, in units of their root mean square; 0 where padded or where all are alike."""
    valid = tokens.valid
    x = tokens.features.detach().to(torch.promote_types(tokens.features.dtype, torch.float32))
    x = x if tokens.mask is None else x.masked_fill(~valid[..., None], 0)
    largest = x.abs().amax(dim=(1, 2), keepdim=True)
    count = valid.sum(dim=1).clamp(min=1)[:, None, None]
    x = x - (x.sum(dim=1, keepdim=True, dtype=torch.float64) / count).to(x.dtype)
    if tokens.mask is not None:
        x.masked_fill_(~valid[..., None], 0)
    energy = torch.linalg.vector_norm(x, dim=2).double().square().sum(dim=1)[:, None, None]
    rms = (energy / (count * x.shape[2])).sqrt()
    flat = rms <= _FLAT * largest
    return x.mul_(torch.where(flat, 0, 1 / torch.where(flat, 1, rms)).to(x.dtype))


def propositional(
    x: Float[Tensor, "b n d"], grid: tuple[int, int, int], valid: Bool[Tensor, "b n"]
) -> Float[Tensor, "b n"]:
    """Local surprisal s / (1 + s), in [0, 1): s = log2(1 + e / median(e)) / 2 bits, what a Gaussian about the mean of
    the eight neighbours finds surprising, with e the mean squared distance from it.

    0 everywhere in a constant image. x: `standardised` features, so x -> a x + c changes nothing.
    """
    total, count = _three_by_three(x, grid), _three_by_three(valid[..., None].to(x.dtype), grid)
    away = torch.linalg.vector_norm(total.addcmul_(x, count, value=-1), dim=2).double()  # from the mean, x the others
    others = (count.squeeze(2) - 1).double()
    error = torch.where(others > 0, away / others.clamp(min=1), 0).square() / x.shape[2]
    middle = _lower_median(error, valid) + 1e-6
    bits = 0.5 * torch.log2(1 + error / middle)
    return (bits / (1 + bits)).masked_fill(~valid, 0)


def perspectival(
    x: Float[Tensor, "b n d"],
    grid: tuple[int, int, int],
    valid: Bool[Tensor, "b n"],
    fixations: Float[Tensor, "b f 2"] | None = None,
) -> Float[Tensor, "b n"]:
    """Centre-surround salience in [0, 1), with acuity falling with the distance from the current fixations.

    c^2 / (c^2 + its mean around + 1e-6), c the size of the difference of two blurs (1 and 5 tokens). Without a fixation
    acuity is 1 everywhere; with fixations (x, y in [0, 1]) salience is scaled by 1/2 + acuity / 2, with acuity 1 at a
    fixation and 1/2 at 0.15 diagonals. x: `standardised` features.
    """
    near, far = (_Blur(grid, valid, deviation) for deviation in (CENTRE, SURROUND))
    contrast = torch.zeros(valid.shape, dtype=torch.float64, device=x.device)
    for part in x.split(_CHANNELS, dim=2):  # some at a time: quick, and little memory
        part = part.double()
        contrast += torch.linalg.vector_norm(near(part).sub_(far(part)), dim=2).square()
    contrast = contrast.masked_fill(~valid, 0)
    salience = contrast / (contrast + far(contrast[..., None]).squeeze(2) + 1e-6)
    if fixations is not None:
        salience = salience * (1 - ACUITY_SHARE + ACUITY_SHARE * acuity(grid, fixations.double()))
    return salience.masked_fill(~valid, 0)


def acuity(grid: tuple[int, int, int], fixations: Float[Tensor, "b f 2"]) -> Float[Tensor, "b n"]:
    """1 / (1 + d / 0.15) of the nearest fixation, d in diagonals of the grid. fixations: x, y in [0, 1]."""
    frames, h, w = grid
    y = (torch.arange(h, device=fixations.device, dtype=fixations.dtype) + 0.5)[:, None]
    x = (torch.arange(w, device=fixations.device, dtype=fixations.dtype) + 0.5)[None]
    dx, dy = x - fixations[..., 0, None, None] * w, y - fixations[..., 1, None, None] * h
    nearest = torch.hypot(dx, dy).amin(dim=1) / math.hypot(h, w)
    return (1 / (1 + nearest / ACUITY_HALVES)).flatten(1).repeat(1, frames)


class Participatory(nn.Module):
    """What question and content have with one another: sigmoid(interaction / T), in (0, 1), 0.5 where there is none.

    The likeness of a token and a word is their inner product over the word's length and the root mean square length of
    the image's tokens: the cosine where all are unit vectors. Its interaction is what is left of it when the token's
    mean over a bank of reference questions and the word's mean over the tokens are taken off: what the image or the
    question does alone cancels. Words count by the variance of their interaction over the image.
    spaces: (E, F), the widths of tokens and questions, where they have no space in common and a projection of `rank`
    dimensions for each is learned.
    """

    def __init__(self, spaces: tuple[int, int] | list[int] | None = None, rank: int = 64) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.07)))
        self.content = nn.Linear(spaces[0], rank, bias=False) if spaces else nn.Identity()
        self.words = nn.Linear(spaces[1], rank, bias=False) if spaces else nn.Identity()

    def likeness(
        self, tokens: VisualTokens, question: Question
    ) -> tuple[Float[Tensor, "b n t"], Float[Tensor, "b n m"]]:
        """Of each token with each word asked, and with each of the M reference questions (with none: one of zeros)."""
        return self._likeness(tokens, question, self._bank(question))

    def _likeness(self, tokens: VisualTokens, question: Question, bank: Tensor) -> tuple[Tensor, Tensor]:
        content = tokens.features if tokens.aligned is None else tokens.aligned
        content = content if tokens.mask is None else content.masked_fill(~tokens.valid[..., None], 0)
        content = self._projected(self.content, content, "tokens")
        words = question.features
        if question.mask is not None:
            words = words.masked_fill(~question.mask[..., None], 0)
        words = F.normalize(self._projected(self.words, words, "question"), dim=2)
        if words.shape[2] != content.shape[2]:
            raise ShapeError(
                f"the question has {words.shape[2]} dimensions and the tokens' space {content.shape[2]}: "
                "ask with the eye that looked"
            )
        length = torch.linalg.vector_norm(content, dim=(1, 2))
        length = length / tokens.valid.sum(dim=1).clamp(min=1).double().sqrt()
        every = torch.cat((words, bank.expand(len(words), -1, -1)), dim=1)
        like = content @ every.transpose(1, 2) / length.clamp(min=1e-12)[:, None, None]
        return like[..., : words.shape[1]], like[..., words.shape[1] :]

    def _bank(self, question: Question) -> Float[Tensor, "m f"]:
        if question.reference is None:
            width = self.words.out_features if isinstance(self.words, nn.Linear) else question.features.shape[2]
            return torch.zeros(1, width, dtype=torch.float64, device=question.features.device)
        return F.normalize(self._projected(self.words, question.reference, "reference questions"), dim=1)

    def forward(self, tokens: VisualTokens, question: Question | None) -> Float[Tensor, "b n"]:
        """(B, N) in (0, 1). No question: 0.5 everywhere."""
        valid = tokens.valid
        if question is None:
            return torch.full(valid.shape, 0.5, dtype=torch.float64, device=valid.device)
        mean = self._bank(question).mean(dim=0, keepdim=True)  # of the bank nothing but its mean is needed here
        alone = interaction(*self._likeness(tokens, question, mean), valid)
        real = torch.ones_like(alone[:, 0], dtype=torch.bool) if question.mask is None else question.mask
        power = (alone.square().sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1) + 1e-6) * real
        share = power / power.sum(dim=1, keepdim=True)
        return ((alone * share[:, None]).sum(dim=2) / self.log_temperature.to(alone).exp()).sigmoid()

    @staticmethod
    def _projected(to: nn.Module, x: Tensor, what: str) -> Tensor:
        if isinstance(to, nn.Linear):
            if x.shape[-1] != to.in_features:
                raise ShapeError(
                    f"the {what} have {x.shape[-1]} dimensions, this realizer was made for {to.in_features}"
                )
            return F.linear(x.detach().double(), to.weight.to(x.device, torch.float64))
        return x.detach().double()


def mean_word(asked: Float[Tensor, "b n t"], question: Question) -> Float[Tensor, "b n 1"]:
    """Over the words that are real."""
    if question.mask is None:
        return asked.mean(dim=2, keepdim=True)
    real = question.mask[:, None].to(asked.dtype)
    return (asked * real).sum(dim=2, keepdim=True) / real.sum(dim=2, keepdim=True)


def interaction(
    asked: Float[Tensor, "b n t"], bank: Float[Tensor, "b n m"], valid: Bool[Tensor, "b n"]
) -> Float[Tensor, "b n t"]:
    """Double-centred likeness: a_it less a token's mean over the bank, less the word's mean over the tokens of both.

    Adding to `asked` and `bank` what depends on the token alone, or to a word what depends on it alone, changes
    nothing. 0 where padded.
    """
    own = (asked - bank.mean(dim=2, keepdim=True)).masked_fill(~valid[..., None], 0)
    mean = own.sum(dim=1, keepdim=True) / valid.sum(dim=1)[:, None, None].clamp(min=1)
    return (own - mean).masked_fill(~valid[..., None], 0)


def transjectivity(
    asked: Float[Tensor, "b n t"], bank: Float[Tensor, "b n m"], valid: Bool[Tensor, "b n"]
) -> Float[Tensor, " b"]:
    """The share of the variance of likeness, in a table of tokens x questions, that is interaction: it belongs to
    neither the content nor the question alone. In [0, 1]; 0 where nothing varies. asked: (B, N, T), its words' mean is
    one question beside the M of the bank.
    """
    table = torch.cat((asked.mean(dim=2, keepdim=True), bank), dim=2)
    real = valid[..., None].to(table.dtype)
    count = real.sum(dim=1, keepdim=True).clamp(min=1)
    table = table - (table * real).sum(dim=(1, 2), keepdim=True) / (count * table.shape[2])
    by_token, by_question = table.mean(dim=2, keepdim=True), (table * real).sum(dim=1, keepdim=True) / count
    both = ((table - by_token - by_question).square() * real).sum(dim=(1, 2))
    total = (table.square() * real).sum(dim=(1, 2))
    return torch.where(total > 0, both / torch.where(total > 0, total, 1), 0).clamp(0, 1)


class Field(nn.Module):
    """The relevance of each region, (B, R), sum 1: the ways as robust scores, weighted by their precision.

    z = (way - median) / (1.4826 MAD + floor), clipped to 4. A way's precision is 1 less the entropy of softmax(z) over
    that of an even field; its weight is softmax(log(precision + 0.001) + g), g learned. The field is
    softmax(sum of weight x z / T), with T = 0.7 before training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(3))
        self.log_temperature = nn.Parameter(torch.tensor(0.7).log())

    def forward(
        self, ways: Float[Tensor, "b 3 r"], valid: Bool[Tensor, "b r"]
    ) -> tuple[Float[Tensor, "b r"], Float[Tensor, "b 3"], Float[Tensor, "b 3 r"]]:
        """The field, the weight of each way, and the scores z."""
        z = robust_scores(ways, valid)
        regions = valid.sum(dim=1)[:, None]
        precision = 1 - entropy(_softmax(z, valid[:, None])) / regions.double().log().clamp(min=1e-9)
        mix = (precision.clamp(min=0).add(1e-3).log() + self.gain.to(precision)).softmax(dim=1)
        scores = (mix[..., None] * z).sum(dim=1) / self.log_temperature.to(z).exp()
        return _softmax(scores, valid), mix, z


FLOOR = 0.02  # what a way has to vary by, in its own range of 1, before its scores mean something


def robust_scores(ways: Float[Tensor, "b 3 r"], valid: Bool[Tensor, "b r"]) -> Float[Tensor, "b 3 r"]:
    """(way - median) / (1.4826 median absolute deviation + floor), clipped to [-4, 4]; 0 where padded."""
    wide = valid[:, None].expand_as(ways).flatten(0, 1)
    flat = ways.flatten(0, 1)
    away = flat - _lower_median(flat.detach(), wide)
    spread = 1.4826 * _lower_median(away.detach().abs(), wide) + FLOOR
    return (away / spread).clamp(-4, 4).masked_fill(~wide, 0).view_as(ways)


def entropy(p: Float[Tensor, "... r"]) -> Float[Tensor, "..."]:
    """In nats, over the last dimension."""
    return -torch.special.xlogy(p, p).sum(dim=-1)


def _softmax(x: Tensor, valid: Tensor) -> Tensor:
    return x.masked_fill(~valid, -torch.inf).softmax(dim=-1).masked_fill(~valid, 0)


def _lower_median(x: Float[Tensor, "b n"], valid: Bool[Tensor, "b n"]) -> Float[Tensor, "b 1"]:
    place = (valid.sum(dim=1, keepdim=True) - 1).clamp(min=0) // 2
    return x.masked_fill(~valid, torch.inf).sort(dim=1).values.gather(1, place)


def _three_by_three(x: Float[Tensor, "b n c"], grid: tuple[int, int, int]) -> Float[Tensor, "b n c"]:
    """The sum of each token and its neighbours in its frame."""
    x = x.unflatten(1, grid)
    for axis in (2, 3):
        wide = x.clone()
        wide.narrow(axis, 1, x.shape[axis] - 1).add_(x.narrow(axis, 0, x.shape[axis] - 1))
        wide.narrow(axis, 0, x.shape[axis] - 1).add_(x.narrow(axis, 1, x.shape[axis] - 1))
        x = wide
    return x.flatten(1, 3)


class _Blur:
    """The mean of the valid tokens of a frame around each, by a Gaussian of `deviation` tokens."""

    def __init__(self, grid: tuple[int, int, int], valid: Bool[Tensor, "b n"], deviation: float) -> None:
        self._grid = grid
        self._rows, self._columns = (_gaussian(side, deviation, valid.device) for side in grid[1:])
        self._weight = self._spread(valid[..., None].double()).clamp(min=1e-12)

    def __call__(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        return self._spread(x).div_(self._weight)

    def _spread(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, self._grid)
        x = torch.matmul(self._rows, x.flatten(3)).view_as(x)  # (H, H) x (B, T, H, W * C)
        return torch.matmul(self._columns, x).flatten(1, 3)  # (W, W) x (B, T, H, W, C)


def _gaussian(side: int, deviation: float, device: torch.device) -> Float[Tensor, "s s"]:
    place = torch.arange(side, device=device, dtype=torch.float64)
    return torch.exp(-0.5 * ((place[:, None] - place) / deviation).square())
