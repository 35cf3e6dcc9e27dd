"""The parameters of relevance realization, and what they make of an image and a question, at two scales."""

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.allocation import TilePlan
from regard.amount import checked_budget
from regard.errors import DataError
from regard.relevance import tensions, tiles, ways
from regard.relevance.budget import LADDER, feasible, solve
from regard.relevance.quadtree import Quadtree
from regard.relevance.realized import Gaze, Measured, Realized
from regard.relevance.tensions import Balance, States, Tensions
from regard.relevance.ways import Field, Participatory
from regard.tokens import Question, VisualTokens


class Realizer(nn.Module, PyTorchModelHubMixin):
    """The parameters of relevance, few and readable; untrained it has none of them moved.

    spaces, rank: of `Participatory`, where tokens and questions have no space in common.
    """

    def __init__(self, spaces: tuple[int, int] | list[int] | None = None, rank: int = 64) -> None:
        super().__init__()
        self.participatory = Participatory(spaces, rank)
        self.field = Field()
        self.tensions = Tensions()

    def forward(
        self,
        tokens: VisualTokens,
        question: Question | None,
        budget: int,
        states: States | None = None,
        gaze: Gaze | None = None,
    ) -> Realized:
        """Measure, balance and order; `Realized.allocation` is what the budget pays for.

        tokens: on a grid. question: None for a relevance that is the image's alone. budget: tokens an image, at most
        the valid ones. states: by default all are left to their drives. gaze: what earlier looks left. Raises DataError
        for tokens without a grid, ShapeError for a question of another space.
        """
        gaze = gaze or Gaze()
        return self.decide(self.measure(tokens, question, gaze.fixations), budget, states, gaze)

    def measure(
        self, tokens: VisualTokens, question: Question | None, fixations: Float[Tensor, "b f 2"] | None = None
    ) -> Measured:
        """What is there: the most of the work, once for any budget and states."""
        grid, valid = ways.needed_grid(tokens), tokens.valid
        x = ways.standardised(tokens)
        square = torch.linalg.vector_norm(x, dim=2).double().square().masked_fill(~valid, 0)
        diverse = tensions.diversify(tensions.novelty(x, valid), valid)
        seen = self.seen(x, tokens, question, fixations)
        return Measured(tokens, seen, _over_mean(square, valid), diverse, Quadtree.of(x, grid, valid))

    def decide(
        self, measured: Measured, budget: int, states: States | None = None, gaze: Gaze | None = None
    ) -> Realized:
        """What a budget makes of it."""
        valid = measured.tokens.valid
        count = valid.sum(dim=1).double()
        scarcity = 1 - (budget - 1) / (count - 1).clamp(min=1)
        regions = (measured.seen, measured.detail, measured.diverse, valid)
        return Realized(measured, self.balance(*regions, scarcity, states or States(), gaze or Gaze()), budget)

    @torch.no_grad()
    def transjectivity(self, tokens: VisualTokens, question: Question | None) -> float | None:
        """Of one image: `ways.transjectivity` of its likeness; None where nothing is asked."""
        if question is None:
            return None
        asked, bank = self.participatory.likeness(tokens, question)
        return float(ways.transjectivity(ways.mean_word(asked, question), bank, tokens.valid)[0])

    def seen(
        self,
        x: Float[Tensor, "b n d"],
        tokens: VisualTokens,
        question: Question | None,
        fixations: Float[Tensor, "b f 2"] | None = None,
    ) -> Float[Tensor, "b 3 n"]:
        """The three ways, of every token. x: `standardised` features."""
        grid, valid = ways.needed_grid(tokens), tokens.valid
        surprise = ways.propositional(x, grid, valid)
        salience = ways.perspectival(x, grid, valid, fixations)
        return torch.stack((surprise, salience, self.participatory(tokens, question)), dim=1)

    def balance(
        self,
        seen: Float[Tensor, "b 3 r"],
        detail: Float[Tensor, "b r"],
        diverse: Float[Tensor, "b r"],
        valid: Bool[Tensor, "b r"],
        scarcity: Float[Tensor, " b"],
        states: States,
        gaze: Gaze,
    ) -> Balance:
        """Weigh regions. detail: what the floor loses of each, 1 on average. diverse: what diversifying weighs by.
        scarcity: (B,), 1 where the budget pays for the floor alone, 0 where for all.
        """
        field, mix, scores = self.field(seen, valid)
        if gaze.belief is not None:
            field = tensions.shares((field * gaze.belief).sqrt(), valid)
        drives = tensions.drives(field, scores, detail, scarcity, valid, gaze.uncertainty)
        visits = torch.zeros_like(detail) if gaze.visits is None else gaze.visits.double()
        poles = torch.stack((field, tensions.explore(scores, visits, valid), diverse), dim=1)
        return Balance(field, mix, scores, drives, self.tensions(drives, states), poles)


@torch.no_grad()
def plan_tiles(
    tokens: VisualTokens,
    question: Question | None,
    budget: int,
    *,
    layout: tuple[int, int] | None = None,
    aspect: float | None = None,
    states: States | None = None,
    realizer: Realizer | None = None,
) -> TilePlan:
    """Cut the image into tiles and give each 64, 100, 144, 196, 256, 324 or 400 tokens, at most `budget` in all.

    tokens: of the whole image, on a grid of one frame. layout: rows and columns of tiles; by default nearly square ones
    of about 160 tokens each. aspect: the image's width over its height, by default the grid's. What the ladder cannot
    spend (less than 76 tokens) is left. Raises BudgetError for a budget under 64 or over 400 tokens a tile.
    """
    grid, valid = ways.needed_grid(tokens), tokens.valid
    if grid[0] != 1:
        raise DataError(f"tiles are of one image, got a grid of {grid[0]} frames: plan each frame by itself")
    budget = checked_budget(budget)
    rows, columns = (
        tiles.checked_layout(layout, grid) if layout else tiles.layout(grid, budget, aspect or grid[2] / grid[1])
    )
    realizer, count = realizer or Realizer(), rows * columns
    budget = feasible(budget, count, LADDER)
    tile = tiles.members(grid, rows, columns).to(valid.device).expand_as(valid)
    tile = torch.where(valid, tile, -1)
    x = ways.standardised(tokens)
    seen = tiles.fullest(realizer.seen(x, tokens, question), tile, count)
    there = torch.zeros(len(tile), count + 1, device=tile.device).scatter_add(1, tile % (count + 1), valid.float())
    lost = tiles.losses(x, grid, rows, columns, tile)
    sums = x.new_zeros(len(x), count + 1, x.shape[2]).scatter_add(1, (tile % (count + 1))[..., None].expand_as(x), x)
    there, sums = there[:, :-1], sums[:, :-1]
    scarcity = 1 - torch.tensor((budget - count * LADDER[0]) / (count * (LADDER[-1] - LADDER[0])), dtype=torch.float64)
    detail = _over_mean(lost[..., 0], there > 0)
    diverse = tensions.diversify(tensions.novelty(sums, there > 0), there > 0)
    scarcity = scarcity.expand(len(x)).to(x.device)
    balance = realizer.balance(seen, detail, diverse, there > 0, scarcity, states or States(), Gaze())
    ladder = torch.tensor(LADDER, device=x.device)
    general = (ladder / LADDER[0]).log() / (ladder[-1] / LADDER[0]).log()
    recovered = tiles.recovered(x, sums, tile, lost, general)
    scope = balance.states[:, 0, None, None]
    values = (1 - scope) * general + scope * recovered
    counts = solve(balance.terms.sum(dim=1), values, ladder, budget)
    return TilePlan(tiles.boxes(rows, columns).to(x.device).expand(len(x), -1, -1), counts)


def _over_mean(values: Float[Tensor, "b r"], valid: Bool[Tensor, "b r"]) -> Float[Tensor, "b r"]:
    mean = values.sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp(min=1)
    return values / mean.clamp(min=1e-12)
